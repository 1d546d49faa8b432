"""Who is calling: the proven peer of a scope, and what the application may ask about it.

Two proofs count, nothing else:

1. A `VerifiedPeer` that our own handshake hook made and the launcher put into
   ``scope["extensions"]["mesh_middleware"]["peer"]``. Its chain is proven; what can change while
   the connection is open is judged again per request (`VerifiedPeer.refusal`).
2. The TLS extension of another server, ``scope["extensions"]["tls"]``. That server may have been
   told to verify nothing, or to trust other roots, so the chain is verified here against the
   mesh's roots first, and again every `RECHECK_SECONDS`.

Headers are never a proof. No certificate means nobody: `Reason.NO_IDENTITY`.

Source: ASGI TLS extension 0.2 (``client_cert_chain``: PEM text, leaf first); servers and drafts
that differ give DER bytes there, or ``client_cert`` as DER.
"""

from __future__ import annotations

import ssl
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any, Final, cast

from mesh_middleware.errors import PeerIdentityError
from mesh_middleware.policy.decision import Decision, Reason
from mesh_middleware.policy.engine import Claims
from mesh_middleware.policy.request import HTTPRequest
from mesh_middleware.policy.spiffe import ServiceIdentity, SpiffeID
from mesh_middleware.state import MeshState
from mesh_middleware.tls.certificates import PeerCertificate, TrustBundle, check_peer
from mesh_middleware.tls.contexts import VerifiedPeer

PEER_KEY: Final = "mesh_middleware.peer"
"""Where a `VerifiedPeer` travels outside of ASGI scopes: a server's state, a WSGI environ."""

EXTENSION: Final = "mesh_middleware"
"""The key in ``scope["extensions"]``: a dict with ``peer``, ``target`` and ``enforced``."""

ENFORCED: Final = "enforced"

RECHECK_SECONDS: Final = 10.0
"""How long the verification of a foreign server's chain is believed: an intermediate may expire."""

CACHED_CHAINS: Final = 1024

Caller = ServiceIdentity | SpiffeID

# Stands in where no roots are known: none of them is the one a connection was proved with.
_NO_ROOTS = cast("TrustBundle", SimpleNamespace(fingerprints=frozenset()))


class Enforcement:
    """What a middleware decided about one scope; only a middleware of ours makes one.

    It is how an inner middleware knows that it need not decide again, and what `peer_identity`
    and `decision_of` read. It cannot come from a client: headers hold bytes, not objects.

    `request` and `claims` are what was decided about, `roots` the root paths that a router may
    take off its path. The path is that of the scope.
    """

    __slots__ = ("caller", "claims", "decision", "path", "request", "roots", "service")

    def __init__(
        self,
        service: str,
        decision: Decision,
        caller: Caller | None,
        *,
        request: HTTPRequest,
        claims: Claims,
        path: str,
        roots: frozenset[str],
    ) -> None:
        self.service = service
        self.decision = decision
        self.caller = caller
        self.request = request
        self.claims = claims
        self.path = path
        self.roots = roots


def enforcement(scope_or_environ: Mapping[str, Any]) -> Enforcement | None:
    """The mark of the middleware that decided about this scope (or WSGI environ), or None."""
    found = scope_or_environ.get(PEER_KEY)
    if type(found) is Enforcement:
        return found
    scope = scope_or_environ.get("asgi.scope", scope_or_environ)
    extensions = scope.get("extensions")
    ours = extensions.get(EXTENSION) if extensions else None
    found = ours.get(ENFORCED) if ours else None
    return found if type(found) is Enforcement else None


def peer_identity(scope_or_environ: Mapping[str, Any]) -> ServiceIdentity:
    """The mesh service that makes this request, as a middleware of ours proved it.

    Takes an ASGI scope (``request.scope``, ``websocket.scope``) or a WSGI environ. Raises
    PeerIdentityError when no `MeshMiddleware` has decided about it, or when it decided without a
    caller (an exempt path).
    """
    mark = enforcement(scope_or_environ)
    caller = None if mark is None else mark.caller
    if isinstance(caller, ServiceIdentity):
        return caller
    if caller is not None:
        raise PeerIdentityError(
            f"the caller {caller} is not a service", reason=Reason.NOT_A_SERVICE
        )
    why = "no MeshMiddleware has decided about it" if mark is None else "its path is exempt"
    raise PeerIdentityError(f"this request has no caller: {why}", reason=Reason.NO_IDENTITY)


