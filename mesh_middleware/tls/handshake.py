"""The hook that judges a peer in its TLS handshake, and what it leaves on the connection.

OpenSSL proves that the peer's chain leads to one of our roots. The hook then proves whose
certificate it is. It runs inside `do_handshake`, before the first byte is read or written, for
asyncio and uvloop (`ssl.SSLObject`) as for blocking code (`ssl.SSLSocket`). Handshakes may be lazy:
reading or writing on a connection that was not judged yet does the handshake, and the judging,
first; so no byte passes unjudged, whatever the order of calls.

OpenSSL skips the chain on a resumed session. Our servers hand out no tickets, but the standard
library cannot turn off the session cache of TLS 1.2. The cache belongs to one inner context, thus
to one generation, and here a resumed peer's chain is proved again.
"""

from __future__ import annotations

import hashlib
import logging
import math
import ssl
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from mesh_middleware.errors import PeerIdentityError
from mesh_middleware.policy.decision import Reason
from mesh_middleware.policy.spiffe import ServiceIdentity
from mesh_middleware.tls.certificates import PeerCertificate, TrustBundle, check_peer

logger = logging.getLogger("mesh_middleware.tls")


class PeerRejected(ssl.SSLCertVerificationError):
    """The handshake failed because of who the peer is; `reason` says why."""

    def __init__(self, message: str, reason: str) -> None:
        super().__init__(1, f"peer rejected ({reason}): {message}")
        self.reason = reason


LEAVE_SECONDS = 60.0
"""How old a connection must be before its caller is asked to make a new one: a caller whose new
certificate is late is not asked with each request."""

_LAST_PART = 0.1  # Consul renews a leaf after 60 to 90 percent of its life


@dataclass(frozen=True, slots=True)
class VerifiedPeer:
    """A peer whose chain and identity our own handshake proved. Made by the hook, nowhere else.

    `root`: SHA-256 of the DER of the root that the chain led to; None when it is not known.
    `generation`: that of the contexts under which the handshake was done. `since`: when that was,
    unix seconds.
    """

    certificate: PeerCertificate
    root: bytes | None
    generation: int
    since: float = 0.0

    def refusal(self, bundle: TrustBundle, generation: int, now: float) -> Reason | None:
        """Why this connection must not go on at `now` (unix seconds), or None when it may.

        Cheap enough for every request: while `generation` is still that of the handshake only the
        certificate's life is looked at; otherwise the root must be in `bundle` (unknown counts as
        removed) and the trust domain must still be ours.
        """
        if now > self.certificate.not_after:
            return Reason.CERTIFICATE_EXPIRED
        if generation == self.generation:
            return None
        if self.root not in bundle.fingerprints:
            return Reason.ROOT_NOT_TRUSTED
        if self.certificate.identity.trust_domain != bundle.trust_domain:
            return Reason.FOREIGN_TRUST_DOMAIN
        return None

    def should_leave(self, root: bytes | None, now: float) -> bool:
        """Whether the caller had better connect anew, because this connection ends before long.

        A pool such as Envoy's keeps a busy connection for ever, whatever certificate its owner has
        by now, and would be refused on it from one request to the next. So it is asked while all
        is well:

        1. when the certificate is in the last tenth of its life, or
        2. when its root is not `root`, which our own leads to: the CA has rotated.

        Neither before the connection has been open for `LEAVE_SECONDS`. `now`: unix seconds.
        """
        if now - self.since < LEAVE_SECONDS:
            return False
        end = self.certificate.not_after
        if now > end - _LAST_PART * (end - self.certificate.not_before):
            return True
        return root is not None and root != self.root


