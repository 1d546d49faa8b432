"""What is said about failures, and how often."""

from __future__ import annotations

import logging

import pytest

from mesh_middleware.config import MeshConfig
from mesh_middleware.consul import failures as module
from mesh_middleware.consul.failures import Failure, FailureKind, Failures, explain
from mesh_middleware.errors import ConsulError, DecodeError

CONFIG = MeshConfig("web")
WITH_TOKEN = MeshConfig("web", token="s3cret")

ROWS = [
    (ConsulError("refused"), "roots", CONFIG, "unreachable", "start the agent, or set CONSUL_HTTP"),
    (ConsulError("x", status=403, body="ACL not found"), "leaf", WITH_TOKEN, "acl",
     "does not know the token"),
    (ConsulError("x", status=403, body="Permission denied"), "leaf", WITH_TOKEN, "acl",
     "the token needs a service identity for 'web', or the rule service"),
    (ConsulError("x", status=403), "intentions", CONFIG, "acl",
     "no token was sent; set CONSUL_HTTP_TOKEN or CONSUL_HTTP_TOKEN_FILE to one with a service "
     "identity for 'web', or the rule service"),
    (ConsulError("x", status=403, body="rpc error: ACL not found"), "leaf",
     MeshConfig("web", token_file="/run/token"), "acl", "put a valid one into /run/token"),
    (ConsulError("x", status=403, body="no\n entry"), "leaf", CONFIG, "acl",
     "status 403: no entry;"),
    (ConsulError("x", status=401), "roots", CONFIG, "acl", "gives this to everybody"),
    (ConsulError("x", status=500, body="Connect must be enabled in order to use this endpoint"),
     "leaf", CONFIG, "other", "connect { enabled = true }"),
    (ConsulError("x", status=500, body="No cluster leader"), "leaf", CONFIG, "other",
     "check the Consul servers"),
    (ConsulError("x", status=404), "leaf", CONFIG, "other", "is a Consul agent"),
    (ConsulError("x", status=429), "leaf", CONFIG, "other", "limits requests"),
    (ConsulError("x", status=400), "leaf", CONFIG, "other", "check the settings"),
    (DecodeError("x"), "leaf", CONFIG, "other", "the last state stays"),
    (DecodeError("x"), "intentions", CONFIG, "other", "everything is refused"),
]  # fmt: skip


@pytest.mark.parametrize(("error", "part", "config", "kind", "words"), ROWS)
def test_text_and_kind(
    error: Exception, part: str, config: MeshConfig, kind: str, words: str
) -> None:
    failure = explain(error, part, config)
    assert words in failure
    assert failure.kind == kind
    assert failure.status == getattr(error, "status", 0)
    assert "s3cret" not in failure


def test_each_condition_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "mesh_middleware.consul")
    failures = Failures(CONFIG)
    for _ in range(3):
        failures.set("leaf", ConsulError("x", status=403))
    assert len(caplog.records) == 1
    failures.set("leaf", ConsulError("x", status=500))
    assert len(caplog.records) == 2
    assert failures.clear("leaf")
    assert not failures.clear("leaf")
    assert len(caplog.records) == 3
    record = caplog.records[0]
    fields = {key: value for key, value in vars(record).items() if key.startswith("mesh_")}
    assert fields == {
        "mesh_event": "failed", "mesh_service": "web", "mesh_part": "leaf",
        "mesh_failure_kind": "acl", "mesh_status": 403,
    }  # fmt: skip
    assert caplog.records[2].levelno == logging.INFO


def test_an_agent_that_is_away_is_one_condition(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "mesh_middleware.consul")
    failures, parts = Failures(CONFIG), ("roots", "leaf", "intentions")
    for part in parts * 2:
        failures.set(part, ConsulError(f"{part} refused"))
    assert len(caplog.records) == 1
    assert vars(caplog.records[0])["mesh_part"] == "agent"
    for part in parts:
        failures.clear(part)
    assert [record.levelname for record in caplog.records] == ["WARNING", "INFO"]


