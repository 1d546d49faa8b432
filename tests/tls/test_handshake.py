"""The hook itself: no byte passes unjudged, the root is recorded, refusals are logged."""

from __future__ import annotations

import _ssl
import contextlib
import hashlib
import socket
import ssl
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from mesh_middleware.devagent.ca import CertificateAuthority
from mesh_middleware.errors import PeerIdentityError
from mesh_middleware.policy.decision import Reason
from mesh_middleware.policy.spiffe import ServiceIdentity, TrustDomain
from mesh_middleware.tls import PeerCertificate, VerifiedPeer, handshake, verified_peer
from mesh_middleware.tls.handshake import (
    LEAVE_SECONDS,
    Judge,
    JudgingContext,
    MeshSSLObject,
    PeerRejected,
    RefusalLog,
)
from tests.tls.mesh import V12, V13, Wire, bundle_of, contexts_of, der_chain, foreign_context


@pytest.fixture(params=[V12, V13], ids=["TLSv1.2", "TLSv1.3"])
def version(request) -> ssl.TLSVersion:
    return request.param


@pytest.fixture
def agent(ca, version, tmp_path) -> ssl.SSLContext:
    """A client whose chain is good and whose identity is not."""
    leaf = ca.issue_raw([f"spiffe://{ca.trust_domain}/agent/client/dc/dc1/id/node"])
    return foreign_context(ssl.PROTOCOL_TLS_CLIENT, leaf, [ca], tmp_path, version=version)


def pump(wire: Wire, step) -> None:
    """Do `step` on the server's end, with the client's handshake going on beside it."""
    for _ in range(10):
        with contextlib.suppress(ssl.SSLWantReadError):
            wire.client.do_handshake()
            wire.client.write(b"GET /secret")
        with contextlib.suppress(ssl.SSLWantReadError):
            step(wire.server)
            return


OBJECT_STEPS = {
    "do_handshake": lambda end: end.do_handshake(),
    "read": lambda end: end.read(16),
    "read into": lambda end: end.read(16, bytearray(16)),
    "write": lambda end: end.write(b"secret"),
}


@pytest.mark.parametrize("step", OBJECT_STEPS)
def test_nothing_passes_through_an_object_before_the_peer_is_judged(ca, agent, step):
    wire = Wire.between(agent, contexts_of(ca, "api").server())
    with pytest.raises(PeerRejected) as refusal:
        pump(wire, OBJECT_STEPS[step])
    assert refusal.value.reason == Reason.NOT_A_SERVICE
    assert verified_peer(wire.server) is None
    for again in OBJECT_STEPS.values():
        with pytest.raises(PeerRejected):
            again(wire.server)


@pytest.mark.parametrize("step", OBJECT_STEPS)
def test_an_object_may_be_used_before_the_handshake_by_a_good_peer(ca, version, tmp_path, step):
    web = foreign_context(ssl.PROTOCOL_TLS_CLIENT, ca.issue("web"), [ca], tmp_path, version=version)
    wire = Wire.between(web, contexts_of(ca, "api").server())
    pump(wire, OBJECT_STEPS[step])
    assert verified_peer(wire.server).certificate.identity.service == "web"
    wire.server.do_handshake()  # once more does no harm
    assert wire.client.write(b"more")


def _send_this_file(end: ssl.SSLSocket) -> None:
    with Path(__file__).open("rb") as file:
        end.sendfile(file)


SOCKET_STEPS = {
    "do_handshake": lambda end: end.do_handshake(),
    "read": lambda end: end.read(16),
    "write": lambda end: end.write(b"secret"),
    "recv": lambda end: end.recv(16),
    "recv_into": lambda end: end.recv_into(bytearray(16)),
    "send": lambda end: end.send(b"secret"),
    "sendall": lambda end: end.sendall(b"secret"),
    "sendfile": _send_this_file,
    "makefile": lambda end: end.makefile("rb").read(1),
}


@pytest.mark.parametrize("step", SOCKET_STEPS)
def test_nothing_passes_through_a_lazy_socket_before_the_peer_is_judged(ca, agent, step):
    ours, theirs = socket.socketpair()
    server = (
        contexts_of(ca, "api")
        .server()
        .wrap_socket(ours, server_side=True, do_handshake_on_connect=False)
    )
    got: list[bytes] = []

    def attack() -> None:
        with contextlib.suppress(OSError), agent.wrap_socket(theirs, server_hostname="api") as sock:
            sock.sendall(b"GET /secret")
            got.append(sock.recv(16))

    thread = threading.Thread(target=attack)
    thread.start()
    server.settimeout(10)
    with server, pytest.raises(PeerRejected) as refusal:
        SOCKET_STEPS[step](server)
    thread.join(10)
    assert refusal.value.reason == Reason.NOT_A_SERVICE
    assert verified_peer(server) is None
    assert got in ([], [b""])


