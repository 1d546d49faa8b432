"""What ``mesh-middleware call`` prints of others."""

from __future__ import annotations

import pytest

from mesh_middleware.commands.call import _print
from mesh_middleware.policy.spiffe import ServiceIdentity, TrustDomain
from mesh_middleware.upstream.oneshot import Reply


def test_a_server_cannot_drive_the_terminal(capsysbinary: pytest.CaptureFixture[bytes]) -> None:
    """Bodies come as they are, as with curl; what stands around them is ours to print."""
    server = ServiceIdentity(TrustDomain("mesh.consul"), "web")
    headers = [("x-title", "\x1b]0;owned\x07")]
    reply = Reply(200, "OK\x1b[2J", "HTTP/1.1", headers, b"body\x1b", server, b"")
    _print(reply, include=True, name_server=True)
    printed = capsysbinary.readouterr()
    assert printed.out == (b"HTTP/1.1 200 OK\\x1b[2J\nx-title: \\x1b]0;owned\\x07\n\nbody\x1b")
    assert b"answered by spiffe://mesh.consul" in printed.err
