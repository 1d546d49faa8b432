"""Live TLS: who gets in, who does not, and what a rotation changes. Real sockets on loopback."""

from __future__ import annotations

import asyncio
import dataclasses
import socket
import ssl
import time

import pytest

from mesh_middleware.devagent.ca import CertificateAuthority
from mesh_middleware.errors import ConfigError, DecodeError, NotReadyError
from mesh_middleware.policy.decision import Reason
from mesh_middleware.policy.spiffe import ServiceIdentity, TrustDomain
from mesh_middleware.tls import MeshContext, PeerRejected, TLSContexts, verified_peer
from mesh_middleware.tls.handshake import MeshSSLSocket
from tests.support import wait_for
from tests.tls.mesh import (
    SERVERS,
    V12,
    V13,
    Current,
    Wire,
    ask,
    ask_once,
    blocking_server,
    bundle_of,
    connect,
    contexts_of,
    foreign_context,
    kept_session,
    loop_server,
    svid_of,
)

CLIENT, SERVER = ssl.PROTOCOL_TLS_CLIENT, ssl.PROTOCOL_TLS_SERVER


@pytest.fixture(params=[V12, V13], ids=["TLSv1.2", "TLSv1.3"])
def version(request) -> ssl.TLSVersion:
    return request.param


@pytest.fixture(params=sorted(SERVERS))
def serve(request):
    return SERVERS[request.param]


@pytest.fixture
def api(ca) -> TLSContexts:
    return contexts_of(ca, "api")


def spiffe(ca, path: str) -> str:
    return f"spiffe://{ca.trust_domain}{path}"


WEB = "/ns/default/dc/dc1/svc/web"
GATEWAY = "/gateway/mesh/dc/dc1"

REFUSED = {
    "no certificate": (lambda ca: None, Reason.NO_IDENTITY),
    "unknown root": (
        lambda ca: CertificateAuthority(ca.trust_domain).issue("web"),
        Reason.ROOT_NOT_TRUSTED,
    ),
    "expired": (lambda ca: ca.issue("web", not_after=time.time() - 5), Reason.CERTIFICATE_EXPIRED),
    "not yet valid": (
        lambda ca: ca.issue("web", not_before=time.time() + 60),
        Reason.CERTIFICATE_EXPIRED,
    ),
    "two URIs": (
        lambda ca: ca.issue_raw([spiffe(ca, WEB), spiffe(ca, WEB + "2")]),
        Reason.INVALID_IDENTITY,
    ),
    "no URI": (lambda ca: ca.issue_raw([], dns_names=["web"]), Reason.INVALID_IDENTITY),
    "no SAN": (lambda ca: ca.issue_raw([]), Reason.INVALID_IDENTITY),
    "another trust domain": (
        lambda ca: ca.issue_raw(["spiffe://other.consul" + WEB]),
        Reason.FOREIGN_TRUST_DOMAIN,
    ),
    "agent": (
        lambda ca: ca.issue_raw([spiffe(ca, "/agent/client/dc/dc1/id/node")]),
        Reason.NOT_A_SERVICE,
    ),
    "server": (lambda ca: ca.issue_raw([spiffe(ca, "/agent/server/dc/dc1")]), Reason.NOT_A_SERVICE),
    "gateway": (lambda ca: ca.issue_raw([spiffe(ca, GATEWAY)]), Reason.NOT_A_SERVICE),
    "signing authority": (lambda ca: ca.issue_raw([spiffe(ca, "")]), Reason.NOT_A_SERVICE),
    "CA": (lambda ca: ca.issue_raw([spiffe(ca, WEB)], ca=True), Reason.INVALID_IDENTITY),
    "control character": (
        lambda ca: ca.issue_raw([spiffe(ca, WEB + "\n")]),
        Reason.INVALID_IDENTITY,
    ),
    "too long": (
        lambda ca: ca.issue_raw([spiffe(ca, WEB + "w" * 2048)]),
        Reason.INVALID_IDENTITY,
    ),
}


@pytest.mark.parametrize("row", REFUSED)
def test_such_a_client_is_refused_and_the_reason_logged(
    row, ca, api, serve, version, tmp_path, refusals
):
    make, reason = REFUSED[row]
    bad = foreign_context(CLIENT, make(ca), [ca], tmp_path, version=version)
    good = foreign_context(CLIENT, ca.issue("web"), [ca], tmp_path, version=version)
    with serve(MeshContext.for_server(lambda: api)) as echo:
        assert ask_once(echo.port, bad) == b""
        wait_for(refusals)
        assert echo.peers == []
        assert ask_once(echo.port, good) == b"pong"  # and the server goes on serving
    assert refusals() == [reason]