def test_a_token_that_is_not_known_is_one_condition(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "mesh_middleware.consul")
    failures, parts = Failures(WITH_TOKEN), ("leaf", "intentions", "default action")
    for part in parts * 2:
        failures.set(part, ConsulError("x", status=403, body="ACL not found"))
    failures.set("roots", ConsulError("refused"))
    failures.clear("roots")
    for part in parts:
        failures.clear(part)
    said = [(record.levelname, vars(record)["mesh_part"]) for record in caplog.records]
    assert said == [
        ("WARNING", "token"), ("WARNING", "agent"), ("INFO", "agent"), ("INFO", "token"),
    ]  # fmt: skip


def test_parts_with_conditions_of_their_own_recover_one_by_one(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, "mesh_middleware.consul")
    failures = Failures(CONFIG)
    for part in ("leaf", "intentions"):
        failures.set(part, ConsulError("x", status=403, body="Permission denied"))
    for part in ("leaf", "intentions"):
        failures.clear(part)
    said = [(record.levelname, vars(record)["mesh_part"]) for record in caplog.records]
    assert said == [
        ("WARNING", "leaf"), ("WARNING", "intentions"), ("INFO", "leaf"), ("INFO", "intentions"),
    ]  # fmt: skip


def test_parts_with_one_cause_are_named_together() -> None:
    failures = Failures(CONFIG)
    failures.set("roots", ConsulError("a"))
    failures.set("leaf", ConsulError("b"))
    failures.set("intentions", ConsulError("c", status=403, body="ACL not found"))
    words = failures.words(("roots", "leaf", "intentions", "default action"))
    assert words.startswith("roots, leaf, default action: no answer from the Consul agent")
    assert words.count("start the agent") == 1
    assert "; intentions: status 403: ACL not found; the agent does not know the token" in words


def test_parts_that_one_token_would_mend_are_named_together() -> None:
    """Newer agents say to each part which right it lacks; one service identity has them all."""
    failures = Failures(CONFIG)
    for part, right in (("leaf", "service:write"), ("intentions", "intentions:read")):
        body = f"Permission denied: anonymous token lacks permission '{right}' on \"web\""
        failures.set(part, ConsulError("x", status=403, body=body))
    words = failures.words(("leaf", "intentions"))
    assert words.startswith(
        "leaf, intentions: status 403: Permission denied: anonymous token lacks"
    )
    assert words.count("no token was sent") == 1


def test_one_cause_in_one_set_of_words_is_named_once() -> None:
    failures = Failures(CONFIG)
    for part in ("roots", "leaf"):
        failures.set(part, ConsulError(f"/v1/{part}: x", status=500, body="No cluster leader"))
    failures.set("intentions", ConsulError("x", status=500, body="rpc error"))
    words = failures.words(("roots", "leaf", "intentions"))
    assert words.startswith("roots, leaf: status 500: No cluster leader; check")
    assert "; intentions: status 500: rpc error; check" in words


def test_a_rejected_part_says_why_it_is_missing() -> None:
    failures = Failures(CONFIG)
    failures.set("leaf (rejected)", Failure.of("does not fit", FailureKind.OTHER))
    assert failures.words(("leaf", "roots")) == (
        "leaf: does not fit; roots: no answer yet from the Consul agent at http://127.0.0.1:8500"
    )


def test_who_sees_a_change_finds_its_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another thread that sees no failure any more must not look for the line too early."""
    failures = Failures(CONFIG)
    seen: list[tuple[str, list[str]]] = []

    def log(_level: int, _format: str, _text: str, *, extra: dict[str, str]) -> None:
        seen.append((extra["mesh_event"], list(failures.current)))

    monkeypatch.setattr(module.logger, "log", log)
    failures.set("leaf", ConsulError("x"))
    failures.clear("leaf")
    assert seen == [("failed", []), ("recovered", ["leaf"])]
    assert not failures.current
