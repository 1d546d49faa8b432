"""jwt-provider entries: what each field becomes, and that nothing unknown is waved through."""

from __future__ import annotations

import base64
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh_middleware.consul.decode_provider import decode_provider, decode_providers
from mesh_middleware.errors import DecodeError
from mesh_middleware.tls.locations import (
    DEFAULT_LOCATIONS,
    CookieLocation,
    HeaderLocation,
    QueryLocation,
)
from mesh_middleware.tls.providers import (
    Forwarding,
    LocalJWKS,
    RemoteJWKS,
    RetryPolicy,
    TokenProvider,
    TrustedCA,
)
from tests.fuzzing import fuzz

JWKS = b'{"keys": []}'
LOCAL = {"Local": {"JWKS": base64.b64encode(JWKS).decode()}}
URI = "https://issuer.example/jwks"


def entry(**changes: Any) -> dict[str, Any]:
    return {
        "Kind": "jwt-provider",
        "Name": "okta",
        "Issuer": "https://issuer.example",
        "JSONWebKeySet": LOCAL,
        **changes,
    }


def remote(**changes: Any) -> dict[str, Any]:
    return entry(JSONWebKeySet={"Remote": {"URI": URI, **changes}})


def cluster(**tls: Any) -> dict[str, Any]:
    return remote(JWKSCluster={"DiscoveryType": "STRICT_DNS", "TLSCertificates": tls})


def test_an_entry_as_the_api_gives_it() -> None:
    found = decode_provider(
        entry(
            Audiences=["api", "web"],
            Locations=[
                {"Header": {"Name": "X-Token", "ValuePrefix": "T ", "Forward": True}},
                {"QueryParam": {"Name": "t"}},
                {"Cookie": {"Name": "session"}},
            ],
            Forwarding={"HeaderName": "X-Payload", "PadForwardPayloadHeader": True},
            ClockSkewSeconds=5,
            CacheConfig={"Size": 7},
            Meta={"a": "b"},
            CreateIndex=3,
            ModifyIndex=4,
            Hash=12345,
            Partition="default",
        )
    )
    assert found == TokenProvider(
        name="okta",
        issuer="https://issuer.example",
        keys=LocalJWKS(JWKS),
        audiences=frozenset({"api", "web"}),
        locations=(
            HeaderLocation("X-Token", "T ", forward=True),
            QueryLocation("t"),
            CookieLocation("session"),
        ),
        forwarding=Forwarding("X-Payload", pad=True),
        clock_skew_seconds=5.0,
    )


def test_what_an_entry_does_not_say() -> None:
    found = decode_provider({"Name": "okta", "JSONWebKeySet": LOCAL})
    assert found == TokenProvider("okta", "", LocalJWKS(JWKS))
    assert found.locations == DEFAULT_LOCATIONS
    assert found.clock_skew_seconds == 30
    assert found.audiences == frozenset()
    assert found.forwarding is None


def test_nulls_and_zeros_are_not_set() -> None:
    empty = entry(
        Audiences=None, Locations=[], Forwarding=None, ClockSkewSeconds=0, CacheConfig=None, New={}
    )
    assert decode_provider(empty) == decode_provider(entry())
    assert decode_provider(entry(Forwarding={"HeaderName": ""})).forwarding is None


def test_a_remote_key_set() -> None:
    found = decode_provider(
        remote(
            RequestTimeoutMs=1500,
            CacheDuration="30m",
            FetchAsynchronously=True,
            RetryPolicy={
                "NumRetries": 3,
                "RetryPolicyBackOff": {"BaseInterval": "500ms", "MaxInterval": "4s"},
            },
            JWKSCluster={
                "DiscoveryType": "STRICT_DNS",
                "ConnectTimeout": "5s",
                "TLSCertificates": {"TrustedCA": {"Filename": "/ca.pem"}},
            },
        )
    )
    assert found.keys == RemoteJWKS(
        URI, 1.5, 1800.0, RetryPolicy(3, 0.5, 4.0), TrustedCA(filename="/ca.pem")
    )


