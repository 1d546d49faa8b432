"""``mesh-middleware lint``: what it reads, what it says, and how it exits."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from mesh_middleware.cli import main
from mesh_middleware.policy.lint import CHECKS

PREFIX = """
Kind: service-intentions
Name: api
Sources:
  - Name: web
    Permissions:
      - { Action: allow, HTTP: { PathPrefix: /admin } }
"""
NOTE = """
- SourceName: web
  DestinationName: api
  Permissions: [{ Action: allow, HTTP: { Methods: [GET] } }]
"""
CLEAN = "{SourceName: web, DestinationName: api, Action: allow}"
UNDER_ALLOW = """
default: allow
intentions:
  - SourceName: web
    DestinationName: api
    Action: allow
    JWT: { Providers: [{ Name: okta }] }
"""
WILD = """
- { SourceName: "*", DestinationName: api, Action: deny }
- { SourceName: web, DestinationName: "*", Action: allow }
- { SourceName: web, DestinationName: other, Action: allow }
"""
ONLY_WILD = "{SourceName: web, DestinationName: '*', Permissions: [{Action: allow, HTTP: {}}]}"


@pytest.mark.parametrize(
    ("text", "options", "status", "said"),
    [
        pytest.param(PREFIX, [], 1, "prefix-without-slash", id="config entry"),
        pytest.param(NOTE, [], 0, "methods-without-head", id="a note does not fail"),
        pytest.param(NOTE, ["--strict"], 1, "0 warnings, 1 notes", id="strict"),
        pytest.param(CLEAN, ["--strict"], 0, "0 warnings, 0 notes", id="nothing to say"),
        pytest.param(UNDER_ALLOW, [], 1, "jwt-under-default-allow", id="the document's default"),
        pytest.param(UNDER_ALLOW, ["--default", "deny"], 0, "0 warnings", id="given default"),
        pytest.param(WILD, [], 1, "sidecar-precedence", id="wildcard destination"),
        pytest.param(ONLY_WILD, [], 1, "not-evaluable", id="only wildcard destinations"),
        pytest.param("default: maybe\nintentions: []", [], 2, "allow or deny", id="bad default"),
        pytest.param("intentions: [3]", [], 2, "expected an object", id="bad row"),
        pytest.param("{", [], 2, "rules.yaml", id="not YAML"),
        pytest.param(CLEAN.replace("allow", "alow"), [], 2, "'alow' is not", id="misspelt"),
        pytest.param(PREFIX.replace("allow", "Allow"), [], 2, "Permissions[0].Action", id="case"),
        pytest.param(PREFIX.replace("Sources", "Source"), [], 2, "Sources: is missing", id="key"),
    ],
)
def test_lint(text: str, options: list[str], status: int, said: str, tmp_path: Path) -> None:
    file = tmp_path / "rules.yaml"
    file.write_text(text)
    result = CliRunner().invoke(main, ["lint", str(file), *options])
    assert result.exit_code == status, result.output
    assert said in result.output


def test_a_document_may_name_the_file_of_its_intentions(tmp_path: Path) -> None:
    (tmp_path / "rules.yaml").write_text(PREFIX)
    document = tmp_path / "expectations.yaml"
    document.write_text("{default: deny, intentions: rules.yaml, requests: []}")
    result = CliRunner().invoke(main, ["lint", str(document)])
    assert result.exit_code == 1, result.output
    assert "prefix-without-slash" in result.output
    (tmp_path / "rules.yaml").unlink()
    result = CliRunner().invoke(main, ["lint", str(document)])
    assert (result.exit_code, "No such file" in result.output) == (2, True)


def test_the_reference_lists_exactly_the_findings() -> None:
    page = (Path(__file__).parent.parent / "docs/reference/check.md").read_text()
    table = page.partition("| finding |")[2].partition("\n\n")[0]
    assert [line.split("`")[1] for line in table.splitlines()[2:]] == list(CHECKS)


def test_standard_input_and_a_missing_file() -> None:
    assert CliRunner().invoke(main, ["lint", "-"], input=PREFIX).exit_code == 1
    missing = CliRunner().invoke(main, ["lint", "no-such-file"])
    assert missing.exit_code == 2
    assert "no-such-file" in missing.output