@dataclass(frozen=True, slots=True)
class Judge:
    """What a peer must prove. `expected` None means the server side: any service, by `check_peer`.

    `gateways`: whether a mesh gateway of our trust domain will do on the server side. `until`: unix
    seconds when our own certificate ends; from then on no handshake begins.
    """

    bundle: TrustBundle
    generation: int
    gateways: bool = False
    expected: ServiceIdentity | None = None
    until: float = math.inf

    def judge(self, connection: Connection) -> VerifiedPeer:
        """The proven peer of a finished handshake; PeerIdentityError when it must be refused."""
        now = time.time()
        der = connection.getpeercert(binary_form=True)
        if not der:
            raise PeerIdentityError("the peer sent no certificate", reason=Reason.NO_IDENTITY)
        peer = PeerCertificate.from_der(der)
        reason = check_peer(peer, self.bundle.trust_domain, now, gateways=self.gateways)
        if reason is not None:
            raise PeerIdentityError(f"the peer is {peer.identity}", reason=reason)
        if self.expected is not None and peer.identity != self.expected:
            raise PeerIdentityError(
                f"the peer is {peer.identity}, expected was {self.expected}",
                reason=Reason.INVALID_IDENTITY,
            )
        return VerifiedPeer(peer, self._root(connection, der, now), self.generation, now)

    def _root(self, connection: Connection, der: bytes, now: float) -> bytes | None:
        verified = certificate_chain(connection, "get_verified_chain")
        if verified:
            return hashlib.sha256(verified[-1]).digest()
        if not connection.session_reused:
            return None
        root = self.bundle.verify(der, certificate_chain(connection, "get_unverified_chain"), now)
        if root is None:
            raise PeerIdentityError(
                "the chain of a resumed session leads to no root of ours",
                reason=Reason.ROOT_NOT_TRUSTED,
            )
        return root


class JudgingContext(ssl.SSLContext):
    """A context whose connections are judged; `mesh_judge` None refuses every peer."""

    mesh_judge: Judge | None = None


class MeshSSLObject(ssl.SSLObject):
    """A TLS connection over memory buffers, judged before anything passes."""

    mesh_peer: VerifiedPeer | None = None

    def do_handshake(self) -> None:
        """As in the base class, then judge; raises PeerRejected."""
        _judged_handshake(self, super().do_handshake)

    def read(self, len: int = 1024, buffer: Any = None) -> Any:  # noqa: A002 - as in the base class
        """As in the base class, the handshake first where it was not done."""
        if self.mesh_peer is None:
            self.do_handshake()
        return super().read(len, buffer)

    def write(self, data: Any) -> int:
        """As in the base class, the handshake first where it was not done."""
        if self.mesh_peer is None:
            self.do_handshake()
        return super().write(data)


class MeshSSLSocket(ssl.SSLSocket):
    """A TLS connection over a socket, judged before anything passes.

    `recv`, `recv_into`, `sendall`, `sendfile` and `makefile` of the base class come down to the
    methods here; a test goes through all of them.
    """

    mesh_peer: VerifiedPeer | None = None

    def do_handshake(self, block: bool = False) -> None:
        """As in the base class, then judge; raises PeerRejected."""
        _judged_handshake(self, lambda: super(MeshSSLSocket, self).do_handshake(block))

    def _handshake_first(self) -> None:
        if self.mesh_peer is None:
            self.do_handshake()

    def read(self, len: int = 1024, buffer: Any = None) -> Any:  # noqa: A002 - as in the base class
        """As in the base class, the handshake first where it was not done."""
        self._handshake_first()
        return super().read(len, buffer)

    def write(self, data: Any) -> int:
        """As in the base class, the handshake first where it was not done."""
        self._handshake_first()
        return super().write(data)

    def send(self, data: Any, flags: int = 0) -> int:
        """As in the base class, the handshake first where it was not done."""
        self._handshake_first()
        return super().send(data, flags)


Connection = MeshSSLObject | MeshSSLSocket

JudgingContext.sslobject_class = MeshSSLObject
JudgingContext.sslsocket_class = MeshSSLSocket


def verified_peer(connection: object) -> VerifiedPeer | None:
    """The peer that our handshake proved on this `ssl.SSLObject` or `ssl.SSLSocket`, or None.

    With asyncio: ``verified_peer(transport.get_extra_info("ssl_object"))``.
    """
    return connection.mesh_peer if isinstance(connection, Connection) else None


def _judged_handshake(connection: Connection, handshake: Callable[[], None]) -> None:
    side = "client" if connection.server_side else "server"
    _prove_ourselves(connection, side)
    try:
        handshake()
    except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
        raise
    except ssl.SSLError as error:
        if (reason := _openssl_reason(error)) is not None:
            refusals.log(side, reason, str(error))
        raise
    if connection.mesh_peer is not None:
        return
    try:
        connection.mesh_peer = _judge(connection)
    except PeerIdentityError as error:
        refusals.log(side, error.reason, str(error))
        raise PeerRejected(str(error), error.reason) from error


