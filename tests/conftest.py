"""What every test folder shares: a real Consul, and a loud word when a real part is missing."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

import tests.fuzzing  # noqa: F401 - loads the profile of hypothesis for all tests
from tests.consul_acl import AclConsul, running_acl_consul
from tests.consul_agent import ConsulAgent, running_consul
from tests.support import SKIPPED


@pytest.fixture(scope="session")
def consul() -> Iterator[ConsulAgent]:
    """One real agent for the whole run (of one worker); don't restart it, don't rotate its CA."""
    with running_consul() as agent:
        yield agent


@pytest.fixture(scope="session")
def acl_consul() -> Iterator[AclConsul]:
    """One real agent with ACLs for the whole run (of one worker); give services own names."""
    with running_acl_consul() as agent:
        yield agent


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    skips = [r for r in terminalreporter.stats.get("skipped", []) if SKIPPED in str(r.longrepr)]
    if skips:
        terminalreporter.section("WARNING", sep="!", red=True, bold=True)
        terminalreporter.write_line(f"{len(skips)} tests did not meet the real thing:")
        for reason in sorted({str(skip.longrepr[2]) for skip in skips}):
            terminalreporter.write_line(f"  {reason}")
