"""Consul's JSON becomes values, or a DecodeError that names the field; nothing else."""

from __future__ import annotations

import json
from typing import Any

import pytest

from mesh_middleware.consul.decode import (
    decode_authorize,
    decode_config_entry,
    decode_intention,
    decode_jwt_provider,
    decode_leaf,
    decode_matches,
    decode_normalization,
    decode_peer,
    decode_roots,
)
from mesh_middleware.devagent.ca import CertificateAuthority
from mesh_middleware.errors import DecodeError
from mesh_middleware.policy.engine import JWTProvider, PeerBundle, compile_policy
from mesh_middleware.policy.intentions import (
    Action,
    ClaimMatch,
    HeaderMatch,
    HTTPMatch,
    Intention,
    JWTProviderRequirement,
    JWTRequirement,
    Permission,
)
from mesh_middleware.policy.request import EscapedSlashes, Normalization, Underscores
from mesh_middleware.policy.spiffe import TrustDomain

TRUST_DOMAIN = "11111111-2222-3333-4444-555555555555.consul"
ROW: dict[str, Any] = {"SourceName": "web", "DestinationName": "api"}

FULL: dict[str, Any] = {
    "ID": "",
    "Description": "words",
    "SourceNS": "n",
    "SourceName": "web",
    "SourcePartition": "p",
    "SourcePeer": "east",
    "SourceSamenessGroup": "g",
    "SourceType": "consul",
    "DestinationNS": "*",
    "DestinationName": "*",
    "DestinationPartition": "q",
    "Action": "allow",
    "Permissions": [
        {
            "Action": "allow",
            "HTTP": {
                "PathExact": "/e",
                "PathPrefix": "/p",
                "PathRegex": "/r",
                "Methods": ["GET", "PUT"],
                "Header": [
                    {
                        "Name": "x-a",
                        "Present": True,
                        "Exact": "1",
                        "Prefix": "2",
                        "Suffix": "3",
                        "Contains": "4",
                        "Regex": "5",
                        "Invert": True,
                        "IgnoreCase": True,
                    },
                    {"Name": "x-b", "Exact": "", "Present": False},
                ],
            },
            "JWT": {"Providers": [{"Name": "okta"}]},
        },
        {"Action": "deny"},
    ],
    "JWT": {
        "Providers": [
            {"Name": "okta", "VerifyClaims": [{"Path": ["a", "b"], "Value": "c"}, {"Path": None}]}
        ]
    },
    "DefaultAddr": "",
    "DefaultPort": 0,
    "Meta": {"a": "b"},
    "Precedence": 3,
    "CreatedAt": "2020-01-01T00:00:00Z",
    "UpdatedAt": "2020-01-01T00:00:00Z",
    "Hash": "aGFzaA==",
    "CreateIndex": 1,
    "ModifyIndex": 2,
}


def test_every_field_of_a_row_is_read() -> None:
    assert decode_intention(json.loads(json.dumps(FULL))) == Intention(
        source_name="web",
        destination_name="*",
        action=Action.ALLOW,
        permissions=(
            Permission(
                Action.ALLOW,
                HTTPMatch(
                    "/e",
                    "/p",
                    "/r",
                    ("GET", "PUT"),
                    (
                        HeaderMatch("x-a", True, "1", "2", "3", "4", "5", True, True),
                        HeaderMatch("x-b"),
                    ),
                ),
                JWTRequirement((JWTProviderRequirement("okta"),)),
            ),
            Permission(Action.DENY, None),
        ),
        jwt=JWTRequirement(
            (JWTProviderRequirement("okta", (ClaimMatch(("a", "b"), "c"), ClaimMatch((), ""))),)
        ),
        source_namespace="n",
        source_partition="p",
        source_peer="east",
        source_sameness_group="g",
        destination_namespace="*",
        destination_partition="q",
        precedence=3,
        description="words",
    )


def test_a_field_that_is_absent_null_or_empty_is_not_set() -> None:
    plain = decode_intention(ROW)
    assert plain == Intention("web", "api")
    nulls = dict.fromkeys(FULL.keys() - ROW.keys())
    assert decode_intention({**ROW, **nulls}) == plain
    empty = {key: type(value)() for key, value in FULL.items() if key not in {*ROW, "JWT"}}
    assert decode_intention({**ROW, **empty}) == plain


