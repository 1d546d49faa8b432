"""The workers' reports, in memory that they share with the process that answers for them.

Each worker writes its row about once a second; a row belongs to one writer. A reader sees a whole
report or none: the check sum tells a half-written one, which is read again. What an ended worker
had counted stays in the sums.
"""

from __future__ import annotations

import json
import multiprocessing
import struct
import zlib
from collections import Counter
from dataclasses import replace
from typing import Any, Final

from mesh_middleware.observe.report import Report

ROW_BYTES: Final = 131072
"""Bounded counts and refusals fit easily; a report that does not goes without the refusals."""

_HEAD = struct.Struct("<II")  # length, CRC-32
_TRIES: Final = 20


class SharedReports:
    """Rows for `slots` workers; can be handed to a spawned process."""

    def __init__(self, slots: int) -> None:
        self._cells: Any = multiprocessing.get_context("spawn").RawArray("B", slots * ROW_BYTES)
        self._gone: list[Report] = []
        self.slots = slots

    def write(self, slot: int, report: Report) -> None:
        """Replace the report of `slot`; an old one stays where the new one cannot be written."""
        data = json.dumps(report.document()).encode()
        if len(data) > ROW_BYTES - _HEAD.size:
            data = json.dumps(replace(report, recent=(), errors={}).document()).encode()
        if len(data) > ROW_BYTES - _HEAD.size:
            return
        row = memoryview(self._cells).cast("B")[slot * ROW_BYTES : (slot + 1) * ROW_BYTES]
        row[_HEAD.size : _HEAD.size + len(data)] = data
        row[: _HEAD.size] = _HEAD.pack(len(data), zlib.crc32(data))

    def read(self, slot: int) -> Report | None:
        """The newest report of `slot`, or None when there is none."""
        row = memoryview(self._cells).cast("B")[slot * ROW_BYTES : (slot + 1) * ROW_BYTES]
        for _ in range(_TRIES):
            length, checksum = _HEAD.unpack(row[: _HEAD.size])
            if not 0 < length <= ROW_BYTES - _HEAD.size:
                return None
            data = bytes(row[_HEAD.size : _HEAD.size + length])
            if zlib.crc32(data) == checksum:
                return Report.from_document(json.loads(data))
        return None

    def retire(self, slot: int) -> None:
        """The worker of `slot` has ended; its counts stay."""
        report = self.read(slot)
        start = slot * ROW_BYTES
        self._cells[start : start + _HEAD.size] = bytes(_HEAD.size)
        if report is not None:
            self._gone = [_merged(self._gone, report)]

    def all(self) -> list[tuple[str, Report]]:
        """The report of each worker, by its number."""
        found = ((str(slot), self.read(slot)) for slot in range(self.slots))
        return [(worker, report) for worker, report in found if report is not None]

    def counted(self) -> list[tuple[str, Report]]:
        """`all`, with what ended workers had counted added to the first."""
        found = self.all()
        if found and self._gone:
            worker, first = found[0]
            found[0] = (worker, _merged(self._gone, first))
        return found


def _merged(ended: list[Report], newest: Report) -> Report:
    """`newest`, with the counts of `ended` added."""
    decisions: Counter[tuple[str, str, str]] = Counter()
    handshakes: Counter[tuple[str, str]] = Counter()
    for report in (*ended, newest):
        for outcome, reason, source, count in report.decisions:
            decisions[outcome, reason, source] += count
        for side, reason, count in report.handshakes:
            handshakes[side, reason] += count
    return replace(
        newest,
        rotations=newest.rotations + sum(report.rotations for report in ended),
        decisions=tuple((*key, count) for key, count in sorted(decisions.items())),
        handshakes=tuple((*key, count) for key, count in sorted(handshakes.items())),
    )