def test_a_remote_key_set_that_says_nothing() -> None:
    assert decode_provider(remote()).keys == RemoteJWKS(
        URI, 5.0, 300.0, RetryPolicy(0, 1.0, 10.0), TrustedCA()
    )


@pytest.mark.parametrize(
    ("tls", "ca"),
    [
        ({"Filename": "/ca.pem"}, TrustedCA(filename="/ca.pem")),
        ({"EnvironmentVariable": "CA"}, TrustedCA(variable="CA")),
        ({"InlineString": "PEM"}, TrustedCA(pem="PEM")),
        ({"InlineBytes": base64.b64encode(b"PEM").decode()}, TrustedCA(pem="PEM")),
    ],
)
def test_the_authorities_of_the_key_server(tls: dict[str, str], ca: TrustedCA) -> None:
    found = decode_provider(cluster(TrustedCA=tls)).keys
    assert isinstance(found, RemoteJWKS)
    assert found.ca == ca


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("1h30m", 5400.0),
        ("1.5s", 1.5),
        ("250ms", 0.25),
        (60 * 10**9, 60.0),
        ("0s", 300.0),
        ("0", 300.0),
        (0, 300.0),
        ("", 300.0),
        (None, 300.0),
    ],
)
def test_durations(text: Any, seconds: float) -> None:
    found = decode_provider(remote(CacheDuration=text)).keys
    assert isinstance(found, RemoteJWKS)
    assert found.cache_seconds == seconds


def test_keys_as_users_of_hcl_write_them() -> None:
    found = decode_provider(
        {
            "kind": "jwt-provider",
            "name": "okta",
            "issuer": "i",
            "clock_skew_seconds": 4,
            "json_web_key_set": {
                "remote": {
                    "uri": URI,
                    "request_timeout_ms": 500,
                    "retry_policy": {"num_retries": 2},
                    "jwks_cluster": {
                        "tls_certificates": {"trusted_ca": {"environment_variable": "CA"}}
                    },
                }
            },
            "locations": [{"query_param": {"name": "t"}}],
            "forwarding": {"header_name": "x-p", "pad_forward_payload_header": True},
        }
    )
    assert found == TokenProvider(
        "okta",
        "i",
        RemoteJWKS(URI, 0.5, 300.0, RetryPolicy(2), TrustedCA(variable="CA")),
        locations=(QueryLocation("t"),),
        forwarding=Forwarding("x-p", pad=True),
        clock_skew_seconds=4.0,
    )


def test_local_keys_in_a_file() -> None:
    found = decode_provider(entry(JSONWebKeySet={"Local": {"Filename": "/keys.json"}}))
    assert found.keys == LocalJWKS(filename="/keys.json")


