"""Sources of identity: who may tell it, what must be told, and that nobody else is believed."""

from __future__ import annotations

import hashlib
import json
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any
from urllib.parse import quote

import pytest
from cryptography.hazmat.primitives.serialization import Encoding

from mesh_middleware import ConfigError, MeshMiddleware, MeshWSGIMiddleware
from mesh_middleware.devagent.ca import CertificateAuthority, Leaf
from mesh_middleware.middleware import EXTENSION
from mesh_middleware.middleware.proxies import (
    EscapedCertificate,
    ForwardedClientCert,
    IdentitySource,
    ServerVariables,
    environ_transport,
)
from mesh_middleware.policy.intentions import Action, HeaderMatch, HTTPMatch, Permission
from mesh_middleware.state import StaticState
from mesh_middleware.testing import static_mesh
from mesh_middleware.tls.certificates import X509SVID
from mesh_middleware.tls.contexts import VerifiedPeer
from tests.middleware import test_wsgi
from tests.middleware.calls import (
    WEB_MAY,
    Recorder,
    bundle_of,
    call,
    http_scope,
    rule,
    verified,
    web_permissions,
)

CA = CertificateAuthority()
API, WEB = CA.issue("api"), CA.issue("web")
XFCC = b"x-forwarded-client-cert"


def mesh(*intentions: Any) -> StaticState:
    """A state with a leaf and roots of `CA`: the one of a service with a running manager."""
    static = static_mesh("api", intentions or WEB_MAY, trust_domain=CA.trust_domain)
    svid = X509SVID.from_pem(API.cert_pem, API.key_pem)
    return StaticState(replace(static.state, svid=svid, bundle=bundle_of(CA)))


def api_peer(service: str) -> VerifiedPeer:
    """A caller that our own handshake proved."""
    return verified(service, trust_domain=CA.trust_domain)


def uri(service: str) -> str:
    return f"spiffe://{CA.trust_domain}/ns/default/dc/dc1/svc/{service}"


def der(leaf: Leaf) -> bytes:
    return X509SVID.from_pem(leaf.cert_pem, leaf.key_pem).certificates[0].public_bytes(Encoding.DER)


def element(leaf: Leaf = WEB, **changes: str | None) -> bytes:
    """What Envoy appends; `changes` replace a pair, None leaves it out."""
    pairs: dict[str, str | None] = {
        "By": uri("api"),
        "Hash": hashlib.sha256(der(leaf)).hexdigest(),
        "Cert": f'"{quote(leaf.cert_pem, safe="")}"',
        "Chain": f'"{quote(leaf.cert_pem, safe="")}"',
        "Subject": '""',
        "URI": uri("web"),
        **changes,
    }
    return ";".join(f"{key}={value}" for key, value in pairs.items() if value is not None).encode()


def ask(
    sources: list[IdentitySource],
    headers: list[tuple[bytes, bytes]],
    client: Any = ("10.0.0.1", 4000),
    server: Any = ("10.0.0.2", 80),
    **more: Any,
) -> str:
    """The decision of an ASGI middleware: its reason, or ``allowed``."""
    scope = http_scope(headers=headers, client=client, server=server, **more)
    app = Recorder()
    answer = call(MeshMiddleware(app, mesh=mesh(), identity_from=sources), scope)
    for seen in app.scopes:
        assert not [name for name, _ in seen["headers"] if b"client" in name]
    return answer.reason


def told(value: bytes, *before: bytes) -> list[tuple[bytes, bytes]]:
    return [(XFCC, line) for line in (*before, value)]


ENVOY: list[IdentitySource] = [ForwardedClientCert(trusted=["10.0.0.1"])]


