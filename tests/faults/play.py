"""Plays one fault of the table: before, while, after; what was seen is a `Seen`."""

from __future__ import annotations

import time
from dataclasses import dataclass

from mesh_middleware.consul.blocking import BURST, RATE
from tests.contract.agents import Agent
from tests.faults.scene import Records, Scene, scene
from tests.faults.table import (
    CHANGED,
    EXPIRED,
    NOTHING,
    REJECTED,
    Decides,
    Fault,
)
from tests.support import wait_for

RECOVERY_SECONDS = 10.0
"""Five times what is promised: tests must not fail for a busy machine. Figures are reported."""


@dataclass
class Seen:
    """`outcomes`: the decisions about two callers while it lasted. `said`: log lines of failures
    while it lasted; `failed`, `well`: what failed and what recovered from its begin to its end,
    parts of the state or the ``agent``. `per_minute`: requests to the agent, the burst included.
    `recovery`: seconds."""

    outcomes: set[str]
    said: list[str]
    failed: set[str]
    well: set[str]
    per_minute: float
    recovery: float


def play(fault: Fault, records: Records, shared: Agent | None, window: float) -> Seen:
    """The whole life of `fault`; AssertionError where it is not as the table says."""
    with scene(records, None if fault.own_agent else shared, **fault.settings) as at:
        at.agent.intend("a", at.service, "allow")
        wait_for(lambda: at.decision("a") == "allow" and known(at))
        assert at.decision("z") == "allow"
        begun = time.monotonic()
        before = {event: len(lines(at, event)) for event in ("failed", "recovered")}
        fault.begin(at)
        if fault.decides is Decides.NEWEST and fault.name != "restart-empty":
            at.agent.intend("a", at.service, "deny")
            wait_for(lambda: at.decision("a") == "deny", message="a change is not followed")
        wait_for(lambda: shows(fault, at), message=f"not {fault.shown}: {at.manager.last_errors}")
        changed = agent_is_there(fault)
        if changed:
            at.agent.intend("a", at.service, "deny")
        outcomes = watched(fault, at, window)
        took = time.monotonic() - begun
        counts = at.proxy.count(begun)
        for path, times in counts.items():
            # three series may ask one path: a watch, what it falls back to, and the probe
            assert times <= BURST + RATE * took + 1, f"{times} times {path} in {took:.1f} s"
        said = lines(at, "failed")[before["failed"] :]
        ended = time.monotonic()
        fault.end(at)
        if not changed and fault.decides is not Decides.NEWEST:
            at.agent.intend("a", at.service, "deny")
        wanted = "allow" if fault.name == "restart-empty" else "deny"
        wait_for(
            lambda: at.decision("a") == wanted and at.manager.ready and not at.manager.last_errors,
            RECOVERY_SECONDS + 20,
            f"not well again: {at.decision('a')}, {dict(at.manager.last_errors)}",
        )
        recovery = time.monotonic() - ended
        return Seen(
            outcomes,
            said,
            parts(lines(at, "failed")[before["failed"] :]),
            parts(lines(at, "recovered")[before["recovered"] :]),
            sum(counts.values()) / took * 60,
            recovery,
        )


def known(at: Scene) -> bool:
    """Everything was read, and the queries wait."""
    return not at.manager.last_errors and "default action" in at.manager.state.updated


def agent_is_there(fault: Fault) -> bool:
    """Whether the real state can be changed behind the fault."""
    return fault.decides is not Decides.NEWEST and fault.name != "restart"


def shows(fault: Fault, at: Scene) -> bool:
    manager = at.manager
    if fault.shown == NOTHING:
        return True
    if fault.shown == CHANGED:
        return len(at.records.of(at.service, "trust domain")) == 1 and manager.ready
    if fault.shown == EXPIRED:
        expired = at.records.of(at.service, "expired")
        return "leaf" in manager.state.missing(now=at.clock()) and len(expired) == 1
    if fault.shown == REJECTED:
        return REJECTED in manager.last_errors
    kinds = {str(failure.kind) for failure in manager.last_errors.values()}
    wanted = {"roots", "leaf", "intentions"} <= manager.last_errors.keys()
    if fault.decides in (Decides.STALE, Decides.UNDECODABLE):
        wanted = wanted and manager.state.fault is not None
    return wanted and fault.shown in kinds


def watched(fault: Fault, at: Scene, window: float) -> set[str]:
    """The decisions of `window` seconds. What the agent last said must not look new."""
    end, outcomes = time.monotonic() + window, set()
    before = dict(at.manager.state.updated)
    while time.monotonic() < end:
        outcomes |= {f"a: {at.decision('a')}", f"z: {at.decision('z')}"}
        wait_for(lambda: True)
        time_passes()
    after = at.manager.state.updated
    if fault.decides is Decides.LAST and fault.shown not in (EXPIRED, REJECTED):
        assert after["intentions"] == before["intentions"], "old intentions look new"
    return outcomes


def time_passes() -> None:
    last = time.monotonic()
    wait_for(lambda: time.monotonic() > last + 0.02)


def lines(at: Scene, event: str) -> list[str]:
    return [record.getMessage() for record in at.records.of(at.service, event)]


def parts(said: list[str]) -> set[str]:
    """What the lines are about: ``svc-1: leaf: well again`` is about the leaf."""
    return {line.split(": ")[1] for line in said}