def test_a_condition_that_is_empty_is_not_set() -> None:
    """An empty prefix that counted as set would match every path."""
    header = dict.fromkeys("Name Exact Prefix Suffix Contains Regex".split(), "")
    http = dict.fromkeys("PathExact PathPrefix PathRegex".split(), "")
    row = {**ROW, "Permissions": [{"HTTP": {**http, "Methods": [], "Header": [header]}}]}
    found = decode_intention(row).permissions[0].http
    assert found == HTTPMatch(headers=(HeaderMatch(""),))


# name, what replaces or joins a row's fields, the names of what is not known
UNKNOWN: list[tuple[str, dict[str, Any], tuple[str, ...]]] = [
    ("scalars are bookkeeping", {"Novel": "x", "Other": 1, "More": True}, ()),
    ("empty structures say nothing", {"Novel": {}, "Other": [], "More": None}, ()),
    ("an object", {"Novel": {"a": 1}}, ("Novel",)),
    ("a list", {"Novel": [0]}, ("Novel",)),
    ("an object under a number", {5: [0]}, ("5",)),
    ("another source type", {"SourceType": "external"}, ("SourceType",)),
    ("an empty source type", {"SourceType": ""}, ()),
    ("known structures", {"Meta": {"a": "b"}}, ()),
]


@pytest.mark.parametrize(
    ("fields", "unknown"), [r[1:] for r in UNKNOWN], ids=[r[0] for r in UNKNOWN]
)
def test_structures_that_are_not_known_are_kept_by_name(
    fields: dict[Any, Any], unknown: tuple[str, ...]
) -> None:
    row = decode_intention({**ROW, **fields})
    assert row.unknown == unknown
    # They are conditions, so they must come through compiling too.
    assert bool(compile_policy([row], trust_domain=TRUST_DOMAIN).problems) is bool(unknown)


def permission(**fields: Any) -> Permission:
    return decode_intention({**ROW, "Permissions": [{"Action": "allow", **fields}]}).permissions[0]


def test_conditions_that_are_not_known_are_kept_by_name() -> None:
    assert permission(Novel={"a": 1}, Other=1).unknown == ("Novel",)
    http = permission(HTTP={"Novel": 1, "Other": "x", "Flag": True, "No": False, "Null": None}).http
    assert http is not None
    assert http.unknown == ("Novel", "Other", "Flag")
    http = permission(HTTP={"Header": [{"Name": "a", "Novel": [1], "Zero": 0}]}).http
    assert http is not None
    assert http.headers[0].unknown == ("Novel",)
    for jwt in (
        {"Providers": [{"Name": "okta"}], "Novel": 1},
        {"Providers": [{"Name": "okta", "Novel": 1}]},
    ):
        found = permission(JWT=jwt).jwt
        assert found is not None
        assert found.unknown == ("Novel",)


@pytest.mark.parametrize("action", ["deny", "Allow", "allow ", "audit", "", None])
def test_an_action_that_is_not_allow_is_deny(action: str | None) -> None:
    row = decode_intention({**ROW, "Action": action, "Permissions": [{"Action": action}]})
    assert (row.action, row.permissions[0].action) == (Action.DENY, Action.DENY)


def test_an_empty_requirement_is_a_requirement() -> None:
    assert decode_intention({**ROW, "JWT": {}}).jwt == JWTRequirement(())


HTTP_AT = "Permissions[0].HTTP"