# -- who is believed -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("trusted", "client", "server", "reason"),
    [
        (["10.0.0.1"], ("10.0.0.1", 4000), ("a", 80), "allowed"),
        (["10.0.0.0/30"], ("10.0.0.1", 4000), ("a", 80), "allowed"),
        (["10.0.0.1"], ("::ffff:10.0.0.1", 4000), ("a", 80), "allowed"),
        (["::1"], ("::1", 4000), ("a", 80), "allowed"),
        (["10.0.0.1"], ("10.0.0.9", 4000), ("a", 80), "no_identity"),
        (["10.0.0.1"], ("10.0.0.1", 0), ("a", 80), "no_identity"),
        (["10.0.0.1"], ("testclient", 5), ("a", 80), "no_identity"),
        (["10.0.0.1"], None, ("/run/app.sock", None), "no_identity"),
        (["unix"], None, ("/run/app.sock", None), "allowed"),
        (["unix"], None, ("10.0.0.2", 80), "no_identity"),
        (["unix"], None, None, "no_identity"),
        (["unix"], ("unix", 1), ("10.0.0.2", 80), "no_identity"),
        (["unix"], ("10.0.0.1", 4000), ("/run/app.sock", None), "no_identity"),
    ],
)
def test_only_the_trusted_transport_is_believed(
    trusted: list[str], client: Any, server: Any, reason: str
) -> None:
    sources: list[IdentitySource] = [ForwardedClientCert(trusted=trusted)]
    assert ask(sources, told(element()), client, server) == reason


@pytest.mark.parametrize("name", [b"x-forwarded-for", b"Forwarded", b"x-real-ip"])
def test_an_address_that_is_in_a_header_may_come_from_it(name: bytes) -> None:
    """A server that is told to believe everybody puts it into ``client``, port included."""
    forged = [*told(element()), (name, b"10.0.0.1:4000")]
    assert ask(ENVOY, forged) == "no_identity"
    assert ask(ENVOY, [*told(element()), (name, b"192.0.2.1")]) == "allowed"


def test_without_a_source_nobody_is_believed() -> None:
    assert ask([], told(element())) == "no_identity"


@pytest.mark.parametrize(
    "trusted", [[], ["0.0.0.0/0"], ["::/0"], ["*"], ["localhost"], "unix", ["10.0.0.1/8"]]
)
def test_who_is_trusted_must_be_said(trusted: Any) -> None:
    for source in (ForwardedClientCert, EscapedCertificate):
        with pytest.raises(ConfigError, match="trusted"):
            source(trusted=trusted)


def test_who_the_connection_proves_needs_no_header() -> None:
    scope = http_scope(headers=told(element()), client=("10.0.0.1", 4000))
    scope["extensions"] = {"mesh_middleware": {"peer": verified("other")}}
    app = MeshMiddleware(Recorder(), mesh=mesh(), identity_from=ENVOY)
    assert call(app, scope).reason != "allowed"
    other = CA.issue("other")
    scope = http_scope(headers=told(element()), client=("10.0.0.1", 4000))
    scope["extensions"] = {"tls": {"client_cert_chain": [other.cert_pem]}}
    assert call(app, scope).reason == "default_deny"


def test_what_is_told_does_not_stand_beside_a_proven_caller() -> None:
    app = Recorder()
    scope = http_scope(headers=told(element()), client=("10.0.0.1", 4000))
    scope["extensions"] = {EXTENSION: {"peer": api_peer("web")}}
    assert call(MeshMiddleware(app, mesh=mesh(), identity_from=ENVOY), scope).reason == "allowed"
    assert "tls" not in app.scope["extensions"]


def test_the_headers_are_taken_out_of_every_request() -> None:
    source = EscapedCertificate(trusted=["10.0.0.1"], certificate="X-Peer", verify="X-Peer-Ok")
    headers = [(b"x-peer", b"a"), (b"X_Peer", b"b"), (b"x-peer-ok", b"SUCCESS"), (b"x-else", b"c")]
    app = Recorder()
    scope = http_scope(headers=headers, client=("10.0.0.9", 1), peer=verified())
    exempt = MeshMiddleware(app, mesh=mesh(), identity_from=[source], exempt_paths=["/"])
    call(exempt, scope)
    assert app.scope["headers"] == [(b"host", b"api"), (b"x-else", b"c")]


# -- x-forwarded-client-cert -----------------------------------------------------------------------

FORGED = element(CA.issue("admin"), URI=uri("admin"))


