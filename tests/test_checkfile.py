"""Documents of `check`: every key, every way to be wrong, and what is left to the policy."""

from __future__ import annotations

import json
from base64 import b64encode
from pathlib import Path
from typing import Any

import pytest

from mesh_middleware import checkfile
from mesh_middleware._documents import load_documents
from mesh_middleware.checkfile import DEFAULT_TRUST_DOMAIN, decide, read_document, read_files
from mesh_middleware.errors import DecodeError
from mesh_middleware.policy.intentions import Action
from tests.tls.tokens import ISSUER, jwk, jwks, token

WEB_TO_API = {"SourceName": "web", "DestinationName": "api", "Action": "allow"}
GET = {"source": "web", "method": "GET", "path": "/"}


def document(**changes: Any) -> dict[str, Any]:
    """A small good document with `changes`; a change to `...` leaves the key out."""
    base: dict[str, Any] = {"default": "deny", "intentions": [WEB_TO_API], "requests": [GET]}
    return {key: value for key, value in (base | changes).items() if value is not ...}


def request(**changes: Any) -> dict[str, Any]:
    return document(
        requests=[{key: value for key, value in (GET | changes).items() if value is not ...}]
    )


def decisions(value: dict[str, Any]) -> list[tuple[bool, str]]:
    read = read_document(value)
    results = [decide(read, each) for each in read.requests]
    return [(each.decision.allowed, each.decision.reason.value) for each in results]


def l7(*permissions: dict[str, Any], **row: Any) -> dict[str, Any]:
    return {
        "SourceName": "web",
        "DestinationName": "api",
        "Permissions": list(permissions),
        **row,
    }


# --- files into values ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("", []),
        ("# nothing but a comment\n", []),
        ("a: 1\n---\nb: 2\n", [{"a": 1}, {"b": 2}]),
        ('{"a": 1}', [{"a": 1}]),
        ('{"a": 1}\n\n{"b": 2}\n', [{"a": 1}, {"b": 2}]),
        ('{\n "a": 1\n}\n{\n "b": 2\n}', [{"a": 1}, {"b": 2}]),
        ("{a: b}", [{"a": "b"}]),
        ('{"a": 1}\n---\n{"b": 2}\n', [{"a": 1}, {"b": 2}]),
        ('\ufeff{"a": 1}\n{"b": 2}', [{"a": 1}, {"b": 2}]),
        ("a: &x [1]\nb: *x", [{"a": [1], "b": [1]}]),
    ],
)
def test_yaml_json_and_json_lines_are_told_apart(text: str, values: list[Any]) -> None:
    assert load_documents(text.encode()) == values


@pytest.mark.parametrize(
    "scalar",
    ["on", "off", "yes", "no", "y", "N", "1_000", "0x10", "0o7", "007", "2024-01-01", "12:30:45",
     "=", "<<", ".5", "1.", "+1", ".inf", ".nan", "1e", "tRue", "nil", "\u0663", "1\u0663"],
)  # fmt: skip
def test_a_yaml_scalar_that_is_not_json_stays_text(scalar: str) -> None:
    assert load_documents(f"key: {scalar}\n{scalar}: 1\n".encode()) == [{"key": scalar, scalar: 1}]


@pytest.mark.parametrize(
    ("scalar", "value"),
    [("null", None), ("~", None), ("", None), ("true", True), ("False", False), ("12", 12),
     ("-3", -3), ("1.5e3", 1500.0), ("'12'", "12"), ('"null"', "null"), ("!!str 12", "12")],
)  # fmt: skip
def test_a_yaml_scalar_of_json_is_what_json_says(scalar: str, value: Any) -> None:
    [found] = load_documents(f"key: {scalar}\n".encode())
    assert found == {"key": value}
    assert type(found["key"]) is type(value)


