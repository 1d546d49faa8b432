"""The benchmarks run, and say something about everything they measure; no figure is judged."""

from __future__ import annotations

import pytest

from tests.benchmarks import decisions, middleware, servers, sockets, stall, upstream
from tests.benchmarks.measure import cpu_seconds, medians, spread


def test_decisions() -> None:
    printed = decisions.report(short=True)
    assert "8 literal permissions" in printed
    assert "new token, RS256" in printed
    assert "| 100 |" in printed


def test_middleware() -> None:
    assert "launcher and middleware, L4" in middleware.report(short=True)


@pytest.mark.slow
def test_stall() -> None:
    assert "| none |" in stall.report(short=True)


def test_sockets() -> None:
    printed = sockets.report(short=True)
    assert "| closed after an intention is gone |" in printed


@pytest.mark.slow
def test_servers() -> None:
    printed = servers.report(short=True)
    assert printed.count("| mesh_middleware |") == 2
    assert printed.count("| bare again |") == 2


@pytest.mark.slow
def test_upstream() -> None:
    printed = upstream.report(short=True)
    assert printed.count("| mesh |") == 4
    assert "A change in the catalogue" in printed


def test_figures() -> None:
    assert medians([{"a": 1.0}, {"a": 9.0}, {"a": 2.0}]) == {"a": 2.0}
    assert spread([2.0, 3.0]) == 0.5
    assert cpu_seconds(1) >= 0
