"""Compiled matchers for paths, methods, headers and claims; the only file that knows RE2.

A matcher answers True, False or None: None is *unknown*, for what cannot be evaluated (a pattern
that does not compile, a regular expression on a value that is not UTF-8 or that it matches
otherwise in bytes than in characters, an empty, surplus or unknown criterion). False AND unknown is
False; True AND unknown is unknown. What unknown means for a request is the engine's business: it
always counts against the caller.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import re2

from mesh_middleware.policy.intentions import ClaimMatch, HeaderMatch, HTTPMatch
from mesh_middleware.policy.request import HTTPRequest

Check = Callable[[HTTPRequest, bytes, bytes], bool | None]
"""Takes the request, one reading of its path, and what follows the path (``?`` and query)."""

ValueCheck = Callable[[bytes], bool | None]

_OPTIONS = re2.Options()
_OPTIONS.log_errors = False
_LATIN1 = re2.Options()
_LATIN1.log_errors = False
_LATIN1.encoding = re2.Options.Encoding.LATIN1


@dataclass(frozen=True, slots=True)
class Condition:
    """One condition of a permission: how to check it, and how to say it."""

    check: Check
    text: str


@dataclass(frozen=True, slots=True)
class Matcher:
    """All conditions of an HTTP block. `matches` is what runs; `problems` is said once."""

    conditions: tuple[Condition, ...]
    matches: Check
    problems: tuple[str, ...] = ()

    def first_failure(self, request: HTTPRequest, path: bytes, tail: bytes) -> str:
        """The first condition that is not met, in words; empty when all are."""
        for condition in self.conditions:
            if not condition.check(request, path, tail):
                return condition.text
        return ""


def compile_http(
    match: HTTPMatch | None, *, unknown: tuple[str, ...] = (), drop_underscores: bool = False
) -> Matcher:
    """The matcher for a permission's HTTP block. A missing or empty block is unknown.

    `unknown` names conditions beside the block that nobody here can evaluate.
    """
    beside = [_unknown(f"{name} is not known") for name in unknown]
    if match is None:
        return _matcher([_unknown("HTTP block is missing"), *beside])
    conditions = list(_path_conditions(match))
    if match.methods:
        conditions.append(_method_condition(match.methods))
    conditions += [_header_condition(header, drop_underscores) for header in match.headers]
    conditions += [_unknown(f"HTTP.{name} is not known") for name in match.unknown]
    return _matcher([*(conditions or [_unknown("HTTP block is empty")]), *beside])


def _matcher(conditions: list[Condition]) -> Matcher:
    checks = tuple(condition.check for condition in conditions)
    problems = tuple(c.text for c in conditions if c.check is _always_unknown)
    if len(checks) == 1:
        return Matcher(tuple(conditions), checks[0], problems)

    def matches(request: HTTPRequest, path: bytes, tail: bytes) -> bool | None:
        result: bool | None = True
        for check in checks:
            answer = check(request, path, tail)
            if answer is False:
                return False
            if answer is None:
                result = None
        return result

    return Matcher(tuple(conditions), matches, problems)


def _always_unknown(request: HTTPRequest, path: bytes, tail: bytes) -> None:  # noqa: ARG001
    return None


def _unknown(text: str) -> Condition:
    return Condition(_always_unknown, f"cannot be evaluated: {text}")


def _path_conditions(match: HTTPMatch) -> Iterator[Condition]:
    given = [
        (kind, value)
        for kind, value in (
            ("PathExact", match.path_exact),
            ("PathPrefix", match.path_prefix),
            ("PathRegex", match.path_regex),
        )
        if value is not None
    ]
    if len(given) > 1:
        yield _unknown(f"{' and '.join(kind for kind, _ in given)} exclude each other")
        return
    for kind, value in given:
        wanted = value.encode("utf-8", "surrogatepass")
        text = f"path is not {kind} {value!r}"
        if kind == "PathExact":
            yield Condition(lambda _, path, __, wanted=wanted: path == wanted, text)  # type: ignore[misc]
        elif kind == "PathPrefix":
            yield Condition(lambda _, path, __, wanted=wanted: path.startswith(wanted), text)  # type: ignore[misc]
        elif (regex := _regex(value)) is None:
            yield _unknown(f"PathRegex {value!r} does not compile in RE2")
        else:
            yield Condition(lambda _, path, __, regex=regex: regex(path), text)  # type: ignore[misc]


def _method_condition(methods: tuple[str, ...]) -> Condition:
    wanted = frozenset(methods)
    text = f"method is not {' or '.join(methods)}"
    return Condition(lambda request, _, __: request.method in wanted, text)


def _regex(pattern: str) -> ValueCheck | None:
    """A full match by RE2; None when the pattern does not compile.

    Envoy 1.40 matches bytes (Latin-1), older ones characters (UTF-8). They can only differ where
    pattern or value is not ASCII; a match on which they do differ is unknown.
    """
    encoded = pattern.encode("utf-8", "surrogatepass")
    try:
        by_character = re2.compile(encoded, _OPTIONS).fullmatch
    except re2.error:
        return None
    try:
        by_byte = re2.compile(encoded, _LATIN1).fullmatch
    except re2.error:
        by_byte = None  # it names a character beyond Latin-1
    alike = encoded.isascii() and by_byte is not None

    def matches(value: bytes) -> bool | None:
        if alike and value.isascii():
            return by_character(value) is not None
        try:
            value.decode("utf-8")
        except UnicodeDecodeError:
            return None
        answer = by_character(value) is not None
        return answer if by_byte is not None and (by_byte(value) is not None) is answer else None

    return matches


def characters(pattern: str, among: str) -> frozenset[str] | None:
    """Those of `among` that the pattern matches by themselves; None when it does not compile."""
    try:
        compiled = re2.compile(pattern.encode("utf-8", "surrogatepass"), _OPTIONS)
    except re2.error:
        return None
    return frozenset(c for c in among if compiled.fullmatch(c.encode("utf-8", "surrogatepass")))


def _header_condition(header: HeaderMatch, drop_underscores: bool) -> Condition:
    criteria = [
        (kind, value)
        for kind, value in (
            ("Exact", header.exact),
            ("Prefix", header.prefix),
            ("Suffix", header.suffix),
            ("Contains", header.contains),
            ("Regex", header.regex),
        )
        if value is not None
    ]
    problem = _header_problem(header, [kind for kind, _ in criteria])
    if problem:
        return _unknown(f"Header {header.name!r}: {problem}")
    values = _header_values(header.name, drop_underscores)
    inverted = "not " if header.invert else ""
    if header.present:
        return Condition(
            lambda *asked: bool(values(*asked)) is not header.invert,
            f"header {header.name!r} is {'present' if header.invert else 'absent'}",
        )
    kind, wanted = criteria[0]
    test = _value_check(kind, wanted, header.ignore_case)
    if test is None:
        return _unknown(f"Header {header.name!r}: Regex {wanted!r} does not compile in RE2")
    text = f"header {header.name!r} is absent or does not satisfy {inverted}{kind} {wanted!r}"
    return Condition(_any_value(values, test, header.invert), text)


def _header_problem(header: HeaderMatch, criteria: list[str]) -> str:
    given = [*(["Present"] if header.present else []), *criteria]
    if header.unknown:
        return f"{', '.join(header.unknown)} not known"
    if not header.name:
        return "no name"
    if len(given) != 1:
        return f"{' and '.join(given)} exclude each other" if given else "no criterion"
    return ""


def _any_value(
    values: Callable[[HTTPRequest, bytes, bytes], Any], test: ValueCheck, invert: bool
) -> Check:
    """True if any value satisfies `test`; with `invert`, if none does. Absent: always False."""

    def check(request: HTTPRequest, path: bytes, tail: bytes) -> bool | None:
        found = values(request, path, tail)
        if not found:
            return False
        answers = [test(value) for value in found]
        if True in answers:
            return not invert
        return None if None in answers else invert

    return check


def _value_check(kind: str, wanted_text: str, ignore_case: bool) -> ValueCheck | None:
    """`ignore_case` does not reach a regular expression, as in Envoy; (?i) does."""
    if kind == "Regex":
        return _regex(wanted_text)
    wanted = wanted_text.encode("utf-8", "surrogatepass")
    plain = _PLAIN_CHECKS[kind]
    if not ignore_case:
        return lambda value: plain(value, wanted)
    lowered = wanted.lower()
    return lambda value: plain(value.lower(), lowered)


_PLAIN_CHECKS: Mapping[str, Callable[[bytes, bytes], bool]] = {
    "Exact": lambda value, wanted: value == wanted,
    "Prefix": bytes.startswith,
    "Suffix": bytes.endswith,
    "Contains": lambda value, wanted: wanted in value,
}


def _header_values(name: str, drop_underscores: bool) -> Callable[..., Any]:
    """How to find the values that a rule's header name stands for; pseudo headers included."""
    key = name.encode("utf-8", "surrogatepass").lower()
    pseudo = _PSEUDO_HEADERS.get(key)
    if pseudo is not None:
        return pseudo
    return lambda request, _, __: request.values(key, drop_underscores=drop_underscores)


def _authority(request: HTTPRequest, path: bytes, tail: bytes) -> tuple[bytes, ...]:  # noqa: ARG001
    return tuple(request.authorities())


_PSEUDO_HEADERS: Mapping[bytes, Callable[..., Any]] = {
    b":method": lambda request, _, __: (request.method.encode("utf-8", "surrogatepass"),),
    b":path": lambda _, path, tail: (path + tail,),
    b":scheme": lambda request, _, __: (request.scheme.encode("utf-8", "surrogatepass"),),
    b":authority": _authority,
    b"host": _authority,
}


def claim_matches(payload: Mapping[str, Any], match: ClaimMatch) -> bool:
    """True when the claim at `match.path` is the wanted string, or a list that contains it.

    Path elements are object keys from the payload's root. Only strings are equal to anything.
    """
    value: Any = payload
    for key in match.path:
        if not isinstance(value, Mapping) or key not in value:
            return False
        value = value[key]
    if isinstance(value, list):
        return any(isinstance(item, str) and item == match.value for item in value)
    return isinstance(value, str) and value == match.value
