"""The whole trail of one decision, as a value and in words."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from mesh_middleware.policy.decision import Decision, IntentionRef, Reason
from mesh_middleware.policy.intentions import Action
from mesh_middleware.policy.request import HTTPRequest
from mesh_middleware.policy.rules import CompiledPermission, Rule


@dataclass(frozen=True, slots=True)
class TriedPermission:
    """A permission against one reading. `matched`: True, False, or None for unknown.

    `failed` is the first condition that was not met, or empty.
    """

    reading: str
    index: int
    action: Action
    matched: bool | None
    failed: str


@dataclass(frozen=True, slots=True)
class Candidate:
    """A row that covers the caller. Only the first `decides`."""

    intention: IntentionRef
    decides: bool
    permissions: tuple[TriedPermission, ...] = ()


@dataclass(frozen=True, slots=True)
class JudgedReading:
    """A reading of the path and what was decided of it (None where the path did not matter)."""

    name: str
    path: bytes
    tail: bytes
    decision: Decision | None


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
            for tried in candidate.permissions:
                reading = f" as {tried.reading}" if several else ""
                yield f"    permission {tried.index} {tried.action}{reading}: {_outcome(tried)}"

    def _reading_lines(self) -> Iterator[str]:
        if not self.readings:
            return
        yield "readings of the path:"
        for reading in self.readings:
            said = "" if reading.decision is None else f": {_verdict(reading.decision)}"
            yield f"  {reading.name} {reading.path.decode('utf-8', 'backslashreplace')}{said}"


def explain(
    decision: Decision,
    source: str,
    default_action: Action,
    *,
    rows: Sequence[Rule],
    request: HTTPRequest | None,
    readings: Iterable[tuple[str, bytes, bytes, Decision | None]],
) -> Explanation:
    """Put the trail together. `rows` cover the caller, highest precedence first."""
    judged = tuple(JudgedReading(*reading) for reading in readings)
    return Explanation(
        decision=decision,
        source=source,
        default_action=default_action,
        candidates=tuple(
            Candidate(row.ref, decides, tuple(_tried(row, request, judged)) if decides else ())
            for row, decides in zip(rows, _deciding(decision, len(rows)), strict=True)
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


def _deciding(decision: Decision, rows: int) -> list[bool]:
    """For each row, whether it decides: the first does, where any row is asked at all."""
    asked = decision.reason not in _BEFORE_ANY_ROW
    return [asked and n == 0 for n in range(rows)]


def _tried(
    row: Rule, request: HTTPRequest | None, readings: Sequence[JudgedReading]
) -> Iterator[TriedPermission]:
    """The permissions in list order, for each reading up to the one that decided it."""
    if request is None:
        return
    for reading in readings:
        decided = None if reading.decision is None else reading.decision.permission
        for permission in row.permissions[: None if decided is None else decided + 1]:
            yield _try(permission, request, reading)


def _try(
    permission: CompiledPermission, request: HTTPRequest, reading: JudgedReading
) -> TriedPermission:
    answer = permission.matches(request, reading.path, reading.tail)
    failed = "" if answer else permission.matcher.first_failure(request, reading.path, reading.tail)
    action = Action.ALLOW if permission.allow else Action.DENY
    return TriedPermission(reading.name, permission.index, action, answer, failed)


def _verdict(decision: Decision) -> str:
    return f"{'allowed' if decision.allowed else 'refused'}, {decision.reason}"


def _outcome(tried: TriedPermission) -> str:
    if tried.matched:
        return "matches"
    return tried.failed if tried.matched is False else f"unknown, {tried.failed}"
