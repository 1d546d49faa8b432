"""What a regular expression is like inside: which characters it tells apart, how it repeats.

Nothing is decided by it; `policy.lint` tells people. RE2's grammar is small, and Python's own
parser is private and knows another one, so the pattern is scanned here; what a single class, escape
or letter stands for is asked of RE2 itself.

Each class or letter becomes a *position*, and `_follow` says which positions may come next (the
Glushkov automaton of the pattern). A repetition is *ambiguous* when one text leads from a position
back to itself in two ways: an engine that backtracks tries all of them, twice as many for each
round. ``(a+)+`` and ``(a|a)*`` are; ``(/[^/]+)*`` repeats a repetition too, but the slash says
where each round begins. Source: Weideman et al., "Analyzing matching time behavior of backtracking
regular expression matchers by using ambiguity of NFA", 2016 (EDA).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

from mesh_middleware.policy.match import characters

MOST_POSITIONS: Final = 256
"""Counted repetitions are counted out. A longer pattern is not looked into."""
DEEPEST_GROUP: Final = 64

_ASCII: Final = "".join(map(chr, range(128)))
_QUOTED: Final = re.compile(r"\\Q(.*?)(?:\\E|\Z)|\\.", re.DOTALL)
_GROUP: Final = re.compile(r"\((?:\?(?:P?<\w+>|(?P<flags>[a-zA-Z-]*)(?P<end>[:)])))?")
_OR: Final = re.compile(r"\|")
_NO_WIDTH: Final = re.compile(r"[\^$]|\\[AzbB]")
_REPEAT: Final = re.compile(r"(?:[*+?]|\{(?P<low>\d+)(?P<more>,(?P<high>\d*))?\})\??")
_ONE: Final = re.compile(
    r"\[\^?\]?(?:\[:\^?\w+:\]|\\.|[^\]\\])*\]"
    r"|\\(?:[pP](?:\{[^}]*\}|.)|x(?:\{[^}]*\}|..)|[0-7]{1,3}|.)"
    r"|.",
    re.DOTALL,
)


@dataclass(frozen=True, slots=True)
class Shape:
    """`characters`: for each position, the ASCII and own characters of the pattern that it takes.

    `ambiguous`: a repetition of it can take exponential time where an engine backtracks.
    """

    characters: tuple[frozenset[str], ...]
    ambiguous: bool

    @property
    def tells_case(self) -> bool:
        """True when some position takes an ASCII letter and not its other case."""
        return any(
            c.isascii() and c.isalpha() and c.swapcase() not in taken
            for taken in self.characters
            for c in taken
        )


def shape_of(pattern: str) -> Shape | None:
    """The shape of a pattern; None when RE2 does not compile it or it is too large."""
    if characters(pattern, "") is None:
        return None
    scanner = _Scanner(_QUOTED.sub(_unquoted, pattern))
    try:
        scanner.alternatives()
    except _TooLargeError:
        return None
    return Shape(tuple(scanner.characters), scanner.ambiguous)


def _unquoted(found: re.Match[str]) -> str:
    return found[0] if found[1] is None else re.escape(found[1])


class _TooLargeError(Exception):
    """More than `MOST_POSITIONS`, or deeper than `DEEPEST_GROUP`."""


@dataclass(frozen=True, slots=True)
class _Part:
    """A piece of a pattern: where it may begin and end, and whether it may be empty."""

    first: tuple[int, ...] = ()
    last: tuple[int, ...] = ()
    empty: bool = True


_NOTHING: Final = _Part()


class _Scanner:
    """Recursive descent over a pattern that RE2 compiles, so that nothing here can be wrong."""

    def __init__(self, pattern: str) -> None:
        self.characters: list[frozenset[str]] = []
        self.ambiguous = False
        self._follow: list[list[int]] = []
        self._pattern = pattern
        self._alphabet = "".join(dict.fromkeys(_ASCII + pattern))
        self._at = 0
        self._flags = ""
        self._depth = 0

    def alternatives(self) -> _Part:
        """Up to the end of the group or pattern."""
        found = self._sequence()
        while self._taken(_OR):
            other = self._sequence()
            found = _Part(
                found.first + other.first, found.last + other.last, found.empty or other.empty
            )
        return found

    def _sequence(self) -> _Part:
        found = _NOTHING
        while self._at < len(self._pattern) and self._pattern[self._at] not in "|)":
            found = self._joined(found, self._repeated())
        return found

    def _joined(self, left: _Part, right: _Part) -> _Part:
        self._lead(left.last, right.first)
        return _Part(
            left.first + (right.first if left.empty else ()),
            right.last + (left.last if right.empty else ()),
            left.empty and right.empty,
        )

    def _lead(self, ends: Sequence[int], starts: Sequence[int]) -> None:
        for end in ends:
            self._follow[end] += starts

    def _repeated(self) -> _Part:
        start, before = self._at, len(self.characters)
        copies = [self._piece()]
        found = self._taken(_REPEAT)
        if found is None:
            return copies[0]
        low, high = _bounds(found)
        for _ in range(1, max(low, high or 0)):
            self._at, before = start, len(self.characters)
            copies.append(self._piece())
        self._at = found.end()
        if high is None:
            self._lead(copies[-1].last, copies[-1].first)
            self.ambiguous = self.ambiguous or self._is_ambiguous(before)
        # a{1,3} is a(a(a)?)?: after each copy there is one way only to go on.
        joined = _NOTHING
        for number in reversed(range(0 if high == 0 else len(copies))):
            joined = self._joined(copies[number], joined)
            if number >= low:
                joined = replace(joined, empty=True)
        return joined

    def _taken(self, token: re.Pattern[str]) -> re.Match[str] | None:
        found = token.match(self._pattern, self._at)
        if found:
            self._at = found.end()
        return found

    def _piece(self) -> _Part:
        """A group, a position, or something without width."""
        if group := self._taken(_GROUP):
            return self._group(group)
        if self._taken(_NO_WIDTH) or not (one := self._taken(_ONE)):
            return _NOTHING
        number = len(self.characters)
        if number == MOST_POSITIONS:
            raise _TooLargeError
        self.characters.append(characters(self._flags + one[0], self._alphabet) or frozenset())
        self._follow.append([])
        return _Part((number,), (number,), empty=False)

    def _group(self, group: re.Match[str]) -> _Part:
        """What is within; flags that are set there hold to its end, those of ``(?i)`` further."""
        outer = self._flags
        if group["flags"]:
            self._flags += f"(?{group['flags']})"
        if group["end"] == ")":
            return _NOTHING
        self._depth += 1
        if self._depth > DEEPEST_GROUP:
            raise _TooLargeError
        found = self.alternatives()
        self._depth -= 1
        self._at += 1
        self._flags = outer
        return found

    def _is_ambiguous(self, start: int) -> bool:
        """Whether the loop over the positions from `start` on reads a text in two ways.

        Two walks start at one position and read the same text; all of a loop is reached from all
        of it, so when they have parted and meet again, both could have come round.
        """
        loop = range(start, len(self.characters))
        if any(len(set(self._follow[each])) < len(self._follow[each]) for each in loop):
            return True
        pairs = [(each, each) for each in loop]
        seen = set(pairs)
        while pairs:
            one, other = pairs.pop()
            steps = [
                (a, b)
                for a in self._follow[one]
                for b in self._follow[other]
                if (a, b) not in seen and self.characters[a] & self.characters[b]
            ]
            seen.update(steps)
            pairs += steps
            if one != other and not set(self._follow[one]).isdisjoint(self._follow[other]):
                return True
        return False


def _bounds(found: re.Match[str]) -> tuple[int, int | None]:
    """How often at least and at most; None: any number of times."""
    if found["low"] is None:
        return {"*": (0, None), "+": (1, None), "?": (0, 1)}[found[0][0]]
    low = int(found["low"])
    if found["more"] is None:
        return low, low
    return low, int(found["high"]) if found["high"] else None