def test_a_context_without_a_judge_refuses_everybody(ca, agent, tmp_path, refusals):
    leaf = ca.issue("api")
    file = tmp_path / "api.pem"
    file.write_text(leaf.cert_pem + leaf.key_pem)
    context = JudgingContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(file)
    with pytest.raises(PeerRejected, match="nobody judges"):
        Wire.between(agent, context).handshake()
    assert refusals() == [Reason.NO_IDENTITY]


def test_no_certificate_is_a_failure_whatever_openssl_says(ca, version, tmp_path):
    """The judge does not lean on CERT_REQUIRED alone."""
    bundle = bundle_of(ca)
    nobody = SimpleNamespace(getpeercert=lambda binary_form: None)
    with pytest.raises(PeerIdentityError) as refusal:
        Judge(bundle, 1).judge(nobody)
    assert refusal.value.reason == Reason.NO_IDENTITY


# --- the root of a connection


def test_the_root_of_a_connection_is_recorded_on_both_ends(ca):
    """Guards what is private before Python 3.13: `get_verified_chain` of the inner object."""
    old = bundle_of(ca).fingerprints
    api, web = contexts_of(ca, "api"), contexts_of(ca, "web")
    wire = Wire.between(web.client(api.svid.identity), api.server())
    wire.handshake()
    assert {verified_peer(wire.client).root} == {verified_peer(wire.server).root} == old
    assert hasattr(MeshSSLObject, "get_verified_chain") is (sys.version_info >= (3, 13))
    assert handshake._ENCODING_DER == _ssl.ENCODING_DER

    ca.rotate()
    ca.remove_inactive_roots()
    new = bundle_of(ca).fingerprints
    api, web = contexts_of(ca, "api"), contexts_of(ca, "web")
    wire = Wire.between(web.client(api.svid.identity), api.server())
    wire.handshake()
    assert {verified_peer(wire.client).root} == {verified_peer(wire.server).root} == new != old


class Known:
    """A connection whose handshake is over; `verified` None: no chain was verified."""

    def __init__(self, chain, *, verified=None, reused=False, accessor=True) -> None:
        self._chain, self.session_reused = chain, reused
        if accessor:
            self.get_verified_chain = lambda: verified
            self.get_unverified_chain = lambda: chain

    def getpeercert(self, binary_form: bool) -> bytes:
        assert binary_form
        return self._chain[0]


def test_the_root_is_the_last_of_the_verified_chain(ca):
    chain = der_chain(ca.issue("web"))
    peer = Judge(bundle_of(ca), 3).judge(Known(chain, verified=[*chain, b"root"]))
    assert peer.root == hashlib.sha256(b"root").digest()
    assert peer.generation == 3


def test_a_root_that_cannot_be_known_is_none(ca):
    chain = der_chain(ca.issue("web"))
    assert Judge(bundle_of(ca), 1).judge(Known(chain, accessor=False)).root is None


def test_a_resumed_peer_is_proved_again(ca):
    ca.rotate()
    chain = der_chain(ca.issue("web"))
    peer = Judge(bundle_of(ca), 1).judge(Known(chain, reused=True))
    assert peer.root in bundle_of(ca).fingerprints
    other = bundle_of(CertificateAuthority(ca.trust_domain))
    with pytest.raises(PeerIdentityError) as refusal:
        Judge(other, 1).judge(Known(chain, reused=True))
    assert refusal.value.reason == Reason.ROOT_NOT_TRUSTED


def test_a_resumed_peer_without_a_chain_is_proved_by_its_leaf(ca):
    chain = der_chain(ca.issue("web"))
    known = Known(chain, reused=True, accessor=False)
    assert {Judge(bundle_of(ca), 1).judge(known).root} == bundle_of(ca).fingerprints


# --- what stays on the connection


@pytest.fixture
def peer(ca) -> VerifiedPeer:
    (root,) = bundle_of(ca).fingerprints
    return VerifiedPeer(PeerCertificate.from_der(der_chain(ca.issue("web"))[0]), root, 5)


def test_a_connection_goes_on_while_its_certificate_lives_and_its_root_is_trusted(ca, peer):
    bundle, end = bundle_of(ca), peer.certificate.not_after
    other = bundle_of(CertificateAuthority(ca.trust_domain))
    elsewhere = type(bundle)(TrustDomain("other.consul"), bundle.roots)
    unknown = VerifiedPeer(peer.certificate, None, 5)
    now = time.time()
    rows = [
        (peer, bundle, 5, now, None),
        (peer, bundle, 6, now, None),
        (peer, bundle, 5, end, None),
        (peer, bundle, 5, end + 0.1, Reason.CERTIFICATE_EXPIRED),
        (peer, bundle, 6, end + 0.1, Reason.CERTIFICATE_EXPIRED),
        (peer, other, 6, now, Reason.ROOT_NOT_TRUSTED),
        (peer, elsewhere, 6, now, Reason.FOREIGN_TRUST_DOMAIN),
        (unknown, bundle, 5, now, None),
        (unknown, bundle, 6, now, Reason.ROOT_NOT_TRUSTED),
    ]
    assert [row[0].refusal(*row[1:4]) for row in rows] == [row[4] for row in rows]


