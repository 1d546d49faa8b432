"""SPIFFE IDs as Consul writes them, compared as values.

Consul gives a workload one of these paths (the trust domain is ``<cluster id>.consul``):

=============  =========================================================
kind           path
=============  =========================================================
service        ``[/ap/<partition>]/ns/<namespace>/dc/<dc>/svc/<service>``
agent          ``[/ap/<partition>]/agent/client/dc/<dc>/id/<node>``
mesh gateway   ``[/ap/<partition>]/gateway/mesh/dc/<dc>``
server         ``/agent/server/dc/<dc>``
signing (CA)   empty
=============  =========================================================

Only the service form can be named by an intention. Parsing is stricter than Consul's own: no
query, fragment, user, port or empty host, and no percent-escape that Consul would not have
written, so that two texts never mean the same service.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from enum import StrEnum
from urllib.parse import quote, unquote_to_bytes

from mesh_middleware.errors import SpiffeIDError

MAX_BYTES = 2048
"""Longest SPIFFE ID, in bytes (SPIFFE-ID 2.3)."""

DEFAULT = "default"
"""The namespace and partition of Consul's open edition; an absent partition reads as this."""

# What Go's url.URL leaves alone in a path besides letters, digits and "-_.~".
_GO_SAFE = "$&+,:;=@-_.~"

_TRUST_DOMAIN = re.compile(r"[a-z0-9._-]{1,255}")
_SPIFFE = re.compile(r"spiffe://([^/?#]*)((?:/[^/?#]+)*)")
_SEGMENT = re.compile(r"(?:[A-Za-z0-9$&+,:;=@_.~!'()*-]|%[0-9A-Fa-f]{2})+")

_SERVICE = re.compile(r"(?:/ap/([^/]+))?/ns/([^/]+)/dc/([^/]+)/svc/([^/]+)")
_GATEWAY = re.compile(r"(?:/ap/[^/]+)?/gateway/mesh/dc/[^/]+")
_AGENT = re.compile(r"(?:/ap/[^/]+)?/agent/client/dc/[^/]+/id/[^/]+")
_SERVER = re.compile(r"/agent/server/dc/[^/]+")


class Kind(StrEnum):
    """What a SPIFFE ID stands for in a Consul mesh."""

    SERVICE = "service"
    AGENT = "agent"
    MESH_GATEWAY = "mesh gateway"
    SERVER = "server"
    SIGNING = "signing authority"
    OTHER = "other"


@dataclass(frozen=True, slots=True)
class TrustDomain:
    """The host part of SPIFFE IDs, compared byte by byte: lower-case letters, digits, ``.-_``.

    Raises SpiffeIDError for anything else or more than 255 characters. Source: SPIFFE-ID 2.1.
    """

    name: str

    def __post_init__(self) -> None:
        if not _TRUST_DOMAIN.fullmatch(self.name):
            raise SpiffeIDError(
                f"trust domain {self.name[:80]!r} must be 1 to 255 of a-z, 0-9, '.', '-', '_'"
            )

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True, slots=True)
class SpiffeID:
    """A SPIFFE ID: a trust domain and a path that is empty or starts with ``/``."""

    trust_domain: TrustDomain
    path: str

    @classmethod
    def from_string(cls, text: str) -> SpiffeID:
        """Parse `text`; SpiffeIDError says what is wrong. Source: SPIFFE-ID 2."""
        if len(text.encode("utf-8", "surrogatepass")) > MAX_BYTES:
            raise SpiffeIDError(f"SPIFFE ID is longer than {MAX_BYTES} bytes")
        found = _SPIFFE.fullmatch(text)
        if found is None:
            raise SpiffeIDError(
                f"{text[:200]!r} is not a SPIFFE ID: expected spiffe://<trust domain>/<path> "
                "without query, fragment or empty segments"
            )
        trust_domain, path = TrustDomain(found[1]), found[2]
        for segment in path.split("/")[1:]:
            if segment in {".", ".."} or not _SEGMENT.fullmatch(segment):
                raise SpiffeIDError(f"segment {segment[:80]!r} is not allowed in a SPIFFE ID")
        return cls(trust_domain, path)

    @property
    def kind(self) -> Kind:
        """What this ID stands for in a Consul mesh."""
        if not self.path:
            return Kind.SIGNING
        for kind, pattern in _KINDS:
            if pattern.fullmatch(self.path):
                return kind
        return Kind.OTHER

    def __str__(self) -> str:
        return f"spiffe://{self.trust_domain.name}{self.path}"


