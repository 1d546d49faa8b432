"""The commands around the launcher: `call`, `dev-agent`, `run --dev`."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from mesh_middleware.devagent import DevAgent
from tests.e2e.launch import ROOT, Launched, command
from tests.support import free_port, wait_for


@pytest.fixture(scope="module")
def served() -> Iterator[tuple[DevAgent, Launched]]:
    with DevAgent() as agent, Launched(agent.address, service="api") as launched:
        agent.put_intentions([{"SourceName": "web", "DestinationName": "api", "Action": "allow"}])
        yield agent, launched.serves()


def test_call_prints_the_body_and_names_who_answered(served: tuple[DevAgent, Launched]) -> None:
    agent, launched = served
    done = command(
        agent.address, "call", "--as", "web", f"https://127.0.0.1:{launched.port}/whoami"
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["caller"] == "web"
    assert re.fullmatch(r"answered by spiffe://[0-9a-f-]+\.consul/\S+/svc/api\n", done.stderr)


@pytest.mark.parametrize("host", ["api.service.consul", "api.connect.dc1.consul", "api"])
def test_call_finds_an_instance_by_its_consul_name(
    served: tuple[DevAgent, Launched], host: str
) -> None:
    agent, _ = served
    done = command(agent.address, "call", "--as", "web", "-i", f"https://{host}/whoami")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("HTTP/1.1 200 OK\n")
    assert "\ncontent-type: application/json\n" in done.stdout
    assert done.stderr == ""


def test_call_to_an_address_needs_no_catalogue_but_proves_the_name(
    served: tuple[DevAgent, Launched],
) -> None:
    agent, launched = served
    here = ("call", "--as", "web", "--connect-to", f"127.0.0.1:{launched.port}")
    done = command(agent.address, *here, "https://api.service.consul/whoami")
    assert done.returncode == 0, done.stderr
    other = command(agent.address, *here, "https://unregistered.service.consul/whoami")
    assert other.returncode == 1
    assert "expected was spiffe://" in other.stderr


def test_call_shows_a_refusal_as_it_comes(served: tuple[DevAgent, Launched]) -> None:
    agent, launched = served
    url = f"https://127.0.0.1:{launched.port}/whoami"
    done = command(agent.address, "call", "--as", "stranger", "--expect", "api", "-i", url)
    assert done.returncode == 0
    assert done.stdout.startswith("HTTP/1.1 403 Forbidden\n")
    assert json.loads(done.stdout.splitlines()[-1])["reason"] == "default_deny"
    failing = command(agent.address, "call", "--as", "stranger", "--fail", url)
    assert failing.returncode == 1


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("--expect", "db", "https://127.0.0.1:{port}/"), 1, "expected was spiffe://"),
        (("https://127.0.0.1:1/",), 1, "Connection refused"),
        (("https://nobody.service.consul/",), 1, "knows no healthy instance of 'nobody'"),
        (("https://api.virtual.east.consul/",), 1, "peer 'east'"),
    ],
)
def test_call_says_what_is_wrong(
    served: tuple[DevAgent, Launched], arguments: tuple[str, ...], code: int, words: str
) -> None:
    agent, launched = served
    arguments = tuple(each.format(port=launched.port) for each in arguments)
    done = command(agent.address, "call", "--as", "web", *arguments)
    assert done.returncode == code, done.stderr
    assert words in done.stderr
    assert done.stdout == ""


def test_call_without_an_agent_exits_4() -> None:
    done = command("http://127.0.0.1:1", "call", "--as", "web", "https://127.0.0.1:1/")
    assert done.returncode == 4, done.stderr


def test_dev_agent_says_first_that_it_is_for_development(tmp_path: Path) -> None:
    intentions = tmp_path / "intentions.yaml"
    intentions.write_text("- {SourceName: web, DestinationName: api, Action: allow}\n")
    port = free_port()
    arguments = ["dev-agent", "--port", str(port), "--intentions", str(intentions)]
    process = subprocess.Popen(
        [sys.executable, "-m", "mesh_middleware", *arguments],
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )
    with process:
        assert process.stdout is not None
        assert process.stdout.readline().startswith("FOR DEVELOPMENT ONLY")
        assert process.stdout.readline() == f"CONSUL_HTTP_ADDR=http://127.0.0.1:{port}\n"
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 0


def test_run_dev_prints_the_intention_that_would_allow_what_is_refused(tmp_path: Path) -> None:
    """Take the line, write it into the file, and the same request goes through."""
    intentions = tmp_path / "intentions.json"
    intentions.write_text("[]")
    arguments = ("--dev", "--dev-intentions", str(intentions))
    with Launched("http://127.0.0.1:1", *arguments, service="api") as launched:
        launched.serves()
        assert "DEVELOPMENT ONLY" in launched.log.splitlines()[0]
        found = re.search(r"embedded agent on (\S+)", launched.log)
        assert found
        url = f"https://127.0.0.1:{launched.port}/whoami"
        assert "403" in command(found[1], "call", "--as", "web", "-i", url).stdout
        launched.says("this intention would allow it: ")
        line = next(x for x in launched.log.splitlines() if "would allow it" in x)
        intentions.write_text(line.partition("would allow it: ")[2])
        wait_for(
            lambda: command(found[1], "call", "--as", "web", "--fail", url).returncode == 0, 20
        )
        assert '"GET /v1/' not in launched.log
        assert launched.stop() == 0
