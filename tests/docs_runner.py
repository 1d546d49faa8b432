"""Runs the examples of a Markdown page, from top to bottom, in a folder of its own.

- A fenced block below ``<!-- file: NAME -->`` is written to NAME.
- ```` ```python ```` is executed; names live on through the page.
- ```` ```console ````: each ``$ command`` runs in bash in that folder (``> `` continues it). What
  the block shows below it must be what it prints, stdout and stderr together; ``...`` stands for
  any text within a line, and for any lines when alone on one. Nothing shown: not compared. A
  command may only fail when the next one is ``echo $?``.
- ``<!-- not run: REASON -->`` above a block leaves it out; blocks of other languages are for
  reading.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

_BLOCK = re.compile(
    r"(?:^<!-- *(?P<mark>file|not run): *(?P<value>.+?) *-->\n+)?"
    r"^(?P<fence>`{3,})(?P<language>[\w+-]*)[^\n]*\n(?P<body>.*?)^(?P=fence) *$",
    re.MULTILINE | re.DOTALL,
)
_COMMAND_SECONDS = 60


@dataclass
class Block:
    """A fenced block: its first line's number on the page, and the comment above it."""

    line: int
    language: str
    body: str
    file: str = ""
    left_out: str = ""


@dataclass
class Command:
    """A command of a console block and the lines shown below it."""

    text: str
    shown: list[str] = field(default_factory=list)


def blocks(page: str) -> Iterator[Block]:
    """The fenced blocks of a page, in order."""
    for found in _BLOCK.finditer(page):
        mark, value = found["mark"], found["value"]
        yield Block(
            line=page.count("\n", 0, found.start("body")) + 1,
            language=found["language"],
            body=found["body"],
            file=value if mark == "file" else "",
            left_out=value if mark == "not run" else "",
        )


def commands(body: str) -> list[Command]:
    """The commands of a console block."""
    found: list[Command] = []
    for line in body.splitlines():
        if line.startswith("$ "):
            found.append(Command(line[2:]))
        elif not found:
            raise AssertionError(f"a console block starts with '$ ', not {line!r}")
        elif line.startswith("> ") and not found[-1].shown:
            found[-1].text += "\n" + line[2:]
        else:
            found[-1].shown.append(line.rstrip())
    return found


def same(shown: list[str], printed: list[str]) -> bool:
    """True when `printed` is what `shown` promises, wildcards read."""
    pattern = "".join(
        r"(?:.*\n)*?"
        if line.strip() == "..."
        else ".*?".join(map(re.escape, line.split("..."))) + r"\n"
        for line in shown
    )
    return re.fullmatch(pattern, "".join(line + "\n" for line in printed)) is not None


def run_page(page: Path, folder: Path) -> int:
    """Run the examples of `page` in `folder`; the number of blocks that were used."""
    names: dict[str, Any] = {"__name__": "__example__"}
    used = 0
    for block in blocks(page.read_text()):
        place = f"{page.name}:{block.line}"
        if block.left_out:
            continue
        if block.file:
            target = folder / block.file
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(block.body)
        elif block.language == "python":
            exec(compile(block.body, place, "exec"), names)
        elif block.language == "console":
            _run_console(commands(block.body), folder, place)
        else:
            continue
        used += 1
    return used


def _run_console(entries: list[Command], folder: Path, place: str) -> None:
    status = 0
    for position, entry in enumerate(entries):
        result = subprocess.run(
            ["bash", "-c", f"(exit {status})\n{entry.text}"],
            cwd=folder,
            env=_environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=_COMMAND_SECONDS,
            check=False,
        )
        status = result.returncode
        printed = [line.rstrip() for line in result.stdout.splitlines()]
        where = f"{place}: $ {entry.text}"
        shown = entry.shown
        while shown and not shown[-1]:
            shown = shown[:-1]
        while printed and not printed[-1]:
            printed.pop()
        assert not shown or same(shown, printed), (
            f"{where}\n--- shown\n" + "\n".join(shown) + "\n--- printed\n" + "\n".join(printed)
        )
        following = entries[position + 1 : position + 2]
        asked = bool(following) and following[0].text.strip() == "echo $?"
        assert status == 0 or asked, f"{where}\nexit status {status}\n{result.stdout}"


def _environment() -> dict[str, str]:
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("CONSUL_", "MESH_", "COV_", "COVERAGE_"))
    }
    binaries = str(Path(sys.executable).parent)
    return kept | {
        "PATH": f"{binaries}{os.pathsep}{kept.get('PATH', os.defpath)}",
        "PYTHONWARNINGS": "error",
        "NO_COLOR": "1",
        "COLUMNS": "80",
    }