@pytest.mark.parametrize(
    ("data", "name", "says"),
    [
        (b'{"a": 1, "a": 2}', "x.json", "document 7: line 1, column 1: .*'a' occurs twice"),
        (b'{"a": 1, "a": 2}', "-", "'a' occurs twice"),
        (b"a: 1\na: 2\n", "x.yaml", "line 2, column 1: .*'a' occurs twice"),
        (b"a: {b: 1, b: 2}\n", "-", "'b' occurs twice"),
        (b'{"a": 1}\n{"b": 2', "-", "document 8: line 2, column 8: not JSON"),
        (b'{"a": 1} {"b": 2}', "x.jsonl", "document 8: line 1, .*start on a new line"),
        (b"a: b\n", "x.json", "not JSON"),
        (b'{"a": NaN}', "x.json", "NaN is not a JSON number"),
        (b'{"a": ' + b"9" * 5000 + b"}", "x.json", "not JSON"),
        (b"a: " + b"9" * 5000, "x.yaml", "not YAML"),
        (b"a: [1\n", "x.yaml", "document 7: line 2, column 1: not YAML"),
        (b"a: 1\n---\nb: [\n", "x.yaml", "document 8: "),
        (b"{a: [}", "x.yml", "not YAML"),
        (b"{a: [}", "-", "not JSON"),
        (b"a: \x00", "-", "not YAML"),
        (b"1: a\n", "-", "a key must be text"),
        (b"? [a]\n: b\n", "-", "a key must be text"),
        (b"a: !!python/object/apply:os.getcwd []", "-", "not YAML"),
        (b"a: !!binary aGk=", "-", "not YAML"),
        (b"a: !!timestamp 2024-01-01", "-", "not YAML"),
        (b"a: !!float x", "-", "not YAML"),
        (b"a: *nobody", "-", "not YAML"),
        (b"[" * 100_000, "x.json", "nested too deeply"),
        # some releases of libyaml have a limit of their own
        (b"[" * 100_000, "x.yaml", "nested too deeply|maximum nesting depth"),
        (b"a:\n" + b"".join(b" " * n + b"- \n" for n in range(1, 120)), "-", "nested too deeply"),
    ],
)  # fmt: skip
def test_what_is_no_document_is_said_with_its_place(data: bytes, name: str, says: str) -> None:
    with pytest.raises(DecodeError, match=says):
        load_documents(data, name, first=7)


def test_a_file_that_is_not_utf_8_is_refused() -> None:
    with pytest.raises(DecodeError, match="not UTF-8 at byte 3"):
        load_documents(b"a: \xff")


# --- documents ------------------------------------------------------------------------------


def test_a_small_document_is_decided() -> None:
    assert decisions(document()) == [(True, "intention_allow")]