def _prove_ourselves(connection: Connection, side: str) -> None:
    """ssl.SSLError when our own certificate has expired: a careless peer would not see it."""
    judge: Judge | None = getattr(connection.context, "mesh_judge", None)
    if judge is None or time.time() <= judge.until:
        return
    end = datetime.fromtimestamp(judge.until, UTC).isoformat(timespec="seconds")
    text = f"our own certificate expired at {end} and the Consul agent gave no new one"
    refusals.log(side, Reason.CERTIFICATE_EXPIRED, text)
    raise ssl.SSLError(ssl.SSL_ERROR_SSL, text)


def _judge(connection: Connection) -> VerifiedPeer:
    judge: Judge | None = getattr(connection.context, "mesh_judge", None)
    if judge is None:
        raise PeerIdentityError("nobody judges this context", reason=Reason.NO_IDENTITY)
    return judge.judge(connection)


# X509_V_ERR_*: not yet valid, expired; self-signed leaf, unknown self-signed root in the chain,
# no issuer found, nothing to verify the leaf with.
_VERIFY_CODES = {
    9: Reason.CERTIFICATE_EXPIRED,
    10: Reason.CERTIFICATE_EXPIRED,
    18: Reason.ROOT_NOT_TRUSTED,
    19: Reason.ROOT_NOT_TRUSTED,
    20: Reason.ROOT_NOT_TRUSTED,
    21: Reason.ROOT_NOT_TRUSTED,
}


def _openssl_reason(error: ssl.SSLError) -> Reason | None:
    """Our word for OpenSSL's refusal of a peer; None when the failure is not about the peer."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return _VERIFY_CODES.get(error.verify_code, Reason.INVALID_IDENTITY)
    if error.reason == "PEER_DID_NOT_RETURN_A_CERTIFICATE":
        return Reason.NO_IDENTITY
    return None


def certificate_chain(connection: Connection, name: str) -> list[bytes]:
    """A certificate chain of `connection` as DER, leaf first; empty when there is none.

    The methods are public from Python 3.13; 3.11 and 3.12 have them on a private object.
    """
    method = getattr(connection, name, None)
    if method is None:
        method = getattr(getattr(connection, "_sslobj", None), name, None)
    if method is None:
        return []
    return [each if isinstance(each, bytes) else _private_der(each) for each in method() or ()]


def _private_der(certificate: Any) -> bytes:
    der: bytes = certificate.public_bytes(_ENCODING_DER)
    return der


_ENCODING_DER = 2
"""``_ssl.ENCODING_DER``; a test compares."""


class RefusalLog:
    """Log lines about refused peers: some at once, then a few, so that nobody can flood the log.

    `burst`: how many lines may come at once; `per_second`: how many more each second.
    The next line after lines were left out says how many.
    """

    def __init__(
        self,
        *,
        burst: float = 20,
        per_second: float = 1,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._burst, self._per_second, self._clock = burst, per_second, clock
        self._lock = threading.Lock()
        self._credit, self._then, self._left_out = burst, clock(), 0
        self._counts: Counter[tuple[str, str]] = Counter()

    def counts(self) -> dict[tuple[str, str], int]:
        """How many were refused since the process began, logged or not, by side and reason."""
        with self._lock:
            return dict(self._counts)

    def log(self, side: str, reason: str, detail: str) -> None:
        """Log that a `side` (``client`` or ``server``) was refused, unless too many were."""
        with self._lock:
            self._counts[side, str(reason)] += 1
            now = self._clock()
            earned = (now - self._then) * self._per_second
            self._credit, self._then = min(self._burst, self._credit + earned), now
            if self._credit < 1:
                self._left_out += 1
                return
            self._credit -= 1
            left_out, self._left_out = self._left_out, 0
        logger.warning(
            "%s refused in the TLS handshake (%s): %s%s",
            side,
            reason,
            detail,
            f"; {left_out} more refusals were not logged" if left_out else "",
            extra={"mesh_side": side, "mesh_reason": str(reason), "mesh_left_out": left_out},
        )


refusals = RefusalLog()
"""The process's log of refused handshakes."""
