"""The commands `check` and `explain`, as people and pipelines meet them."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner, Result

from mesh_middleware.cli import main
from mesh_middleware.consul.decode import decode_intention
from mesh_middleware.errors import ConfigError
from mesh_middleware.policy.decision import Reason
from mesh_middleware.policy.engine import compile_policy
from mesh_middleware.policy.intentions import Action
from mesh_middleware.policy.request import HTTPRequest

DATA = Path(__file__).parent / "data"
CHECK = DATA / "check"
CONFORMANCE = DATA / "conformance"
TRUST_DOMAIN = "11111111-2222-3333-4444-555555555555.consul"


def run(*args: str, stdin: str | bytes | None = None, color: bool = False) -> Result:
    return CliRunner().invoke(main, list(args), input=stdin, color=color)


def check_json(documents: Iterable[dict[str, Any]], code: int = 0) -> list[dict[str, Any]]:
    """The lines that `check --json -` prints for `documents`, in order."""
    result = run("check", "--json", "-", stdin="\n".join(map(json.dumps, documents)))
    assert result.exit_code == code, result.output
    return [json.loads(line) for line in result.stdout.splitlines()]


def row(source: str, action: str = "allow", destination: str = "api") -> dict[str, Any]:
    return {"SourceName": source, "DestinationName": destination, "Action": action}


def small(*requests: dict[str, Any], **more: Any) -> dict[str, Any]:
    base = {"source": "web", "method": "GET", "path": "/"}
    return {
        "default": "deny",
        "intentions": [row("web")],
        "requests": [base | each for each in requests],
        **more,
    }


# --- check for people -----------------------------------------------------------------------


def test_the_table_says_what_decided_each_request() -> None:
    result = run("check", str(CHECK / "shop.yaml"))
    assert result.exit_code == 0, result.output
    expected = (CHECK / "shop.txt").read_text().replace("FILE", str(CHECK / "shop.yaml"))
    assert result.stdout == expected


def test_a_failed_expectation_stands_out_and_exits_1() -> None:
    made = small(
        {"expect": "allow"}, {"expect": "allow", "source": "cron", "description": "nightly"}
    )
    result = run("check", "-", stdin=json.dumps(made))
    assert result.exit_code == 1
    lines = result.stdout.splitlines()
    assert lines[0] == "standard input, document 0: calls to api, default deny, 1 intention"
    assert (lines[2][:10], lines[2].split()[-1]) == ("  0  GET /", "allow")
    assert (lines[3][:10], lines[3].split()[-2:]) == ("! 1  GET /", ["allow:", "FAILED"])
    assert lines[4] == "      nightly"
    assert lines[5].startswith("      nearest: web => api (precedence 9): source is not ")
    assert lines[-1] == "2 requests: 1 allowed, 1 refused; 1 of 2 expectations FAILED"


def test_columns_that_say_nothing_are_left_out() -> None:
    head = run("check", "-", stdin=json.dumps(small({}))).stdout.splitlines()[1]
    assert head.split() == ["#", "request", "source", "decision", "reason", "intention"]


def test_colours_only_where_the_output_takes_them() -> None:
    text = json.dumps(small({"expect": "deny"}))
    assert "\x1b[" not in run("check", "-", stdin=text).stdout
    assert "\x1b[31m" in run("check", "-", stdin=text, color=True).stdout


def test_what_a_document_says_cannot_drive_the_terminal() -> None:
    evil = "\x1b]0;evil\x07"
    made = small({"path": f"/{evil}", "source": evil, "description": evil, "expect": "allow"})
    result = run("check", "-", stdin=json.dumps(made | {"description": evil}), color=True)
    assert result.exit_code == 1
    assert "\x1b]" not in result.output
    assert "\x07" not in result.output
    assert result.stdout.count(r"\x1b]0;evil\x07") == 4
    bad = small({"headers": {evil: 1}})
    told = run("check", "--json", "-", stdin=json.dumps(bad), color=True)
    assert "\x1b]" not in told.stderr
    assert "evil" in told.stderr
    peered = row("web", destination="api") | {"SourcePeer": evil}
    noted = run("check", "-", stdin=json.dumps(small({}, intentions=[peered])), color=True)
    assert "evil" in noted.stdout
    assert "\x1b]" not in noted.stdout
    named = small({"source": evil, "description": evil}, intentions=[row(evil)])
    words = run("explain", "-", stdin=json.dumps(named), color=True)
    assert "evil" in words.stdout
    assert "\x1b]" not in words.output


def test_long_targets_are_cut_in_the_table_only() -> None:
    made = small({"path": f"/{'x' * 500}"})
    assert max(map(len, run("check", "-", stdin=json.dumps(made)).stdout.splitlines())) < 200


def test_problems_of_the_rules_are_noted() -> None:
    peered = row("web") | {"SourcePeer": "east"}
    result = run("check", "-", stdin=json.dumps(small({}) | {"intentions": [peered]}))
    assert "  note: web (peer east) => api" in result.stdout


def test_lint_names_what_surprises_without_failing() -> None:
    permission = {"Action": "allow", "HTTP": {"PathPrefix": "/admin"}}
    l7 = {"SourceName": "web", "DestinationName": "api", "Permissions": [permission]}
    text = "\n".join(json.dumps(small({}, intentions=[each])) for each in (row("web"), l7))
    plain = run("check", "-", stdin=text)
    assert "prefix-without-slash" not in plain.output
    linted = run("check", "--lint", "-", stdin=text)
    assert linted.exit_code == 0
    assert "  warning: prefix-without-slash: web => api (precedence 9), " in linted.stdout
    as_json = run("check", "--lint", "--json", "-", stdin=text)
    assert as_json.exit_code == 0
    assert len(as_json.stdout.splitlines()) == 2
    assert as_json.stderr.startswith(
        "standard input: document 1: warning: prefix-without-slash: web => api"
    )


def test_lint_knows_the_default_and_cannot_drive_the_terminal() -> None:
    jwt_row = row("\x1b]0;evil\x07") | {"JWT": {"Providers": [{"Name": "okta"}]}}
    for default, said in (("allow", True), ("deny", False)):
        made = small({}, default=default, intentions=[jwt_row])
        linted = run("check", "--lint", "-", stdin=json.dumps(made), color=True)
        assert ("jwt-under-default-allow" in linted.stdout) is said
        assert "\x1b]" not in linted.stdout


def test_a_missing_library_for_tokens_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_library(entry: Any) -> Any:
        raise ConfigError("install the library")

    monkeypatch.setattr("mesh_middleware.checkfile.reading.provider_with_keys", no_library)
    provider = {"Name": "okta", "JSONWebKeySet": {}}
    made = small({"token": "a.b.c"}, jwt_providers=[provider])
    result = run("check", "-", stdin=json.dumps(made))
    assert (result.exit_code, result.stderr) == (2, "Error: install the library\n")


def test_a_document_without_requests_is_shown_too() -> None:
    result = run("check", "-", stdin=json.dumps(small()))
    assert result.exit_code == 0
    assert result.stdout.splitlines()[0].startswith("standard input, document 0: calls to api")
    assert result.stdout.splitlines()[-1] == "0 requests: 0 allowed, 0 refused"


# --- check for pipelines --------------------------------------------------------------------


def test_json_prints_one_line_a_request_and_nothing_else() -> None:
    permission = {"Action": "deny", "HTTP": {"PathPrefix": "/admin"}}
    l7 = {"SourceName": "web", "DestinationName": "api", "Permissions": [permission]}
    asked = small({}, {"path": "//admin"}, {"source": "cron"}, default="allow", intentions=[l7])
    decided_by = {"source": "web", "destination": "api", "precedence": 9}
    assert check_json([asked, small({})]) == [
        {"document": 0, "request": 0, "allowed": True, "reason": "default_allow",
         "intention": decided_by, "permission": None, "reading": None},
        {"document": 0, "request": 1, "allowed": False, "reason": "ambiguous_path",
         "intention": decided_by, "permission": 0, "reading": "resolved"},
        {"document": 0, "request": 2, "allowed": True, "reason": "default_allow",
         "intention": None, "permission": None, "reading": None},
        {"document": 1, "request": 0, "allowed": True, "reason": "intention_allow",
         "intention": decided_by, "permission": None, "reading": None},
    ]  # fmt: skip


def test_json_tells_failed_expectations_on_standard_error() -> None:
    made = small({"expect": "deny"}, {"expect": "allow"})
    result = run("check", "--json", "-", stdin=json.dumps(made))
    assert result.exit_code == 1
    assert len(result.stdout.splitlines()) == 2
    assert result.stderr == (
        "standard input: document 0: request 0: expected deny, decided allow (intention_allow)\n"
    )


def test_no_request_is_no_line() -> None:
    result = run("check", "--json", "-", stdin=json.dumps(small()))
    assert (result.exit_code, result.stdout, result.stderr) == (0, "", "")


@pytest.mark.parametrize("flags", [[], ["--json"]])
@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "standard input: there is no document in it"),
        ("{", "standard input: document 0: line 1, column 2: not JSON: "),
        (json.dumps(small({})) + "\n{", "standard input: document 1: line 2, column 2: not JSON"),
        (
            json.dumps(small({})) + "\n" + json.dumps(small({}, {"mode": "udp"})),
            "standard input: document 1: request 1: mode: must be http or tcp, not 'udp'",
        ),
        (
            json.dumps(small({}, intentions=[row("web") | {"SourceName": 1}])),
            "standard input: document 0: intentions[0]: SourceName: ",
        ),
        (json.dumps(small({}, defalt="deny")), "unknown key 'defalt'; did you mean 'default'?"),
    ],
)
def test_bad_input_exits_2_with_the_place_and_prints_nothing_else(
    flags: list[str], text: str, says: str
) -> None:
    result = run("check", *flags, "-", stdin=text)
    assert result.exit_code == 2
    assert result.stdout == ""
    assert result.stderr.startswith("Error: ")
    assert says in result.stderr


def test_files_that_cannot_be_read_exit_2(tmp_path: Path) -> None:
    missing = run("check", str(tmp_path / "none.yaml"))
    assert (missing.exit_code, missing.stdout) == (2, "")
    assert missing.stderr == f"Error: {tmp_path / 'none.yaml'}: No such file or directory\n"
    folder = run("check", str(tmp_path))
    assert folder.exit_code == 2
    assert "Is a directory" in folder.stderr


def test_a_file_is_needed() -> None:
    result = run("check")
    assert result.exit_code == 2
    assert "FILE" in result.stderr


def test_the_three_formats_decide_alike(tmp_path: Path) -> None:
    made = [small({"headers": {"x": "yes"}}), small({"source": "cron"})]
    lines = "\n".join(map(json.dumps, made))
    (tmp_path / "a.jsonl").write_text(lines)
    (tmp_path / "a.yaml").write_text(yaml.safe_dump_all(made))
    (tmp_path / "a.json").write_text("\n".join(json.dumps(each, indent=1) for each in made))
    printed = {run("check", "--json", str(path)).stdout for path in tmp_path.iterdir()}
    assert len(printed) == 1
    assert len(printed.pop().splitlines()) == 2


def process(*args: str, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    command = [sys.executable, "-m", "mesh_middleware", *args]
    return subprocess.run(command, input=stdin, capture_output=True, timeout=60, check=False)


def test_as_a_process() -> None:
    good = process("check", "--json", "-", stdin=json.dumps(small({})).encode())
    assert (good.returncode, good.stderr) == (0, b"")
    assert json.loads(good.stdout)["allowed"] is True
    failed = process("check", "-", stdin=json.dumps(small({"expect": "deny"})).encode())
    assert failed.returncode == 1
    bad = process("check", "--json", "-", stdin=b"\xff")
    assert (bad.returncode, bad.stdout) == (2, b"")
    assert bad.stderr == b"Error: standard input: not UTF-8 at byte 0\n"


# --- explain --------------------------------------------------------------------------------


def test_explain_gives_the_whole_trail_of_one_request() -> None:
    result = run("explain", str(CHECK / "shop.yaml"), "--document", "0", "--request", "2")
    assert result.exit_code == 0, result.output
    assert "request: GET //admin/users from spiffe://" in result.stdout
    assert "refused: ambiguous_path" in result.stdout
    assert "readings of the path:" in result.stdout
    assert "candidates, highest precedence first:" in result.stdout


def test_explain_takes_the_only_request() -> None:
    result = run("explain", "-", stdin=json.dumps(small({"description": "the home page"})))
    assert result.exit_code == 0
    assert "allowed: intention_allow" in result.stdout
    assert "the home page" in result.stdout


@pytest.mark.parametrize(
    ("args", "documents", "says"),
    [
        ([], [small({}, {})], "there are several requests; choose one with --request 0 to 1"),
        ([], [small({}), small({})], "there are several documents; choose one with --document"),
        (["--request", "5"], [small({}, {})], "there is no request 5; they are numbered 0 to 1"),
        (["--document", "1"], [small({})], "there is no document 1; they are numbered 0 to 0"),
        ([], [small()], "there is no request to explain; describe one with --source and --path"),
        (["--path", "/x"], [small({})], "--path needs --source"),
        (["--header", "a: b"], [small({})], "--header needs --source"),
        (["--mode", "tcp"], [small({})], "--mode needs --source"),
        (["--source", "web", "--request", "0"], [small({})], "leave --request out"),
        (["--source", "web", "--header", "x"], [small({})], "'x' is not 'NAME: VALUE'"),
        (["--source", "web", "--claims", "{"], [small({})], "not JSON"),
        (["--source", "web", "--claims", "[]"], [small({})], "options: claims: must be an object"),
        (["--source", "web", "--mode", "udp"], [small({})], "udp"),
        (["--request", "-1"], [small({})], "-1"),
        ([], [], "there is no document in it"),
    ],
)
def test_explain_says_what_to_choose(args: list[str], documents: list[Any], says: str) -> None:
    result = run("explain", "-", *args, stdin="\n".join(map(json.dumps, documents)))
    assert result.exit_code == 2
    assert result.stdout == ""
    assert says in result.stderr


def test_explain_asks_about_a_request_of_its_own() -> None:
    permissions = [
        {
            "Action": "allow",
            "HTTP": {"Methods": ["PUT"], "Header": [{"Name": "x", "Exact": "1:2"}]},
        },
        {"Action": "allow", "HTTP": {"Header": [{"Name": ":authority", "Exact": "api"}]}},
    ]
    l7 = {"SourceName": "web", "DestinationName": "api", "Permissions": permissions}
    text = json.dumps({"default": "deny", "intentions": [l7]})

    def reason(*args: str) -> str:
        result = run("explain", "-", "--source", *args, stdin=text)
        assert result.exit_code == 0, result.output
        return result.stdout.splitlines()[2]

    assert reason("web") == "refused: default_deny"
    assert reason("web", "--method", "PUT", "--path", "/a", "--header", "x: 1:2") == (
        "allowed: permission_allow"
    )
    assert reason("web", "--header", "Host: api") == "allowed: permission_allow"
    assert reason("web", "--header", ":authority: api") == "refused: default_deny"
    assert reason("web", "--mode", "tcp") == "refused: l7_over_tcp"
    assert reason("spiffe://x/y") == "refused: foreign_trust_domain"


def test_explain_reads_claims() -> None:
    token_row = row("web") | {"JWT": {"Providers": [{"Name": "okta"}]}}
    provider = {"Kind": "jwt-provider", "Name": "okta", "Issuer": "me"}
    text = json.dumps({"default": "deny", "intentions": [token_row], "jwt_providers": [provider]})
    without = run("explain", "-", "--source", "web", stdin=text)
    assert "refused: jwt_missing" in without.stdout
    claims = json.dumps({"okta": {"iss": "me"}})
    assert "allowed: intention_allow" in (
        run("explain", "-", "--source", "web", "--claims", claims, stdin=text).stdout
    )


def test_explain_as_json_is_the_line_of_check_and_the_trail() -> None:
    text = json.dumps(small({"path": "/x"}, {"source": "cron", "expect": "allow"}))
    [first, second] = run("check", "--json", "-", stdin=text).stdout.splitlines()
    for number, line in enumerate([first, second]):
        result = run("explain", "-", "--json", "--request", str(number), stdin=text)
        told = json.loads(result.stdout)
        assert told | json.loads(line) == told
        assert told["caller"].endswith(["/svc/web", "/svc/cron"][number])
        assert result.exit_code == number
    assert "expected allow, decided deny" in result.stderr
    described = json.loads(run("explain", "-", "--json", "--source", "web", stdin=text).stdout)
    assert (described["request"], described["allowed"]) == (None, True)


def test_explain_exits_1_when_the_expectation_fails() -> None:
    result = run("explain", "-", stdin=json.dumps(small({"expect": "deny"})))
    assert result.exit_code == 1
    assert "allowed: intention_allow" in result.stdout
    assert "expected deny, decided allow (intention_allow)" in result.stderr


def test_explain_and_check_agree_on_every_request_of_the_example() -> None:
    lines = run("check", "--json", str(CHECK / "shop.yaml")).stdout.splitlines()
    for answer in map(json.loads, lines):
        numbers = ["--document", str(answer["document"]), "--request", str(answer["request"])]
        words = run("explain", str(CHECK / "shop.yaml"), *numbers).stdout.splitlines()
        verdict = "allowed" if answer["allowed"] else "refused"
        assert f"{verdict}: {answer['reason']}" in words


# --- the conformance vectors, through the command -------------------------------------------


def mesh_entry(normalize: dict[str, Any]) -> dict[str, Any]:
    return {
        "Kind": "mesh",
        "HTTP": {
            "Incoming": {
                "RequestNormalization": {
                    "InsecureDisablePathNormalization": not normalize["path"],
                    "MergeSlashes": normalize["merge_slashes"],
                    "PathWithEscapedSlashesAction": normalize["escaped_slashes"],
                    "HeadersWithUnderscoresAction": normalize["headers_with_underscores"],
                }
            }
        },
    }


def rule_document(vector: dict[str, Any], defaults: dict[str, Any]) -> dict[str, Any]:
    """A vector of rules.json as a document of one request."""
    normalize = defaults["normalize"] | vector.get("normalize", {})
    return {
        "default": "allow" if vector["default_allow"] else "deny",
        "trust_domain": defaults["trust_domain"],
        "destination": defaults["destination"],
        "intentions": vector["intentions"],
        "mesh": mesh_entry(normalize),
        "jwt_providers": [
            {"Kind": "jwt-provider", "Name": name, **entry}
            for name, entry in defaults["jwt_providers"].items()
        ],
        "peers": vector.get("peer_trust_bundles", defaults["peer_trust_bundles"]),
        "encoding": "latin-1",
        "requests": [
            {
                "source": vector["source"],
                "mode": vector.get("mode", "http"),
                "claims": vector.get("jwt", {}),
                **vector["request"],
            }
        ],
    }


def test_every_rule_vector_is_decided_as_it_says() -> None:
    rules = json.loads((CONFORMANCE / "rules.json").read_text())
    vectors = rules["vectors"]
    answers = check_json(rule_document(vector, rules["defaults"]) for vector in vectors)
    assert len(answers) == len(vectors) > 150
    wrong = [
        (vector["id"], vector["expected"], answer["reason"])
        for vector, answer in zip(vectors, answers, strict=True)
        if ("allow" if answer["allowed"] else "deny") != vector["expected"]
        and not (vector.get("may_refuse") and not answer["allowed"])
    ]
    assert wrong == []


@pytest.mark.parametrize("default", ["allow", "deny"])
def test_every_recorded_request_is_decided_within_its_promise(default: str) -> None:
    text = (CONFORMANCE / f"sidecar-default-{default}.jsonl").read_text()
    recorded = [json.loads(line) for line in text.splitlines()]
    keys = ("source", "method", "path", "headers")
    answers = iter(
        check_json(
            {
                "default": default,
                "destination": "web",
                "intentions": each["match"],
                "requests": [{key: asked[key] for key in keys} for asked in each["requests"]],
            }
            for each in recorded
        )
    )
    judged = 0
    for number, each in enumerate(recorded):
        policy = compile_policy(
            [decode_intention(entry) for entry in each["match"]],
            default_action=Action(default),
            trust_domain=TRUST_DOMAIN,
        )
        for index, asked in enumerate(each["requests"]):
            answer = next(answers)
            assert (answer["document"], answer["request"]) == (number, index)
            where = f"{each['id']} request {index}: {answer['reason']}"
            direct = policy.decide(
                f"spiffe://{TRUST_DOMAIN}/ns/default/dc/dc1/svc/{asked['source']}",
                HTTPRequest(
                    asked["method"],
                    asked["path"].encode(),
                    [(name.encode(), value.encode()) for name, value in asked["headers"]],
                ),
            )
            assert (answer["allowed"], answer["reason"]) == (direct.allowed, direct.reason), where
            if not asked.get("precedence_corner"):
                if asked["path_kind"] == "plain":
                    assert answer["allowed"] == (asked["sidecar"] == "allow"), where
                elif asked["sidecar"] == "deny":
                    assert not answer["allowed"], where
            judged += 1
    assert judged > 2000
    assert next(answers, None) is None


# --- the reference --------------------------------------------------------------------------


def test_the_reference_lists_exactly_the_reasons() -> None:
    page = (Path(__file__).parent.parent / "docs" / "reference" / "check.md").read_text()
    _, _, table = page.partition("## Reasons")
    table, _, _ = table.partition("\n## ")
    listed = [line.split("`")[1] for line in table.splitlines() if line.startswith("| `")]
    assert sorted(listed) == sorted(reason.value for reason in Reason)
