"""The helper that gets and runs a real Consul: what it does when there is none."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests import consul_agent
from tests.consul_agent import ConsulAgent, ConsulUnavailableError
from tests.support import SKIPPED, wait_for


@pytest.fixture
def nowhere(tmp_path, monkeypatch):
    """A checkout without a cache on a machine without apt, and not in CI."""
    for name in ("CI", "MESH_REQUIRE_REAL", "CONSUL_BIN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(consul_agent, "CACHE", tmp_path / "cache")
    consul_agent._outcome.cache_clear()
    yield tmp_path
    consul_agent._outcome.cache_clear()


def test_without_a_binary_the_tests_are_skipped_with_a_loud_reason(nowhere):
    with pytest.raises(
        pytest.skip.Exception, match=f"{SKIPPED}, Consul: .*no apt-get here.*CONSUL_BIN"
    ):
        consul_agent.require_consul()
    assert "no apt-get" in (nowhere / "cache/failure").read_text()


@pytest.mark.parametrize("name", ["CI", "MESH_REQUIRE_REAL"])
def test_without_a_binary_ci_fails(nowhere, monkeypatch, name):
    monkeypatch.setenv(name, "true")
    with pytest.raises(pytest.fail.Exception, match="a real Consul is required here"):
        consul_agent.require_consul()


def test_a_failed_download_is_tried_once_by_the_workers_that_waited_for_it(nowhere, monkeypatch):
    monkeypatch.setattr(consul_agent.time, "time", lambda: 0.0)
    (nowhere / "cache").mkdir()
    (nowhere / "cache/failure").write_text("said by another worker")
    with pytest.raises(ConsulUnavailableError, match="said by another worker"):
        consul_agent.consul_binary()


def test_a_binary_that_is_none_is_refused(nowhere, monkeypatch):
    monkeypatch.setenv("CONSUL_BIN", "/no/such/consul")
    with pytest.raises(ConsulUnavailableError, match="CONSUL_BIN=/no/such/consul is not an exec"):
        consul_agent.consul_binary()
    fake = nowhere / "consul"
    fake.write_text("#!/bin/sh\necho hello\n")
    fake.chmod(0o755)
    monkeypatch.setenv("CONSUL_BIN", str(fake))
    consul_agent._outcome.cache_clear()
    with pytest.raises(ConsulUnavailableError, match="version says 'hello"):
        consul_agent.consul_binary()


def test_a_named_binary_is_taken_whatever_its_version(nowhere, monkeypatch):
    fake = nowhere / "consul"
    fake.write_text("#!/bin/sh\necho 'Consul v1.99.3'\n")
    fake.chmod(0o755)
    monkeypatch.setenv("CONSUL_BIN", str(fake))
    assert consul_agent.consul_binary() == fake
    assert ConsulAgent().version == (1, 99, 3)


def test_only_private_folders_are_given_to_apt(tmp_path):
    text = consul_agent._apt_config(tmp_path).read_text()
    settings = dict(re.findall(r'^(Dir::\S+) "(.*)";$', text, re.MULTILINE))
    assert settings.pop("Dir::Etc::SourceList") == "/dev/null"
    assert len(settings) == 6
    assert all(Path(value).is_relative_to(tmp_path) for value in settings.values())
    assert "#clear APT::Update::Post-Invoke;" in text
    assert "Suites: bullseye" in (tmp_path / "parts/bullseye.sources").read_text()


@pytest.mark.consul
def test_an_agent_is_stopped_by_an_interrupt_and_starts_on_the_same_ports():
    consul_agent.require_consul()
    with ConsulAgent() as agent:
        address, process = agent.address, agent._process
        log = agent._log
        agent.restart()
        assert agent.address == address
        assert process.returncode is not None
        assert wait_for(lambda: agent.pid)
    assert agent.pid is None
    assert not log.exists()