REFUSED: list[tuple[Any, str]] = [
    ([], ""),
    ("text", ""),
    (entry(Kind="service-intentions"), "Kind"),
    (entry(Name=""), "Name"),
    (entry(Name=["okta"]), "Name"),
    (entry(Issuer=1), "Issuer"),
    (entry(Audiences="api"), "Audiences"),
    (entry(Audiences=[1]), "Audiences[0]"),
    (entry(ClockSkewSeconds=-1), "ClockSkewSeconds"),
    (entry(ClockSkewSeconds="30"), "ClockSkewSeconds"),
    (entry(ClockSkewSeconds=10**12), "ClockSkewSeconds"),
    (entry(VerifyMore={"a": 1}), ""),
    (entry(RequiredClaims=["sub"]), ""),
    (entry(issuer="twice"), ""),
    (entry(CacheConfig={"Depth": 1}), "CacheConfig"),
    (entry(CacheConfig=[1]), "CacheConfig"),
    (entry(Locations={"Header": {}}), "Locations"),
    (entry(Locations=[{}]), "Locations[0]"),
    (entry(Locations=[{"Body": {"Name": "t"}}]), "Locations[0]"),
    (
        entry(Locations=[{"Cookie": {"Name": "a"}, "QueryParam": {"Name": "b"}}]),
        "Locations[0]",
    ),
    (entry(Locations=[{"Cookie": {"Name": "a", "Secure": True}}]), "Locations[0].Cookie"),
    (entry(Locations=[{"Cookie": {"Name": 5}}]), "Locations[0].Cookie.Name"),
    (entry(Locations=[{"Header": {"Forward": True}}]), "Locations[0].Header.Name"),
    (entry(Locations=[{"Header": {"Name": "a b"}}]), "Locations[0].Header.Name"),
    (entry(Locations=[{"Header": {"Name": "a", "Forward": 1}}]), "Locations[0].Header.Forward"),
    (entry(Forwarding="x-payload"), "Forwarding"),
    (entry(Forwarding={"HeaderName": "a b"}), "Forwarding.HeaderName"),
    (entry(Forwarding={"PadForwardPayloadHeader": True}), "Forwarding.HeaderName"),
    (entry(Forwarding={"HeaderName": "a", "Format": "json"}), "Forwarding"),
    (entry(JSONWebKeySet=None), "JSONWebKeySet"),
    (entry(JSONWebKeySet={}), "JSONWebKeySet"),
    (entry(JSONWebKeySet={**LOCAL, "Remote": {"URI": URI}}), "JSONWebKeySet"),
    (entry(JSONWebKeySet={"Vault": {"Path": "x"}}), "JSONWebKeySet"),
    (entry(JSONWebKeySet={"Local": {"Path": "x"}}), "JSONWebKeySet.Local"),
    (
        entry(JSONWebKeySet={"Local": {"JWKS": "e30=", "Filename": "/f"}}),
        "JSONWebKeySet.Local",
    ),
    (entry(JSONWebKeySet={"Local": {"JWKS": "e3_="}}), "JSONWebKeySet.Local.JWKS"),
    (entry(JSONWebKeySet={"Local": {"JWKS": "é"}}), "JSONWebKeySet.Local.JWKS"),
    (entry(JSONWebKeySet={"Local": {"JWKS": {"keys": []}}}), "JSONWebKeySet.Local.JWKS"),
    (remote(URI=""), "JSONWebKeySet.Remote.URI"),
    (remote(URI="ftp://a/b"), "JSONWebKeySet.Remote.URI"),
    (remote(URI="https:///b"), "JSONWebKeySet.Remote.URI"),
    (remote(URI="https://a:port/"), "JSONWebKeySet.Remote.URI"),
    (remote(URI="https://a/\n"), "JSONWebKeySet.Remote.URI"),
    (remote(URI="http://issuer.example/"), "JSONWebKeySet.Remote.URI"),
    (remote(RequestTimeoutMs=-1), "JSONWebKeySet.Remote.RequestTimeoutMs"),
    (remote(RequestTimeoutMs=1.5), "JSONWebKeySet.Remote.RequestTimeoutMs"),
    (remote(FetchAsynchronously="no"), "JSONWebKeySet.Remote.FetchAsynchronously"),
    (remote(CacheDuration="soon"), "JSONWebKeySet.Remote.CacheDuration"),
    (remote(CacheDuration="-5m"), "JSONWebKeySet.Remote.CacheDuration"),
    (remote(CacheDuration="99999h"), "JSONWebKeySet.Remote.CacheDuration"),
    (remote(CacheDuration=-1), "JSONWebKeySet.Remote.CacheDuration"),
    (remote(CacheDuration=10**40), "JSONWebKeySet.Remote.CacheDuration"),
    (remote(CacheDuration=1.5), "JSONWebKeySet.Remote.CacheDuration"),
    (remote(CacheDuration=True), "JSONWebKeySet.Remote.CacheDuration"),
    (remote(Headers={"a": "b"}), "JSONWebKeySet.Remote"),
    (remote(RetryPolicy={"NumRetries": -1}), "JSONWebKeySet.Remote.RetryPolicy.NumRetries"),
    (remote(RetryPolicy={"NumRetries": 10**6}), "JSONWebKeySet.Remote.RetryPolicy.NumRetries"),
    (remote(RetryPolicy={"On": "5xx"}), "JSONWebKeySet.Remote.RetryPolicy"),
    (
        remote(RetryPolicy={"RetryPolicyBackOff": {"BaseInterval": "x"}}),
        "JSONWebKeySet.Remote.RetryPolicy.RetryPolicyBackOff.BaseInterval",
    ),
    (remote(JWKSCluster={"Pinned": ["sha256"]}), "JSONWebKeySet.Remote.JWKSCluster"),
    (
        remote(JWKSCluster={"ConnectTimeout": "x"}),
        "JSONWebKeySet.Remote.JWKSCluster.ConnectTimeout",
    ),
    (
        remote(JWKSCluster={"DiscoveryType": 5}),
        "JSONWebKeySet.Remote.JWKSCluster.DiscoveryType",
    ),
    (cluster(Pins=["x"]), "JSONWebKeySet.Remote.JWKSCluster.TLSCertificates"),
    (
        cluster(CaCertificateProviderInstance={"InstanceName": "x"}),
        "JSONWebKeySet.Remote.JWKSCluster.TLSCertificates.CaCertificateProviderInstance",
    ),
    (
        cluster(TrustedCA={"Filename": "/a", "InlineString": "b"}),
        "JSONWebKeySet.Remote.JWKSCluster.TLSCertificates.TrustedCA",
    ),
    (
        cluster(TrustedCA={"Filename": 5}),
        "JSONWebKeySet.Remote.JWKSCluster.TLSCertificates.TrustedCA.Filename",
    ),
    (
        cluster(TrustedCA={"InlineBytes": "*"}),
        "JSONWebKeySet.Remote.JWKSCluster.TLSCertificates.TrustedCA.InlineBytes",
    ),
]


