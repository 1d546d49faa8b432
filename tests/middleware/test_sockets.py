"""What a WSGI server's connection proves: real TLS, our handshake or somebody else's."""

from __future__ import annotations

import socket
import ssl
import threading
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace

import pytest

from mesh_middleware import MeshWSGIMiddleware
from mesh_middleware._types import Environ, StartResponse
from mesh_middleware.devagent.ca import CertificateAuthority
from mesh_middleware.middleware.sockets import connection_proof
from mesh_middleware.state import StaticState
from mesh_middleware.testing import static_mesh
from mesh_middleware.tls.certificates import X509SVID, TrustBundle
from mesh_middleware.tls.contexts import TLSContexts
from mesh_middleware.tls.keys import load_svid
from tests.middleware import test_wsgi
from tests.middleware.calls import WEB_MAY, bundle_of

CA = CertificateAuthority()


def svid(service: str, ca: CertificateAuthority = CA) -> X509SVID:
    leaf = ca.issue(service)
    return X509SVID.from_pem(leaf.cert_pem, leaf.key_pem)


def foreign_context(bundle: TrustBundle, verify: ssl.VerifyMode) -> ssl.SSLContext:
    """A server's own context, as an operator might have made it."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    load_svid(context, svid("api"))
    context.load_verify_locations(cadata=bundle.der())
    context.verify_mode = verify
    return context


def client_context(of: X509SVID | None) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    if of is not None:
        load_svid(context, of)
    return context


@contextmanager
def accepted(
    server: ssl.SSLContext, client: ssl.SSLContext, *, lazy: bool = False
) -> Iterator[ssl.SSLSocket]:
    """The server's end of a TLS connection; `lazy`: its handshake is still to be done."""
    with ExitStack() as stack:
        ours, theirs = socket.socketpair()
        stack.enter_context(theirs)

        def shake() -> None:
            with suppress(OSError), client.wrap_socket(ours, server_hostname="mesh") as connection:
                connection.recv(1)

        thread = threading.Thread(target=shake)
        thread.start()
        stack.callback(thread.join, 10)
        stack.enter_context(ours)
        connection = server.wrap_socket(
            theirs, server_side=True, do_handshake_on_connect=not lazy, suppress_ragged_eofs=True
        )
        yield stack.enter_context(connection)


def reason(connection: object, key: str = "gunicorn.socket") -> str:
    static = static_mesh("api", WEB_MAY, trust_domain=CA.trust_domain)
    state = StaticState(replace(static.state, bundle=bundle_of(CA)))
    app = MeshWSGIMiddleware(test_wsgi.Recorder(), mesh=state)
    return test_wsgi.call(app, test_wsgi.environ_for(**{key: connection})).reason


def mesh_server() -> ssl.SSLContext:
    return TLSContexts(svid("api"), bundle_of(CA), generation=1).server()


@pytest.mark.parametrize("lazy", [False, True])
@pytest.mark.parametrize("key", ["gunicorn.socket", "werkzeug.socket"])
def test_our_own_handshake_counts_and_is_forced(key: str, lazy: bool) -> None:
    with accepted(mesh_server(), client_context(svid("web")), lazy=lazy) as connection:
        assert reason(connection, key) == "allowed"


def test_the_mark_of_an_outer_middleware_hides_no_connection() -> None:
    """It is for another path: decided again, and the caller is asked of the connection again."""
    static = static_mesh("api", WEB_MAY, trust_domain=CA.trust_domain)
    state = StaticState(replace(static.state, bundle=bundle_of(CA)))
    inner = MeshWSGIMiddleware(test_wsgi.Recorder(), mesh=state)

    def moved(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        return inner({**environ, "PATH_INFO": "/moved"}, start_response)

    with accepted(mesh_server(), client_context(svid("web"))) as connection:
        environ = test_wsgi.environ_for(**{"gunicorn.socket": connection})
        outer = MeshWSGIMiddleware(moved, mesh=state)
        assert test_wsgi.call(outer, environ).reason == "allowed"


def test_a_lazy_handshake_that_fails_proves_nobody() -> None:
    foreign = svid("web", CertificateAuthority())
    with accepted(mesh_server(), client_context(foreign), lazy=True) as connection:
        assert connection_proof({"gunicorn.socket": connection}) == (None, None)


def test_a_closed_connection_proves_nobody() -> None:
    with accepted(mesh_server(), client_context(svid("web")), lazy=True) as connection:
        connection.close()
        assert connection_proof({"gunicorn.socket": connection}) == (None, None)


@pytest.mark.parametrize("verify", [ssl.CERT_OPTIONAL, ssl.CERT_REQUIRED])
def test_a_foreign_connection_is_verified_against_the_mesh(verify: ssl.VerifyMode) -> None:
    server = foreign_context(bundle_of(CA), verify)
    with accepted(server, client_context(svid("web"))) as connection:
        assert reason(connection) == "allowed"
    with accepted(server, client_context(svid("other"))) as connection:
        assert reason(connection) == "default_deny"


def test_what_a_foreign_server_trusts_does_not_count() -> None:
    other = CertificateAuthority(CA.trust_domain)
    server = foreign_context(bundle_of(other), ssl.CERT_REQUIRED)
    with accepted(server, client_context(svid("web", other))) as connection:
        assert reason(connection) == "root_not_trusted"


def test_intermediates_of_a_foreign_connection_are_used() -> None:
    """After a rotation the leaf leads to the old root by a cross-signed certificate."""
    rotated = CertificateAuthority()
    old = bundle_of(rotated)
    rotated.rotate()
    server = foreign_context(old, ssl.CERT_REQUIRED)
    with accepted(server, client_context(svid("web", rotated))) as connection:
        _, tls = connection_proof({"gunicorn.socket": connection})
    assert tls is not None
    assert len(tls["client_cert_chain"]) > 1


def test_without_a_certificate_there_is_nobody() -> None:
    server = foreign_context(bundle_of(CA), ssl.CERT_OPTIONAL)
    with accepted(server, client_context(None)) as connection:
        assert reason(connection) == "no_identity"


def test_a_foreign_handshake_that_is_not_done_proves_nobody() -> None:
    server = foreign_context(bundle_of(CA), ssl.CERT_REQUIRED)
    with accepted(server, client_context(svid("web")), lazy=True) as connection:
        assert reason(connection) == "no_identity"
        connection.do_handshake()
        assert reason(connection) == "allowed"


@pytest.mark.parametrize("what", [None, "web", object()])
def test_anything_else_proves_nobody(what: object) -> None:
    assert reason(what) == "no_identity"
    ours, theirs = socket.socketpair()
    with ours, theirs:
        assert reason(ours) == "no_identity"