def test_a_service_of_the_mesh_gets_in_and_is_known(ca, api, serve, version, tmp_path):
    leaf = ca.issue("web", namespace="shop")
    client = foreign_context(CLIENT, leaf, [ca], tmp_path, version=version)
    with serve(MeshContext.for_server(lambda: api)) as echo:
        assert ask_once(echo.port, client) == b"pong"
    (peer,) = echo.peers
    assert peer.certificate.identity == ServiceIdentity.from_string(leaf.uri)
    assert peer.certificate.not_after == leaf.not_after
    assert {peer.root} == bundle_of(ca).fingerprints
    assert peer.generation == 1


def test_a_gateway_gets_in_only_where_gateways_are_wanted(ca, tmp_path):
    client = foreign_context(CLIENT, ca.issue_raw([spiffe(ca, GATEWAY)]), [ca], tmp_path)
    agent = foreign_context(
        CLIENT, ca.issue_raw([spiffe(ca, "/agent/client/dc/dc1/id/n")]), [ca], tmp_path
    )
    api = contexts_of(ca, "api", gateways=True)
    with loop_server(MeshContext.for_server(lambda: api)) as echo:
        assert ask_once(echo.port, client) == b"pong"
        assert ask_once(echo.port, agent) == b""
    assert str(echo.peers[0].certificate.identity) == spiffe(ca, GATEWAY)


# --- the client side


SERVERS_REFUSED = {
    "another service": (lambda ca: ca.issue("db"), Reason.INVALID_IDENTITY),
    "another namespace": (lambda ca: ca.issue("api", namespace="x"), Reason.INVALID_IDENTITY),
    "another trust domain": (
        lambda ca: ca.issue_raw(["spiffe://other.consul/ns/default/dc/dc1/svc/api"]),
        Reason.FOREIGN_TRUST_DOMAIN,
    ),
    "two URIs": (
        lambda ca: ca.issue_raw(
            [spiffe(ca, "/ns/default/dc/dc1/svc/api"), spiffe(ca, "/ns/default/dc/dc1/svc/api")]
        ),
        Reason.INVALID_IDENTITY,
    ),
    "gateway": (lambda ca: ca.issue_raw([spiffe(ca, GATEWAY)]), Reason.NOT_A_SERVICE),
}


@pytest.mark.parametrize("row", SERVERS_REFUSED)
def test_such_a_server_is_refused_by_both_kinds_of_client(row, ca, version, tmp_path, refusals):
    make, reason = SERVERS_REFUSED[row]
    web = contexts_of(ca, "web", gateways=True)  # gateways concerns the server side only
    facade = MeshContext.for_client(lambda: web, contexts_of(ca, "api").svid.identity)
    server = foreign_context(SERVER, make(ca), [ca], tmp_path, version=version)
    with loop_server(server) as echo:
        with pytest.raises(PeerRejected) as refusal:
            connect(echo.port, facade)
        assert refusal.value.reason == reason

        async def call() -> None:
            with pytest.raises(PeerRejected):
                await asyncio.open_connection("127.0.0.1", echo.port, ssl=facade)

        asyncio.run(call())
    assert refusals() == [reason, reason]
    assert echo.peers == []


def test_a_server_of_an_unknown_root_is_refused(ca, tmp_path, refusals):
    other = CertificateAuthority(ca.trust_domain)
    web = contexts_of(ca, "web")
    facade = MeshContext.for_client(lambda: web, contexts_of(ca, "api").svid.identity)
    server = foreign_context(SERVER, other.issue("api"), [ca, other], tmp_path)
    with loop_server(server) as echo, pytest.raises(ssl.SSLCertVerificationError):
        connect(echo.port, facade)
    assert refusals() == [Reason.ROOT_NOT_TRUSTED]


def test_both_ends_know_each_other(ca, api, serve):
    web = contexts_of(ca, "web", generation=7)
    facade = MeshContext.for_client(lambda: web, api.svid.identity)
    with serve(MeshContext.for_server(lambda: api)) as echo, connect(echo.port, facade) as client:
        assert ask(client) == b"pong"
        peer = verified_peer(client)
    assert isinstance(client, MeshSSLSocket)
    assert peer.certificate.identity == api.svid.identity
    assert {peer.root} == bundle_of(ca).fingerprints
    assert (peer.generation, echo.peers[0].generation) == (7, 1)


# --- rotation