@pytest.mark.parametrize(
    ("headers", "reason"),
    [
        (told(element()), "allowed"),
        (told(FORGED + b"," + element()), "allowed"),
        (told(element(), FORGED), "allowed"),
        (told(element() + b"," + FORGED), "default_deny"),
        (told(FORGED), "default_deny"),
        (told(element(By=uri("other"))), "no_identity"),
        (told(element(By=None)), "no_identity"),
        (told(element(By=uri("api") + ";By=" + uri("api"))), "no_identity"),
        (told(element(By="spiffe://x")), "no_identity"),
        (told(element(Cert=None)), "no_identity"),
        (told(element(Cert='"x"')), "no_identity"),
        (told(element(Cert='"-----BEGIN%20CERTIFICATE-----x-----END%20CERTIFICATE-----"')), "no"),
        (told(element(Chain=None)), "allowed"),
        (told(element(URI=None, Hash=None)), "allowed"),
        (told(element(URI=uri("admin"))), "no_identity"),
        (told(element(URI=uri("web") + ";URI=" + uri("admin"))), "no_identity"),
        (told(element(Hash="00")), "no_identity"),
        (told(b'x="' + element()), "no_identity"),
        (told(b""), "no_identity"),
        ([], "no_identity"),
        ([(b"x_forwarded_client_cert", element())], "no_identity"),
    ],
    ids=range(21),
)
def test_only_the_last_element_counts_and_must_be_about_us(
    headers: list[tuple[bytes, bytes]], reason: str
) -> None:
    assert ask(ENVOY, headers).startswith(reason)


def test_the_certificate_must_be_of_the_mesh() -> None:
    foreign = CertificateAuthority(CA.trust_domain).issue("web")
    assert ask(ENVOY, told(element(foreign))) == "root_not_trusted"
    expired = CA.issue("web", not_after=1.0, not_before=0.0)
    assert ask(ENVOY, told(element(expired))) == "root_not_trusted"


@pytest.mark.parametrize("by", [uri("api"), "not an identity"], ids=["our name", "no name"])
def test_without_a_leaf_of_our_own_nothing_can_be_about_us(by: str) -> None:
    static = static_mesh("api", WEB_MAY, trust_domain=CA.trust_domain)
    state = StaticState(replace(static.state, bundle=bundle_of(CA)))
    scope = http_scope(headers=told(element(By=by)), client=("10.0.0.1", 4000))
    app = MeshMiddleware(Recorder(), mesh=state, identity_from=ENVOY)
    assert call(app, scope).reason == "no_identity"


# -- nginx -----------------------------------------------------------------------------------------

NGINX: list[IdentitySource] = [EscapedCertificate(trusted=["10.0.0.1"])]
PEM = quote(WEB.cert_pem).encode()


@pytest.mark.parametrize(
    ("headers", "client", "reason"),
    [
        ({b"x-ssl-client-cert": PEM, b"x-ssl-client-verify": b"SUCCESS"}, "10.0.0.1", "allowed"),
        ({b"x-ssl-client-cert": PEM, b"x-ssl-client-verify": b"NONE"}, "10.0.0.1", "no_identity"),
        ({b"x-ssl-client-cert": PEM, b"x-ssl-client-verify": b"FAILED:x"}, "10.0.0.1", "no"),
        ({b"x-ssl-client-cert": PEM}, "10.0.0.1", "no_identity"),
        ({b"x-ssl-client-verify": b"SUCCESS"}, "10.0.0.1", "no_identity"),
        ({b"x-ssl-client-cert": PEM, b"x-ssl-client-verify": b"SUCCESS"}, "10.0.0.9", "no"),
        ({b"x-ssl-client-cert": PEM + PEM, b"x-ssl-client-verify": b"SUCCESS"}, "10.0.0.1", "no"),
    ],
    ids=range(7),
)
def test_nginx(headers: dict[bytes, bytes], client: str, reason: str) -> None:
    assert ask(NGINX, list(headers.items()), (client, 4000)).startswith(reason)


def test_a_header_that_is_there_twice_is_nobodys() -> None:
    twice = [(b"x-ssl-client-cert", PEM), *[(b"x-ssl-client-verify", b"SUCCESS")] * 2]
    assert ask(NGINX, twice) == "no_identity"


@pytest.mark.parametrize("name", ["", "x_peer", "x peer", "x:y"])
def test_header_names_of_our_own_are_checked(name: str) -> None:
    with pytest.raises(ConfigError, match="header"):
        EscapedCertificate(trusted=["unix"], verify=name)


# -- WSGI ------------------------------------------------------------------------------------------


def ask_wsgi(source: IdentitySource, **environ: Any) -> str:
    app = MeshWSGIMiddleware(test_wsgi.Recorder(), mesh=mesh(), identity_from=[source])
    return test_wsgi.call(app, test_wsgi.environ_for(**environ)).reason