# what replaces or joins a row's fields, the field that the error names
WRONG: list[tuple[dict[str, Any], str]] = [
    ({"SourceName": None}, "SourceName"),
    ({"SourceName": ""}, "SourceName"),
    ({"SourceName": 1}, "SourceName"),
    ({"DestinationName": ""}, "DestinationName"),
    ({"SourceNS": 1}, "SourceNS"),
    ({"SourcePartition": []}, "SourcePartition"),
    ({"SourcePeer": {}}, "SourcePeer"),
    ({"SourceSamenessGroup": True}, "SourceSamenessGroup"),
    ({"SourceType": 1}, "SourceType"),
    ({"DestinationNS": 1}, "DestinationNS"),
    ({"DestinationPartition": 1}, "DestinationPartition"),
    ({"Description": 1}, "Description"),
    ({"Action": 1}, "Action"),
    ({"Precedence": "9"}, "Precedence"),
    ({"Precedence": True}, "Precedence"),
    ({"Precedence": 9.0}, "Precedence"),
    ({"Precedence": 10}, "Precedence"),
    ({"Precedence": -1}, "Precedence"),
    ({"Permissions": {}}, "Permissions"),
    ({"Permissions": "x"}, "Permissions"),
    ({"Permissions": [None]}, "Permissions[0]"),
    ({"Permissions": [{}, 1]}, "Permissions[1]"),
    ({"Permissions": [{"Action": 1}]}, "Permissions[0].Action"),
    ({"Permissions": [{"HTTP": []}]}, HTTP_AT),
    ({"Permissions": [{"HTTP": {"PathExact": 1}}]}, f"{HTTP_AT}.PathExact"),
    ({"Permissions": [{"HTTP": {"PathPrefix": 1}}]}, f"{HTTP_AT}.PathPrefix"),
    ({"Permissions": [{"HTTP": {"PathRegex": 1}}]}, f"{HTTP_AT}.PathRegex"),
    ({"Permissions": [{"HTTP": {"Methods": "GET"}}]}, f"{HTTP_AT}.Methods"),
    ({"Permissions": [{"HTTP": {"Methods": ["GET", 1]}}]}, f"{HTTP_AT}.Methods[1]"),
    ({"Permissions": [{"HTTP": {"Header": {}}}]}, f"{HTTP_AT}.Header"),
    ({"Permissions": [{"HTTP": {"Header": ["x"]}}]}, f"{HTTP_AT}.Header[0]"),
    *(
        ({"Permissions": [{"HTTP": {"Header": [{key: 1}]}}]}, f"{HTTP_AT}.Header[0].{key}")
        for key in "Name Present Exact Prefix Suffix Contains Regex Invert IgnoreCase".split()
    ),
    ({"Permissions": [{"JWT": []}]}, "Permissions[0].JWT"),
    ({"JWT": False}, "JWT"),
    ({"JWT": {"Providers": {}}}, "JWT.Providers"),
    ({"JWT": {"Providers": ["okta"]}}, "JWT.Providers[0]"),
    ({"JWT": {"Providers": [{}]}}, "JWT.Providers[0].Name"),
    ({"JWT": {"Providers": [{"Name": "a", "VerifyClaims": {}}]}}, "JWT.Providers[0].VerifyClaims"),
    *(
        (
            {"JWT": {"Providers": [{"Name": "a", "VerifyClaims": [claim]}]}},
            f"JWT.Providers[0].VerifyClaims[0]{field}",
        )
        for claim, field in (
            ("x", ""),
            ({"Novel": 1}, ""),
            ({"Value": 1}, ".Value"),
            ({"Path": "a"}, ".Path"),
            ({"Path": ["a", 1]}, ".Path[1]"),
        )
    ),
]


@pytest.mark.parametrize(("fields", "field"), WRONG, ids=[row[1] for row in WRONG])
def test_a_value_of_the_wrong_type_names_its_field(fields: dict[str, Any], field: str) -> None:
    with pytest.raises(DecodeError) as raised:
        decode_intention({**ROW, **fields})
    assert raised.value.field == field
    with pytest.raises(DecodeError) as raised:
        decode_matches({"api": [ROW, {**ROW, **fields}]}, "api")
    assert raised.value.field == f"api[1].{field}"


@pytest.mark.parametrize("row", [None, [], "x", 1, 1.5, True, object()])
def test_a_row_that_is_no_object_is_refused(row: Any) -> None:
    with pytest.raises(DecodeError, match="expected an object"):
        decode_intention(row)


@pytest.mark.parametrize(
    ("value", "word"),
    [
        (None, "null"),
        ([], "a list"),
        ("x", "text"),
        (1, "a number"),
        (1.5, "a number"),
        (True, "true or false"),
        (b"x", "bytes"),
    ],
)
def test_errors_say_what_was_met(value: Any, word: str) -> None:
    with pytest.raises(DecodeError, match=f"got {word}"):
        decode_intention(value)


# -- match ------------------------------------------------------------------------------------


def test_rows_are_found_under_the_services_name() -> None:
    rows = decode_matches({"api": [ROW, {**ROW, "SourceName": "*"}], "other": 1}, "api")
    assert [row.source_name for row in rows] == ["web", "*"]
    assert decode_matches({"api": None}, "api") == []
    assert decode_matches({"api": []}, "api") == []


