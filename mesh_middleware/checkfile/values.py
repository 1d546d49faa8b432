"""What a document of `check` says and what comes of it, as values."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from mesh_middleware.policy.decision import Decision
from mesh_middleware.policy.engine import JWTProvider, Policy
from mesh_middleware.policy.intentions import WILDCARD, Action, Intention
from mesh_middleware.policy.jwt import BadToken
from mesh_middleware.policy.request import HTTPRequest
from mesh_middleware.policy.spiffe import DEFAULT, TrustDomain
from mesh_middleware.tls.tokens import TokenVerifier


class Mode(StrEnum):
    """How the request arrives: judged one by one, or once when the connection is opened."""

    HTTP = "http"
    TCP = "tcp"


class Encoding(StrEnum):
    """Which bytes the characters of a request stand for."""

    UTF_8 = "utf-8"
    LATIN_1 = "latin-1"


@dataclass(frozen=True, slots=True)
class Common:
    """What all requests of a document share. `verifier`: None where no request has a token."""

    trust_domain: TrustDomain
    providers: tuple[JWTProvider, ...] = ()
    encoding: Encoding = Encoding.UTF_8
    verifier: TokenVerifier | None = None


@dataclass(frozen=True, slots=True)
class CheckRequest:
    """One entry of ``requests``.

    `number` counts from 0. `source` is what the document says, `identity` the SPIFFE ID text that
    it stands for. `http` is None in mode ``tcp``. `claims`: provider name to payload,
    or to why a token gives none.
    """

    number: int
    source: str
    identity: str
    http: HTTPRequest | None
    claims: Mapping[str, Mapping[str, Any] | BadToken]
    expect: Action | None = None
    description: str = ""

    @property
    def label(self) -> str:
        """Method and target as in a request line, or ``connection`` in mode ``tcp``."""
        if self.http is None:
            return "connection"
        return f"{self.http.method} {self.http.target.decode('utf-8', 'backslashreplace')}"


@dataclass(frozen=True, slots=True)
class CheckDocument:
    """A document ready to be decided. `number` counts from 0 across all files, in their order."""

    file: str
    number: int
    destination: Destination
    policy: Policy
    requests: tuple[CheckRequest, ...]
    common: Common
    description: str = ""


@dataclass(frozen=True, slots=True)
class Destination:
    """The service whose inbound requests are decided."""

    name: str
    namespace: str = DEFAULT
    partition: str = DEFAULT

    @classmethod
    def of(cls, intention: Intention) -> Destination:
        """The destination that the row names, wildcards included."""
        return cls(
            intention.destination_name,
            intention.destination_namespace or DEFAULT,
            intention.destination_partition.lower() or DEFAULT,
        )

    def covers(self, other: Destination) -> bool:
        """True when a row for this destination, maybe a wildcard, applies to `other`."""
        return (
            self.name in {WILDCARD, other.name}
            and self.namespace in {WILDCARD, other.namespace}
            and self.partition == other.partition
        )

    def __str__(self) -> str:
        if self.partition != DEFAULT:
            return f"{self.partition}/{self.namespace}/{self.name}"
        return self.name if self.namespace == DEFAULT else f"{self.namespace}/{self.name}"


@dataclass(frozen=True, slots=True)
class Result:
    """What was decided for one request of one document."""

    document: CheckDocument
    request: CheckRequest
    decision: Decision

    @property
    def failed(self) -> bool:
        """True when the request says what to expect and it did not come so."""
        expect = self.request.expect
        return expect is not None and self.decision.allowed != (expect is Action.ALLOW)

    def to_json(self) -> dict[str, Any]:
        """The object that ``--json`` prints; its shape is documented and stable."""
        by = self.decision.intention
        return {
            "document": self.document.number,
            "request": self.request.number,
            "allowed": self.decision.allowed,
            "reason": self.decision.reason.value,
            "intention": None
            if by is None
            else {
                "source": by.source,
                "destination": by.destination,
                "precedence": by.precedence,
            },
            "permission": self.decision.permission,
            "reading": self.decision.reading,
        }


def decide(document: CheckDocument, request: CheckRequest) -> Result:
    """The decision that the document's policy gives for `request`."""
    policy = document.policy
    if request.http is None:
        decision = policy.decide_connection(request.identity)
    else:
        decision = policy.decide(request.identity, request.http, request.claims)
    return Result(document, request, decision)


def decide_all(documents: Iterable[CheckDocument]) -> list[Result]:
    """One result for each request, in the order of the documents."""
    return [decide(document, request) for document in documents for request in document.requests]
