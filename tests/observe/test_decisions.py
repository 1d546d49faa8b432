"""The decision log: the fields of a record, and the bounds of how many are written."""

from __future__ import annotations

import json
import logging
from typing import Any

import pytest

from mesh_middleware.observe import decisions as log
from mesh_middleware.observe.decisions import DecisionLog, log_fields, printable
from mesh_middleware.policy.decision import Decision, IntentionRef, NearMiss, Reason

DENIED = Decision(
    allowed=False,
    reason=Reason.DEFAULT_DENY,
    revision="abc",
    intention=IntentionRef("web", "api", 9),
    permission=2,
    reading="decoded",
    detail="why",
    nearest=(NearMiss("web => api", 0, "path is not /x"),),
)


def fields(**changes: Any) -> dict[str, Any]:
    return log_fields(DENIED, **{"service": "api", "source": "spiffe://x/web", **changes})


def test_the_fields_say_what_decided() -> None:
    found = fields(method="GET", target=b"/a?q=1", request_id="r1")
    assert found == {
        "mesh_allowed": False,
        "mesh_reason": "default_deny",
        "mesh_service": "api",
        "mesh_source": "spiffe://x/web",
        "mesh_protocol": "http",
        "mesh_method": "GET",
        "mesh_path": "/a",
        "mesh_request_id": "r1",
        "mesh_revision": "abc",
        "mesh_intention": "web => api (precedence 9)",
        "mesh_permission": 2,
        "mesh_reading": "decoded",
        "mesh_detail": "why; web => api permission 0: path is not /x",
    }
    assert json.loads(json.dumps(found)) == found


def test_a_decision_without_details_has_none() -> None:
    found = log_fields(Decision(allowed=False, reason=Reason.NO_IDENTITY), service="api")
    assert [key for key, value in found.items() if value is None] == [
        "mesh_source",
        "mesh_request_id",
        "mesh_revision",
        "mesh_intention",
        "mesh_permission",
        "mesh_reading",
        "mesh_detail",
    ]


@pytest.mark.parametrize(
    "target", [b"/a\r\nfake line", b"/\x1b[31m", b"/\x00", b"/\xe2\x80\xae", b"/\xff"], ids=repr
)
def test_what_a_peer_sent_cannot_write_into_the_log(target: bytes) -> None:
    found = fields(target=target, method="GET\n", source="x\ny")
    for name in ("mesh_path", "mesh_method", "mesh_source"):
        assert found[name].isprintable()
        assert found[name].isascii()


def test_long_texts_are_cut() -> None:
    assert printable("x" * 300) == "x" * 200 + "..."
    assert printable("x" * 200) == "x" * 200


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


class Records:
    """What was logged so far."""

    def __init__(self, caplog: pytest.LogCaptureFixture) -> None:
        self._caplog = caplog

    def __len__(self) -> int:
        return len(self._caplog.records)

    def __getitem__(self, index: int) -> logging.LogRecord:
        return self._caplog.records[index]


@pytest.fixture
def records(caplog: pytest.LogCaptureFixture) -> Records:
    caplog.set_level(logging.DEBUG, logger="mesh_middleware.decisions")
    return Records(caplog)


def test_refusals_of_one_caller_are_bounded(clock: Clock, records: Records) -> None:
    decisions = DecisionLog(clock=clock)
    for _ in range(1000):
        decisions.refused(fields())
    assert len(records) == log.BURST
    clock.now += 1
    decisions.refused(fields())
    assert len(records) == log.BURST + 1
    assert "995 more like it were not logged" in records[-1].getMessage()
    assert records[-1].__dict__["mesh_left_out"] == 995


def test_another_caller_is_still_heard(clock: Clock, records: Records) -> None:
    decisions = DecisionLog(clock=clock)
    for _ in range(100):
        decisions.refused(fields())
    decisions.refused(fields(source="spiffe://x/other"))
    assert records[-1].__dict__["mesh_source"] == "spiffe://x/other"


def test_all_callers_together_are_bounded(clock: Clock, records: Records) -> None:
    decisions = DecisionLog(clock=clock)
    for number in range(1000):
        decisions.refused(fields(source=f"caller {number}"))
    assert len(records) == log.TOTAL_BURST


def test_what_was_left_out_is_said_later_even_if_the_caller_is_gone(
    clock: Clock, records: Records
) -> None:
    decisions = DecisionLog(clock=clock)
    for _ in range(100):
        decisions.refused(fields())
    clock.now += log.SUMMARY_SECONDS
    decisions.refused(fields(source="spiffe://x/other"))
    assert "95 more refusals were not logged" in records[-2].getMessage()
    clock.now += log.SUMMARY_SECONDS
    decisions.refused(fields(source="spiffe://x/other"))
    assert sum("more refusals" in record.getMessage() for record in records) == 1


def test_the_memory_for_callers_is_bounded_and_nothing_is_lost(
    clock: Clock, records: Records, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(log, "MAX_KEYS", 10)
    decisions = DecisionLog(clock=clock)
    for number in range(500):
        decisions.refused(fields(source=f"caller {number}"))
    assert len(decisions._buckets) == 10
    clock.now += log.SUMMARY_SECONDS
    decisions.refused(fields())
    assert "400 more refusals were not logged" in records[-2].getMessage()


def test_levels(clock: Clock, records: Records) -> None:
    DecisionLog(clock=clock).refused(fields())
    log.allowed(fields())
    assert [record.levelno for record in records] == [logging.WARNING, logging.DEBUG]


def test_names_of_intentions_forge_no_lines() -> None:
    ref = IntentionRef("x\nERROR forged \x1b[31m\u202e", "api", 9)
    found = log_fields(Decision(False, Reason.DEFAULT_DENY, intention=ref), service="api")
    assert found["mesh_intention"] == r"x\nERROR forged \x1b[31m\u202e => api (precedence 9)"