@pytest.mark.parametrize(
    ("document", "field"),
    [({}, "api"), ({"web": []}, "api"), ({"api": {}}, "api"), ({"api": [1]}, "api[0]"), ([], "")],
)
def test_an_answer_about_something_else_is_refused(document: Any, field: str) -> None:
    with pytest.raises(DecodeError) as raised:
        decode_matches(document, "api")
    assert raised.value.field == field


# -- config entries ---------------------------------------------------------------------------

ENTRY: dict[str, Any] = {
    "Kind": "service-intentions",
    "Name": "api",
    "Sources": [
        {
            "Name": "web",
            "Permissions": [
                {
                    "Action": "allow",
                    "HTTP": {
                        "PathPrefix": "/a",
                        "Methods": ["get"],
                        "Header": [{"Name": "x-a", "Present": True, "IgnoreCase": False}],
                    },
                    "JWT": {"Providers": [{"Name": "okta", "VerifyClaims": [{"Path": ["a"]}]}]},
                },
                {"Action": "deny", "HTTP": None},
            ],
            "Description": "words",
            "Precedence": 9,
            "Type": "consul",
            "LegacyMeta": {"a": "b"},
            "LegacyID": "x",
        },
        {"Name": "*", "Action": "deny"},
        {"Name": "pong", "Peer": "east", "Action": "allow"},
        {"Name": "a", "Namespace": "n", "Partition": "p", "SamenessGroup": "g"},
    ],
    "JWT": {"Providers": [{"Name": "auth0"}]},
    "Meta": {"path_exact": "x", "PathExact": "y"},
}

HCL: dict[str, Any] = {
    "kind": "service-intentions",
    "name": "api",
    "sources": [
        {
            "name": "web",
            "permissions": [
                {
                    "action": "allow",
                    "http": {
                        "path_prefix": "/a",
                        "methods": ["get"],
                        "header": [{"name": "x-a", "present": True, "ignore_case": False}],
                    },
                    "jwt": {"providers": [{"name": "okta", "verify_claims": [{"path": ["a"]}]}]},
                },
                {"action": "deny", "http": None},
            ],
            "description": "words",
            "precedence": 9,
            "type": "consul",
            "legacy_meta": {"a": "b"},
            "legacy_id": "x",
        },
        {"name": "*", "action": "deny"},
        {"name": "pong", "peer": "east", "action": "allow"},
        {"name": "a", "namespace": "n", "partition": "p", "sameness_group": "g"},
    ],
    "jwt": {"providers": [{"name": "auth0"}]},
    "meta": {"path_exact": "x", "PathExact": "y"},
}


def test_a_config_entry_is_a_row_for_each_source() -> None:
    auth0 = JWTRequirement((JWTProviderRequirement("auth0"),))
    okta = JWTRequirement((JWTProviderRequirement("okta", (ClaimMatch(("a",), ""),)),))
    rows = decode_config_entry(ENTRY)
    assert rows[0] == Intention(
        "web",
        "api",
        permissions=(
            Permission(
                Action.ALLOW,
                HTTPMatch(
                    path_prefix="/a",
                    methods=("GET",),
                    headers=(HeaderMatch("x-a", present=True),),
                ),
                okta,
            ),
            Permission(Action.DENY, None),
        ),
        jwt=auth0,
        precedence=9,
        description="words",
    )
    assert rows[1] == Intention("*", "api", Action.DENY, jwt=auth0, precedence=8)
    assert rows[2] == Intention("pong", "api", Action.ALLOW, jwt=auth0, source_peer="east")
    assert rows[3].source == "p/n/a (sameness group g)"
    assert len(rows) == 4


def test_a_config_entry_may_be_written_as_in_hcl() -> None:
    assert decode_config_entry(HCL) == decode_config_entry(ENTRY)


def test_the_destination_of_a_config_entry_is_its_own() -> None:
    entry = {**ENTRY, "Name": "*", "Namespace": "n", "Partition": "p", "Sources": [{"Name": "web"}]}
    assert decode_config_entry(entry)[0].destination == "p/n/*"
    assert decode_config_entry({**entry, "Sources": None}) == []