def test_a_new_connection_uses_the_new_generation_and_an_open_one_keeps_its_own(
    ca, serve, version, tmp_path
):
    current = Current(contexts_of(ca, "api"))
    old_root = next(iter(bundle_of(ca).fingerprints))
    client = foreign_context(CLIENT, ca.issue("web"), [ca], tmp_path, version=version)
    with serve(MeshContext.for_server(current)) as echo:
        if serve is SERVERS["blocking"] or serve is SERVERS["lazy"]:
            assert ask_once(echo.port, client) == b"pong"  # that server has one at a time
        else:
            opened = connect(echo.port, client)
            assert ask(opened) == b"pong"
        ca.rotate()
        ca.remove_inactive_roots()
        current.contexts = contexts_of(ca, "api", generation=2)
        renewed = foreign_context(CLIENT, ca.issue("web"), [ca], tmp_path, version=version)
        assert ask_once(echo.port, renewed) == b"pong"
        assert ask_once(echo.port, client) == b""
        if serve is SERVERS["asyncio"] or serve is SERVERS["uvloop"]:
            assert ask(opened) == b"pong"
            opened.close()
    first, second = echo.peers[0], echo.peers[1]
    assert (first.generation, second.generation) == (1, 2)
    assert {second.root} == current.contexts.bundle.fingerprints != {old_root}
    bundle, now = current.contexts.bundle, time.time()
    assert first.refusal(bundle, 2, now) is Reason.ROOT_NOT_TRUSTED
    assert second.refusal(bundle, 2, now) is None
    assert second.refusal(bundle, 3, now) is None


def test_a_client_follows_the_rotation_too(ca, api, tmp_path):
    current = Current(contexts_of(ca, "web"))
    facade = MeshContext.for_client(current, api.svid.identity)
    server = foreign_context(SERVER, ca.issue("api"), [ca], tmp_path)
    ca.rotate()
    with loop_server(server) as echo:
        assert ask_once(echo.port, facade) == b"pong"
        ca.remove_inactive_roots()
        current.contexts = contexts_of(ca, "web", generation=2)
        with pytest.raises(ssl.SSLCertVerificationError):
            connect(echo.port, facade)


def test_a_session_from_before_a_rotation_is_not_resumed(ca, version, tmp_path):
    current = Current(contexts_of(ca, "api"))
    client = foreign_context(CLIENT, ca.issue("web"), [ca], tmp_path, version=version)
    with loop_server(MeshContext.for_server(current)) as echo:
        with connect(echo.port, client) as first:
            assert ask(first) == b"pong"
            session = kept_session(first)
        ca.rotate()
        client.load_verify_locations(cadata=ca.roots()[1]["RootCert"])
        ca.remove_inactive_roots()
        current.contexts = contexts_of(ca, "api", generation=2)
        answer = b"nothing yet"
        try:
            with connect(echo.port, client, session=session) as second:
                assert not second.session_reused
                answer = ask(second)
        except OSError:
            answer = b""
    assert answer == b""
    assert [peer.generation for peer in echo.peers] == [1]


def test_no_ticket_is_given_and_tls_1_3_never_resumes(ca, api, version, tmp_path):
    client = foreign_context(CLIENT, ca.issue("web"), [ca], tmp_path, version=version)
    with loop_server(MeshContext.for_server(lambda: api)) as echo:
        with connect(echo.port, client) as first:
            assert ask(first) == b"pong"
            session = kept_session(first)
            assert not session.has_ticket
        with connect(echo.port, client, session=session) as second:
            assert ask(second) == b"pong"
            # The standard library cannot turn off the session cache of 1.2 (see the next test).
            assert second.session_reused is (version is V12)


def test_our_own_clients_take_no_ticket(ca, version, tmp_path):
    web = contexts_of(ca, "web")
    facade = MeshContext.for_client(lambda: web, contexts_of(ca, "api").svid.identity)
    server = foreign_context(SERVER, ca.issue("api"), [ca], tmp_path, version=V12)
    with loop_server(server) as echo, connect(echo.port, facade) as client:
        assert ask(client) == b"pong"
        assert not client.session.has_ticket


def test_a_resumed_tls_1_2_session_is_judged_again(ca, api, serve, tmp_path, refusals):
    leaf = ca.issue("web", not_after=time.time() + 2)
    client = foreign_context(CLIENT, leaf, [ca], tmp_path, version=V12)
    with serve(MeshContext.for_server(lambda: api)) as echo:
        with connect(echo.port, client) as first:
            assert ask(first) == b"pong"
            session = kept_session(first)
        with connect(echo.port, client, session=session) as second:
            assert second.session_reused
            assert ask(second) == b"pong"
        known = [peer.root for peer in echo.peers]
        wait_for(lambda: time.time() > leaf.not_after)
        answer = b"nothing yet"
        try:
            with connect(echo.port, client, session=session) as third:
                answer = ask(third)
        except OSError:
            answer = b""
        wait_for(refusals)
    assert answer == b""
    assert known == [*api.bundle.fingerprints] * 2
    assert refusals() == [Reason.CERTIFICATE_EXPIRED]


