"""Reads the documents of ``mesh-middleware check``, strictly.

A document is an object; ``docs/reference/check.md`` is its reference. Reading it has two parts:
`_documents` turns a file into plain values, this module turns those into a compiled `Policy` and
requests, or into a DecodeError whose `field` names file, document, request and key. Nothing is
decided before everything has been read, so bad input never gives half an answer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mesh_middleware._documents import load_documents
from mesh_middleware._fields import Place, kind_of
from mesh_middleware.checkfile.tokens import brings_keys, claims_of, provider_with_keys
from mesh_middleware.checkfile.values import (
    CheckDocument,
    CheckRequest,
    Common,
    Destination,
    Encoding,
    Mode,
)
from mesh_middleware.consul import decode
from mesh_middleware.errors import DecodeError, SpiffeIDError
from mesh_middleware.policy.engine import compile_policy
from mesh_middleware.policy.intentions import WILDCARD, Action, Intention
from mesh_middleware.policy.jwt import BadToken
from mesh_middleware.policy.request import DEFAULT_NORMALIZATION, HTTPRequest, Normalization
from mesh_middleware.policy.spiffe import DEFAULT, ServiceIdentity, TrustDomain
from mesh_middleware.tls.tokens import TokenVerifier

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
    "token",
    "encoding",
    "description",
)


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
                    value,
                    file=label,
                    number=len(documents),
                    requests_needed=requests_needed,
                    folder=Path() if name == STDIN else Path(name).parent,
                )
            )
    return documents


def read_document(
    value: Any,
    *,
    file: str = "",
    number: int = 0,
    requests_needed: bool = True,
    folder: Path = Path(),
) -> CheckDocument:
    """The document that `value`, plain JSON, describes. DecodeError says where it does not.

    `folder`: where a file that ``intentions`` names is looked for.
    """
    at = Place(file).within(f"document {number}")
    if isinstance(value, Mapping) and value.keys() & decode.ENTRY_KEYS:
        raise at.error(
            "is a file of intentions, not of requests; name it in a document, such as "
            "`{default: deny, intentions: intentions.yaml, requests: [...]}`"
        )
    fields = at.object(value, DOCUMENT_KEYS)
    default = at.choice(fields, "default", Action)
    if default is None:
        raise at.error("is missing; write `default: deny` or `default: allow`", "default")
    trust_domain = _trust_domain(at, fields)
    intentions = _intentions(at, fields, folder)
    destination = _destination(at, fields, intentions)
    if requests_needed and "requests" not in fields:
        raise at.error("is missing; write a list of requests", "requests")
    providers = [
        (key, _entry(at, key, entry, "jwt-provider"))
        for key, entry in at.items(fields, "jwt_providers")
    ]
    common = Common(
        trust_domain,
        tuple(at.decoded(key, decode.decode_jwt_provider, entry) for key, entry in providers),
        at.choice(fields, "encoding", Encoding) or Encoding.UTF_8,
        _verifier(at, fields, providers),
    )
    policy = compile_policy(
        [row for row in intentions if Destination.of(row).covers(destination)],
        default_action=default,
        trust_domain=trust_domain,
        service=destination.name,
        normalization=_normalization(at, fields),
        jwt_providers=common.providers,
        peers=[
            at.decoded(key, decode.decode_peer, entry) for key, entry in at.items(fields, "peers")
        ],
    )
    requests = tuple(
        read_request(entry, number=index, at=at.within(f"request {index}"), common=common)
        for index, (_, entry) in enumerate(at.items(fields, "requests"))
    )
    return CheckDocument(
        file, number, destination, policy, requests, common, at.text(fields, "description")
    )


def read_request(value: Any, *, number: int = 0, at: Place, common: Common) -> CheckRequest:
    """The request that `value`, plain JSON, describes. DecodeError says where it does not."""
    fields = at.object(value, REQUEST_KEYS)
    source = at.text(fields, "source", required=True)
    mode = at.choice(fields, "mode", Mode) or Mode.HTTP
    encoding = at.choice(fields, "encoding", Encoding) or common.encoding
    http_only = mode is Mode.HTTP
    method = at.text(fields, "method", required=http_only)
    _encode(at, "method", method, encoding)
    target = _encode(at, "path", at.text(fields, "path", required=http_only), encoding)
    headers = _headers(at, fields, encoding)
    return CheckRequest(
        number,
        source,
        identity_of(source, common.trust_domain),
        HTTPRequest(method, target, headers) if http_only else None,
        _claims(at, fields, common),
        at.choice(fields, "expect", Action),
        at.text(fields, "description"),
    )


def identity_of(source: str, trust_domain: TrustDomain) -> str:
    """The SPIFFE ID that `source` stands for: itself, or that of the service of this name.

    A text that can be neither is returned as it is; deciding it says that it is no identity.
    """
    try:
        # A SPIFFE ID is never a name: it has slashes.
        return str(ServiceIdentity(trust_domain, source))
    except (SpiffeIDError, UnicodeEncodeError):
        return source


def _trust_domain(at: Place, fields: Mapping[str, Any]) -> TrustDomain:
    try:
        return TrustDomain(at.text(fields, "trust_domain") or DEFAULT_TRUST_DOMAIN)
    except SpiffeIDError as error:
        raise at.error(str(error), "trust_domain") from None


def _intentions(at: Place, fields: Mapping[str, Any], folder: Path) -> list[Intention]:
    if "intentions" not in fields:
        raise at.error("is missing; write a list of intentions, maybe empty", "intentions")
    if isinstance(fields["intentions"], str):
        return _rules_in(at, folder / fields["intentions"])
    intentions: list[Intention] = []
    for key, entry in at.items(fields, "intentions"):
        intentions += at.decoded(key, decode.decode_rule, entry)
    return intentions


def _rules_in(at: Place, file: Path) -> list[Intention]:
    """The rows of a file of their own."""
    try:
        return decode.decode_rules(load_documents(file.read_bytes(), file.name))
    except OSError as error:
        raise at.error(f"cannot read {file}: {error.strerror}", "intentions") from None
    except DecodeError as error:
        raise at.error(f"{file}: {error}", "intentions") from None


def _normalization(at: Place, fields: Mapping[str, Any]) -> Normalization:
    mesh = fields.get("mesh")
    if mesh is None:
        return DEFAULT_NORMALIZATION
    return at.decoded("mesh", decode.decode_normalization, _entry(at, "mesh", mesh, "mesh"))


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
        # U+DC80 to U+DCFF is how Python writes a byte that is not UTF-8.
        return at.string(value, key).encode(encoding.value, "surrogateescape")
    except UnicodeEncodeError as error:
        raise at.error(
            f"{error.object[error.start]!r} cannot be written in {encoding.value}", key
        ) from None


def _verifier(
    at: Place, fields: Mapping[str, Any], providers: Iterable[tuple[str, Mapping[str, Any]]]
) -> TokenVerifier | None:
    entries = (entry for _, entry in at.items(fields, "requests"))
    if not any(isinstance(entry, dict) and "token" in entry for entry in entries):
        return None
    return TokenVerifier(
        at.decoded(key, provider_with_keys, entry) for key, entry in providers if brings_keys(entry)
    )


def _claims(
    at: Place, fields: Mapping[str, Any], common: Common
) -> Mapping[str, Mapping[str, Any] | BadToken]:
    if "token" in fields:
        if "claims" in fields:
            raise at.error("say either `claims` or `token`, not both", "token")
        token = at.text(fields, "token")
        return claims_of(token, common.providers, common.verifier or TokenVerifier(()))
    value = fields.get("claims")
    if value is None:
        return {}
    return {
        provider: at.mapping(payload, f"claims.{provider}")
        for provider, payload in at.mapping(value, "claims").items()
    }