@pytest.mark.parametrize(
    ("value", "says"),
    [
        ([], "document 0: must be an object, not a list"),
        (None, "document 0: must be an object, not null"),
        (document(default=...), "default: is missing; write `default: deny`"),
        (document(default="Allow"), "default: must be allow or deny, not 'Allow'"),
        (document(default=True), "default: must be allow or deny, not true"),
        (document(defualt="deny"), "unknown key 'defualt'; did you mean 'default'"),
        (document(Intentions=[]), "unknown key 'Intentions'; did you mean 'intentions'"),
        (document(zzz=1), "unknown key 'zzz'; known: default, "),
        (document(intentions=...), "intentions: is missing"),
        (document(intentions={}), "intentions: must be a list, not an object"),
        (document(intentions=["web"]), r"intentions\[0\]: must be an object, not 'web'"),
        (document(requests=...), "requests: is missing"),
        (document(requests="x"), "requests: must be a list, not 'x'"),
        (document(requests=[1]), "request 0: must be an object, not a number"),
        (document(trust_domain="UPPER.consul"), "trust_domain: .*UPPER"),
        (document(trust_domain=5), "trust_domain: must be text, not a number; put it in quotes"),
        (document(destination=5), "destination: must be text"),
        (document(destination="*"), r"destination: '\*' is not a service"),
        (document(destination="a/*"), "is not a service"),
        (document(destination="a//b"), "is not a service"),
        (document(destination="a/b/c/d"), "is not a service"),
        (document(encoding="utf8"), "encoding: must be utf-8 or latin-1"),
        (document(description=1), "description: must be text"),
        (document(mesh=[]), "mesh: must be an object, not a list"),
        (document(mesh={"Kind": "proxy-defaults"}), "mesh: must be of kind 'mesh', not 'proxy-d"),
        (document(mesh={"HTTP": ["x"]}), "mesh: HTTP"),
        (document(jwt_providers=[{"Kind": "mesh"}]), "must be of kind 'jwt-provider', not 'mesh'"),
        (document(jwt_providers=[{}]), r"jwt_providers\[0\]: Name"),
        (document(jwt_providers={}), "jwt_providers: must be a list"),
        (document(peers=["x"]), r"peers\[0\]: must be an object"),
        (request(source=...), "request 0: source: is missing"),
        (request(source=None), "source: must be text, not null"),
        (request(method=...), "method: is missing"),
        (request(method=True), "method: must be text, not true; put it in quotes"),
        (request(path=...), "path: is missing"),
        (request(path=7), "path: must be text, not a number"),
        (request(path="/\ud800"), "path: .*cannot be written in utf-8"),
        (request(path="/\u20ac", encoding="latin-1"), "path: .*cannot be written in latin-1"),
        (request(method="\ud800"), "method: .*cannot be written"),
        (request(mode="grpc"), "mode: must be http or tcp, not 'grpc'"),
        (request(expect="refuse"), "expect: must be allow or deny, not 'refuse'"),
        (request(expect=None), "expect: must be allow or deny, not null"),
        (request(expects="deny"), "unknown key 'expects'; did you mean 'expect'"),
        (request(headers="x"), "headers: must be a list"),
        (request(headers=["x"]), r"headers\[0\]: must be a \[name, value\] pair"),
        (request(headers=[["x"]]), r"headers\[0\]: must be a \[name, value\] pair"),
        (request(headers=[["a", "b"], ["x", 1]]), r"headers\[1\]: must be text, not a number"),
        (request(headers={"x": 1}), "headers.x: must be text, not a number; put it in quotes"),
        (request(headers={"x": [True]}), "headers.x: must be text, not true"),
        (request(token=1), "token: must be text"),
        (request(token="a.b.c", claims={}), "token: say either `claims` or `token`"),
        (request(claims=[]), "claims: must be an object"),
        (request(claims={"okta": "token"}), "claims.okta: must be an object, not 'token'"),
    ],
)  # fmt: skip
def test_bad_input_names_the_place_and_the_cause(value: Any, says: str) -> None:
    with pytest.raises(DecodeError, match=says):
        read_document(value)


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ({**WEB_TO_API, "SourceName": 5}, r"document 0: intentions\[1\].*SourceName"),
        ({**WEB_TO_API, "Precedence": 12}, r"intentions\[1\].*Precedence"),
        ({**WEB_TO_API, "Permissions": {}}, r"intentions\[1\].*Permissions"),
        ({"Action": "allow"}, r"intentions\[1\]"),
        ({"Kind": "service-defaults", "Name": "api"}, r"intentions\[1\].*Kind"),
        ({"Name": "api", "Sources": []}, r"intentions\[1\].*Kind"),
        (
            {"Kind": "service-intentions", "Name": "api", "Sources": [{"Name": 1}]},
            r"intentions\[1\].*Sources\[0\]",
        ),
        ({**WEB_TO_API, "DestinationName": "other", "SourceNS": []}, r"intentions\[1\].*SourceNS"),
    ],
)
def test_a_malformed_row_is_bad_input_wherever_it_points(row: Any, says: str) -> None:
    with pytest.raises(DecodeError, match=says):
        read_document(document(intentions=[WEB_TO_API, row]))


