"""Every row of the fault table, on the development agent and on a real Consul."""

from __future__ import annotations

import functools
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from mesh_middleware.consul import client, prober
from mesh_middleware.state import PARTS
from tests.consul_agent import ConsulAgent
from tests.contract.agents import Agent, Real
from tests.faults.play import RECOVERY_SECONDS, Seen, play
from tests.faults.scene import in_parallel, recording, resolve
from tests.faults.table import FAULTS, UNREACHABLE, Decides, Fault, markdown

DOCUMENT = Path(__file__).parents[2] / "docs/design/faults.md"
WINDOW_SECONDS = 1.0
AT_A_TIME = 6

_BY_NAME = {fault.name: fault for fault in FAULTS}
_ON_REAL = [fault for fault in FAULTS if not fault.own_agent]

Played = dict[str, Seen | BaseException]


def _rows(request: pytest.FixtureRequest, test: str) -> list[Fault]:
    """The rows that this run asks for: they are played some at a time, before the first test."""
    asked = {
        str(item.callspec.params["name"])
        for item in request.session.items
        if isinstance(item, pytest.Function) and item.originalname == test
    }
    return [fault for fault in FAULTS if fault.name in asked]


def played(faults: list[Fault], shared: Agent | None, window: float = WINDOW_SECONDS) -> Played:
    """What was seen of each of `faults`, or why it was not as the table says."""
    with pytest.MonkeyPatch.context() as patch, recording() as records:
        patch.setattr(socket, "getaddrinfo", resolve)
        # what stops a hanging or endless answer, small enough to wait for
        patch.setattr(client, "MARGIN_SECONDS", 1.0)
        patch.setattr(client, "CONNECT_SECONDS", 1.0)
        patch.setattr(client, "MAX_BODY", 2**20)
        patch.setattr(prober, "PROBE_SECONDS", 0.3)
        calls = {
            fault.name: functools.partial(play, fault, records, shared, window) for fault in faults
        }
        return in_parallel(calls, AT_A_TIME)


@pytest.fixture(scope="module")
def on_dev(request: pytest.FixtureRequest) -> Played:
    return played(_rows(request, "test_a_fault_of_the_agent"), None)


@pytest.fixture(scope="module")
def on_real(request: pytest.FixtureRequest, consul: ConsulAgent) -> Iterator[Played]:
    shared = Real(consul)
    with shared.client:
        yield played(_rows(request, "test_the_same_fault_before_a_real_consul"), shared)


def judge(name: str, seen: Seen | BaseException) -> None:
    """What holds for every row; `play` has asserted the rest."""
    if isinstance(seen, BaseException):
        raise seen
    fault = _BY_NAME[name]
    expected = {
        Decides.LAST: {"a: allow", "z: allow"},
        Decides.UNDECODABLE: {"a: policy_undecodable", "z: policy_undecodable"},
        Decides.STALE: {"a: stale_policy", "z: stale_policy"},
        Decides.NEWEST: {"a: deny", "z: allow"},
    }[fault.decides]
    if name == "restart-empty":
        expected = {"a: allow", "z: allow"}  # the intention is lost, too
    assert seen.outcomes == expected
    # once for each condition, not for each request; each part that is asked for may have its own
    asked = len(PARTS) - 1  # no rule needs tokens
    if fault.shown != UNREACHABLE and "agent" in seen.failed:
        # a busy machine: an answer came too late, which is another condition, and then the first
        assert len(seen.said) <= 3 * asked, seen.said
        assert seen.well <= seen.failed
        assert "agent" in seen.well
    else:
        assert len(seen.said) == len(set(seen.said)), seen.said
        assert len(seen.said) <= (1 if fault.shown == UNREACHABLE else asked), seen.said
        assert seen.well == seen.failed
    assert seen.recovery < RECOVERY_SECONDS


@pytest.mark.parametrize("name", _BY_NAME)
def test_a_fault_of_the_agent(on_dev: Played, name: str) -> None:
    judge(name, on_dev[name])


@pytest.mark.consul
@pytest.mark.parametrize("name", [fault.name for fault in _ON_REAL])
def test_the_same_fault_before_a_real_consul(on_real: Played, name: str) -> None:
    judge(name, on_real[name])


def test_the_document_shows_the_table() -> None:
    assert markdown() in DOCUMENT.read_text()
