"""Who counts as the caller: our own handshake's peer, or a chain that we verify ourselves."""

from __future__ import annotations

import ssl
import time
from dataclasses import replace
from typing import Any

import pytest

from mesh_middleware.devagent.ca import CertificateAuthority
from mesh_middleware.errors import PeerIdentityError
from mesh_middleware.middleware import (
    EXTENSION,
    PEER_KEY,
    MeshMiddleware,
    decision_of,
    peer,
    peer_identity,
)
from mesh_middleware.policy.decision import Decision, Reason
from mesh_middleware.policy.engine import compile_policy
from mesh_middleware.policy.intentions import Action, Intention
from mesh_middleware.policy.peering import PeerBundle
from mesh_middleware.policy.request import HTTPRequest
from mesh_middleware.policy.spiffe import SpiffeID, TrustDomain
from mesh_middleware.state import MeshState
from mesh_middleware.testing import TRUST_DOMAIN
from mesh_middleware.tls.certificates import TrustBundle
from tests.middleware.calls import (
    ROOT,
    WEB_MAY,
    Recorder,
    bundle_of,
    call,
    http_scope,
    identity,
    verified,
)
from tests.tls.mesh import contexts_of


class Mesh:
    """A source with the roots of `ca`; `publish` makes the next generation."""

    def __init__(self, ca: CertificateAuthority, *, default: Action = Action.DENY) -> None:
        policy = compile_policy(WEB_MAY, trust_domain=ca.trust_domain, default_action=default)
        self.state = MeshState("api", generation=1, bundle=bundle_of(ca), policy=policy)

    def publish(self, **changes: Any) -> None:
        self.state = replace(self.state, generation=self.state.generation + 1, **changes)


@pytest.fixture
def ca() -> CertificateAuthority:
    return CertificateAuthority(TRUST_DOMAIN)


@pytest.fixture
def mesh(ca: CertificateAuthority) -> Mesh:
    return Mesh(ca, default=Action.ALLOW)


def reason(mesh: Mesh, **scope: Any) -> str:
    return call(MeshMiddleware(Recorder(), mesh=mesh), http_scope(**scope)).reason


# -- our own handshake -------------------------------------------------------------------------


def test_a_peer_of_our_handshake_counts(mesh: Mesh) -> None:
    assert reason(mesh, peer=verified()) == "allowed"


def test_the_same_values_in_another_type_do_not_count(mesh: Mesh) -> None:
    """Only the private type proves: not a certificate, not an identity, not its text."""
    real = verified()
    for forged in (
        real.certificate,
        identity(),
        str(identity()),
        {"certificate": real.certificate},
    ):
        assert reason(mesh, peer=forged) == "no_identity"


def test_a_certificate_that_expired_on_an_open_connection_is_refused(mesh: Mesh) -> None:
    assert reason(mesh, peer=verified(life=-1)) == "certificate_expired"


def test_a_removed_root_refuses_connections_that_were_opened_under_it(
    mesh: Mesh, ca: CertificateAuthority
) -> None:
    (fingerprint,) = bundle_of(ca).fingerprints
    open_connection = verified(root=fingerprint)
    assert reason(mesh, peer=open_connection) == "allowed"
    ca.rotate()
    mesh.publish(bundle=bundle_of(ca))
    assert reason(mesh, peer=open_connection) == "allowed"
    ca.remove_inactive_roots()
    mesh.publish(bundle=bundle_of(ca))
    assert reason(mesh, peer=open_connection) == "root_not_trusted"


def test_an_unknown_root_counts_as_removed(mesh: Mesh) -> None:
    mesh.publish()
    assert reason(mesh, peer=verified(root=None)) == "root_not_trusted"


def test_without_roots_a_connection_of_another_generation_is_refused(mesh: Mesh) -> None:
    mesh.publish(bundle=None)
    assert reason(mesh, peer=verified(root=ROOT)) == "root_not_trusted"


def test_a_changed_trust_domain_refuses_the_callers_of_the_old_one(mesh: Mesh) -> None:
    other = "99999999-8888-7777-6666-555555555555.consul"
    assert reason(mesh, peer=verified(trust_domain=other)) == "foreign_trust_domain"


def last(mesh: Mesh, **scope: Any) -> bool:
    """Whether the answer is the last one of its connection."""
    answer = call(MeshMiddleware(Recorder(), mesh=mesh), http_scope(**scope))
    return answer.header(b"connection") == b"close"