@pytest.mark.parametrize(
    ("source", "key"),
    [
        ({}, ("", "p", "n", "web")),
        ({"Namespace": "m"}, ("", "p", "m", "web")),
        ({"Namespace": "*"}, ("", "p", "*", "web")),
        ({"Partition": "q"}, ("", "q", "n", "web")),
        ({"Namespace": "", "Partition": None}, ("", "p", "n", "web")),
        ({"Peer": "east"}, ("east", "default", "default", "web")),
        ({"SamenessGroup": "g"}, ("", "default", "default", "web")),
    ],
)
def test_a_source_is_where_its_entry_is_unless_it_says_otherwise(
    source: dict[str, str], key: tuple[str, ...]
) -> None:
    source = {"Name": "web", "Action": "allow", **source}
    entry = {**ENTRY, "Namespace": "n", "Partition": "p", "Sources": [source]}
    assert decode_config_entry(entry)[0].source_key == key


@pytest.mark.parametrize(
    ("more", "twice"),
    [
        ({}, True),
        ({"Namespace": "n"}, True),
        ({"Partition": "P"}, True),
        ({"Namespace": "m"}, False),
        ({"Peer": "east"}, False),
        ({"SamenessGroup": "g"}, False),
    ],
)
def test_a_source_stands_in_its_entry_once(more: dict[str, str], twice: bool) -> None:
    """Which of two would count? Consul does not store them."""
    source = {"Name": "web", "Action": "allow"}
    entry = {**ENTRY, "Namespace": "n", "Partition": "p"}
    sources = {"Sources": [source, {**source, "Action": "deny", **more}]}
    if twice:
        with pytest.raises(DecodeError, match="once") as caught:
            decode_config_entry({**entry, **sources})
        assert caught.value.field == "Sources[1]"
    else:
        assert len(decode_config_entry({**entry, **sources})) == 2


@pytest.mark.parametrize("key", ["Action", "Permissions"])
def test_what_is_not_indented_below_a_source_is_a_mistake(key: str) -> None:
    """Taken for every source, it would allow what nobody wrote."""
    permissions = [{"Action": "allow", "HTTP": {"PathPrefix": "/"}}]
    entry = {**ENTRY, "Sources": [{"Name": "web"}], key: permissions}
    with pytest.raises(DecodeError, match="indent it") as caught:
        decode_config_entry(entry)
    assert caught.value.field == key


@pytest.mark.parametrize("key", ["Novel", "SourcePeer", "HTTP"])
def test_what_is_not_known_of_an_entry_makes_its_rows_refuse(key: str) -> None:
    entry = {**ENTRY, "Sources": [{"Name": "web", "Action": "allow"}], key: {"a": 1}}
    (row,) = decode_config_entry(entry)
    assert row.unknown == (f"Entry.{key}",)


def test_a_wildcard_namespace_is_not_inherited() -> None:
    entry = {**ENTRY, "Name": "*", "Namespace": "*", "Sources": [{"Name": "web"}]}
    assert decode_config_entry(entry)[0].source_key == ("", "default", "default", "web")


def test_the_precedence_of_an_entry_is_computed_whatever_it_says() -> None:
    sources = [
        {"Name": "*", "Action": "allow", "Precedence": 9},
        {"Name": "web", "Action": "deny", "Precedence": "8"},
    ]
    rows = decode_config_entry({**ENTRY, "Sources": sources})
    assert [row.precedence for row in rows] == [8, 9]


def test_a_requirement_where_consul_knows_none_is_unknown() -> None:
    """Config entries have JWT beside Sources, not in them: it must not be read over."""
    for jwt in ({"Providers": [{"Name": "okta"}]}, {}, None):
        entry = {**ENTRY, "Sources": [{"Name": "web", "Action": "allow", "JWT": jwt}]}
        assert decode_config_entry(entry)[0].unknown == ("Sources.JWT",)


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"Kind": "service-defaults"}, "Kind"),
        ({"Kind": None}, "Kind"),
        ({"Name": ""}, "Name"),
        ({"Sources": {}}, "Sources"),
        ({"Sources": [1]}, "Sources[0]"),
        ({"Sources": [{}]}, "Sources[0].SourceName"),
        ({"kind": "service-intentions"}, ""),
        ({5: 1, "kind": "service-intentions"}, ""),
    ],
)
def test_a_config_entry_that_is_not_one_names_the_field(change: dict[Any, Any], field: str) -> None:
    with pytest.raises(DecodeError) as raised:
        decode_config_entry({**ENTRY, **change})
    assert raised.value.field == field
    if field:
        with pytest.raises(DecodeError) as raised:
            decode_config_entry({**ENTRY, **change}, "file[2]")
        assert raised.value.field == f"file[2].{field}"


