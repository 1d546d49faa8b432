"""Where tokens are looked for, and that two are never one too many in silence."""

from __future__ import annotations

import pytest

from mesh_middleware.errors import ConfigError
from mesh_middleware.policy.decision import Reason
from mesh_middleware.policy.request import HTTPRequest
from mesh_middleware.tls.locations import (
    DEFAULT_LOCATIONS,
    CookieLocation,
    HeaderLocation,
    Location,
    QueryLocation,
    tokens_at,
)
from mesh_middleware.tls.providers import Forwarding
from tests.tls.tokens import payload, token, verifier


def found(
    locations: Location | tuple[Location, ...],
    *headers: tuple[bytes, bytes],
    target: bytes = b"/",
) -> list[bytes]:
    where = locations if isinstance(locations, tuple) else (locations,)
    return list(tokens_at(where, HTTPRequest("GET", target, headers)))


BEARER = HeaderLocation("Authorization", "Bearer ")


@pytest.mark.parametrize(
    ("value", "tokens"),
    [
        (b"Bearer abc", [b"abc"]),
        (b"bearer abc", [b"abc"]),
        (b"  BEARER \t abc \t", [b"abc"]),
        (b"Bearer\tabc", [b"abc"]),
        (b"Bearer", []),
        (b"Bearer ", []),
        (b"Bearerabc", []),
        (b"Basic abc", []),
        (b"abc", []),
        (b"Basic x, Bearer abc", []),
        (b"Bearer a, Bearer b", [b"a, Bearer b"]),
        (b"", []),
    ],
)
def test_a_header_with_a_scheme(value: bytes, tokens: list[bytes]) -> None:
    assert found(BEARER, (b"AUTHORIZATION", value)) == tokens


@pytest.mark.parametrize(
    ("prefix", "value", "tokens"),
    [
        ("", b" abc ", [b"abc"]),
        ("", b"", []),
        ("jwt=", b"JWT=abc", [b"abc"]),
        ("jwt=", b"abc", []),
    ],
)
def test_a_header_with_another_prefix(prefix: str, value: bytes, tokens: list[bytes]) -> None:
    assert found(HeaderLocation("x-token", prefix), (b"X-Token", value)) == tokens


def test_a_header_on_two_lines_has_two_tokens() -> None:
    lines = [(b"authorization", b"Bearer a"), (b"Authorization", b"bearer b")]
    assert found(BEARER, *lines) == [b"a", b"b"]
    assert found(BEARER, lines[0], (b"authorization", b"Basic b")) == [b"a"]


@pytest.mark.parametrize(
    ("query", "tokens"),
    [
        (b"", []),
        (b"?", []),
        (b"?access_token=a.b-c_d", [b"a.b-c_d"]),
        (b"?x=1&access_token=a&y", [b"a"]),
        (b"?access%5Ftoken=%61", [b"a"]),
        (b"?access_token=a&access_token=a", [b"a", b"a"]),
        (b"?access_token=", []),
        (b"?access_token", []),
        (b"?Access_Token=a", []),
        (b"?x=1;access_token=a", []),
        (b"?x=?access_token=a", []),
        (b"?access_token=a=b", [b"a=b"]),
    ],
)
def test_a_query_parameter(query: bytes, tokens: list[bytes]) -> None:
    assert found(QueryLocation("access_token"), target=b"/p" + query) == tokens


def test_a_parameter_name_with_a_space() -> None:
    assert found(QueryLocation("my token"), target=b"/?my+token=a") == [b"a"]


@pytest.mark.parametrize(
    ("cookies", "tokens"),
    [
        ([b"session=a"], [b"a"]),
        ([b"x=1; session=a; y=2"], [b"a"]),
        ([b"x=1", b"session=a"], [b"a"]),
        ([b"session=a", b"session=b"], [b"a", b"b"]),
        ([b"session=a; session=a"], [b"a", b"a"]),
        ([b'session="a"'], [b"a"]),
        ([b'session="'], [b'"']),
        ([b'session=""'], []),
        ([b"session="], []),
        ([b"session"], []),
        ([b"Session=a"], []),
        ([b"xsession=a"], []),
        ([b" session = a "], [b"a"]),
        ([b"session=a=b"], [b"a=b"]),
    ],
)
def test_a_cookie(cookies: list[bytes], tokens: list[bytes]) -> None:
    lines = [(b"Cookie", cookie) for cookie in cookies]
    assert found(CookieLocation("session"), *lines) == tokens


def test_locations_are_asked_in_order_and_the_first_with_a_token_counts() -> None:
    where = (CookieLocation("c"), QueryLocation("q"), HeaderLocation("h"))
    everywhere = [(b"h", b"3"), (b"cookie", b"c=1")]
    assert found(where, *everywhere, target=b"/?q=2") == [b"1"]
    assert found(where, everywhere[0], target=b"/?q=2") == [b"2"]
    assert found(where, everywhere[0]) == [b"3"]
    assert found(where) == []


def test_a_provider_without_locations_looks_where_bearer_tokens_are() -> None:
    header = (b"authorization", b"Bearer h")
    assert found(DEFAULT_LOCATIONS, header, target=b"/?access_token=q") == [b"h"]
    assert found(DEFAULT_LOCATIONS, target=b"/?access_token=q") == [b"q"]


@pytest.mark.parametrize(
    ("location", "headers", "target"),
    [
        (BEARER, [(b"authorization", b"Bearer " + token())], b"/"),
        (QueryLocation("t"), [], b"/?t=" + token()),
        (CookieLocation("t"), [(b"cookie", b"t=" + token())], b"/"),
    ],
)
def test_a_token_counts_once_and_is_refused_when_there_are_two(
    location: Location, headers: list[tuple[bytes, bytes]], target: bytes
) -> None:
    using = verifier(locations=(location,))
    once = HTTPRequest("GET", target, headers)
    assert using.claims(once).get("okta") == payload()
    twice = HTTPRequest("GET", target + b"&" + target[2:], headers * 2)
    assert using.claims(twice).get("okta") is Reason.JWT_INVALID


def test_a_bad_token_is_not_made_good_by_a_later_location() -> None:
    request = HTTPRequest(
        "GET", b"/?access_token=" + token(), [(b"authorization", b"Bearer opaque")]
    )
    assert verifier().claims(request).get("okta") is Reason.JWT_INVALID


@pytest.mark.parametrize("name", ["", "a b", "a:", ":path", "ä", "a\r\nb"])
def test_names_of_headers_are_checked(name: str) -> None:
    with pytest.raises(ConfigError, match="header"):
        HeaderLocation(name)
    with pytest.raises(ConfigError, match="header"):
        Forwarding(name)