def test_places_name_file_document_and_request() -> None:
    with pytest.raises(DecodeError) as caught:
        read_document(request(mode=1), file="a.yaml", number=4)
    assert str(caught.value).startswith("a.yaml: document 4: request 0: mode: must be http or tcp")


def test_a_row_that_cannot_be_evaluated_is_decided() -> None:
    new = {"Action": "allow", "HTTP": {"PathExact": "/", "Cookie": "x"}}
    bad = {"Action": "deny", "HTTP": {"PathRegex": "("}}
    assert decisions(document(intentions=[l7(new)])) == [(False, "default_deny")]
    assert decisions(document(intentions=[l7(bad)], default="allow")) == [(False, "unevaluable")]


def test_no_requests_are_needed_where_the_caller_brings_one() -> None:
    assert read_document(document(requests=...), requests_needed=False).requests == ()


# --- destinations ---------------------------------------------------------------------------


def to(name: str, action: str = "allow", **more: Any) -> dict[str, Any]:
    return {"SourceName": "web", "DestinationName": name, "Action": action, **more}


def test_rows_of_other_destinations_are_ignored() -> None:
    rows = [to("other", "deny"), to("api"), to("third", "deny")]
    assert decisions(document(intentions=rows, destination="api")) == [(True, "intention_allow")]
    assert decisions(document(intentions=[to("other")], destination="api")) == [
        (False, "default_deny")
    ]


def test_wildcard_destinations_apply_and_name_nobody() -> None:
    assert decisions(document(intentions=[to("*")], destination="api")) == [
        (True, "intention_allow")
    ]
    assert str(read_document(document(intentions=[to("*"), to("api")])).destination) == "api"


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        ([], "the intentions name none"),
        ([to("*")], "the intentions name none"),
        ([to("api"), to("web")], "the intentions name api, web"),
        ([to("api"), to("api", DestinationNS="team")], "the intentions name api, team/api"),
    ],
)
def test_a_missing_destination_must_be_the_only_one_named(rows: list[Any], says: str) -> None:
    with pytest.raises(DecodeError, match=f"destination: is missing, and {says}"):
        read_document(document(intentions=rows))


def test_a_destination_is_found_in_its_namespace_and_partition() -> None:
    rows = [
        to("api", "deny"),
        to("api", DestinationNS="team"),
        to("api", DestinationNS="team", DestinationPartition="East", SourceName="*"),
    ]
    reasons = {}
    for name in ("default/api", "team/api", "east/team/api", "EAST/team/api", "west/team/api"):
        [(_, reasons[name])] = decisions(document(intentions=rows, destination=name))
    assert reasons == {
        "default/api": "intention_deny",
        "team/api": "intention_allow",
        "east/team/api": "intention_allow",
        "EAST/team/api": "intention_allow",
        "west/team/api": "default_deny",
    }
    with pytest.raises(DecodeError, match="'api' could be any of api, "):
        read_document(document(intentions=rows, destination="api"))
    only = read_document(document(intentions=rows[1:2], destination="api"))
    assert str(only.destination) == "team/api"


def test_a_wildcard_namespace_covers_every_namespace() -> None:
    row = to("*", DestinationNS="*")
    assert decisions(document(intentions=[row], destination="team/api")) == [
        (True, "intention_allow")
    ]


def test_a_missing_precedence_is_computed() -> None:
    star = {"SourceName": "*", "DestinationName": "api", "Action": "deny"}
    read = read_document(document(intentions=[star, WEB_TO_API]))
    assert [row.precedence for row in read.policy.intentions] == [9, 8]
    assert decide(read, read.requests[0]).decision.allowed


def test_config_entries_stand_for_their_rows() -> None:
    entry = {
        "kind": "service-intentions",
        "name": "api",
        "sources": [
            {"name": "web", "permissions": [{"action": "allow", "http": {"path_exact": "/"}}]},
            {"name": "*", "action": "deny"},
        ],
    }
    assert decisions(document(intentions=[entry])) == [(True, "permission_allow")]


