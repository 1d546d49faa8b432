"""``mesh-middleware lint``: the rules in a file that surprise people."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import click

from mesh_middleware._documents import load_documents
from mesh_middleware._text import one_line
from mesh_middleware.commands.check import BadInput
from mesh_middleware.consul.decode import decode_rules
from mesh_middleware.errors import DecodeError
from mesh_middleware.policy.intentions import Action, Intention
from mesh_middleware.policy.lint import Severity, lint

EXIT_FOUND = 1


@click.command(name="lint")
@click.argument("files", nargs=-1, required=True, metavar="FILE...")
@click.option(
    "--default",
    "default_action",
    type=click.Choice(["allow", "deny"]),
    help="The mesh's default action, where a file does not say.  [default: deny]",
)
@click.option("--strict", is_flag=True, help="Exit 1 for notes, too.")
def lint_command(files: tuple[str, ...], default_action: str | None, strict: bool) -> None:
    """Name the rules that surprise people, with why, and what to write instead.

    FILE holds intentions as the dev agent and `check` read them: config entries or rows of the
    match API, a list of them, or documents with `intentions` (YAML, JSON or JSON Lines; - is
    standard input). Exit status: 0; 1 when there is a warning; 2 when the input is bad.
    """
    found = [
        (name, finding)
        for name in files
        for default, rows in _sets(name, default_action)
        for of_one in _by_destination(rows)
        for finding in lint(of_one, default_action=default)
    ]
    found = list(dict.fromkeys(found))
    for name, finding in found:
        colour = "red" if finding.severity is Severity.WARNING else None
        click.echo(click.style(one_line(f"{name}: {finding}"), fg=colour))
    warnings = sum(finding.severity is Severity.WARNING for _, finding in found)
    click.echo(f"{warnings} warnings, {len(found) - warnings} notes")
    raise SystemExit(EXIT_FOUND if warnings or (strict and found) else 0)


def _sets(name: str, given: str | None) -> Iterator[tuple[Action, list[Intention]]]:
    """The default action and the rows of each document in the file."""
    try:
        data = sys.stdin.buffer.read() if name == "-" else Path(name).read_bytes()
        for document in load_documents(data, name):
            rules = _rules(document, Path(name).parent)
            rows = decode_rules(rules)
            _check_actions(rules, "")
            yield _default(document) if given is None else Action(given), rows
    except DecodeError as error:
        raise BadInput(one_line(f"{name}: {error}")) from None
    except OSError as error:
        raise BadInput(f"{name}: {error.strerror}") from None


def _rules(document: Any, folder: Path) -> list[Any]:
    """What is to be decoded; a document may name the file that its intentions are in."""
    named = document.get("intentions") if isinstance(document, dict) else None
    if not isinstance(named, str):
        return [document]
    file = folder / named
    return load_documents(file.read_bytes(), file.name)


def _check_actions(value: Any, at: str) -> None:
    """Consul stores no other actions; a misspelt allow would be a deny without a word."""
    if isinstance(value, list):
        for number, item in enumerate(value):
            _check_actions(item, f"{at}[{number}]")
    elif isinstance(value, dict):
        for key, item in value.items():
            if key in ("Action", "action") and item not in ("allow", "deny", "", None):
                raise DecodeError(f"{item!r} is not allow or deny", field=f"{at}.{key}".lstrip("."))
            _check_actions(item, f"{at}.{key}".lstrip("."))


def _default(document: Any) -> Action:
    default = document.get("default", "deny") if isinstance(document, dict) else "deny"
    try:
        return Action(default)
    except ValueError:
        raise DecodeError(f"{default!r} is not allow or deny", field="default") from None


def _by_destination(rows: Sequence[Intention]) -> Iterator[list[Intention]]:
    """Rows by destination; those of a wildcard destination count for every other one, too."""
    named = sorted((row for row in rows if row.destination_name != "*"), key=_destination)
    wild = [row for row in rows if row.destination_name == "*"]
    if not named:
        yield wild
    for _, group in groupby(named, key=_destination):
        yield [*group, *wild]


def _destination(row: Intention) -> str:
    return row.destination
