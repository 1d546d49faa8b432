"""One page that says how the mesh is, for a person and for a program."""

from __future__ import annotations

import html
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from mesh_middleware.observe.report import Report


def status_document(reports: Sequence[tuple[str, Report]]) -> dict[str, Any]:
    """What ``/status.json`` answers: the report of each worker, by its name."""
    return {"workers": {worker: report.document() for worker, report in reports}}


def status_page(reports: Sequence[tuple[str, Report]]) -> str:
    """What ``/status`` answers: plain HTML, without script, style or picture."""
    body = "".join(_worker(worker, report) for worker, report in reports)
    return (
        '<!doctype html><html lang="en"><meta charset="utf-8"><title>mesh status</title>'
        f"<h1>Mesh status</h1>{body or '<p>No worker has said anything yet.</p>'}</html>\n"
    )


def _worker(worker: str, report: Report) -> str:
    rows = [
        ("ready", "yes" if not report.missing else f"no, missing {', '.join(report.missing)}"),
        ("fault", report.fault or "none"),
        ("generation", report.generation),
        ("policy revision", report.revision or "none"),
        ("default action", report.default_action or "not known"),
        ("intentions", report.intentions),
        ("certificate until", when(report.leaf_expires)),
        ("rotations", report.rotations),
        ("process", report.pid),
        ("as of", when(report.at)),
    ]
    rows += [(f"answer: {part}", when(at)) for part, at in sorted(report.updated.items())]
    rows += [(f"fails: {part}", text) for part, text in sorted(report.errors.items())]
    return (
        f"<h2>{_text(report.service)}, worker {_text(worker)}</h2>{_table((), rows)}"
        + _section("Roots", ("subject", "until"), [(name, when(at)) for name, at in report.roots])
        + _section("Decisions", ("decision", "reason", "source", "count"), report.decisions)
        + _section("Refused handshakes", ("side", "reason", "count"), report.handshakes)
        + _section(
            "Last refusals",
            ("when", "decision", "reason", "source", "method", "path"),
            [
                (
                    when(row["at"]),
                    *(
                        row[name] or ""
                        for name in ("outcome", "reason", "source", "method", "path")
                    ),
                )
                for row in report.recent
            ],
        )
    )


def _section(title: str, header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    return f"<h3>{title}</h3>{_table(header, rows) if rows else '<p>none</p>'}"


def _table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    head = "".join(f"<th>{name}</th>" for name in header)
    lines = "".join(
        "<tr>" + "".join(f"<td>{_text(cell)}</td>" for cell in row) + "</tr>" for row in rows
    )
    return f"<table><tr>{head}</tr>{lines}</table>" if head else f"<table>{lines}</table>"


def _text(value: object) -> str:
    return html.escape(str(value))


def when(unix_seconds: float | None) -> str:
    """A time as people write it, in UTC; ``not known`` for None."""
    if unix_seconds is None:
        return "not known"
    return f"{datetime.fromtimestamp(unix_seconds, UTC):%Y-%m-%d %H:%M:%S} UTC"