# --- requests -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "decided"),
    [
        ("web", (True, "intention_allow")),
        ("cron", (False, "default_deny")),
        (f"spiffe://{DEFAULT_TRUST_DOMAIN}/ns/default/dc/dc7/svc/web", (True, "intention_allow")),
        ("spiffe://other.consul/ns/default/dc/dc1/svc/web", (False, "foreign_trust_domain")),
        (f"spiffe://{DEFAULT_TRUST_DOMAIN}/agent/server/dc/dc1", (False, "not_a_service")),
        (f"spiffe://{DEFAULT_TRUST_DOMAIN}/ns/default/dc/dc1/svc/w%65b",
         (False, "invalid_identity")),
        ("spiffe://", (False, "invalid_identity")),
        (f" spiffe://{DEFAULT_TRUST_DOMAIN}/ns/default/dc/dc1/svc/web",
         (False, "invalid_identity")),
        ("https://example.com/web", (False, "invalid_identity")),
        ("team/web", (False, "invalid_identity")),
        ("", (False, "invalid_identity")),
        ("\ud800", (False, "invalid_identity")),
    ],
)  # fmt: skip
def test_a_source_is_a_service_name_or_a_spiffe_id(source: str, decided: tuple[bool, str]) -> None:
    assert decisions(request(source=source)) == [decided]


def test_a_service_name_is_escaped_as_consul_would() -> None:
    rows = [{**WEB_TO_API, "SourceName": "a b"}]
    assert decisions(request(source="a b") | {"intentions": rows}) == [(True, "intention_allow")]


def test_bare_names_are_of_the_documents_trust_domain() -> None:
    mine = request(source="web") | {"trust_domain": "t.consul"}
    assert decisions(mine) == [(True, "intention_allow")]
    constant = request(source=f"spiffe://{DEFAULT_TRUST_DOMAIN}/ns/default/dc/dc1/svc/web")
    assert decisions(constant | {"trust_domain": "t.consul"}) == [(False, "foreign_trust_domain")]


def test_headers_are_pairs_or_an_object() -> None:
    row = l7({"Action": "allow", "HTTP": {"Header": [{"Name": "X-Role", "Exact": "yes"}]}})
    for headers in ([["x-role", "yes"]], {"x-role": "yes"}, {"x-role": ["no", "yes"]}):
        made = document(intentions=[row], requests=[GET | {"headers": headers}])
        assert decisions(made) == [(True, "permission_allow")]
    for headers in (None, [], {}, {"x-role": []}, {"x-role": "no"}):
        made = document(intentions=[row], requests=[GET | {"headers": headers}])
        assert decisions(made) == [(False, "default_deny")]


def test_characters_are_utf_8_or_latin_1_bytes() -> None:
    row = l7({"Action": "allow", "HTTP": {"Header": [{"Name": "x", "Exact": "\u00e9"}]}})
    asked = [
        GET | {"headers": [["x", "\u00e9"]]},
        GET | {"headers": [["x", "\u00c3\u00a9"]], "encoding": "latin-1"},
        GET | {"headers": [["x", "\u00e9"]], "encoding": "latin-1"},
    ]
    made = document(intentions=[row], requests=asked)
    assert [allowed for allowed, _ in decisions(made)] == [True, True, False]
    read = read_document(document(requests=[GET | {"path": "/\u00ff"}], encoding="latin-1"))
    assert read.requests[0].http is not None
    assert read.requests[0].http.target == b"/\xff"
    raw = read_document(document(requests=[GET | {"path": "/\udcff"}]))
    assert raw.requests[0].http is not None
    assert raw.requests[0].http.target == b"/\xff"
    again = read_document(
        document(requests=[GET | {"path": "/\u00ff", "encoding": "utf-8"}], encoding="latin-1")
    )
    assert again.requests[0].http is not None
    assert again.requests[0].http.target == b"/\xc3\xbf"