def test_a_refusal_for_good_ends_the_connection(mesh: Mesh) -> None:
    """Else a caller that has a new certificate by now is refused on it again and again."""
    foreign = verified(trust_domain="99999999-8888-7777-6666-555555555555.consul")
    expired = verified(life=-1)
    assert last(mesh, peer=expired)
    assert last(mesh, peer=foreign)
    assert not last(mesh, peer=expired, http_version="2")
    mesh.publish()
    assert last(mesh, peer=verified(root=None))
    # a proxy in front has one connection for many callers
    assert not last(mesh, extensions={"tls": {"client_cert_chain": ["nobody"]}})


def test_another_refusal_keeps_the_connection(ca: CertificateAuthority) -> None:
    deny = Mesh(ca)
    assert reason(deny, peer=verified("cron")) == "default_deny"
    assert not last(deny, peer=verified("cron"))


def test_callers_of_an_old_root_are_asked_for_a_new_connection(
    mesh: Mesh, ca: CertificateAuthority
) -> None:
    contexts = contexts_of(ca, "api")
    (old,) = contexts.bundle.fingerprints
    mesh.publish(contexts=replace(contexts, root=old))
    caller = verified(root=old)
    assert not last(mesh, peer=caller)
    ca.rotate()
    mesh.publish(bundle=bundle_of(ca))
    assert not last(mesh, peer=caller)  # our own leaf is still to come, so theirs may be, too
    (new,) = bundle_of(ca).fingerprints - {old}
    mesh.publish(contexts=replace(contexts, root=new))
    assert last(mesh, peer=caller)
    assert reason(mesh, peer=caller) == "allowed"
    assert not last(mesh, peer=caller, http_version="2")
    assert not last(mesh, peer=replace(caller, since=time.time()))
    assert not last(mesh, peer=verified(root=new))


# -- TLS extensions of other servers -----------------------------------------------------------


def certificates(pem: str) -> list[str]:
    end = "-----END CERTIFICATE-----\n"
    return [part + end for part in pem.split(end) if part.strip()]


def der(pem: str) -> bytes:
    return ssl.PEM_cert_to_DER_cert(pem)


SHAPES = {
    "PEM texts": lambda chain: {"client_cert_chain": tuple(chain)},
    "a list of PEM texts": lambda chain: {"client_cert_chain": list(chain)},
    "DER bytes": lambda chain: {"client_cert_chain": tuple(map(der, chain))},
    "client_cert": lambda chain: {"client_cert": der(chain[0]), "client_cert_chain": ()},
}


@pytest.mark.parametrize("shape", SHAPES)
def test_a_chain_in_any_shape_counts_once_it_is_verified(
    shape: str, mesh: Mesh, ca: CertificateAuthority
) -> None:
    app = Recorder()
    tls = SHAPES[shape](certificates(ca.issue("web").cert_pem))
    scope = http_scope(extensions={"tls": tls})
    assert call(MeshMiddleware(app, mesh=mesh), scope).reason == "allowed"
    assert peer_identity(app.scope) == identity()


def test_intermediates_in_the_chain_are_used(ca: CertificateAuthority) -> None:
    """A leaf of the new root, seen by a server that only has the old one."""
    mesh = Mesh(ca)
    ca.rotate()
    chain = certificates(ca.issue("web").cert_pem)
    assert len(chain) == 2
    assert reason(mesh, extensions={"tls": {"client_cert_chain": tuple(chain)}}) == "allowed"
    alone = {"client_cert_chain": tuple(chain[:1])}
    assert reason(mesh, extensions={"tls": alone}) == "root_not_trusted"


def test_a_chain_of_another_ca_does_not_count(mesh: Mesh) -> None:
    """Another server may verify nothing, or trust other roots: same names, another signature."""
    stranger = CertificateAuthority(TRUST_DOMAIN).issue("web").cert_pem
    for shape in SHAPES.values():
        tls = shape(certificates(stranger))
        assert reason(mesh, extensions={"tls": tls}) == "root_not_trusted"