def test_a_caller_is_asked_to_leave_before_it_would_be_refused(ca, peer):
    start, end = peer.certificate.not_before, peer.certificate.not_after
    now, late = start + 0.5 * (end - start), start + 0.95 * (end - start)
    old, young = LEAVE_SECONDS + 1, LEAVE_SECONDS - 1
    rows = [  # age of the connection, the root of our own leaf, now
        (old, peer.root, now, False),
        (old, b"another", now, True),
        (young, b"another", now, False),
        (old, None, now, False),
        (old, peer.root, late, True),
        (young, peer.root, late, False),
    ]
    for age, root, at, leave in rows:
        assert replace(peer, since=at - age).should_leave(root, at) is leave, (age, root, at)


def test_the_time_of_the_handshake_stays_on_the_connection(ca):
    before = time.time()
    known = Judge(bundle_of(ca), 1).judge(Known(der_chain(ca.issue("web"))))
    assert before <= known.since <= time.time()


def test_the_check_for_every_request_is_cheap(ca, peer):
    bundle, now, rounds = bundle_of(ca), time.time(), 20_000
    best = min(_seconds(lambda: peer.refusal(bundle, 5, now), rounds) for _ in range(10))
    assert best / rounds < 1e-6 * (10 if sys.gettrace() else 1)  # tracing costs


def _seconds(call, rounds: int) -> float:
    begin = time.perf_counter()
    for _ in range(rounds):
        call()
    return time.perf_counter() - begin


def test_a_verified_peer_cannot_be_changed_and_others_have_none(peer):
    with pytest.raises(AttributeError):
        peer.root = b""
    assert verified_peer(object()) is None
    assert verified_peer(None) is None
    assert verified_peer(SimpleNamespace(mesh_peer=peer)) is None


def test_the_client_side_compares_the_whole_identity(ca):
    judge = Judge(bundle_of(ca), 1, expected=contexts_of(ca, "api").svid.identity)
    chain = der_chain(ca.issue("api"))
    assert judge.judge(Known(chain)).certificate.identity == judge.expected
    domain = TrustDomain(ca.trust_domain)
    for expected in (
        ServiceIdentity(domain, "web"),
        ServiceIdentity(domain, "api", namespace="x"),
        ServiceIdentity(domain, "api", partition="x"),
        ServiceIdentity(domain, "api", datacenter="x"),
        ServiceIdentity(TrustDomain("other.consul"), "api"),
    ):
        with pytest.raises(PeerIdentityError, match="expected was"):
            Judge(bundle_of(ca), 1, expected=expected).judge(Known(chain))


# --- the log


def test_failures_that_are_not_about_the_peer_are_not_logged(ca, tmp_path, refusals):
    ours, theirs = socket.socketpair()
    server = (
        contexts_of(ca, "api")
        .server()
        .wrap_socket(ours, server_side=True, do_handshake_on_connect=False)
    )
    with server, theirs:
        theirs.sendall(b"GET / HTTP/1.1\r\n\r\n")
        with pytest.raises(ssl.SSLError, match=r"(?i)http request"):
            server.do_handshake()
    assert refusals() == []


def test_refusals_that_openssl_words_get_our_words(refusals):
    error = ssl.SSLCertVerificationError(1, "odd")
    error.verify_code = 62
    assert handshake._openssl_reason(error) is Reason.INVALID_IDENTITY
    error.verify_code = 21
    assert handshake._openssl_reason(error) is Reason.ROOT_NOT_TRUSTED


def test_nobody_can_flood_the_log(caplog):
    now = [0.0]
    log = RefusalLog(burst=3, per_second=2, clock=lambda: now[0])
    for _ in range(10):
        log.log("client", Reason.NO_IDENTITY, "nothing was sent")
    assert len(caplog.records) == 3
    assert caplog.messages[0] == (
        "client refused in the TLS handshake (no_identity): nothing was sent"
    )
    now[0] = 0.5
    log.log("client", Reason.NO_IDENTITY, "again")
    log.log("client", Reason.NO_IDENTITY, "again")
    assert len(caplog.records) == 4
    assert caplog.messages[3].endswith("again; 7 more refusals were not logged")
    record = caplog.records[3]
    assert (record.name, record.levelname) == ("mesh_middleware.tls", "WARNING")
    assert (record.mesh_side, record.mesh_reason, record.mesh_left_out) == (
        "client",
        "no_identity",
        7,
    )
    now[0] = 100.0
    for _ in range(10):
        log.log("client", Reason.NO_IDENTITY, "later")
    assert len(caplog.records) == 7  # credit never grows past the burst
