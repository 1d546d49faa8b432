"""Documents of ``mesh-middleware check``: intentions, requests, and what should come of them.

A document is an object; ``docs/reference/check.md`` is its reference. Reading it has two parts:
`_documents` turns a file into plain values, this module turns those into a compiled `Policy` and
requests, or into a DecodeError whose `field` names file, document, request and key. Nothing is
decided before everything has been read, so bad input never gives half an answer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from mesh_middleware._documents import load_documents
from mesh_middleware._fields import Place, kind_of
from mesh_middleware.consul import decode
from mesh_middleware.errors import DecodeError, SpiffeIDError
from mesh_middleware.policy.decision import Decision
from mesh_middleware.policy.engine import Policy, compile_policy
from mesh_middleware.policy.intentions import WILDCARD, Action, Intention
from mesh_middleware.policy.request import DEFAULT_NORMALIZATION, HTTPRequest
from mesh_middleware.policy.spiffe import DEFAULT, ServiceIdentity, TrustDomain

DEFAULT_TRUST_DOMAIN = "11111111-2222-3333-4444-555555555555.consul"
"""The trust domain of a document that names none."""

STDIN = "-"
"""The file name that stands for standard input."""

DOCUMENT_KEYS = (
    "default",
    "trust_domain",
    "destination",
    "intentions",
    "requests",
    "jwt_providers",
    "mesh",
    "peers",
    "encoding",
    "description",
)
REQUEST_KEYS = (
    "source",
    "method",
    "path",
    "headers",
    "mode",
    "expect",
    "claims",
    "encoding",
    "description",
)


_ENTRY_KEYS = {"Kind", "kind", "Sources", "sources"}
"""What a config entry has and a row of the match API has not."""


class Mode(StrEnum):
    """How the request arrives: judged one by one, or once when the connection is opened."""

    HTTP = "http"
    TCP = "tcp"


class Encoding(StrEnum):
    """Which bytes the characters of a request stand for."""

    UTF_8 = "utf-8"
    LATIN_1 = "latin-1"


@dataclass(frozen=True, slots=True)
class CheckRequest:
    """One entry of ``requests``.

    `number` counts from 0. `source` is what the document says, `identity` the SPIFFE ID text that
    it stands for. `http` is None in mode ``tcp``. `claims`: provider name to payload.
    """

    number: int
    source: str
    identity: str
    http: HTTPRequest | None
    claims: Mapping[str, Mapping[str, Any]]
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
    encoding: Encoding = Encoding.UTF_8
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


def read_files(
    names: Sequence[str],
    *,
    stdin: Callable[[], bytes] | None = None,
    requests_needed: bool = True,
) -> list[CheckDocument]:
    """The documents of all files in order; `STDIN` among `names` is read from `stdin`.

    With `requests_needed` false a document may leave ``requests`` out. Raises DecodeError for
    anything that is not a document, and for a file that has none; OSError as from `open`.
    """
    documents: list[CheckDocument] = []
    for name in names:
        data = stdin() if name == STDIN and stdin is not None else Path(name).read_bytes()
        label = "standard input" if name == STDIN else name
        try:
            values = load_documents(data, name, first=len(documents))
        except DecodeError as error:
            raise DecodeError(str(error), field=label) from None
        if not values:
            raise DecodeError("there is no document in it", field=label)
        for value in values:
            documents.append(
                read_document(
                    value, file=label, number=len(documents), requests_needed=requests_needed
                )
            )
    return documents


def read_document(
    value: Any, *, file: str = "", number: int = 0, requests_needed: bool = True
) -> CheckDocument:
    """The document that `value`, plain JSON, describes. DecodeError says where it does not."""
    at = Place(file).within(f"document {number}")
    fields = at.object(value, DOCUMENT_KEYS)
    default = at.choice(fields, "default", Action)
    if default is None:
        raise at.error("is missing; write `default: deny` or `default: allow`", "default")
    trust_domain = _trust_domain(at, fields)
    intentions = _intentions(at, fields)
    destination = _destination(at, fields, intentions)
    encoding = at.choice(fields, "encoding", Encoding) or Encoding.UTF_8
    if requests_needed and "requests" not in fields:
        raise at.error("is missing; write a list of requests", "requests")
    mesh = fields.get("mesh")
    policy = compile_policy(
        [row for row in intentions if Destination.of(row).covers(destination)],
        default_action=default,
        trust_domain=trust_domain,
        service=destination.name,
        normalization=DEFAULT_NORMALIZATION
        if mesh is None
        else at.decoded("mesh", decode.decode_normalization, _entry(at, "mesh", mesh, "mesh")),
        jwt_providers=[
            at.decoded(key, decode.decode_jwt_provider, _entry(at, key, entry, "jwt-provider"))
            for key, entry in at.items(fields, "jwt_providers")
        ],
        peers=[
            at.decoded(key, decode.decode_peer, entry) for key, entry in at.items(fields, "peers")
        ],
    )
    requests = tuple(
        read_request(
            entry,
            number=index,
            at=at.within(f"request {index}"),
            trust_domain=trust_domain,
            encoding=encoding,
        )
        for index, (_, entry) in enumerate(at.items(fields, "requests"))
    )
    return CheckDocument(
        file, number, destination, policy, requests, encoding, at.text(fields, "description")
    )


def read_request(
    value: Any,
    *,
    number: int,
    at: Place,
    trust_domain: TrustDomain,
    encoding: Encoding = Encoding.UTF_8,
) -> CheckRequest:
    """The request that `value`, plain JSON, describes. DecodeError says where it does not."""
    fields = at.object(value, REQUEST_KEYS)
    source = at.text(fields, "source", required=True)
    mode = at.choice(fields, "mode", Mode) or Mode.HTTP
    encoding = at.choice(fields, "encoding", Encoding) or encoding
    http_only = mode is Mode.HTTP
    method = at.text(fields, "method", required=http_only)
    _encode(at, "method", method, encoding)
    target = _encode(at, "path", at.text(fields, "path", required=http_only), encoding)
    headers = _headers(at, fields, encoding)
    return CheckRequest(
        number,
        source,
        identity_of(source, trust_domain),
        HTTPRequest(method, target, headers) if http_only else None,
        _claims(at, fields),
        at.choice(fields, "expect", Action),
        at.text(fields, "description"),
    )


def identity_of(source: str, trust_domain: TrustDomain) -> str:
    """The SPIFFE ID that `source` stands for: itself, or that of the service of this name.

    A text that can be neither is returned as it is; deciding it says that it is no identity.
    """
    if "spiffe://" in source:
        return source
    try:
        return str(ServiceIdentity(trust_domain, source))
    except (SpiffeIDError, UnicodeEncodeError):
        return source


def _trust_domain(at: Place, fields: Mapping[str, Any]) -> TrustDomain:
    try:
        return TrustDomain(at.text(fields, "trust_domain") or DEFAULT_TRUST_DOMAIN)
    except SpiffeIDError as error:
        raise at.error(str(error), "trust_domain") from None


def _intentions(at: Place, fields: Mapping[str, Any]) -> list[Intention]:
    if "intentions" not in fields:
        raise at.error("is missing; write a list of intentions, maybe empty", "intentions")
    intentions: list[Intention] = []
    for key, entry in at.items(fields, "intentions"):
        if at.mapping(entry, key).keys() & _ENTRY_KEYS:
            intentions += at.decoded(key, decode.decode_config_entry, entry)
        else:
            intentions.append(at.decoded(key, decode.decode_intention, entry))
    return intentions


def _entry(at: Place, key: str, value: Any, kind: str) -> Mapping[str, Any]:
    """`value`, a config entry that may leave its kind out but not be of another one."""
    fields = at.mapping(value, key)
    found = fields.get("Kind", fields.get("kind", kind))
    if found != kind:
        raise at.error(f"must be of kind {kind!r}, not {kind_of(found)}", key)
    return fields


def _destination(
    at: Place, fields: Mapping[str, Any], intentions: Iterable[Intention]
) -> Destination:
    named = {Destination.of(row) for row in intentions if row.destination_name != WILDCARD}
    text = at.text(fields, "destination")
    if not text:
        if len(named) == 1:
            return named.pop()
        found = ", ".join(sorted(map(str, named))) or "none"
        raise at.error(
            f"is missing, and the intentions name {found}; write which service is called",
            "destination",
        )
    *qualifiers, name = text.split("/")
    if len(qualifiers) > 2 or {"", WILDCARD} & {name, *qualifiers}:
        raise at.error(
            f"{text!r} is not a service; write name, namespace/name or partition/namespace/name",
            "destination",
        )
    if qualifiers:
        partition = qualifiers[0].lower() if len(qualifiers) > 1 else DEFAULT
        return Destination(name, qualifiers[-1], partition)
    same_name = {each for each in named if each.name == name}
    if len(same_name) > 1:
        found = ", ".join(sorted(map(str, same_name)))
        raise at.error(f"{text!r} could be any of {found}; write it in full", "destination")
    return same_name.pop() if same_name else Destination(name)


def _headers(
    at: Place, fields: Mapping[str, Any], encoding: Encoding
) -> tuple[tuple[bytes, bytes], ...]:
    value = fields.get("headers")
    if isinstance(value, dict):
        pairs = [
            (f"headers.{name}", name, each)
            for name, values in value.items()
            for each in (values if isinstance(values, list) else [values])
        ]
    else:
        pairs = []
        for key, entry in at.items(fields, "headers"):
            if not isinstance(entry, list) or len(entry) != 2:
                raise at.error("must be a [name, value] pair", key)
            pairs.append((key, entry[0], entry[1]))
    return tuple(
        (_encode(at, key, name, encoding), _encode(at, key, value, encoding))
        for key, name, value in pairs
    )


def _encode(at: Place, key: str, value: Any, encoding: Encoding) -> bytes:
    try:
        return at.string(value, key).encode(encoding.value)
    except UnicodeEncodeError as error:
        raise at.error(
            f"{error.object[error.start]!r} cannot be written in {encoding.value}", key
        ) from None


def _claims(at: Place, fields: Mapping[str, Any]) -> Mapping[str, Mapping[str, Any]]:
    value = fields.get("claims")
    if value is None:
        return {}
    return {
        provider: at.mapping(payload, f"claims.{provider}")
        for provider, payload in at.mapping(value, "claims").items()
    }