_KINDS = (
    (Kind.SERVICE, _SERVICE),
    (Kind.AGENT, _AGENT),
    (Kind.MESH_GATEWAY, _GATEWAY),
    (Kind.SERVER, _SERVER),
)

SourceKey = tuple[str, str, str, str]
"""Peer (empty: local), partition, namespace, service: what an intention's source is matched on."""


@dataclass(frozen=True, slots=True)
class ServiceIdentity:
    """A mesh service: what the *service* form of a Consul SPIFFE ID says, escapes undone.

    `peer`: for a service of another cluster, the name by which that cluster is known here; the
    certificate does not say it, so parsing never sets it. A local ``web`` and a peer's ``web``
    are different services.

    `key` is derived: the source key by which policies look a caller up. The datacenter is not
    part of it; no intention names one.
    """

    trust_domain: TrustDomain
    service: str
    namespace: str = DEFAULT
    partition: str = DEFAULT
    datacenter: str = "dc1"
    peer: str = field(default="", kw_only=True)
    key: SourceKey = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        for name in ("service", "namespace", "partition", "datacenter"):
            value = getattr(self, name)
            if not value or "/" in value or "\x00" in value or value in {".", ".."}:
                raise SpiffeIDError(f"{name} {value[:80]!r} cannot be part of a SPIFFE ID")
            try:
                value.encode("utf-8")
            except UnicodeEncodeError:
                raise SpiffeIDError(f"{name} {value[:80]!r} is not text") from None
        # Intentions name a peer's services by peer and namespace, never by its partitions.
        partition = DEFAULT if self.peer else self.partition.lower()
        object.__setattr__(self, "key", (self.peer, partition, self.namespace, self.service))

    @classmethod
    def from_spiffe_id(cls, spiffe_id: SpiffeID) -> ServiceIdentity:
        """The service that `spiffe_id` stands for.

        SpiffeIDError when it is not of the service form, or has an escape Consul would not write.
        """
        found = _SERVICE.fullmatch(spiffe_id.path)
        if found is None:
            raise SpiffeIDError(f"{spiffe_id} is not a service identity but: {spiffe_id.kind}")
        partition, namespace, datacenter, service = (
            None if segment is None else _unescape(segment) for segment in found.groups()
        )
        return cls(
            spiffe_id.trust_domain,
            service or "",
            namespace or "",
            partition if partition is not None else DEFAULT,
            datacenter or "",
        )

    @classmethod
    def from_string(cls, text: str) -> ServiceIdentity:
        """Parse a SPIFFE ID of the service form; SpiffeIDError otherwise."""
        return cls.from_spiffe_id(SpiffeID.from_string(text))

    @property
    def spiffe_id(self) -> SpiffeID:
        """The SPIFFE ID that Consul writes for this service."""
        partition = self.partition.lower()
        prefix = "" if partition == DEFAULT else f"/ap/{_escape(self.partition)}"
        return SpiffeID(
            self.trust_domain,
            f"{prefix}/ns/{_escape(self.namespace)}/dc/{_escape(self.datacenter)}"
            f"/svc/{_escape(self.service)}",
        )

    def __str__(self) -> str:
        return str(self.spiffe_id)


def _escape(segment: str) -> str:
    return quote(segment, safe=_GO_SAFE)


def _unescape(segment: str) -> str:
    try:
        text = unquote_to_bytes(segment).decode("utf-8")
    except UnicodeDecodeError:
        raise SpiffeIDError(f"segment {segment[:80]!r} is not UTF-8 after unescaping") from None
    if _escape(text) != segment:
        raise SpiffeIDError(f"segment {segment[:80]!r} has escapes that Consul does not write")
    return text