def test_the_path_is_the_raw_target() -> None:
    assert decisions(request(path="/x#y")) == [(False, "malformed_target")]
    assert decisions(request(path="")) == [(False, "malformed_target")]
    deny = l7({"Action": "deny", "HTTP": {"PathPrefix": "/admin"}})
    made = document(intentions=[deny], default="allow", requests=[GET | {"path": "//admin"}])
    assert decisions(made) == [(False, "ambiguous_path")]


def test_mode_tcp_judges_the_connection_and_needs_no_request() -> None:
    row = l7({"Action": "allow", "HTTP": {"PathPrefix": "/"}})
    made = document(intentions=[row], requests=[{"source": "web", "mode": "tcp"}])
    assert decisions(made) == [(False, "l7_over_tcp")]
    full = document(intentions=[row], requests=[GET | {"mode": "tcp"}])
    assert decisions(full) == [(False, "l7_over_tcp")]


def test_expectations_fail_when_they_differ() -> None:
    asked = [GET, GET | {"expect": "allow"}, GET | {"expect": "deny"}]
    read = read_document(document(requests=asked))
    assert [decide(read, each).failed for each in read.requests] == [False, False, True]
    assert [each.expect for each in read.requests] == [None, Action.ALLOW, Action.DENY]


def test_claims_meet_the_providers_of_the_document() -> None:
    row = {**WEB_TO_API, "JWT": {"Providers": [{"Name": "okta"}]}}
    asked = [
        GET,
        GET | {"claims": {"okta": {"iss": "me"}}},
        GET | {"claims": {"okta": {"iss": "you"}}},
        GET | {"claims": None},
    ]
    entry = {"Kind": "jwt-provider", "Name": "okta", "Issuer": "me"}
    made = document(intentions=[row], requests=asked, jwt_providers=[entry])
    assert [reason for _, reason in decisions(made)] == [
        "jwt_missing",
        "intention_allow",
        "jwt_invalid",
        "jwt_missing",
    ]
    unknown = document(intentions=[row], requests=asked[1:2])
    assert decisions(unknown) == [(False, "jwt_provider_unknown")]


def okta(**changes: Any) -> dict[str, Any]:
    """A provider that brings the public key of `tests.tls.tokens.token`."""
    keys = {"Local": {"JWKS": b64encode(jwks(jwk())).decode()}}
    base = {"Kind": "jwt-provider", "Name": "okta", "Issuer": ISSUER, "JSONWebKeySet": keys}
    return {key: value for key, value in (base | changes).items() if value is not ...}


@pytest.mark.parametrize(
    ("raw", "provider", "decided"),
    [
        (token(exp=None), okta(), (True, "intention_allow")),
        (token(exp=1), okta(), (False, "jwt_invalid")),
        (token(exp=None, iss="another"), okta(), (False, "jwt_invalid")),
        (token(exp=None, name="b"), okta(), (False, "jwt_invalid")),
        (b"a.b.c", okta(), (False, "jwt_invalid")),
        (b"", okta(), (False, "jwt_invalid")),
        (token(exp=None), okta(Audiences=["api"]), (False, "jwt_invalid")),
        (token(exp=None, aud="api"), okta(Audiences=["api"]), (True, "intention_allow")),
        (token(exp=None), okta(Locations=[{"Cookie": {"Name": "t"}}]), (True, "intention_allow")),
        (token(exp=None), okta(JSONWebKeySet=...), (False, "jwt_invalid")),
        (
            token(exp=None),
            okta(JSONWebKeySet={"Remote": {"URI": "https://keys.example"}}),
            (False, "jwt_invalid"),
        ),
        (
            token(exp=None),
            okta(JSONWebKeySet={"Local": {"Filename": "/keys.json"}}),
            (False, "jwt_invalid"),
        ),
        (token(exp=None), okta(Name="auth0"), (False, "jwt_provider_unknown")),
    ],
)
def test_a_raw_token_is_verified_with_the_keys_in_the_document(
    raw: bytes, provider: dict[str, Any], decided: tuple[bool, str]
) -> None:
    row = {**WEB_TO_API, "JWT": {"Providers": [{"Name": "okta"}]}}
    made = request(token=raw.decode()) | {"intentions": [row], "jwt_providers": [provider]}
    assert decisions(made) == [decided]


