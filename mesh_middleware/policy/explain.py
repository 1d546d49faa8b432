"""The whole trail of one decision, as a value and in words."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

from mesh_middleware.policy.decision import Decision, IntentionRef, Reason
from mesh_middleware.policy.intentions import Action, JWTRequirement
from mesh_middleware.policy.jwt import AskedToken, Claims, Issuers, ask
from mesh_middleware.policy.request import HTTPRequest
from mesh_middleware.policy.rules import CompiledPermission, Rule


@dataclass(frozen=True, slots=True)
class TriedPermission:
    """A permission against one reading. `matched`: True, False, or None for unknown.

    `failed` is the first condition that was not met, or empty. `token`: what the permission asks
    for where it may match and would allow. `refused`: why it refuses then, be it for its own
    token or for that of the row.
    """

    reading: str
    index: int
    action: Action
    matched: bool | None
    failed: str
    token: AskedToken | None = None
    refused: Reason | None = None


@dataclass(frozen=True, slots=True)
class Candidate:
    """A row that covers the caller. Only the first `decides`.

    `token`: what the row asks of every request that it allows.
    """

    intention: IntentionRef
    decides: bool
    permissions: tuple[TriedPermission, ...] = ()
    token: AskedToken | None = None


@dataclass(frozen=True, slots=True)
class JudgedReading:
    """A reading of the path and what was decided of it (None where the path did not matter)."""

    name: str
    path: bytes
    tail: bytes
    decision: Decision | None

    @property
    def text(self) -> str:
        """The path for people; what is not UTF-8 is escaped."""
        return self.path.decode("utf-8", "backslashreplace")


@dataclass(frozen=True, slots=True)
class Explanation:
    """Why a request is decided as it is. ``str()`` says it in words, for a terminal."""

    decision: Decision
    source: str
    default_action: Action
    candidates: tuple[Candidate, ...]
    readings: tuple[JudgedReading, ...]

    def __str__(self) -> str:
        return "\n".join(self._lines())

    def _lines(self) -> Iterator[str]:
        decision = self.decision
        yield f"{'allowed' if decision.allowed else 'refused'}: {decision.reason}"
        yield f"caller: {self.source}"
        if decision.intention is not None:
            where = "" if decision.permission is None else f", permission {decision.permission}"
            yield f"decided by: {decision.intention}{where}"
        elif decision.reason in _BEFORE_ANY_ROW:
            yield "decided by: no intention; nothing was looked up for such a request"
        else:
            yield f"decided by: no intention; the default action is {self.default_action}"
        if decision.detail:
            yield f"detail: {decision.detail}"
        yield from self._candidate_lines()
        yield from self._reading_lines()
        for near in decision.nearest:
            yield f"near: {near}"

    def _candidate_lines(self) -> Iterator[str]:
        if not self.candidates:
            yield "candidates: none covers the caller"
            return
        yield "candidates, highest precedence first:"
        several = len(self.readings) > 1
        for candidate in self.candidates:
            yield f"  {candidate.intention}{' <- decides' if candidate.decides else ''}"
            yield from (f"    {line}" for line in _token_lines(candidate.token))
            for tried in candidate.permissions:
                reading = f" as {tried.reading}" if several else ""
                yield f"    permission {tried.index} {tried.action}{reading}: {_outcome(tried)}"
                yield from (f"      {line}" for line in _token_lines(tried.token))

    def _reading_lines(self) -> Iterator[str]:
        if not self.readings:
            return
        yield "readings of the path:"
        for reading in self.readings:
            said = "" if reading.decision is None else f": {_verdict(reading.decision)}"
            yield f"  {reading.name} {reading.text}{said}"

    def to_json(self) -> dict[str, Any]:
        """The trail beside the decision, for ``explain --json``; its shape is documented."""
        return {
            "caller": self.source,
            "default": self.default_action.value,
            "detail": self.decision.detail,
            "candidates": [asdict(candidate) for candidate in self.candidates],
            "readings": [
                {
                    "reading": each.name,
                    "path": each.text,
                    "allowed": each.decision and each.decision.allowed,
                    "reason": each.decision and each.decision.reason,
                }
                for each in self.readings
            ],
            "nearest": [asdict(near) for near in self.decision.nearest],
        }


def explain(
    decision: Decision,
    source: str,
    default_action: Action,
    *,
    rows: Sequence[Rule],
    request: HTTPRequest | None,
    readings: Iterable[tuple[str, bytes, bytes, Decision | None]],
    claims: Claims,
    issuers: Issuers,
) -> Explanation:
    """Put the trail together. `rows` cover the caller, highest precedence first."""
    judged = tuple(JudgedReading(*reading) for reading in readings)
    deciding = decision.reason not in _BEFORE_ANY_ROW
    asked = partial(ask, claims=claims, issuers=issuers)
    return Explanation(
        decision=decision,
        source=source,
        default_action=default_action,
        candidates=tuple(
            _deciding(row, request, judged, asked)
            if deciding and number == 0
            else Candidate(row.ref, decides=False)
            for number, row in enumerate(rows)
        ),
        readings=judged,
    )


_BEFORE_ANY_ROW = frozenset(
    {
        Reason.MALFORMED_TARGET,
        Reason.MALFORMED_HEADERS,
        Reason.INVALID_IDENTITY,
        Reason.NOT_A_SERVICE,
        Reason.FOREIGN_TRUST_DOMAIN,
    }
)


_Asked = Callable[[JWTRequirement | None], AskedToken | None]


def _deciding(
    row: Rule, request: HTTPRequest | None, readings: Sequence[JudgedReading], asked: _Asked
) -> Candidate:
    """The row that decides, with what it asks for unless it says the same of every request."""
    if request is None or row.static is not None:
        return Candidate(row.ref, decides=True)
    token = asked(row.jwt)
    tried = tuple(
        _try(permission, request, reading, token, asked)
        for reading in readings
        for permission in _reached(row, reading)
    )
    return Candidate(row.ref, True, tried, token)


def _reached(row: Rule, reading: JudgedReading) -> Sequence[CompiledPermission]:
    """The permissions in list order, up to the one that decided the reading."""
    decided = None if reading.decision is None else reading.decision.permission
    return row.permissions[: None if decided is None else decided + 1]


def _try(
    permission: CompiledPermission,
    request: HTTPRequest,
    reading: JudgedReading,
    of_row: AskedToken | None,
    asked: _Asked,
) -> TriedPermission:
    answer = permission.matches(request, reading.path, reading.tail)
    failed = "" if answer else permission.matcher.first_failure(request, reading.path, reading.tail)
    action = Action.ALLOW if permission.allow else Action.DENY
    tried = TriedPermission(reading.name, permission.index, action, answer, failed)
    if answer is False or not permission.allow:
        return tried
    token = asked(permission.jwt)
    reasons = [each.reason for each in (of_row, token) if each and each.reason]
    return replace(tried, token=token, refused=reasons[0] if reasons else None)


def _token_lines(token: AskedToken | None) -> Iterator[str]:
    if token is None:
        return
    if token.problem:
        yield f"token: cannot be evaluated: {token.problem}"
    for provider in token.providers:
        yield f"token of {provider.name}: {provider.failed or 'good'}"


def _verdict(decision: Decision) -> str:
    return f"{'allowed' if decision.allowed else 'refused'}, {decision.reason}"


def _outcome(tried: TriedPermission) -> str:
    if tried.matched is False:
        return tried.failed
    matched = "matches" if tried.matched else f"unknown, {tried.failed}"
    return f"{matched}, but refuses: {tried.refused}" if tried.refused else matched
