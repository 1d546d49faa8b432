"""What the log says about states, one line each."""

from __future__ import annotations

import pytest

from mesh_middleware.config import MeshConfig
from mesh_middleware.consul.decode import decode_intention
from mesh_middleware.consul.failures import Failure, FailureKind, Failures
from mesh_middleware.consul.journal import Journal
from mesh_middleware.policy.engine import compile_policy
from mesh_middleware.state import MeshState

FORGED = "x\nERROR web: forged \x1b[31m"


def test_a_problem_is_one_line_whatever_an_intention_is_called(
    caplog: pytest.LogCaptureFixture,
) -> None:
    row = {"SourceName": FORGED, "SourcePeer": "p", "DestinationName": "web", "Action": "allow"}
    policy = compile_policy([decode_intention(row)], trust_domain="t", service="web")
    journal = Journal(MeshConfig("web"))
    journal.note_changes(MeshState("web"), MeshState("web", generation=1, policy=policy))
    assert policy.problems
    for record in caplog.records:
        assert record.getMessage().isprintable()
        assert r"x\nERROR web: forged \x1b[31m" in record.getMessage()
    assert len(caplog.records) == len(policy.problems)


def test_a_failure_is_one_line(caplog: pytest.LogCaptureFixture) -> None:
    Failures(MeshConfig("web")).set("leaf", Failure.of(FORGED, FailureKind.OTHER))
    assert [record.getMessage() for record in caplog.records] == [
        r"web: leaf: x\nERROR web: forged \x1b[31m"
    ]
