"""What one process knows about itself, as plain data: it can be sent, merged and shown.

Nothing in it is secret: no keys, tokens, header values or queries.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Self

from mesh_middleware.observe.counts import Counts, counts
from mesh_middleware.state import MeshState, StateSource
from mesh_middleware.tls.handshake import RefusalLog, refusals


@dataclass(frozen=True, slots=True)
class Report:
    """One process. Times are unix seconds; None and empty mean not known.

    `decisions`: (outcome, reason, source service, count). `handshakes`: (side, reason, count) of
    peers refused during TLS. `updated`: of the agent's last good answer, by part. `rotations`: how
    often the certificate was replaced.
    """

    service: str
    pid: int = 0
    at: float = 0.0
    generation: int = 0
    revision: str = ""
    default_action: str = ""
    intentions: int = 0
    fault: str = ""
    missing: tuple[str, ...] = ()
    leaf_expires: float | None = None
    roots: tuple[tuple[str, float], ...] = ()
    updated: Mapping[str, float] = field(default_factory=dict)
    errors: Mapping[str, str] = field(default_factory=dict)
    rotations: int = 0
    decisions: tuple[tuple[str, str, str, int], ...] = ()
    handshakes: tuple[tuple[str, str, int], ...] = ()
    recent: tuple[Mapping[str, Any], ...] = ()

    def document(self) -> dict[str, Any]:
        """As JSON has it."""
        return asdict(self)

    @classmethod
    def from_document(cls, document: Mapping[str, Any]) -> Self:
        """The report whose `document` this is, after a way through JSON."""
        rows = ("missing", "roots", "decisions", "handshakes", "recent")
        return cls(**{**document, **{name: _tuples(document[name]) for name in rows}})


def _tuples(rows: Iterable[Any]) -> tuple[Any, ...]:
    return tuple(tuple(row) if isinstance(row, list) else row for row in rows)


class Reporter:
    """Makes the reports of this process about one source. Starts the counting.

    Certificates that come and go between two reports are one rotation.
    """

    def __init__(
        self,
        source: StateSource,
        *,
        counts: Counts = counts,
        handshakes: RefusalLog = refusals,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._source = source
        self._counts = counts
        self._handshakes = handshakes
        self._clock = clock
        self._leaf: object = None
        self._rotations = 0
        counts.start()

    def report(self) -> Report:
        """What is so now."""
        state, now = self._source.state, self._clock()
        self._notice(state)
        failures: Mapping[str, object] = getattr(self._source, "last_errors", {})
        policy, bundle = state.policy, state.bundle
        return Report(
            service=state.service,
            pid=os.getpid(),
            at=now,
            generation=state.generation,
            revision="" if policy is None else policy.revision,
            default_action="" if policy is None else str(policy.default_action),
            intentions=0 if policy is None else len(policy.intentions),
            fault=str(state.fault or ""),
            missing=state.missing(now=now),
            leaf_expires=None if state.svid is None else state.svid.not_after,
            roots=()
            if bundle is None
            else tuple(
                (root.subject.rfc4514_string(), root.not_valid_after_utc.timestamp())
                for root in bundle.roots
            ),
            updated=dict(state.updated),
            errors={part: str(failure)[:500] for part, failure in failures.items()},
            rotations=self._rotations,
            decisions=tuple((*key, n) for key, n in sorted(self._counts.decisions().items())),
            handshakes=tuple((*key, n) for key, n in sorted(self._handshakes.counts().items())),
            recent=tuple(self._counts.recent()),
        )

    def _notice(self, state: MeshState) -> None:
        leaf = None if state.svid is None else state.svid.certificates[0]
        if leaf is None or leaf == self._leaf:
            return
        if self._leaf is not None:
            self._rotations += 1
        self._leaf = leaf