@pytest.mark.parametrize(
    ("raw", "provider", "why"),
    [
        (token(exp=None), okta(), "good"),
        (token(exp=1), okta(), "the token is not valid: its time (exp) is over"),
        (b"", okta(), "the token is not valid: it is empty"),
        (
            token(exp=None),
            okta(JSONWebKeySet=...),
            "the token is not valid: the provider's entry brings no keys",
        ),
    ],
)
def test_an_explanation_says_what_is_wrong_with_a_raw_token(
    raw: bytes, provider: dict[str, Any], why: str
) -> None:
    row = {**WEB_TO_API, "JWT": {"Providers": [{"Name": "okta"}]}}
    made = request(token=raw.decode()) | {"intentions": [row], "jwt_providers": [provider]}
    read = read_document(made)
    [asked] = read.requests
    explained = str(read.policy.explain(asked.identity, asked.http, asked.claims))
    assert f"token of okta: {why}" in explained.replace("\n", " ")
    assert not raw or raw.decode() not in explained


def test_keys_are_looked_at_only_for_a_token() -> None:
    broken = okta(JSONWebKeySet={"Local": {"JWKS": "!"}})
    row = {**WEB_TO_API, "JWT": {"Providers": [{"Name": "okta"}]}}
    made = request() | {"intentions": [row], "jwt_providers": [broken]}
    assert decisions(made) == [(False, "jwt_missing")]
    with pytest.raises(DecodeError, match=r"document 0: jwt_providers\[0\]: JSONWebKeySet"):
        read_document(request(token="a.b.c") | {"jwt_providers": [broken]})


def test_the_mesh_entry_sets_the_normalisation() -> None:
    row = l7({"Action": "allow", "HTTP": {"Header": [{"Name": "x_y", "Present": True}]}})
    asked = [GET | {"headers": {"x_y": "1"}}]
    rules = {"HeadersWithUnderscoresAction": "DROP_HEADER"}
    mesh = {"Kind": "mesh", "HTTP": {"Incoming": {"RequestNormalization": rules}}}
    assert decisions(document(intentions=[row], requests=asked)) == [(True, "permission_allow")]
    assert decisions(document(intentions=[row], requests=asked, mesh=mesh)) == [
        (False, "default_deny")
    ]
    assert decisions(document(intentions=[row], requests=asked, mesh=None)) == [
        (True, "permission_allow")
    ]


def test_peers_are_known_by_their_bundle() -> None:
    row = {**WEB_TO_API, "SourcePeer": "east"}
    caller = "spiffe://east.consul/ns/default/dc/dc1/svc/web"
    asked = [{"source": caller, "mode": "tcp"}]
    bundle = {"PeerName": "east", "TrustDomain": "east.consul", "ExportedPartition": "default"}
    made = document(intentions=[row], requests=asked, peers=[bundle])
    assert decisions(made) == [(True, "intention_allow")]
    assert decisions(document(intentions=[row], requests=asked)) == [
        (False, "foreign_trust_domain")
    ]


# --- files ----------------------------------------------------------------------------------


