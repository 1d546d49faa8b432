"""Consul's JSON turned into values, totally: every input gives a value or a `DecodeError`.

Two kinds of surprise are told apart. A value of the wrong *type* (a list where an object belongs,
a number for a name) means that the document is not what it claims to be: DecodeError. A
*condition* that this package does not know (a matcher from a newer Consul, an object it has never
seen) is kept by name in the `unknown` fields of the value, and counts against the caller when it
is evaluated. Unknown scalars at intention and permission level are bookkeeping and ignored;
inside ``HTTP`` and ``Header`` everything is a condition. A field that is null, false, zero or
empty is not set, as Go's encoder means it.

This is where Consul's words become SPIFFE's: a leaf is an X509-SVID, roots are a trust bundle.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from mesh_middleware.consul.fields import (
    choice_at,
    flag_at,
    integer_at,
    kind_of,
    list_at,
    name_at,
    object_at,
    text_at,
    texts_at,
)
from mesh_middleware.errors import DecodeError, SpiffeIDError
from mesh_middleware.policy.engine import JWTProvider
from mesh_middleware.policy.intentions import (
    WILDCARD,
    Action,
    ClaimMatch,
    HeaderMatch,
    HTTPMatch,
    Intention,
    JWTProviderRequirement,
    JWTRequirement,
    Permission,
)
from mesh_middleware.policy.peering import PeerBundle
from mesh_middleware.policy.request import EscapedSlashes, Normalization, Underscores
from mesh_middleware.policy.spiffe import DEFAULT, TrustDomain
from mesh_middleware.tls.certificates import X509SVID, TrustBundle

_INTENTION = frozenset(
    """ID Description SourceNS SourceName DestinationNS DestinationName SourcePartition
    DestinationPartition SourcePeer SourceSamenessGroup SourceType Action Permissions JWT
    DefaultAddr DefaultPort Meta Precedence CreatedAt UpdatedAt Hash CreateIndex
    ModifyIndex""".split()
)
_ENTRY = frozenset({"Kind", "Name", "Namespace", "Partition", "Sources", "JWT", "Meta"})
_PERMISSION = frozenset({"Action", "HTTP", "JWT"})
_HTTP = frozenset({"PathExact", "PathPrefix", "PathRegex", "Header", "Methods"})
_HEADER = frozenset("""Name Present Exact Prefix Suffix Contains Regex Invert IgnoreCase""".split())


def decode_roots(document: Any) -> TrustBundle:
    """The trust bundle of ``GET /v1/agent/connect/ca/roots``: all listed roots, active or not."""
    fields = object_at(document, "")
    domain = _trust_domain(text_at(fields, "TrustDomain", ""), "TrustDomain")
    roots = list_at(fields, "Roots", "")
    if not roots:
        raise DecodeError("there is no root", field="Roots")
    pems = [
        text_at(object_at(root, f"Roots[{n}]"), "RootCert", f"Roots[{n}].")
        for n, root in enumerate(roots)
    ]
    return TrustBundle.from_pem(domain, pems)


def decode_leaf(document: Any) -> X509SVID:
    """The X509-SVID of ``GET /v1/agent/connect/ca/leaf/:service``."""
    fields = object_at(document, "")
    return X509SVID.from_pem(text_at(fields, "CertPEM", ""), text_at(fields, "PrivateKeyPEM", ""))


def decode_matches(document: Any, service: str) -> list[Intention]:
    """The rows for `service` in an answer of ``GET /v1/connect/intentions/match``.

    A null value means no intentions; a missing key means that the answer is about something else.
    """
    fields = object_at(document, "")
    if service not in fields:
        raise DecodeError("the answer has no rows for this service", field=service)
    rows = fields[service]
    if rows is None:
        return []
    if not isinstance(rows, list):
        raise DecodeError(f"expected a list, got {kind_of(rows)}", field=service)
    return [decode_intention(row, f"{service}[{n}]") for n, row in enumerate(rows)]


def decode_intention(row: Any, field: str = "") -> Intention:
    """One row of the match API. `field` names it in errors. A missing Precedence is computed."""
    fields = object_at(row, field)
    at = f"{field}." if field else ""
    unknown = _unknown_structures(fields, _INTENTION)
    if text_at(fields, "SourceType", at, default="consul") not in {"consul", ""}:
        unknown += ("SourceType",)
    precedence = integer_at(fields, "Precedence", at)
    if precedence and not 1 <= precedence <= 9:
        raise DecodeError(f"{precedence} is not within 1 to 9", field=f"{at}Precedence")
    return Intention(
        source_name=name_at(fields, "SourceName", at),
        destination_name=name_at(fields, "DestinationName", at),
        action=_action(fields, at),
        permissions=_permissions(fields, at),
        jwt=_requirement(fields, at),
        source_namespace=text_at(fields, "SourceNS", at, default=DEFAULT) or DEFAULT,
        source_partition=text_at(fields, "SourcePartition", at, default=DEFAULT) or DEFAULT,
        source_peer=text_at(fields, "SourcePeer", at, default=""),
        source_sameness_group=text_at(fields, "SourceSamenessGroup", at, default=""),
        destination_namespace=text_at(fields, "DestinationNS", at, default=DEFAULT) or DEFAULT,
        destination_partition=text_at(fields, "DestinationPartition", at, default=DEFAULT)
        or DEFAULT,
        precedence=precedence,
        description=text_at(fields, "Description", at, default=""),
        unknown=unknown,
    )


def decode_config_entry(document: Any, field: str = "") -> list[Intention]:
    """The rows that a ``service-intentions`` config entry stands for, one for each source.

    Keys are read as the API writes them (``PathExact``) and as HCL users do (``path_exact``). As
    when Consul stores an entry, a source without namespace or partition has the entry's, and a
    ``Precedence`` that somebody wrote does not count.
    """
    fields = _camel_keys(object_at(document, field))
    at = f"{field}." if field else ""
    kind = fields.get("Kind")
    if kind != "service-intentions":
        got = "is missing" if kind is None else f"is {kind!r}"
        raise DecodeError(f"{got}; write service-intentions", field=f"{at}Kind")
    if "Sources" not in fields:
        raise DecodeError("is missing; write a list of sources", field=f"{at}Sources")
    for key in ("Action", "Permissions"):
        if key in fields:
            raise DecodeError("belongs to a source: indent it below one", field=f"{at}{key}")
    # What is not known of the entry is not known of any of its rows, whatever rows call so.
    unknown = {f"Entry.{key}": fields[key] for key in _unknown_structures(fields, _ENTRY)}
    rows: list[Intention] = []
    for n, item in enumerate(list_at(fields, "Sources", at)):
        where = f"{at}Sources[{n}]"
        source = object_at(item, where)
        row = {
            **unknown,
            **{key: source[key] for key in source if key not in _NOT_TAKEN},
            **{wanted: source[key] for key, wanted in _SOURCE_KEYS.items() if key in source},
            **_inherited(fields, source),
            "DestinationName": name_at(fields, "Name", at),
            "DestinationNS": fields.get("Namespace"),
            "DestinationPartition": fields.get("Partition"),
            "JWT": fields.get("JWT"),
        }
        if "JWT" in source:
            row["Sources.JWT"] = source["JWT"] or [None]  # not a place that Consul knows
        decoded = _with_upper_methods(decode_intention(row, where))
        if any(_same_source(decoded, other) for other in rows):
            raise DecodeError(
                f"{decoded.source} is there already; Consul takes each source once", field=where
            )
        rows.append(decoded)
    return rows


def _same_source(one: Intention, other: Intention) -> bool:
    group = one.source_sameness_group == other.source_sameness_group
    return group and one.source_key == other.source_key


def _inherited(entry: Mapping[str, Any], source: Mapping[str, Any]) -> dict[str, Any]:
    """Namespace and partition of a source that says neither, nor that it is of elsewhere."""
    if source.get("Peer") or source.get("SamenessGroup"):
        return {}
    return {
        _SOURCE_KEYS[key]: entry.get(key)
        for key in ("Namespace", "Partition")
        if not source.get(key) and entry.get(key) != WILDCARD
    }


def decode_rule(item: Any, field: str = "") -> list[Intention]:
    """The rows of one thing that people write: a config entry, or a row of the match API."""
    if isinstance(item, Mapping) and not item.keys().isdisjoint(ENTRY_KEYS):
        return decode_config_entry(item, field)
    return [decode_intention(item, field)]


def decode_rules(documents: list[Any]) -> list[Intention]:
    """The rows of a file that people write, given its documents.

    A document is a rule, a list of rules, or ``{"intentions": ...}`` of either; null is none.
    """
    rows: list[Intention] = []
    for document in documents:
        wrapped = isinstance(document, Mapping) and "intentions" in document
        rules = document["intentions"] if wrapped else document
        for item in rules if isinstance(rules, list) else [] if rules is None else [rules]:
            rows += decode_rule(item)
    return rows


ENTRY_KEYS = frozenset({"Kind", "kind", "Sources", "sources"})
"""What a config entry has and a row of the match API has not."""

_SOURCE_KEYS = {
    "Name": "SourceName",
    "Namespace": "SourceNS",
    "Partition": "SourcePartition",
    "Peer": "SourcePeer",
    "SamenessGroup": "SourceSamenessGroup",
    "Type": "SourceType",
    "LegacyMeta": "Meta",
}
_NORMALIZATION = frozenset(
    """InsecureDisablePathNormalization MergeSlashes PathWithEscapedSlashesAction
    HeadersWithUnderscoresAction""".split()
)

_NOT_TAKEN = _SOURCE_KEYS.keys() | {"Precedence"}


def decode_authorize(document: Any) -> Action | None:
    """What an answer of ``POST /v1/agent/connect/authorize`` says of the default action.

    None when an intention matched the probe: then it says nothing about the default.
    """
    fields = object_at(document, "")
    allowed = fields.get("Authorized")
    if not isinstance(allowed, bool):
        raise DecodeError(f"expected true or false, got {kind_of(allowed)}", field="Authorized")
    if text_at(fields, "Reason", "", default="").startswith("Matched"):
        return None
    return Action.ALLOW if allowed else Action.DENY


def decode_normalization(entry: Any) -> Normalization:
    """The request normalisation of a ``mesh`` config entry; None (no entry) gives the defaults."""
    fields: Mapping[str, Any] = {} if entry is None else _camel_keys(object_at(entry, ""))
    where = ""
    for key in ("HTTP", "Incoming", "RequestNormalization"):
        fields, where = object_at(fields.get(key) or {}, f"{where}{key}"), f"{where}{key}."
    for key in fields.keys() - _NORMALIZATION:
        # Each of them says how requests are refused or read; none can be passed over.
        raise DecodeError("is not known", field=f"{where}{key}")
    return Normalization(
        path=not flag_at(fields, "InsecureDisablePathNormalization", where),
        merge_slashes=flag_at(fields, "MergeSlashes", where),
        escaped_slashes=choice_at(
            fields, "PathWithEscapedSlashesAction", where, EscapedSlashes.KEEP_UNCHANGED
        ),
        underscores=choice_at(fields, "HeadersWithUnderscoresAction", where, Underscores.ALLOW),
    )


def decode_jwt_provider(entry: Any, field: str = "") -> JWTProvider:
    """What deciding needs of a ``jwt-provider`` config entry."""
    fields = _camel_keys(object_at(entry, field))
    at = f"{field}." if field else ""
    return JWTProvider(name_at(fields, "Name", at), text_at(fields, "Issuer", at, default=""))


def decode_peer(document: Any, field: str = "") -> PeerBundle:
    """A peer: ``PeerName``, ``TrustDomain`` and ``ExportedPartition`` (absent: ``default``)."""
    fields = object_at(document, field)
    at = f"{field}." if field else ""
    return PeerBundle(
        name_at(fields, "PeerName", at),
        _trust_domain(text_at(fields, "TrustDomain", at), f"{at}TrustDomain"),
        text_at(fields, "ExportedPartition", at, default=DEFAULT) or DEFAULT,
    )


# -- parts of a row ---------------------------------------------------------------------------


def _action(fields: Mapping[str, Any], at: str) -> Action:
    return Action.ALLOW if text_at(fields, "Action", at, default="") == "allow" else Action.DENY


def _permissions(fields: Mapping[str, Any], at: str) -> tuple[Permission, ...]:
    return tuple(
        _permission(item, f"{at}Permissions[{n}]")
        for n, item in enumerate(list_at(fields, "Permissions", at))
    )


def _permission(item: Any, field: str) -> Permission:
    fields = object_at(item, field)
    http = fields.get("HTTP")
    return Permission(
        action=_action(fields, f"{field}."),
        http=None if http is None else _http(object_at(http, f"{field}.HTTP"), f"{field}.HTTP."),
        jwt=_requirement(fields, f"{field}."),
        unknown=_unknown_structures(fields, _PERMISSION),
    )


def _http(fields: Mapping[str, Any], at: str) -> HTTPMatch:
    return HTTPMatch(
        path_exact=text_at(fields, "PathExact", at, default="") or None,
        path_prefix=text_at(fields, "PathPrefix", at, default="") or None,
        path_regex=text_at(fields, "PathRegex", at, default="") or None,
        methods=texts_at(fields, "Methods", at),
        headers=tuple(
            _header(object_at(item, f"{at}Header[{n}]"), f"{at}Header[{n}].")
            for n, item in enumerate(list_at(fields, "Header", at))
        ),
        unknown=_unknown_conditions(fields, _HTTP),
    )


def _header(fields: Mapping[str, Any], at: str) -> HeaderMatch:
    return HeaderMatch(
        name=text_at(fields, "Name", at, default=""),
        present=flag_at(fields, "Present", at),
        exact=text_at(fields, "Exact", at, default="") or None,
        prefix=text_at(fields, "Prefix", at, default="") or None,
        suffix=text_at(fields, "Suffix", at, default="") or None,
        contains=text_at(fields, "Contains", at, default="") or None,
        regex=text_at(fields, "Regex", at, default="") or None,
        invert=flag_at(fields, "Invert", at),
        ignore_case=flag_at(fields, "IgnoreCase", at),
        unknown=_unknown_conditions(fields, _HEADER),
    )


def _requirement(fields: Mapping[str, Any], at: str) -> JWTRequirement | None:
    if fields.get("JWT") is None:
        return None
    block = object_at(fields["JWT"], f"{at}JWT")
    unknown = list(_unknown_conditions(block, frozenset({"Providers"})))
    providers = []
    for n, item in enumerate(list_at(block, "Providers", f"{at}JWT.")):
        where = f"{at}JWT.Providers[{n}]"
        entry = object_at(item, where)
        unknown += _unknown_conditions(entry, frozenset({"Name", "VerifyClaims"}))
        claims = tuple(
            _claim(claim, f"{where}.VerifyClaims[{c}]")
            for c, claim in enumerate(list_at(entry, "VerifyClaims", f"{where}."))
        )
        providers.append(JWTProviderRequirement(name_at(entry, "Name", f"{where}."), claims))
    return JWTRequirement(tuple(providers), tuple(unknown))


def _claim(item: Any, field: str) -> ClaimMatch:
    fields = object_at(item, field)
    unknown = _unknown_conditions(fields, frozenset({"Path", "Value"}))
    if unknown:
        raise DecodeError(f"{', '.join(unknown)} not known", field=field)
    value = text_at(fields, "Value", f"{field}.", default="")
    return ClaimMatch(texts_at(fields, "Path", f"{field}."), value)


def _with_upper_methods(row: Intention) -> Intention:
    """Consul upper-cases methods when it stores an entry."""
    permissions = tuple(
        permission
        if permission.http is None
        else replace(
            permission,
            http=replace(
                permission.http, methods=tuple(m.upper() for m in permission.http.methods)
            ),
        )
        for permission in row.permissions
    )
    return replace(row, permissions=permissions)


# -- what is not known, and other spellings ---------------------------------------------------


def _trust_domain(text: str, field: str) -> TrustDomain:
    try:
        return TrustDomain(text)
    except SpiffeIDError as error:
        raise DecodeError(str(error), field=field) from error


def _unknown_structures(fields: Mapping[str, Any], known: frozenset[str]) -> tuple[str, ...]:
    return tuple(
        str(key)
        for key, value in fields.items()
        if key not in known and isinstance(value, Mapping | list) and value
    )


def _unknown_conditions(fields: Mapping[str, Any], known: frozenset[str]) -> tuple[str, ...]:
    return tuple(str(key) for key, value in fields.items() if key not in known and value)


_HCL_KEYS = {
    re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).lower(): name
    for name in """Kind Name Namespace Partition Sources Meta Peer SamenessGroup Action Permissions
    Precedence Type Description JWT HTTP PathExact PathPrefix PathRegex Header Methods Present Exact
    Prefix Suffix Contains Regex Invert IgnoreCase Providers VerifyClaims Path Value LegacyID
    LegacyMeta LegacyCreateTime LegacyUpdateTime Issuer Incoming RequestNormalization
    InsecureDisablePathNormalization MergeSlashes PathWithEscapedSlashesAction
    HeadersWithUnderscoresAction""".split()
}


_DEEPEST_KEY = 12
"""Known keys lie at most ten levels deep; below that nothing is looked at."""


def _camel_keys(value: Any, depth: int = 0) -> Any:
    """`value` with the config entry keys that HCL users write turned into the API's."""
    if depth > _DEEPEST_KEY:
        return value
    if isinstance(value, list):
        return [_camel_keys(item, depth + 1) for item in value]
    if not isinstance(value, Mapping):
        return value
    renamed = {key: _HCL_KEYS.get(key, key) for key in value}
    if len(set(renamed.values())) != len(renamed):
        raise DecodeError(
            f"a key is given twice, in two spellings, among {', '.join(map(str, value))}"
        )
    return {
        renamed[key]: item if renamed[key] == "Meta" else _camel_keys(item, depth + 1)
        for key, item in value.items()
    }