def decision_of(scope_or_environ: Mapping[str, Any]) -> Decision | None:
    """What our middleware decided about this scope or environ; None when none has."""
    mark = enforcement(scope_or_environ)
    return None if mark is None else mark.decision


def handshake_caller(peer: VerifiedPeer, state: MeshState, now: float) -> Caller | Reason:
    """The caller that our own handshake proved, if it still counts at `now` (unix seconds)."""
    bundle = _NO_ROOTS if state.bundle is None else state.bundle
    refusal = peer.refusal(bundle, state.generation, now)
    return peer.certificate.identity if refusal is None else refusal


class ChainVerifier:
    """Callers out of other servers' TLS extensions, verified against the mesh's roots.

    Bounded: at most `CACHED_CHAINS` results, all forgotten with each new generation.
    """

    __slots__ = ("_generation", "_seen")

    def __init__(self) -> None:
        self._generation = -1
        self._seen: dict[tuple[str | bytes, ...], tuple[float, PeerCertificate | Reason]] = {}

    def caller(self, tls: Any, state: MeshState, now: float) -> Caller | Reason:
        """Who `tls` (the extension's value) proves at `now`, or why nobody."""
        chain, bundle = client_chain(tls), state.bundle
        if not chain or bundle is None:
            return Reason.NO_IDENTITY
        if self._generation != state.generation:
            self._seen.clear()
            self._generation = state.generation
        known = self._seen.get(chain)
        if known is None or not known[0] > now >= known[0] - RECHECK_SECONDS:
            gateways = state.policy is not None and state.policy.peered
            known = (now + RECHECK_SECONDS, _verify(chain, bundle, now, gateways=gateways))
            if len(self._seen) >= CACHED_CHAINS:
                self._seen.pop(next(iter(self._seen)), None)
            self._seen[chain] = known
        found = known[1]
        if isinstance(found, Reason):
            return found
        if not found.valid_at(now):
            return Reason.CERTIFICATE_EXPIRED
        return found.identity

    def until(self, tls: Any, now: float) -> float:
        """Unix seconds until which what `caller` said of `tls` holds in this generation."""
        known = self._seen.get(client_chain(tls))
        if known is None or isinstance(known[1], Reason):
            return now
        return min(known[0], known[1].not_after)


def client_chain(tls: Any) -> tuple[str | bytes, ...]:
    """The client's certificates in a TLS extension, leaf first; empty when it proves nobody.

    Empty too when the server itself reports an error with the certificate, and for any shape that
    is not known.
    """
    if not isinstance(tls, Mapping) or tls.get("client_cert_error"):
        return ()
    given = tls.get("client_cert_chain")
    chain = tuple(given) if isinstance(given, tuple | list) else ()
    leaf = tls.get("client_cert")
    if not chain and leaf:
        chain = (leaf,)
    if not all(isinstance(certificate, str | bytes) for certificate in chain):
        return ()
    return chain


def _verify(
    chain: tuple[str | bytes, ...], bundle: TrustBundle, now: float, *, gateways: bool
) -> PeerCertificate | Reason:
    try:
        leaf, *intermediates = (_der(certificate) for certificate in chain)
    except ValueError:
        return Reason.INVALID_IDENTITY
    if bundle.verify(leaf, intermediates, now) is None:
        return Reason.ROOT_NOT_TRUSTED
    try:
        certificate = PeerCertificate.from_der(leaf)
    except PeerIdentityError as error:
        return Reason(error.reason)
    return check_peer(certificate, bundle.trust_domain, now, gateways=gateways) or certificate


def _der(certificate: str | bytes) -> bytes:
    """DER of a certificate given as PEM text or as DER; ValueError when it is neither."""
    if isinstance(certificate, bytes):
        return certificate
    return ssl.PEM_cert_to_DER_cert(certificate)