@pytest.mark.parametrize(("document", "field"), REFUSED)
def test_what_is_not_understood_is_refused_with_its_field(document: Any, field: str) -> None:
    with pytest.raises(DecodeError) as caught:
        decode_provider(document)
    assert caught.value.field == field


@pytest.mark.parametrize("host", ["127.0.0.1:8080", "localhost", "[::1]:80"])
def test_keys_may_come_by_plain_http_from_this_machine(host: str) -> None:
    assert decode_provider(remote(URI=f"http://{host}/jwks")).keys == RemoteJWKS(
        f"http://{host}/jwks"
    )


def test_keys_may_come_by_plain_http_from_elsewhere_only_when_told() -> None:
    document = remote(URI="http://issuer.example/")
    with pytest.raises(DecodeError, match="MESH_ALLOW_PLAINTEXT_JWKS"):
        decode_provider(document)
    assert decode_provider(document, allow_http=True).keys == RemoteJWKS("http://issuer.example/")


def test_errors_are_placed_within_a_document() -> None:
    with pytest.raises(DecodeError) as caught:
        decode_provider(entry(Issuer=5), "jwt_providers[3]")
    assert caught.value.field == "jwt_providers[3].Issuer"


# -- lists ------------------------------------------------------------------------------------


def test_an_entry_that_cannot_be_used_does_not_take_the_others_with_it() -> None:
    found = decode_providers([entry(), entry(Name="bad", New={"a": 1}), entry(Name="more")])
    assert sorted(found.usable) == ["more", "okta"]
    assert list(found.problems) == ["bad"]
    assert "'New' is not known" in found.problems["bad"]


def test_a_name_with_one_bad_entry_cannot_be_used() -> None:
    found = decode_providers([entry(), entry(Issuer=5)])
    assert found.usable == {}
    assert list(found.problems) == ["okta"]


@pytest.mark.parametrize(
    "document", [None, {}, "text", [None, entry()], [[]], [{"Kind": "jwt-provider"}], ["okta"]]
)
def test_what_is_no_list_of_entries_is_refused(document: Any) -> None:
    with pytest.raises(DecodeError):
        decode_providers(document)