def test_documents_are_numbered_across_files(tmp_path: Any) -> None:
    one, two = tmp_path / "one.jsonl", tmp_path / "two.yaml"
    one.write_text(f"{json.dumps(document())}\n{json.dumps(document())}\n")
    two.write_text("default: deny\nintentions: []\ndestination: api\nrequests: []\n")
    read = read_files([str(one), "-", str(two)], stdin=lambda: json.dumps(document()).encode())
    assert [(each.file, each.number) for each in read] == [
        (str(one), 0),
        (str(one), 1),
        ("standard input", 2),
        (str(two), 3),
    ]


def test_a_file_without_a_document_is_bad_input(tmp_path: Any) -> None:
    empty = tmp_path / "empty.yaml"
    empty.write_text("# nothing\n")
    with pytest.raises(DecodeError, match=r"empty\.yaml: there is no document"):
        read_files([str(empty)])


REFERENCE = Path(__file__).parent.parent / "docs" / "reference" / "check.md"


@pytest.mark.parametrize(
    ("heading", "keys"),
    [("## Documents", checkfile.DOCUMENT_KEYS), ("## Requests", checkfile.REQUEST_KEYS)],
)
def test_the_reference_lists_exactly_the_keys(heading: str, keys: tuple[str, ...]) -> None:
    section = REFERENCE.read_text().partition(f"{heading}\n")[2].partition("\n## ")[0]
    listed = [line.split("`")[1] for line in section.splitlines() if line.startswith("| `")]
    assert sorted(listed) == sorted(keys)


def test_the_reference_names_the_trust_domain() -> None:
    assert f"`{DEFAULT_TRUST_DOMAIN}`" in REFERENCE.read_text()


def test_intentions_may_stand_in_a_file_of_their_own(tmp_path: Path) -> None:
    (tmp_path / "rules.yaml").write_text(
        "Kind: service-intentions\nName: api\nSources: [{Name: web, Action: allow}]\n"
        "---\n- {SourceName: '*', DestinationName: api, Action: deny}\n"
    )
    file = tmp_path / "expectations.yaml"
    request = "{source: web, method: GET, path: /}"
    file.write_text(f"default: deny\nintentions: rules.yaml\nrequests: [{request}]\n")
    (document,) = read_files([str(file)])
    assert len(document.policy.intentions) == 2
    file.write_text(f"default: deny\nintentions: none.yaml\nrequests: [{request}]\n")
    with pytest.raises(DecodeError, match=r"document 0: intentions: cannot read .*none.yaml"):
        read_files([str(file)])
    with pytest.raises(DecodeError, match=r"intentions: intentions\.yaml"):
        read_files([str(tmp_path / "rules.yaml")])


def bomb(levels: int) -> str:
    """Each level means ten of the one before."""
    lines = ["a0: &a0 {x: 1}"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, levels)]
    return "\n".join(lines)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (bomb(8), "document 0: line 5, column .*: its aliases stand for more than 10000 values"),
        ("a: 1\n---\n" + bomb(8), "document 1: line 7.*stand for more than"),
        ("a: &a [*a]", r"document 0: line 1.*the alias \*a is within what it stands for"),
        ("a: &a {b: {c: [1, *a]}}", "is within what it stands for"),
        (
            "a: &a " + "[" * 60 + "]" * 60 + "\nb: " + "[" * 60 + "*a" + "]" * 60,
            "line 2.*nested too deeply",
        ),
    ],
)
def test_aliases_cannot_make_much_of_little(text: str, words: str) -> None:
    with pytest.raises(DecodeError, match=words):
        load_documents(text.encode())


def test_aliases_are_written_out_within_bounds() -> None:
    [found] = load_documents(b"a: &a {x: [1, &b 2]}\nc: *a\nd: [*a, *b, *b]")
    assert found["d"] == [found["a"], 2, 2]
    assert found["c"] == {"x": [1, 2]}
    assert load_documents(bomb(3).encode())
    once = "\n---\n".join(["a: &a [1]\nb: [" + ", ".join(["*a"] * 4000) + "]"] * 3)
    assert len(load_documents(once.encode())) == 3  # the bound is for each document