def test_an_open_connection_is_refused_once_its_leaf_has_expired(ca, api, tmp_path):
    leaf = ca.issue("web", not_after=time.time() + 60)
    client = foreign_context(CLIENT, leaf, [ca], tmp_path)
    with loop_server(MeshContext.for_server(lambda: api)) as echo:
        assert ask_once(echo.port, client) == b"pong"
    (peer,) = echo.peers
    assert peer.refusal(api.bundle, 1, leaf.not_after) is None
    assert peer.refusal(api.bundle, 1, leaf.not_after + 1) is Reason.CERTIFICATE_EXPIRED


def test_a_server_that_cannot_prove_itself_takes_nobody(ca, serve, version, tmp_path):
    """A caller that does not look at our certificate is refused by us."""
    ours = svid_of(ca.issue("api", not_after=time.time() + 1.5))
    now = Current(TLSContexts(ours, bundle_of(ca), generation=1))
    careless = foreign_context(CLIENT, ca.issue("web"), [ca], tmp_path, version=version)
    careless.verify_mode = ssl.CERT_NONE
    with serve(MeshContext.for_server(now)) as echo:
        assert ask_once(echo.port, careless) == b"pong"
        wait_for(lambda: time.time() > ours.not_after)
        assert ask_once(echo.port, careless) == b""
        assert ask_once(echo.port, careless) == b""
        now.contexts = contexts_of(ca, "api", generation=2)
        assert ask_once(echo.port, careless) == b"pong"


def test_a_caller_that_cannot_prove_itself_sends_nothing(ca, api):
    ours = svid_of(ca.issue("web", not_after=time.time() - 1))
    expired = TLSContexts(ours, bundle_of(ca), generation=1)
    context = MeshContext.for_client(lambda: expired, api.svid.identity)
    sent = ssl.MemoryBIO()
    connection = context.wrap_bio(ssl.MemoryBIO(), sent, server_hostname="api")
    with pytest.raises(ssl.SSLError, match=r"our own certificate expired at .* no new one"):
        connection.do_handshake()
    assert sent.pending == 0


# --- the inner contexts


def test_how_the_inner_contexts_are_set(ca, api):
    for context in (api.server(), api.client(api.svid.identity)):
        assert context.verify_mode is ssl.CERT_REQUIRED
        assert not context.check_hostname
        assert context.minimum_version is V12
        assert context.maximum_version is ssl.TLSVersion.MAXIMUM_SUPPORTED
        assert context.options & ssl.OP_NO_RENEGOTIATION
        assert context.options & ssl.OP_NO_TICKET
        assert not context.verify_flags & ssl.VERIFY_X509_STRICT
        assert not context.verify_flags & ssl.VERIFY_X509_PARTIAL_CHAIN
        assert len(context.get_ca_certs()) == 1
    assert api.server().num_tickets == 0


def test_inner_contexts_are_cached_by_side_protocols_and_expected_service(ca, api):
    other = ServiceIdentity(TrustDomain(ca.trust_domain), "db")
    same = [api.server(["h2"]), api.server(("h2",))]
    assert same[0] is same[1]
    different = [
        same[0],
        api.server(),
        api.client(other),
        api.client(other, ["h2"]),
        api.client(api.svid.identity),
    ]
    assert len(set(different)) == 5
    assert api.client(other) is different[2]


def test_inner_contexts_cannot_be_changed(api, tmp_path):
    context = api.server()
    for change in (
        lambda: context.set_alpn_protocols(["h2"]),
        lambda: context.load_cert_chain(tmp_path),
        lambda: context.load_verify_locations(cadata=api.bundle.der()),
        lambda: setattr(context, "verify_mode", ssl.CERT_NONE),
        lambda: setattr(context, "mesh_judge", None),
    ):
        with pytest.raises(ConfigError, match="never changes"):
            change()
    assert context.verify_mode is ssl.CERT_REQUIRED


def test_a_client_context_needs_to_know_whom_it_calls(api):
    with pytest.raises(ConfigError, match="ServiceIdentity"):
        api.client(None)


def test_leaf_and_roots_must_be_of_one_trust_domain(ca):
    other = CertificateAuthority("other.consul")
    with pytest.raises(DecodeError, match=r"of other\.consul"):
        TLSContexts(svid_of(ca.issue("api")), bundle_of(other), generation=1)