def test_a_gateway_behind_another_server_speaks_for_a_peered_caller(
    mesh: Mesh, ca: CertificateAuthority
) -> None:
    """Only where a peer is known, and for callers of it."""
    gateway = ca.issue_raw([f"spiffe://{TRUST_DOMAIN}/gateway/mesh/dc/dc1"]).cert_pem
    tls = {"client_cert_chain": certificates(gateway)}
    pong = "spiffe://east.consul/ns/default/dc/dc9/svc/pong"
    header = (b"x-forwarded-client-cert", f"Hash=00;URI={pong}".encode())
    assert reason(mesh, extensions={"tls": tls}, headers=[header]) == "not_a_service"
    mesh.publish(
        policy=compile_policy(
            [Intention("pong", "api", Action.ALLOW, source_peer="east")],
            trust_domain=TRUST_DOMAIN,
            peers=[PeerBundle("east", TrustDomain("east.consul"))],
        )
    )
    app = Recorder()
    scope = http_scope(extensions={"tls": tls}, headers=[header])
    assert call(MeshMiddleware(app, mesh=mesh), scope).reason == "allowed"
    caller = peer_identity(app.scope)
    assert (str(caller), caller.peer) == (pong, "east")
    assert header not in app.scope["headers"]
    assert reason(mesh, extensions={"tls": tls}) == "not_a_service"


@pytest.mark.parametrize(
    ("uris", "options", "expected"),
    [
        ((f"spiffe://{TRUST_DOMAIN}/agent/client/dc/dc1/id/n1",), {}, "not_a_service"),
        ((f"spiffe://{TRUST_DOMAIN}/gateway/mesh/dc/dc1",), {}, "not_a_service"),
        (("spiffe://other.consul/ns/default/dc/dc1/svc/web",), {}, "foreign_trust_domain"),
        ((str(identity()), str(identity("batch"))), {}, "invalid_identity"),
        ((), {}, "invalid_identity"),
        ((str(identity()),), {"not_after": time.time() - 60}, "root_not_trusted"),
    ],
    ids=["agent", "gateway", "foreign", "two URIs", "no URI", "expired"],
)
def test_a_verified_chain_must_name_one_service_of_ours(
    uris: tuple[str, ...],
    options: dict[str, Any],
    expected: str,
    mesh: Mesh,
    ca: CertificateAuthority,
) -> None:
    tls = {"client_cert_chain": (ca.issue_raw(uris, **options).cert_pem,)}
    assert reason(mesh, extensions={"tls": tls}) == expected
    # The policy refuses some of them as well; here it is not asked.
    assert peer.ChainVerifier().caller(tls, mesh.state, time.time()) == expected


@pytest.mark.parametrize(
    "tls",
    [
        None,
        {},
        {"client_cert_chain": ()},
        {"client_cert_chain": None, "client_cert": None},
        {"client_cert_chain": "-----BEGIN CERTIFICATE-----"},
        {"client_cert_chain": (None,)},
        {"client_cert_chain": ({"subject": "web"},)},
        {"client_cert_name": "CN=web"},
        "web",
    ],
    ids=str,
)
def test_tls_without_a_certificate_is_nobody(tls: Any, mesh: Mesh) -> None:
    assert reason(mesh, extensions={"tls": tls}) == "no_identity"


def test_a_certificate_that_the_server_itself_found_bad_is_nobody(
    mesh: Mesh, ca: CertificateAuthority
) -> None:
    tls = {"client_cert_chain": (ca.issue("web").cert_pem,), "client_cert_error": "expired"}
    assert reason(mesh, extensions={"tls": tls}) == "no_identity"


@pytest.mark.parametrize("junk", [b"junk", "junk", b"", ""], ids=repr)
def test_junk_instead_of_a_certificate_is_refused(junk: str | bytes, mesh: Mesh) -> None:
    tls = {"client_cert_chain": (junk,)}
    assert reason(mesh, extensions={"tls": tls}) in {"invalid_identity", "root_not_trusted"}


def test_a_plaintext_request_is_nobody(mesh: Mesh) -> None:
    assert reason(mesh) == "no_identity"
    assert reason(mesh, extensions=None) == "no_identity"


def test_without_roots_no_chain_counts(mesh: Mesh, ca: CertificateAuthority) -> None:
    tls = {"client_cert_chain": (ca.issue("web").cert_pem,)}
    mesh.publish(bundle=None)
    assert reason(mesh, extensions={"tls": tls}) == "no_identity"


# -- what is remembered of them ----------------------------------------------------------------


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """`clock[0]` is added to the middleware's time, in seconds."""
    ahead = [0.0]
    real = time.time

    class Time:
        @staticmethod
        def time() -> float:
            return real() + ahead[0]

    monkeypatch.setattr("mesh_middleware.middleware.enforcer.time", Time)
    return ahead


