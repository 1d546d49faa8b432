"""How we measure: CPU of a process, medians of alternating runs, and a table to print."""

from __future__ import annotations

import os
import statistics
import timeit
from collections.abc import Callable, Mapping, Sequence

_TICK = os.sysconf("SC_CLK_TCK")


def microseconds(call: Callable[[], object], *, number: int, repeat: int = 7) -> float:
    """The best of `repeat` timings of `number` calls, microseconds for one call."""
    return min(timeit.repeat(call, number=number, repeat=repeat)) / number * 1e6


def cpu_seconds(pid: int) -> float:
    """User and system time that a process has used, all its threads together (proc(5), stat)."""
    with open(f"/proc/{pid}/stat", encoding="ascii") as stat:  # noqa: PTH123 - proc, not a path
        fields = stat.read().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICK


def pin(pid: int, core: int) -> None:
    """Keep every thread of a process on one core, where there is more than one."""
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) > 1:
        for thread in os.listdir(f"/proc/{pid}/task"):  # noqa: PTH208 - proc, not a path
            os.sched_setaffinity(int(thread), {cores[core % len(cores)]})


def medians(runs: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """The median of each figure over several runs."""
    return {name: statistics.median(run[name] for run in runs) for name in runs[0]}


def spread(values: Sequence[float]) -> float:
    """Largest over smallest, less one: how far equal runs lie apart."""
    return max(values) / min(values) - 1 if min(values) > 0 else 0.0


def table(title: str, header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A Markdown table."""
    lines = [f"### {title}", "", "| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    for row in rows:
        cells = [f"{cell:.2f}" if isinstance(cell, float) else str(cell) for cell in row]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join([*lines, ""])
