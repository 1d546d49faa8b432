"""``mesh-middleware check`` and ``explain``: what the intentions decide, without a mesh."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any, Protocol, TypeVar

import click

from mesh_middleware import checkfile
from mesh_middleware._fields import Place
from mesh_middleware._text import one_line
from mesh_middleware.checkfile import CheckDocument, CheckRequest, Result
from mesh_middleware.errors import ConfigError, DecodeError
from mesh_middleware.policy.lint import Finding, lint

EXIT_EXPECTATION = 1
EXIT_INPUT = 2

_LONGEST_CELL = 60


class BadInput(click.ClickException):
    """What was given cannot be decided; nothing was."""

    exit_code = EXIT_INPUT


# --- check ----------------------------------------------------------------------------------


@click.command()
@click.argument("files", nargs=-1, required=True, metavar="FILE...")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object a line.")
@click.option("--lint", "with_lint", is_flag=True, help="Name rules that surprise people, too.")
def check(files: tuple[str, ...], as_json: bool, with_lint: bool) -> None:
    """Decide requests against intentions, without a mesh.

    FILE holds documents (YAML, JSON, or JSON Lines; - is standard input) with intentions, a
    default action and requests. Exit status: 0; 1 when a request's `expect` fails; 2 when the
    input is bad, and then nothing is decided. What --lint finds does not change it.
    """
    documents = _read(files)
    results = checkfile.decide_all(documents)
    failed = [result for result in results if result.failed]
    if as_json:
        click.echo("".join(json.dumps(each.to_json()) + "\n" for each in results), nl=False)
        for result in failed:
            click.echo(_failure(result), err=True)
        if with_lint:
            for document in documents:
                where = f"{document.file}: document {document.number}"
                for finding in _findings(document):
                    click.echo(one_line(f"{where}: {finding}"), err=True)
    else:
        click.echo("\n".join(_report(documents, results, with_lint=with_lint)))
    raise SystemExit(EXIT_EXPECTATION if failed else 0)


def _read(files: Sequence[str], *, requests_needed: bool = True) -> list[CheckDocument]:
    try:
        return checkfile.read_files(
            files,
            stdin=sys.stdin.buffer.read,
            requests_needed=requests_needed,
        )
    except (ConfigError, DecodeError) as error:
        raise BadInput(one_line(str(error))) from None
    except OSError as error:
        raise BadInput(f"{error.filename}: {error.strerror}") from None


def _failure(result: Result) -> str:
    request = result.request
    where = f"{result.document.file}: document {result.document.number}: request {request.number}"
    decided = "allow" if result.decision.allowed else "deny"
    return one_line(
        f"{where}: expected {request.expect}, decided {decided} ({result.decision.reason})"
    )


# --- the report -----------------------------------------------------------------------------


_COLUMNS = (
    "#",
    "request",
    "source",
    "decision",
    "reason",
    "intention",
    "permission",
    "reading",
    "expected",
)


def _report(
    documents: Iterable[CheckDocument], results: Sequence[Result], *, with_lint: bool
) -> Iterator[str]:
    of_document = {
        number: list(group)
        for number, group in groupby(results, key=lambda result: result.document.number)
    }
    for document in documents:
        yield click.style(_title(document), bold=True)
        yield from _table(of_document.get(document.number, []))
        for problem in document.policy.problems:
            yield f"  note: {one_line(problem)}"
        if with_lint:
            yield from (f"  {one_line(str(finding))}" for finding in _findings(document))
        yield ""
    yield _summary(results)


def _findings(document: CheckDocument) -> Iterable[Finding]:
    policy = document.policy
    return lint(policy.intentions, default_action=policy.default_action)


def _title(document: CheckDocument) -> str:
    count = len(document.policy.intentions)
    described = f" ({document.description})" if document.description else ""
    return one_line(
        f"{document.file}, document {document.number}{described}: calls to "
        f"{document.destination}, default {document.policy.default_action}, "
        f"{count} intention{'' if count == 1 else 's'}"
    )


def _table(results: Sequence[Result]) -> Iterator[str]:
    if not results:
        return
    rows = [_cells(result) for result in results]
    used = [index for index in range(len(_COLUMNS)) if any(row[index] for row in rows)]
    widths = [max(len(row[index]) for row in (_COLUMNS, *rows)) for index in used]

    def line(cells: Sequence[str]) -> str:
        padded = (cells[index].ljust(width) for index, width in zip(used, widths, strict=True))
        return "  ".join(padded).rstrip()

    yield f"  {line(_COLUMNS)}"
    for result, row in zip(results, rows, strict=True):
        if result.failed:
            yield click.style(f"! {line(row)}", fg="red", bold=True)
            yield from (f"      {one_line(why)}" for why in _why(result))
        else:
            yield click.style(f"  {line(row)}", fg=None if result.decision.allowed else "yellow")


def _cells(result: Result) -> tuple[str, ...]:
    request, decision = result.request, result.decision
    expected = "" if request.expect is None else request.expect.value
    return (
        str(request.number),
        _short(request.label),
        _short(request.source),
        "allow" if decision.allowed else "deny",
        decision.reason.value,
        "" if decision.intention is None else _short(str(decision.intention)),
        "" if decision.permission is None else str(decision.permission),
        decision.reading or "",
        f"{expected}: FAILED" if result.failed else expected,
    )


def _why(result: Result) -> Iterable[str]:
    if result.request.description:
        yield result.request.description
    if result.decision.detail:
        yield result.decision.detail
    for near in result.decision.nearest:
        yield f"nearest: {near}"


def _summary(results: Sequence[Result]) -> str:
    allowed = sum(result.decision.allowed for result in results)
    expected = sum(result.request.expect is not None for result in results)
    failed = sum(result.failed for result in results)
    requests = "1 request" if len(results) == 1 else f"{len(results)} requests"
    text = f"{requests}: {allowed} allowed, {len(results) - allowed} refused"
    if not expected:
        return text
    verdict = f"{failed} of {expected} expectations FAILED" if failed else f"{expected} as expected"
    return click.style(f"{text}; {verdict}", fg="red" if failed else "green", bold=True)


def _short(text: str) -> str:
    text = one_line(text)
    return text if len(text) <= _LONGEST_CELL else f"{text[: _LONGEST_CELL - 3]}..."


# --- explain --------------------------------------------------------------------------------


@click.command()
@click.argument("file")
@click.option("--document", type=click.IntRange(0), help="Number of the document, from 0.")
@click.option("--request", type=click.IntRange(0), help="Number of the request, from 0.")
@click.option("--source", help="Ask about this caller instead: SPIFFE ID or service name.")
@click.option("--method", help="Method of the request to ask about.  [default: GET]")
@click.option("--path", help="Raw request target of the request to ask about.  [default: /]")
@click.option("--header", "headers", multiple=True, metavar="'NAME: VALUE'", help="Repeatable.")
@click.option("--mode", type=click.Choice(["http", "tcp"]), help="tcp asks about a connection.")
@click.option("--claims", metavar="JSON", help="Provider name to payload, as in a document.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def explain(
    file: str,
    *,
    document: int | None,
    request: int | None,
    source: str | None,
    as_json: bool,
    **given: Any,
) -> None:
    """Say in words what decides one request, with every candidate and reading.

    The request is one of FILE's (--document, --request), or the one that --source, --method,
    --path and --header describe, put to the document's intentions. Exit status as of `check`.
    """
    options = {name: value for name, value in given.items() if value not in {None, ()}}
    if source is None:
        for name in options:
            flag = name.removesuffix("s") if name == "headers" else name
            raise click.UsageError(f"--{flag} needs --source, the caller to ask about")
        chosen = _pick(_read([file]), document, "document")
        asked = _pick(chosen.requests, request, "request")
    else:
        if request is not None:
            raise click.UsageError("--source asks about a new request; leave --request out")
        chosen = _pick(_read([file], requests_needed=False), document, "document")
        asked = _described(chosen, options | {"source": source})
    why = chosen.policy.explain(asked.identity, asked.http, asked.claims)
    result = checkfile.decide(chosen, asked)
    if as_json:
        numbers = {} if source is None else {"request": None}
        click.echo(json.dumps(result.to_json() | numbers | why.to_json()))
    else:
        click.echo(_title(chosen))
        click.echo(f"request: {one_line(asked.label)} from {one_line(asked.identity)}")
        if asked.description:
            click.echo(one_line(asked.description))
        click.echo("\n".join(one_line(line) for line in str(why).split("\n")))
    if result.failed:
        click.echo(_failure(result), err=True)
    raise SystemExit(EXIT_EXPECTATION if result.failed else 0)


class _Numbered(Protocol):
    @property
    def number(self) -> int: ...


N = TypeVar("N", bound=_Numbered)


def _pick(entries: Sequence[N], number: int | None, what: str) -> N:
    """The entry of this number, or the only one."""
    for entry in entries:
        if number == entry.number or (number is None and len(entries) == 1):
            return entry
    if not entries:
        raise BadInput(f"there is no {what} to explain; describe one with --source and --path")
    numbers = f"0 to {len(entries) - 1}"
    if number is None:
        raise BadInput(f"there are several {what}s; choose one with --{what} {numbers}")
    raise BadInput(f"there is no {what} {number}; they are numbered {numbers}")


def _described(document: CheckDocument, options: Mapping[str, Any]) -> CheckRequest:
    """The request that the options describe, read as if it stood in the document."""
    fields = {"method": "GET", "path": "/", **options}
    if "headers" in fields:
        fields["headers"] = [_header(each) for each in fields["headers"]]
    if "claims" in fields:
        fields["claims"] = _claims(fields["claims"])
    try:
        return checkfile.read_request(fields, at=Place("options"), common=document.common)
    except DecodeError as error:
        raise BadInput(one_line(str(error))) from None


def _header(text: str) -> list[str]:
    name, colon, value = text.partition(":")
    # `:path` and its kind start with a colon themselves.
    if not name:
        name, colon, value = text[1:].partition(":")
        name = f":{name}"
    if not colon:
        raise click.BadParameter(f"{text!r} is not 'NAME: VALUE'", param_hint="--header")
    return [name.strip(), value.strip()]


def _claims(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise click.BadParameter(f"not JSON: {error}", param_hint="--claims") from None
