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
     "no token was sent; use a service identity for 'web', or the rule service"),
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


def test_parts_with_one_cause_are_named_together() -> None:
    failures = Failures(CONFIG)
    failures.set("roots", ConsulError("a"))
    failures.set("leaf", ConsulError("b"))
    failures.set("intentions", ConsulError("c", status=403, body="ACL not found"))
    words = failures.words(("roots", "leaf", "intentions", "default action"))
    assert words.startswith("roots, leaf, default action: no answer from the Consul agent")
    assert words.count("start the agent") == 1
    assert "; intentions: c; the agent does not know the token" in words


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