def test_a_document_may_be_as_deep_as_json_can_be() -> None:
    deep: Any = {}
    for _ in range(5000):
        deep = {"x": [deep]}
    assert decode_config_entry({**ENTRY, "Novel": deep})[0].unknown == ("Entry.Novel",)
    assert decode_normalization({"HTTP": {"Novel": deep}}) == Normalization()


# -- the default action -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("document", "answer"),
    [
        ({"Authorized": True, "Reason": "Default behavior configured by ACLs"}, Action.ALLOW),
        ({"Authorized": False, "Reason": "Default intention policy"}, Action.DENY),
        ({"Authorized": True}, Action.ALLOW),
        ({"Authorized": False, "Reason": None}, Action.DENY),
        ({"Authorized": True, "Reason": "Matched intention: ALLOW */* => default/api"}, None),
        ({"Authorized": False, "Reason": "Matched L7 intention"}, None),
    ],
)
def test_a_probe_that_an_intention_matched_is_no_answer(
    document: dict[str, Any], answer: Action | None
) -> None:
    assert decode_authorize(document) is answer


@pytest.mark.parametrize(
    ("document", "field"),
    [
        ([], ""),
        ({}, "Authorized"),
        ({"Authorized": "true"}, "Authorized"),
        ({"Authorized": 1}, "Authorized"),
        ({"Authorized": True, "Reason": 1}, "Reason"),
    ],
)
def test_a_probe_without_a_verdict_is_refused(document: Any, field: str) -> None:
    with pytest.raises(DecodeError) as raised:
        decode_authorize(document)
    assert raised.value.field == field


# -- the mesh entry, providers, peers ---------------------------------------------------------


def mesh(**fields: Any) -> dict[str, Any]:
    return {"Kind": "mesh", "HTTP": {"Incoming": {"RequestNormalization": fields}}}


NORMALIZATIONS: list[tuple[Any, Normalization]] = [
    (None, Normalization()),
    ({}, Normalization()),
    ({"Kind": "mesh", "HTTP": None}, Normalization()),
    ({"HTTP": {"SanitizeXForwardedClientCert": True}}, Normalization()),
    (mesh(), Normalization()),
    (mesh(InsecureDisablePathNormalization=True), Normalization(path=False)),
    (mesh(InsecureDisablePathNormalization=False), Normalization()),
    (mesh(MergeSlashes=True), Normalization(merge_slashes=True)),
    (mesh(PathWithEscapedSlashesAction=""), Normalization()),
    (mesh(PathWithEscapedSlashesAction="IMPLEMENTATION_SPECIFIC_DEFAULT"), Normalization()),
    *(
        (mesh(PathWithEscapedSlashesAction=value), Normalization(escaped_slashes=value))
        for value in EscapedSlashes
    ),
    *(
        (mesh(HeadersWithUnderscoresAction=value), Normalization(underscores=value))
        for value in Underscores
    ),
    (
        {"http": {"incoming": {"request_normalization": {"merge_slashes": True}}}},
        Normalization(merge_slashes=True),
    ),
]


@pytest.mark.parametrize(("entry", "expected"), NORMALIZATIONS)
def test_the_mesh_entry_says_how_requests_are_normalised(
    entry: Any, expected: Normalization
) -> None:
    assert decode_normalization(entry) == expected


AT = "HTTP.Incoming.RequestNormalization"


@pytest.mark.parametrize(
    ("entry", "field"),
    [
        ([], ""),
        ({"HTTP": [1]}, "HTTP"),
        ({"HTTP": {"Incoming": 1}}, "HTTP.Incoming"),
        ({"HTTP": {"Incoming": {"RequestNormalization": "x"}}}, AT),
        (mesh(MergeSlashes=1), f"{AT}.MergeSlashes"),
        (mesh(InsecureDisablePathNormalization="no"), f"{AT}.InsecureDisablePathNormalization"),
        (mesh(PathWithEscapedSlashesAction="MERGE"), f"{AT}.PathWithEscapedSlashesAction"),
        (mesh(HeadersWithUnderscoresAction=1), f"{AT}.HeadersWithUnderscoresAction"),
    ],
)
def test_a_mesh_entry_that_cannot_be_followed_is_refused(entry: Any, field: str) -> None:
    with pytest.raises(DecodeError) as raised:
        decode_normalization(entry)
    assert raised.value.field == field


