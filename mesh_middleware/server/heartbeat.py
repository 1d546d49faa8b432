"""Which processes can serve now, as numbers in memory that parent and workers share.

Each worker's event loop writes its row about once a second: when, how far it is, and what its
mesh state misses. The parent reads: the TTL check and the operations listener answer from it. A
row that is no longer written says that the loop hangs or the process is gone, without anybody
having to notice the death: the row simply grows old.
"""

from __future__ import annotations

import math
import multiprocessing
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

from mesh_middleware.server.reports import SharedReports
from mesh_middleware.state import PARTS

BEAT_SECONDS = 1.0
"""How often a worker's event loop writes its row."""

STALE_SECONDS = 10.0
"""A row older than this belongs to a loop that hangs; below the 15 s of the TTL check."""

_FIELDS = 3  # written at (monotonic seconds, one clock for all processes), phase, missing parts


class Phase(IntEnum):
    """How far a worker is."""

    ABSENT = 0
    STARTING = 1
    SERVING = 2
    STOPPING = 3


@dataclass(frozen=True, slots=True)
class Health:
    """What can be said of all workers together.

    `alive`: no loop hangs. `ready`: at least one worker serves and can decide. `why`: the reason
    for a False, in words; empty when both are True.
    """

    alive: bool
    ready: bool
    why: str = ""


class Board:
    """Rows of `slots` workers in shared memory; can be handed to a spawned process.

    `reports`: where workers say more than numbers, or None where nobody asks.
    """

    def __init__(self, slots: int = 1, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._cells: Any = multiprocessing.get_context("spawn").RawArray("d", slots * _FIELDS)
        self._clock = clock
        self.slots = slots
        self.reports: SharedReports | None = None

    def beat(self, slot: int, phase: Phase, missing: Sequence[str] = ()) -> None:
        """Write the row of `slot`: alive now, in `phase`, without the parts `missing`."""
        bits = sum(1 << PARTS.index(part) for part in missing)
        start = slot * _FIELDS
        self._cells[start : start + _FIELDS] = (self._clock(), float(phase), float(bits))

    def clear(self, slot: int) -> None:
        """Forget what the worker of `slot` wrote: it is gone, another one may come."""
        if self.reports is not None:
            self.reports.retire(slot)
        self._cells[slot * _FIELDS : (slot + 1) * _FIELDS] = (0.0, 0.0, 0.0)

    def ready(self, slot: int) -> bool:
        """Whether the worker of `slot` serves, can decide, and its loop answers."""
        written, phase, missing = self._row(slot)
        fresh = self._clock() - written <= STALE_SECONDS
        return phase is Phase.SERVING and not missing and fresh

    def phases(self) -> list[Phase]:
        """How far each worker says it is, however long ago."""
        return [self._row(slot)[1] for slot in range(self.slots)]

    def health(self) -> Health:
        """What the rows say now."""
        now = self._clock()
        reasons, hanging, seen, ready = [], 0, 0, False
        for slot in range(self.slots):
            written, phase, missing = self._row(slot)
            if phase is Phase.ABSENT:  # to come, or a row to spare
                continue
            seen += 1
            if now - written > STALE_SECONDS:
                hanging += 1
                age = math.floor(now - written)
                reasons.append(f"the event loop has not answered for {age} s")
            elif phase is not Phase.SERVING:
                reasons.append(phase.name.lower())
            elif missing:
                reasons.append("missing: " + ", ".join(missing))
            else:
                ready = True
        alive = not (seen and hanging == seen)
        why = "" if alive and ready else "; ".join(dict.fromkeys(reasons)) or "starting"
        return Health(alive, ready, why)

    def _row(self, slot: int) -> tuple[float, Phase, list[str]]:
        written, phase, bits = self._cells[slot * _FIELDS : (slot + 1) * _FIELDS]
        missing = [part for i, part in enumerate(PARTS) if int(bits) >> i & 1]
        return written, Phase(int(phase)), missing
