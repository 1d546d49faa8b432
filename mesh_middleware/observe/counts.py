"""How often what was decided, in this process: the numbers behind metrics and status pages.

Off until somebody wants them (`Counts.start`), because each request pays for them. Bounded: a
caller cannot choose its name (a certificate proves it), but a mesh may have many services, so
that beyond `MAX_KEYS` combinations callers are counted together as `OTHER`. Paths are never
counted; the last refusals are kept with theirs, `KEPT` of them.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any, Final

from mesh_middleware.policy.decision import Decision
from mesh_middleware.policy.spiffe import DEFAULT, ServiceIdentity

MAX_KEYS: Final = 400
KEPT: Final = 20
OTHER: Final = "(other)"
NOBODY: Final = ""

Key = tuple[str, str, str]
"""Outcome (``allowed``, ``refused``, ``audited``, ``ended``), reason, source service."""


class Counts:
    """Counts decisions. Safe from any thread."""

    def __init__(self, *, clock: Callable[[], float] = time.time) -> None:
        self.on = False
        self._clock = clock
        self._lock = threading.Lock()
        self._decisions: dict[Key, int] = {}
        self._recent: deque[dict[str, Any]] = deque(maxlen=KEPT)

    def start(self) -> None:
        """Count from now on."""
        self.on = True

    def decided(self, outcome: str, decision: Decision, caller: object) -> None:
        """One decision about `caller` (a `ServiceIdentity`; None: nobody proved)."""
        key = (outcome, decision.reason._value_, source_label(caller))
        with self._lock:
            known = self._decisions.get(key)
            if known is None and len(self._decisions) >= MAX_KEYS:
                key = (key[0], key[1], OTHER)
                known = self._decisions.get(key)
            self._decisions[key] = (known or 0) + 1

    def remember(self, outcome: str, fields: dict[str, Any]) -> None:
        """Keep a refusal, as `log_fields` describes it, until `KEPT` newer ones came."""
        kept = {name: fields.get(f"mesh_{name}") for name in ("reason", "source", "method", "path")}
        self._recent.append({"at": self._clock(), "outcome": outcome, **kept})

    def decisions(self) -> dict[Key, int]:
        """A copy of the numbers."""
        with self._lock:
            return dict(self._decisions)

    def recent(self) -> list[dict[str, Any]]:
        """The last refusals, newest first; ``at`` in unix seconds."""
        return list(self._recent)[::-1]


def source_label(caller: object) -> str:
    """A caller as a label: its name, with namespace and partition unless both are the default.

    In front of it the peer of a caller from another cluster: ``cluster2:web``.
    """
    if not isinstance(caller, ServiceIdentity):
        return NOBODY if caller is None else OTHER
    peer = f"{caller.peer}:" if caller.peer else ""
    if caller.namespace == DEFAULT and caller.partition == DEFAULT:
        return f"{peer}{caller.service}"
    return f"{peer}{caller.partition}/{caller.namespace}/{caller.service}"


counts = Counts()
"""The process's counts."""