def test_what_openssl_does_not_take_is_found_out_before_the_first_connection(ca):
    one, other = svid_of(ca.issue("api")), svid_of(ca.issue("api"))
    mixed = dataclasses.replace(one, private_key=other.private_key)
    with pytest.raises(DecodeError, match="OpenSSL refuses it"):
        TLSContexts(mixed, bundle_of(ca), generation=1)


# --- the facade


def test_the_facade_is_an_ssl_context_that_looks_as_it_acts(api):
    facade = MeshContext.for_server(lambda: api)
    assert isinstance(facade, ssl.SSLContext)
    assert facade.verify_mode is ssl.CERT_REQUIRED
    assert not facade.check_hostname


def test_each_facade_offers_its_own_protocols(ca, api):
    web = contexts_of(ca, "web")
    plain = MeshContext.for_client(lambda: web, api.svid.identity)
    chosen = MeshContext.for_client(lambda: web, api.svid.identity, alpn=["h2"])
    later = MeshContext.for_client(lambda: web, api.svid.identity)
    later.set_alpn_protocols(["http/1.1"])
    server = MeshContext.for_server(lambda: api, alpn=["h2", "http/1.1"])
    selected = []
    for client in (plain, chosen, later):
        wire = Wire.between(client, server)
        wire.handshake()
        selected.append(wire.server.selected_alpn_protocol())
    assert selected == [None, "h2", "http/1.1"]


def test_a_protocol_that_cannot_be_is_refused_at_once(api):
    with pytest.raises(ssl.SSLError):
        MeshContext.for_server(lambda: api, alpn=["x" * 256])


def test_trust_cannot_be_widened_through_the_facade(ca, api, tmp_path):
    other = CertificateAuthority(ca.trust_domain)
    facade = MeshContext.for_server(lambda: api)
    facade.load_verify_locations(cadata=other.roots()[0]["RootCert"])
    facade.load_default_certs()
    client = foreign_context(CLIENT, other.issue("web"), [ca, other], tmp_path)
    with loop_server(facade) as echo:
        assert ask_once(echo.port, client) == b""
    assert facade.cert_store_stats()["x509"] == 0


def test_a_certificate_cannot_be_loaded_into_the_facade(api):
    with pytest.raises(ConfigError, match="the mesh gives"):
        MeshContext.for_server(lambda: api).load_cert_chain("some.pem")


def test_without_a_state_wrapping_says_what_is_missing():
    def current() -> TLSContexts:
        raise NotReadyError("no leaf yet", missing=("leaf",))

    facade = MeshContext.for_server(current)
    with pytest.raises(NotReadyError):
        facade.wrap_bio(ssl.MemoryBIO(), ssl.MemoryBIO(), server_side=True)
    left, right = socket.socketpair()
    with left, right, pytest.raises(NotReadyError):
        facade.wrap_socket(left, server_side=True)


def test_a_socket_wrapped_before_it_listens_keeps_the_facade(ca, tmp_path):
    current = Current(contexts_of(ca, "api"))
    facade = MeshContext.for_server(current)
    with socket.socket() as plain:
        plain.bind(("127.0.0.1", 0))
        with facade.wrap_socket(plain, server_side=True) as listener:
            assert listener.context is facade


def test_bytes_cannot_pass_on_the_facades_own_socket(api):
    """A socket that was reset before it was wrapped looks like one that will listen."""
    facade = MeshContext.for_server(lambda: api)
    with facade.wrap_socket(socket.socket(), server_side=True) as sock:
        for step in (lambda: sock.recv(1), lambda: sock.send(b"x"), sock.do_handshake):
            with pytest.raises(OSError, match="not connected"):
                step()


def test_other_errors_of_the_socket_are_not_hidden(api):
    sock = socket.socket()
    sock.close()
    with pytest.raises(OSError, match="Bad file descriptor"):
        MeshContext.for_server(lambda: api).wrap_socket(sock, server_side=True)


def test_a_blocking_client_may_connect_after_wrapping(ca, api):
    web = contexts_of(ca, "web")
    facade = MeshContext.for_client(lambda: web, api.svid.identity)
    with (
        blocking_server(MeshContext.for_server(lambda: api)) as echo,
        facade.wrap_socket(socket.socket(), server_hostname="api") as client,
    ):
        client.connect(("127.0.0.1", echo.port))
        assert ask(client) == b"pong"
        assert client.write(b"ping") == 4
        assert client.read(4) == b"pong"