def test_there_may_be_no_providers() -> None:
    assert decode_providers([]).usable == {}


_NAMES = st.sampled_from(
    """Name Issuer Audiences Locations Forwarding JSONWebKeySet ClockSkewSeconds CacheConfig Local
    Remote JWKS Filename URI CacheDuration RetryPolicy NumRetries JWKSCluster TLSCertificates Header
    Cookie QueryParam HeaderName ValuePrefix Forward Kind json_web_key_set""".split()
)
_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=6) | _NAMES,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_NAMES, inner, max_size=4),
    max_leaves=12,
)


@fuzz(100, cost=4)
@given(_JSON, st.dictionaries(_NAMES, _JSON, max_size=3))
def test_any_json_gives_a_provider_or_a_decode_error(whole: Any, changes: dict[str, Any]) -> None:
    for document in (whole, [whole], entry(**changes), remote(**changes)):
        for decode in (decode_provider, decode_providers):
            try:
                decode(document)
            except DecodeError:
                continue


@pytest.mark.parametrize("uri", ["https://xn--a/", "https://ü..x/"])
def test_a_host_name_that_cannot_be_asked_makes_an_entry_unusable(uri: str) -> None:
    with pytest.raises(DecodeError, match=r"Remote\.URI"):
        decode_provider(remote(URI=uri))


@pytest.mark.parametrize("field", ["InlineString", "InlineBytes"])
def test_authorities_are_ascii(field: str) -> None:
    text = "\u00fc" if field == "InlineString" else base64.b64encode(b"\xfc").decode()
    with pytest.raises(DecodeError, match=field):
        decode_provider(cluster(TrustedCA={field: text}))


@pytest.mark.parametrize(
    "uri",
    [
        "http://user:s3cret@issuer.example/k?s3cret",
        "ftp://user:s3cret@issuer.example/s3cret",
        "https://user:s3cret@[issuer.example/s3cret",
    ],
)
def test_a_refused_uri_is_not_repeated_with_its_secrets(uri: str) -> None:
    with pytest.raises(DecodeError) as caught:
        decode_provider(remote(URI=uri))
    assert "s3cret" not in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "tokens", "payloads"),
    [
        ({}, ["authorization"], []),
        ({"Forwarding": {"HeaderName": "x-p", "New": 1}}, ["authorization"], ["x-p"]),
        ({"forwarding": {"header_name": "x-p"}}, ["authorization"], ["x-p"]),
        ({"Forwarding": {"HeaderName": "not a name"}}, ["authorization"], []),
        ({"Forwarding": [1]}, ["authorization"], []),
        (
            {
                "Locations": [
                    {"Header": {"Name": "x-t", "New": 1}},
                    {"Header": {"Name": "x-odd", "Forward": "yes", "ValuePrefix": 3}},
                    {"Header": {"Name": "x-seen", "Forward": True}},
                    {"Header": "x"},
                    {"Cookie": {"Name": "c"}},
                    7,
                ]
            },
            ["x-t", "x-odd"],
            [],
        ),
    ],
)
def test_an_entry_that_cannot_be_used_says_what_to_hide(
    changes: dict[str, Any], tokens: list[str], payloads: list[str]
) -> None:
    found = decode_providers([entry(RequiredClaims=["sub"], **changes)])
    assert "okta" in found.problems
    hidden = found.hidden["okta"]
    assert [each.name for each in hidden.tokens] == tokens
    assert list(hidden.payloads) == payloads


def test_of_two_entries_with_one_name_everything_is_hidden() -> None:
    one, two = (entry(Forwarding={"HeaderName": name}) for name in ("x-a", "x-b"))
    found = decode_providers([one, {**two, "RequiredClaims": ["sub"]}])
    assert found.usable == {}
    assert set(found.hidden["okta"].payloads) == {"x-a", "x-b"}