class Verifications:
    """Counts what `TrustBundle.verify` is asked."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.count = 0
        real = TrustBundle.verify

        def counting(bundle: TrustBundle, *args: Any) -> bytes | None:
            self.count += 1
            return real(bundle, *args)

        monkeypatch.setattr(TrustBundle, "verify", counting)


@pytest.fixture
def verifications(monkeypatch: pytest.MonkeyPatch) -> Verifications:
    return Verifications(monkeypatch)


def test_a_chain_is_verified_once_for_some_seconds(
    mesh: Mesh, ca: CertificateAuthority, clock: list[float], verifications: Verifications
) -> None:
    app = MeshMiddleware(Recorder(), mesh=mesh)
    tls = {"client_cert_chain": (ca.issue("web").cert_pem,)}
    for ahead, count in ((0, 1), (5, 1), (11, 2), (12, 2), (0, 3)):
        clock[0] = ahead
        assert call(app, http_scope(extensions={"tls": tls})).reason == "allowed"
        assert verifications.count == count


def test_a_leaf_that_expires_while_it_is_remembered_is_refused(
    mesh: Mesh, ca: CertificateAuthority, clock: list[float], verifications: Verifications
) -> None:
    app = MeshMiddleware(Recorder(), mesh=mesh)
    leaf = ca.issue("web", not_after=time.time() + 4).cert_pem
    scope = http_scope(extensions={"tls": {"client_cert_chain": (leaf,)}})
    assert call(app, dict(scope)).reason == "allowed"
    clock[0] = 6
    assert call(app, dict(scope)).reason == "certificate_expired"
    assert verifications.count == 1


def test_a_new_generation_forgets_what_was_verified(mesh: Mesh, ca: CertificateAuthority) -> None:
    app = MeshMiddleware(Recorder(), mesh=mesh)
    scope = http_scope(extensions={"tls": {"client_cert_chain": (ca.issue("web").cert_pem,)}})
    assert call(app, dict(scope)).reason == "allowed"
    ca.rotate()
    ca.remove_inactive_roots()
    mesh.publish(bundle=bundle_of(ca))
    assert call(app, dict(scope)).reason == "root_not_trusted"


def test_what_is_remembered_is_bounded(
    mesh: Mesh, monkeypatch: pytest.MonkeyPatch, verifications: Verifications
) -> None:
    monkeypatch.setattr(peer, "CACHED_CHAINS", 3)
    chains = peer.ChainVerifier()
    for number in range(10):
        chains.caller({"client_cert": b"%d" % number}, mesh.state, 1.0)
        assert len(chains._seen) <= 3
    assert verifications.count == 10
    chains.caller({"client_cert": b"9"}, mesh.state, 1.0)
    assert verifications.count == 10


# -- what an application may ask ---------------------------------------------------------------

ALLOWED = Decision(allowed=True, reason=Reason.INTENTION_ALLOW)


def marked(caller: Any) -> dict[str, Any]:
    mark = peer.Enforcement(
        "api",
        ALLOWED,
        caller,
        request=HTTPRequest("GET", b"/"),
        claims={},
        path="/",
        roots=frozenset({""}),
    )
    return {"extensions": {EXTENSION: {"enforced": mark}}}


def test_a_wsgi_environ_is_asked_through_its_asgi_scope_or_its_own_key() -> None:
    scope = marked(identity())
    assert peer_identity({"asgi.scope": scope}) == identity()
    mark = scope["extensions"][EXTENSION]["enforced"]
    assert peer_identity({PEER_KEY: mark}) == identity()
    assert decision_of({PEER_KEY: mark}) is ALLOWED


@pytest.mark.parametrize(
    ("scope", "reason"),
    [
        ({}, Reason.NO_IDENTITY),
        ({"extensions": {EXTENSION: {"peer": verified()}}}, Reason.NO_IDENTITY),
        ({PEER_KEY: "web", "HTTP_X_FORWARDED_CLIENT_CERT": "URI=x"}, Reason.NO_IDENTITY),
        (marked(None), Reason.NO_IDENTITY),
        (
            marked(SpiffeID.from_string(f"spiffe://{TRUST_DOMAIN}/gateway/mesh/dc/dc1")),
            Reason.NOT_A_SERVICE,
        ),
    ],
    ids=["nothing", "not decided", "forged environ", "exempt", "gateway"],
)
def test_who_was_not_decided_about_has_no_identity(scope: dict[str, Any], reason: Reason) -> None:
    with pytest.raises(PeerIdentityError) as caught:
        peer_identity(scope)
    assert caught.value.reason == reason


def test_a_scope_that_was_not_decided_about_has_no_decision() -> None:
    assert decision_of({"extensions": {EXTENSION: {"enforced": ALLOWED}}}) is None
