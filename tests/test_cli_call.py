"""What ``mesh-middleware call`` prints of others."""

from __future__ import annotations

import pytest
from click.testing import CliRunner

from mesh_middleware.commands import call as module
from mesh_middleware.commands.call import _print, call
from mesh_middleware.config import MeshConfig
from mesh_middleware.policy.spiffe import ServiceIdentity, TrustDomain
from mesh_middleware.upstream.oneshot import Call, Reply


def test_a_server_cannot_drive_the_terminal(capsysbinary: pytest.CaptureFixture[bytes]) -> None:
    """Bodies come as they are, as with curl; what stands around them is ours to print."""
    server = ServiceIdentity(TrustDomain("mesh.consul"), "web")
    headers = [("x-title", "\x1b]0;owned\x07")]
    reply = Reply(200, "OK\x1b[2J", "HTTP/1.1", headers, b"body\x1b", server, b"")
    _print(reply, include=True, name_server=True)
    printed = capsysbinary.readouterr()
    assert printed.out == (b"HTTP/1.1 200 OK\\x1b[2J\nx-title: \\x1b]0;owned\\x07\n\nbody\x1b")
    assert b"answered by spiffe://mesh.consul" in printed.err


@pytest.mark.parametrize(
    ("arguments", "sent"),
    [
        ((), ("GET", None, None)),
        (("-d", "a=1"), ("POST", b"a=1", "application/x-www-form-urlencoded")),
        (("--json", '{"a": 1}'), ("POST", b'{"a": 1}', "application/json")),
        (("--json", "@-", "-X", "PUT"), ("PUT", b"typed", "application/json")),
        (("--json", "{}", "-H", "Content-Type: a/b"), ("POST", b"{}", "a/b")),
    ],
)
def test_the_body_and_its_media_type(
    arguments: tuple[str, ...],
    sent: tuple[str, bytes | None, str | None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calls: list[Call] = []
    server = ServiceIdentity(TrustDomain("mesh.consul"), "web")

    async def call_once(_config: MeshConfig, request: Call) -> Reply:
        calls.append(request)
        return Reply(200, "OK", "HTTP/1.1", [], b"", server, b"")

    monkeypatch.setattr(module, "call_once", call_once)
    done = CliRunner().invoke(call, ["--as", "web", "https://api/", *arguments], input="typed")
    assert done.exit_code == 0, done.output
    types = [value for name, value in calls[0].headers if name.lower() == "content-type"]
    assert (calls[0].method, calls[0].body, *(types or [None])) == sent


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("-d", "a", "--json", "b"), "give one"),
        (("--json", "@/nowhere"), "--json @/nowhere: No such file"),
    ],
)
def test_wrong_bodies(arguments: tuple[str, ...], words: str) -> None:
    done = CliRunner().invoke(call, ["--as", "web", "https://api/", *arguments])
    assert done.exit_code == 2
    assert words in done.output