@contextmanager
def connection(family: socket.AddressFamily) -> Iterator[socket.socket]:
    """The server's end of a connection."""
    if family == socket.AF_UNIX:
        ours, theirs = socket.socketpair(family)
        with ours, theirs:
            yield theirs
        return
    with (
        socket.create_server(("127.0.0.1", 0)) as listener,
        socket.create_connection(listener.getsockname()),
    ):
        accepted, _ = listener.accept()
        with accepted:
            yield accepted


@pytest.mark.parametrize("key", ["gunicorn.socket", "werkzeug.socket"])
@pytest.mark.parametrize(
    ("family", "trusted", "reason"),
    [
        (socket.AF_INET, "127.0.0.1", "allowed"),
        (socket.AF_INET, "10.0.0.1", "no_identity"),
        (socket.AF_INET, "unix", "no_identity"),
        (socket.AF_UNIX, "unix", "allowed"),
        (socket.AF_UNIX, "127.0.0.1", "no_identity"),
    ],
)
def test_wsgi_asks_the_servers_socket(
    key: str, family: socket.AddressFamily, trusted: str, reason: str
) -> None:
    source = ForwardedClientCert(trusted=[trusted])
    header = element().decode("latin-1")
    with connection(family) as sock:
        environ = {key: sock, "REMOTE_ADDR": "10.0.0.1", "HTTP_X_FORWARDED_CLIENT_CERT": header}
        assert ask_wsgi(source, **environ) == reason


def test_wsgi_does_not_believe_remote_addr() -> None:
    header = element().decode("latin-1")
    source = ForwardedClientCert(trusted=["127.0.0.1", "unix"])
    assert ask_wsgi(source, HTTP_X_FORWARDED_CLIENT_CERT=header) == "no_identity"


def test_wsgi_asks_the_asgi_scope() -> None:
    header = element().decode("latin-1")
    scope = http_scope(headers=told(element()), client=("10.0.0.1", 4000))
    environ = {"asgi.scope": scope, "HTTP_X_FORWARDED_CLIENT_CERT": header}
    assert ask_wsgi(ENVOY[0], **environ) == "allowed"
    assert environ_transport({"asgi.scope": {}}) is None


def test_a_closed_connection_is_nobodys() -> None:
    with connection(socket.AF_INET) as sock:
        sock.close()
        assert environ_transport({"gunicorn.socket": sock}) is None


@pytest.mark.parametrize(
    ("environ", "reason"),
    [
        ({"SSL_CLIENT_CERT": WEB.cert_pem, "SSL_CLIENT_VERIFY": "SUCCESS"}, "allowed"),
        ({"SSL_CLIENT_CERT": WEB.cert_pem, "SSL_CLIENT_VERIFY": "NONE"}, "no_identity"),
        ({"SSL_CLIENT_CERT": WEB.cert_pem}, "no_identity"),
        ({"SSL_CLIENT_VERIFY": "SUCCESS"}, "no_identity"),
        ({"HTTP_SSL_CLIENT_CERT": WEB.cert_pem, "HTTP_SSL_CLIENT_VERIFY": "SUCCESS"}, "no"),
    ],
    ids=range(5),
)
def test_server_variables(environ: dict[str, str], reason: str) -> None:
    assert ask_wsgi(ServerVariables(), **environ).startswith(reason)


def test_server_variables_mean_nothing_to_asgi() -> None:
    scope = http_scope(SSL_CLIENT_CERT=WEB.cert_pem, SSL_CLIENT_VERIFY="SUCCESS")
    app = MeshMiddleware(Recorder(), mesh=mesh(), identity_from=[ServerVariables()])
    assert call(app, scope).reason == "no_identity"


def test_rules_do_not_see_the_headers() -> None:
    """They are the terminator's words to us, of which an intention knows nothing."""
    present = HTTPMatch(path_prefix="/", headers=(HeaderMatch(name="x-peer", present=True),))
    deny = Permission(Action.DENY, present)
    rules = web_permissions(deny, rule(Action.ALLOW, path_prefix="/"))
    source = EscapedCertificate(trusted=["10.0.0.1"], certificate="X-Peer")
    headers = [(b"x-peer", PEM), (b"x-ssl-client-verify", b"SUCCESS")]
    app = MeshMiddleware(Recorder(), mesh=mesh(*rules), identity_from=[source])
    answer = call(app, http_scope(headers=headers, client=("10.0.0.1", 1)))
    assert answer.reason == "allowed", json.loads(answer.body)
