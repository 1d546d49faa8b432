"""``mesh-middleware doctor``: each finding, what it says to do, and how it exits."""

from __future__ import annotations

from collections.abc import Iterator
from email.utils import formatdate
from pathlib import Path
from time import time

import httpx
import pytest
from click.testing import CliRunner, Result

from mesh_middleware import MeshConfig, MeshManager
from mesh_middleware.cli import main
from mesh_middleware.commands.doctor import WATCHED, Level, Seen, examine
from mesh_middleware.consul.failures import Failure, FailureKind
from mesh_middleware.devagent import DevAgent
from mesh_middleware.testing import static_mesh
from tests.consul.fake_agent import FakeAgent, Reply
from tests.consul_agent import running_consul
from tests.support import free_port, wait_for

ALLOW = {"SourceName": "a", "DestinationName": "web", "Action": "allow", "Precedence": 9}


@pytest.fixture
def fake() -> Iterator[FakeAgent]:
    with FakeAgent() as agent:
        yield agent


def doctor(address: str, *options: str, **environ: str) -> Result:
    arguments = ["doctor", "--service", "web", "--wait", "5", *options]
    return CliRunner().invoke(main, arguments, env={"CONSUL_HTTP_ADDR": address, **environ})


def lines(result: Result) -> dict[str, list[str]]:
    """What was said, by subject: level and text."""
    found: dict[str, list[str]] = {}
    for line in result.output.splitlines():
        level, subject, text = line[:4].strip(), *line[6:].split("  ", 1)
        found.setdefault(subject.strip(), []).append(f"{level} {text.strip()}")
    return found


def test_a_service_that_can_join() -> None:
    with DevAgent() as agent:
        agent.put_intentions([ALLOW | {"Precedence": 9}])
        body = {"Name": "web", "ID": "web-1", "Port": 8443, "Connect": {"Native": True}}
        url = f"{agent.address}/v1/agent/service/register"
        httpx.put(url, json=body, trust_env=False).raise_for_status()
        result = doctor(agent.address)
        domain = agent.ca.trust_domain
    assert result.exit_code == 0, result.output
    said = lines(result)
    assert said["agent"] == [f"ok {agent.address}"]
    assert said["roots"] == [f"ok 1 of trust domain {domain}"]
    assert said["leaf"][0].startswith(f"ok spiffe://{domain}/ns/default/dc/dc1/svc/web until 20")
    assert said["intentions"][0].startswith("ok 1 for this service, revision ")
    assert said["default action"] == ["ok deny"]
    assert said["mesh entry"] == ["ok Consul's defaults"]
    assert said["catalogue"] == ["ok passing instances: 1 of 1"]
    assert said["connections"][0].startswith("ok 5 for 1 processes; an agent takes 200 ")


def test_a_real_agent() -> None:
    with running_consul() as consul:
        result = doctor(consul.address, "--wait", "20")
    assert result.exit_code == 0, result.output
    assert lines(result)["default action"] == ["ok allow"]
    assert "FAIL" not in result.output


def test_no_agent() -> None:
    result = doctor(f"127.0.0.1:{free_port()}", "--wait", "0.3")
    assert result.exit_code == 4
    assert lines(result).keys() == {"agent"}
    assert "FAIL" in result.output
    assert "start the agent, or set CONSUL_HTTP_ADDR" in result.output


def test_a_token_that_may_not(fake: FakeAgent) -> None:
    fake.set(leaf=Reply(status=403, body=b"Permission denied"))
    result = doctor(fake.address, "--wait", "1", CONSUL_HTTP_TOKEN="secret-token")
    assert result.exit_code == 5
    (leaf,) = lines(result)["leaf"]
    assert leaf.startswith("FAIL ")
    assert "a service identity for 'web'" in leaf
    assert "secret-token" not in result.output


def test_what_fails_although_it_is_known_is_a_warning() -> None:
    """The last state stays, so that nothing is missing yet."""
    state = static_mesh("web").state
    errors = {
        part: Failure.of(text, FailureKind.OTHER)
        for part, text in (("default action", "no leader"), ("leaf", "refused"))
    }
    seen = Seen(MeshConfig("web"), state, errors)
    found = {(finding.level, finding.subject, finding.text) for finding in examine(seen)}
    assert (Level.WARN, "default action", "no leader") in found
    assert (Level.FAIL, "leaf", "refused") in found
    assert (Level.FAIL, "roots", "no answer from the agent yet") in found
    assert "catalogue" not in {subject for _, subject, _ in found}