def test_a_provider_has_a_name_and_perhaps_an_issuer() -> None:
    assert decode_jwt_provider({"Name": "okta", "Issuer": "i"}) == JWTProvider("okta", "i")
    assert decode_jwt_provider({"name": "okta"}) == JWTProvider("okta", "")
    for entry, field in (({}, "Name"), ({"Name": "a", "Issuer": 1}, "Issuer")):
        with pytest.raises(DecodeError) as raised:
            decode_jwt_provider(entry)
        assert raised.value.field == field
        with pytest.raises(DecodeError) as raised:
            decode_jwt_provider(entry, "providers[0]")
        assert raised.value.field == f"providers[0].{field}"


def test_a_peer_has_a_trust_domain_and_perhaps_a_partition() -> None:
    peer = {"PeerName": "east", "TrustDomain": "td.consul"}
    assert decode_peer(peer) == PeerBundle("east", TrustDomain("td.consul"), "default")
    exported = decode_peer({**peer, "ExportedPartition": "p"})
    assert exported.partition == "p"
    assert decode_peer({**peer, "ExportedPartition": ""}).partition == "default"
    for change, field in (
        ({"PeerName": ""}, "PeerName"),
        ({"TrustDomain": "NO"}, "TrustDomain"),
        ({"TrustDomain": None}, "TrustDomain"),
        ({"ExportedPartition": 1}, "ExportedPartition"),
    ):
        with pytest.raises(DecodeError) as raised:
            decode_peer({**peer, **change})
        assert raised.value.field == field
        with pytest.raises(DecodeError) as raised:
            decode_peer({**peer, **change}, "peers[0]")
        assert raised.value.field == f"peers[0].{field}"


# -- certificates -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def ca() -> CertificateAuthority:
    return CertificateAuthority(TRUST_DOMAIN)


def test_roots_are_all_trusted_active_or_not(ca: CertificateAuthority) -> None:
    other = CertificateAuthority(TRUST_DOMAIN)
    roots = [{**root, "Active": False} for root in [*ca.roots(), *other.roots()]]
    bundle = decode_roots({"TrustDomain": TRUST_DOMAIN, "Roots": roots})
    assert bundle.trust_domain == TrustDomain(TRUST_DOMAIN)
    assert len(bundle.roots) == 2


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"TrustDomain": ""}, "TrustDomain"),
        ({"TrustDomain": None}, "TrustDomain"),
        ({"Roots": None}, "Roots"),
        ({"Roots": []}, "Roots"),
        ({"Roots": {}}, "Roots"),
        ({"Roots": [1]}, "Roots[0]"),
        ({"Roots": [{}]}, "Roots[0].RootCert"),
        ({"Roots": [{"RootCert": "x"}]}, "roots[0]"),
        ({"Roots": [{"RootCert": "\ud800"}]}, "roots[0]"),
    ],
)
def test_roots_that_are_none_are_refused(
    ca: CertificateAuthority, change: dict[str, Any], field: str
) -> None:
    with pytest.raises(DecodeError) as raised:
        decode_roots({"TrustDomain": TRUST_DOMAIN, "Roots": ca.roots(), **change})
    assert raised.value.field == field


def test_a_leaf_is_read_and_its_key_must_fit(ca: CertificateAuthority) -> None:
    leaf, other = ca.issue("web"), ca.issue("web")
    document = {"CertPEM": leaf.cert_pem, "PrivateKeyPEM": leaf.key_pem}
    assert decode_leaf(document).identity.service == "web"
    for change, field in (
        ({"CertPEM": None}, "CertPEM"),
        ({"PrivateKeyPEM": None}, "PrivateKeyPEM"),
        ({"CertPEM": ""}, "certificate"),
        ({"PrivateKeyPEM": other.key_pem}, "private key"),
    ):
        with pytest.raises(DecodeError) as raised:
            decode_leaf({**document, **change})
        assert raised.value.field == field
    with pytest.raises(DecodeError):
        decode_leaf(None)


def test_what_is_not_known_of_an_entry_counts_against_all_of_its_rows() -> None:
    entry = {"Kind": "service-intentions", "Name": "api", "Novel": {"hours": [9, 17]}}
    (row,) = decode_config_entry({**entry, "Sources": [{"Name": "web", "Action": "allow"}]})
    assert row.unknown == ("Entry.Novel",)
    with pytest.raises(DecodeError, match="Sources: is missing"):
        decode_config_entry({**entry, "Source": [{"Name": "web", "Action": "allow"}]})