def test_parts_that_fail_for_one_reason_are_one_line() -> None:
    """Missing ones apart from those whose last answer stays."""
    state = static_mesh("web").state
    refused = Failure.of("refused", FailureKind.ACL, 403)
    errors = dict.fromkeys(("roots", "leaf", "intentions", "mesh entry"), refused)
    found = [
        (finding.level, finding.subject)
        for finding in examine(Seen(MeshConfig("web"), state, errors))
        if finding.text == "refused"
    ]
    assert found == [(Level.FAIL, "roots, leaf"), (Level.WARN, "intentions, mesh entry")]


@pytest.mark.parametrize(
    ("ahead", "says"),
    [(-600, "our clock is 600 s ahead of"), (600, "our clock is 600 s behind"), (0, "ok http")],
)
def test_clocks_are_compared(fake: FakeAgent, ahead: int, says: str) -> None:
    roots = fake.good()["roots"]
    roots.headers["Date"] = formatdate(time() + ahead, usegmt=True)
    fake.set(roots=roots)
    result = doctor(fake.address)
    assert result.exit_code == 0, result.output
    (agent,) = lines(result)["agent"]
    assert says.rsplit(maxsplit=1)[-1] in agent
    assert agent.startswith("warn" if ahead else "ok"), agent


def test_an_agent_without_a_clock_is_not_compared(fake: FakeAgent) -> None:
    roots = fake.good()["roots"]
    roots.headers["Date"] = "yesterday"
    fake.set(roots=roots)
    assert lines(doctor(fake.address))["agent"] == [f"ok {fake.address}"]


def test_rules_that_surprise_are_warnings(fake: FakeAgent) -> None:
    prefix = {"Permissions": [{"Action": "allow", "HTTP": {"PathPrefix": "/admin"}}]}
    row = {key: value for key, value in ALLOW.items() if key != "Action"} | prefix
    peer = {**ALLOW, "SourcePeer": "east"}
    fake.set(match=Reply.json({"web": [row, peer]}, 5))
    result = doctor(fake.address)
    assert result.exit_code == 0
    assert [text.split()[0] for text in lines(result)["intentions"]] == ["ok", "warn", "warn"]
    assert "no trust bundle is configured for peer 'east'" in result.output
    assert "prefix-without-slash" in result.output


@pytest.mark.parametrize(("default", "fate"), [("deny", "refused"), ("allow", "allowed")])
def test_no_intentions_is_said(fake: FakeAgent, default: str, fate: str) -> None:
    result = doctor(fake.address, MESH_DEFAULT_ACTION=default)
    assert f"there are none: every caller is {fate}" in result.output


def test_settings_of_the_mesh_are_said(fake: FakeAgent) -> None:
    settings = {"MergeSlashes": True, "HeadersWithUnderscoresAction": "DROP_HEADER"}
    entry = {"HTTP": {"Incoming": {"RequestNormalization": settings}}}
    fake.set(mesh=Reply.json([entry], 5))
    said = lines(doctor(fake.address))["mesh entry"]
    assert said == ["ok merge_slashes: True, underscores: DROP_HEADER"]


def test_many_processes_come_near_the_agents_limit(fake: FakeAgent) -> None:
    assert (
        "\nwarn  connections     161 for 40 processes"
        in doctor(fake.address, "--processes", "40").output
    )


def test_a_process_holds_as_many_connections_as_are_counted() -> None:
    with DevAgent() as agent, MeshManager(MeshConfig("web", address=agent.address)) as manager:
        manager.wait_ready(10)
        other_end = f"0100007F:{agent.port:04X} 01 "  # proc(5): established, seen from our side
        table = Path("/proc/net/tcp")
        # that of the probe for the default action may be kept for a while
        held = range(WATCHED, WATCHED + 2)
        wait_for(lambda: table.read_text().count(other_end) in held, 20)


def test_a_wrong_setting_is_a_usage_error(tmp_path: Path) -> None:
    result = doctor("127.0.0.1:1", MESH_PEERS_FILE=str(tmp_path / "none"))
    assert result.exit_code == 2
    assert "MESH_PEERS_FILE" in result.output
