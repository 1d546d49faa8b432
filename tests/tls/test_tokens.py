"""Tokens become claims only when everything about them is right."""

from __future__ import annotations

import base64
import json
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives import hashes, hmac, serialization

from mesh_middleware.policy.decision import Reason
from mesh_middleware.policy.jwt import JWTProvider
from mesh_middleware.policy.request import HTTPRequest
from mesh_middleware.tls import tokens
from mesh_middleware.tls.jwks import NO_KEYS, KeySet
from mesh_middleware.tls.locations import HeaderLocation
from mesh_middleware.tls.providers import Forwarding
from mesh_middleware.tls.remembered import Remembered
from mesh_middleware.tls.tokens import MAX_TOKEN, RequestClaims, TokenVerifier, VerifiedToken
from tests.tls.tokens import (
    ALGORITHMS,
    ISSUER,
    NOW,
    bearer,
    jwk,
    jwks,
    payload,
    private_key,
    provider,
    raw_token,
    token,
    verifier,
)


def outcome(text: bytes, using: TokenVerifier | None = None) -> Any:
    using = verifier() if using is None else using
    return using.claims(bearer(text)).get("okta")


def signed(text: bytes) -> bytes:
    """A token whose payload is any text."""
    headers = {"kid": "a"}
    return jwt.PyJWS().encode(text, private_key("ES256"), "ES256", headers=headers).encode()


# -- what is accepted -------------------------------------------------------------------------


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("says_alg", [True, False])
def test_each_algorithm_verifies_with_its_key(algorithm: str, says_alg: bool) -> None:
    key = jwk(algorithm, alg=algorithm if says_alg else None)
    found = outcome(token(algorithm), verifier(jwks(key)))
    assert found == payload()


def test_the_key_is_found_among_several() -> None:
    keys = [jwk("RS256", "rsa"), jwk("EdDSA", "ed"), jwk("ES256", "b"), jwk("ES256", "a")]
    assert outcome(token(), verifier(jwks(*keys))) == payload()


def test_keys_with_the_same_name_are_all_tried() -> None:
    keys = [jwk("ES256", "b", kid="a"), jwk("RS256", "a"), jwk("ES256", "a")]
    assert outcome(token(), verifier(jwks(*keys))) == payload()


@pytest.mark.parametrize("kid", ["a", None])
def test_a_key_without_a_name_is_tried(kid: str | None) -> None:
    keys = jwks(jwk("ES256", "b", kid=None), jwk(kid=None))
    assert outcome(token(headers={"kid": kid}), verifier(keys)) == payload()


def test_a_token_without_a_name_is_tried_with_all_keys() -> None:
    keys = jwks(jwk("ES256", "b"), jwk())
    assert outcome(token(headers={"kid": None}), verifier(keys)) == payload()


@pytest.mark.parametrize("aud", ["api", ["other", "api"], ["api", 7]])
def test_one_of_the_audiences_is_enough(aud: Any) -> None:
    using = verifier(audiences=frozenset({"api", "web"}))
    assert outcome(token(aud=aud), using) == payload(aud=aud)


def test_without_audiences_of_the_provider_any_will_do() -> None:
    assert outcome(token(aud="whoever")) == payload(aud="whoever")


@pytest.mark.parametrize(
    "claims",
    [{"exp": None}, {"exp": NOW - 29.5}, {"nbf": NOW + 30}, {"nbf": NOW}, {"exp": NOW + 1e9}],
)
def test_times_have_a_skew_of_thirty_seconds(claims: dict[str, Any]) -> None:
    assert outcome(token(**claims)) == payload(**claims)


def test_padding_in_a_token_is_not_passed_on() -> None:
    header, body, _ = token(x="1").split(b".")
    body += b"=" * (-len(body) % 4)
    assert b"=" in body
    key = private_key("ES256")
    made = jwt.get_algorithm_by_name("ES256").sign(header + b"." + body, key)
    text = header + b"." + body + b"." + base64.urlsafe_b64encode(made).rstrip(b"=")
    found = verifier().claims(bearer(text)).token("okta")
    assert isinstance(found, VerifiedToken)
    assert found.segment == body.rstrip(b"=")


# -- what is refused --------------------------------------------------------------------------

_HS_HEADER = {"alg": "HS256", "kid": "a", "typ": "JWT"}


def _hmac_with_the_public_key() -> bytes:
    """The classic: an RSA public key, which everybody has, taken for an HMAC secret."""
    public = private_key("RS256").public_key()
    pem = public.public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    unsigned = raw_token(_HS_HEADER, payload()).removesuffix(b".")
    mac = hmac.HMAC(pem, hashes.SHA256())
    mac.update(unsigned)
    return unsigned + b"." + base64.urlsafe_b64encode(mac.finalize()).rstrip(b"=")


def _changed(text: bytes, part: int) -> bytes:
    parts = text.split(b".")
    body = bytearray(parts[part])
    body[len(body) // 2] = ord("A") if body[len(body) // 2] != ord("A") else ord("B")
    parts[part] = bytes(body)
    return b".".join(parts)


def _with_payload(text: bytes, claims: Any) -> bytes:
    header, _, signature = text.split(b".")
    return b".".join([header, raw_token({}, claims).split(b".")[1], signature])


REFUSED = {
    "not a token": b"opaque",
    "two parts": b"e30.e30",
    "four parts": token() + b".e30",
    "no signature": token().rpartition(b".")[0] + b".",
    "changed header": _changed(token(), 0),
    "changed payload": _changed(token(), 1),
    "other payload": _with_payload(token(), payload(sub="root")),
    "changed signature": _changed(token(), 2),
    "signed by another": token(name="b", headers={"kid": "a"}),
    "alg none": raw_token({"alg": "none", "kid": "a"}, payload()),
    "alg None": raw_token({"alg": "None", "kid": "a"}, payload()),
    "no alg": raw_token({"kid": "a"}, payload(), b"x" * 64),
    "alg is a number": raw_token({"alg": 256, "kid": "a"}, payload(), b"x" * 64),
    "alg is a list": raw_token({"alg": ["ES256"], "kid": "a"}, payload(), b"x" * 64),
    "other algorithm": token("ES384", headers={"kid": "a"}),
    "kid is a number": raw_token({"alg": "ES256", "kid": 1}, payload(), b"x" * 64),
    "unknown kid": token(headers={"kid": "z"}),
    "crit": token(headers={"crit": ["exp"], "exp": 1}),
    "b64": token(headers={"crit": ["b64"], "b64": True}),
    "header is a list": raw_token([], payload(), b"x" * 64),
    "header is not JSON": raw_token(b"{", payload(), b"x" * 64),
    "payload is a list": signed(b"[]"),
    "payload is UTF-16": signed(json.dumps(payload()).encode("utf-16")),
    "deeply nested": raw_token(b"[" * 5000 + b"]" * 5000, payload(), b"x" * 64),
    "other issuer": token(iss=ISSUER + "/"),
    "issuer in a list": raw_token({"alg": "ES256", "kid": "a"}, payload(iss=[ISSUER]), b"x" * 64),
    "no issuer": token(iss=None),
    "expired": token(exp=NOW - 30),
    "not yet": token(nbf=NOW + 31),
    "bytes that are not ASCII": token() + b"\xff",
    "junk in the signature": token()[:-5] + b"\x00" + token()[-5:],
    "too much padding": token() + b"===",
    "space": b"x " + token(),
    "empty parts": b"..",
}


# What people are told, and of which of the above.
WHY = {
    "it is not a signed JWT of three parts": [
        "not a token",
        "two parts",
        "four parts",
        "no signature",
        "alg none",
        "alg None",
        "bytes that are not ASCII",
        "junk in the signature",
        "too much padding",
        "space",
        "empty parts",
    ],
    "its header or payload is not a JSON object": [
        "changed header",
        "changed payload",
        "deeply nested",
        "header is a list",
        "header is not JSON",
        "payload is a list",
        "payload is UTF-16",
    ],
    "its header has crit": ["crit", "b64"],
    f"its iss is not the provider's Issuer, {ISSUER!r}": [
        "other issuer",
        "issuer in a list",
        "no issuer",
    ],
    "its kid or alg is not text": [
        "no alg",
        "alg is a number",
        "alg is a list",
        "kid is a number",
    ],
    "the key of its kid did not sign it, or is not for its alg": [
        "changed signature",
        "other payload",
        "signed by another",
        "other algorithm",
    ],
    "no key of the provider that is known here signed it": ["unknown kid"],
    "its time (exp) is over": ["expired"],
    "its time (nbf) is still to come": ["not yet"],
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_not_right_is_invalid(case: str) -> None:
    assert outcome(REFUSED[case]) is Reason.JWT_INVALID


@pytest.mark.parametrize(
    ("case", "why"), [pytest.param(case, why, id=case) for why in WHY for case in WHY[why]]
)
def test_people_are_told_what_is_wrong(case: str, why: str) -> None:
    assert verifier().why("okta", bearer(REFUSED[case])) == why


def test_there_are_words_for_everything_that_is_refused() -> None:
    assert sorted(case for cases in WHY.values() for case in cases) == sorted(REFUSED)
    bad = verifier(audiences=frozenset({"api"})).why("okta", bearer(token(aud="other")))
    assert bad == "its aud has none of the provider's Audiences"
    bad = verifier().why("okta", bearer(token(exp=True)))
    assert bad == "its exp or nbf is not a number of seconds"
    bad = verifier().why("okta", bearer(token(x="x" * MAX_TOKEN)))
    assert bad == f"it has more than {MAX_TOKEN} bytes"
    bad = verifier().why("okta", bearer(token(), (b"authorization", b"Bearer x")))
    assert bad == "there are several in one place"


def test_there_is_nothing_to_say_of_good_tokens_and_of_none() -> None:
    using = verifier(clock_skew_seconds=60)
    for text in (token(), token(exp=NOW - 59), token(nbf=NOW + 59)):
        assert using.why("okta", bearer(text)) == ""
    assert using.why("okta", HTTPRequest("GET", b"/")) == ""
    assert using.why("unknown", bearer(b"x")) == ""
    assert len(using.remembered) == 0


def test_an_rsa_key_is_no_hmac_secret() -> None:
    using = verifier(jwks(jwk("RS256")))
    assert outcome(token("RS256"), using) == payload()
    assert outcome(_hmac_with_the_public_key(), using) is Reason.JWT_INVALID


@pytest.mark.parametrize("alg", ["RS384", "PS256"])
def test_a_key_that_says_its_algorithm_is_for_that_one_only(alg: str) -> None:
    text = token(alg, headers={"kid": "x"})
    key = private_key(alg)
    public = jwt.algorithms.RSAAlgorithm.to_jwk(key.public_key(), as_dict=True)
    free, pinned = {**public, "kid": "x"}, {**public, "kid": "x", "alg": "RS256"}
    free.pop("key_ops")
    pinned.pop("key_ops")
    assert outcome(text, verifier(jwks(free))) == payload()
    assert outcome(text, verifier(jwks(pinned))) is Reason.JWT_INVALID


def test_an_empty_issuer_accepts_nothing() -> None:
    assert outcome(token(iss=""), verifier(issuer="")) is Reason.JWT_INVALID


@pytest.mark.parametrize("aud", [None, "other", [], ["other"], {"api": 1}, 7, [["api"]]])
def test_a_token_for_another_audience_is_invalid(aud: Any) -> None:
    using = verifier(audiences=frozenset({"api"}))
    assert outcome(token(aud=aud), using) is Reason.JWT_INVALID


@pytest.mark.parametrize("claim", ["exp", "nbf"])
@pytest.mark.parametrize("value", ["1", True, [1], {}, 10**400, float("nan"), float("inf")])
def test_times_are_numbers(claim: str, value: Any) -> None:
    assert outcome(signed(json.dumps(payload()).encode())) == payload()
    text = json.dumps({**payload(), claim: value}).encode()
    assert outcome(signed(text)) is Reason.JWT_INVALID


def test_tokens_have_at_most_sixteen_kibibytes() -> None:
    long = token(x="x" * 12000)
    assert len(long) <= MAX_TOKEN
    assert outcome(long) == payload(x="x" * 12000)
    longer = token(x="x" * 12200)
    assert len(longer) > MAX_TOKEN
    assert outcome(longer) is Reason.JWT_INVALID


def test_without_keys_every_token_is_invalid() -> None:
    assert outcome(token(), TokenVerifier([(provider(), NO_KEYS)])) is Reason.JWT_INVALID


def test_the_skew_is_the_providers() -> None:
    assert outcome(token(exp=NOW - 30), verifier(clock_skew_seconds=60)) == payload(exp=NOW - 30)
    assert outcome(token(exp=NOW), verifier(clock_skew_seconds=0)) is Reason.JWT_INVALID


# -- claims as a mapping ----------------------------------------------------------------------


class Counting(TokenVerifier):
    """Counts how often somebody asks for a verification."""

    __slots__ = ("asked",)

    def verify(self, name: str, request: HTTPRequest) -> VerifiedToken | Reason | None:
        self.asked = [*getattr(self, "asked", []), name]
        return super().verify(name, request)


def two_providers() -> Counting:
    keys = KeySet.from_json(jwks(jwk()))
    other = provider("other", issuer="https://other.example")
    return Counting([(provider(), keys), (other, keys)], clock=lambda: NOW)


def test_nothing_is_verified_before_somebody_asks() -> None:
    using = two_providers()
    claims = using.claims(bearer(token()))
    assert not hasattr(using, "asked")
    for _ in range(3):
        assert claims["okta"] == payload()
        assert claims.get("okta") == payload()
    assert using.asked == ["okta"]


def test_claims_name_the_providers_that_were_given_a_token() -> None:
    using = two_providers()
    claims = using.claims(bearer(token()))
    assert dict(claims) == {"okta": payload(), "other": Reason.JWT_INVALID}
    assert len(claims) == 2
    nothing = using.claims(HTTPRequest("GET", b"/"))
    assert dict(nothing) == {}
    assert len(nothing) == 0
    assert nothing.get("okta") is None
    with pytest.raises(KeyError):
        nothing["okta"]


def test_a_provider_that_nobody_knows_has_no_token() -> None:
    assert verifier().claims(bearer(token())).get("unknown") is None


def test_payloads_cannot_be_changed() -> None:
    claims = verifier().claims(bearer(token()))
    with pytest.raises(TypeError):
        claims["okta"]["sub"] = "root"


def test_a_verifier_tells_its_issuers_and_not_its_tokens() -> None:
    using = verifier()
    assert using.issuers == (JWTProvider("okta", ISSUER),)
    assert repr(using) == "<TokenVerifier okta: 1 keys>"
    assert repr(TokenVerifier([])) == "<TokenVerifier without providers>"


# -- remembering ------------------------------------------------------------------------------


class Clock:
    def __init__(self) -> None:
        self.now = NOW

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def signatures(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """Every token whose signature was really checked."""
    checked: list[bytes] = []
    real = tokens.signed_payload

    def counting(text: bytes, key: Any) -> bytes | None:
        checked.append(text)
        return real(text, key)

    monkeypatch.setattr(tokens, "signed_payload", counting)
    return checked


def test_a_token_is_verified_once_and_expires_all_the_same(signatures: list[bytes]) -> None:
    clock = Clock()
    keys = KeySet.from_json(jwks(jwk()))
    using = TokenVerifier([(provider(), keys)], clock=clock)
    text = token()
    assert [outcome(text, using) for _ in range(3)] == [payload()] * 3
    assert len(signatures) == 1
    clock.now = NOW + 629.9
    assert outcome(text, using) == payload()
    clock.now = NOW + 630
    assert outcome(text, using) is Reason.JWT_INVALID
    assert outcome(text, using) is Reason.JWT_INVALID
    assert len(signatures) == 1


def test_a_token_that_was_too_early_counts_when_its_time_comes(signatures: list[bytes]) -> None:
    clock = Clock()
    using = TokenVerifier([(provider(), KeySet.from_json(jwks(jwk())))], clock=clock)
    text = token(nbf=NOW + 100)
    assert outcome(text, using) is Reason.JWT_INVALID
    clock.now = NOW + 70
    assert outcome(text, using) == payload(nbf=NOW + 100)
    assert len(signatures) == 1


def test_a_bad_signature_is_remembered(signatures: list[bytes]) -> None:
    using = verifier()
    bad = REFUSED["changed signature"]
    assert [outcome(bad, using) for _ in range(3)] == [Reason.JWT_INVALID] * 3
    assert len(signatures) == 1


@pytest.mark.parametrize("case", ["junk in the signature", "too much padding", "other issuer"])
def test_the_library_is_not_asked_about_what_is_no_token_of_ours(
    case: str, signatures: list[bytes]
) -> None:
    assert outcome(REFUSED[case]) is Reason.JWT_INVALID
    assert signatures == []


def test_a_flood_of_bad_tokens_drives_no_good_one_out(signatures: list[bytes]) -> None:
    using = verifier()
    text = token()
    assert outcome(text, using) == payload()
    for n in range(1500):
        assert outcome(b"bad.%d.x" % n, using) is Reason.JWT_INVALID
    assert len(using.remembered) == 1 + 1024
    assert outcome(text, using) == payload()
    assert len(signatures) == 1


def test_the_least_used_makes_room_among_its_own_kind() -> None:
    found: Remembered[str] = Remembered(limit=2)
    for key in (b"1", b"2"):
        found.add_good(key, "good")
        found.add_bad(b"-" + key)
    assert found.good(b"1") == "good"
    assert found.is_bad(b"-1")
    found.add_good(b"3", "good")
    found.add_bad(b"-3")
    assert [found.good(key) for key in (b"1", b"2", b"3")] == ["good", None, "good"]
    assert [found.is_bad(key) for key in (b"-1", b"-2", b"-3")] == [True, False, True]
    assert len(found) == 4
    found.add_bad(b"1")
    assert found.good(b"1") is None
    assert found.is_bad(b"1")


def test_1024_tokens_are_remembered() -> None:
    found: Remembered[int] = Remembered()
    for number in range(1025):
        found.add_good(b"%d" % number, number)
    assert [found.good(b"%d" % number) for number in (0, 1, 1024)] == [None, 1, 1024]


def test_what_was_remembered_ends_with_the_key(signatures: list[bytes]) -> None:
    old = verifier()
    text = token()
    assert outcome(text, old) == payload()
    same = TokenVerifier(
        [(provider(), KeySet.from_json(jwks(jwk())))],
        remembered=old.remembered,
        clock=lambda: NOW,
    )
    assert outcome(text, same) == payload()
    assert len(signatures) == 1
    rotated = KeySet.from_json(jwks(jwk("ES256", "b")))
    new = TokenVerifier([(provider(), rotated)], remembered=old.remembered, clock=lambda: NOW)
    assert outcome(text, new) is Reason.JWT_INVALID
    assert outcome(token(name="b"), new) == payload()


def test_what_was_remembered_is_for_one_provider_as_it_is_set_up() -> None:
    old = verifier()
    text = token(aud="web")
    assert outcome(text, old) == payload(aud="web")
    keys = KeySet.from_json(jwks(jwk()))
    stricter = provider(audiences=frozenset({"api"}))
    new = TokenVerifier([(stricter, keys)], remembered=old.remembered, clock=lambda: NOW)
    assert outcome(text, new) is Reason.JWT_INVALID


# -- keys that are not there yet --------------------------------------------------------------


def asking(document: bytes) -> tuple[TokenVerifier, list[str]]:
    asked: list[str] = []
    using = TokenVerifier(
        [(provider(), KeySet.from_json(document))], clock=lambda: NOW, unknown_key=asked.append
    )
    return using, asked


def test_an_unknown_key_is_asked_for_each_time() -> None:
    using, asked = asking(jwks(jwk()))
    text = token(name="new")
    assert outcome(text, using) is Reason.JWT_INVALID
    assert outcome(text, using) is Reason.JWT_INVALID
    assert asked == ["okta", "okta"]


def test_keys_without_names_are_asked_for_when_none_fits() -> None:
    using, asked = asking(jwks(jwk(kid=None)))
    assert outcome(token(name="new", headers={"kid": None}), using) is Reason.JWT_INVALID
    assert asked == ["okta"]


@pytest.mark.parametrize("case", ["other issuer", "changed signature", "not a token", "expired"])
def test_no_new_keys_are_asked_for_what_no_key_could_mend(case: str) -> None:
    using, asked = asking(jwks(jwk()))
    assert outcome(REFUSED[case], using) is Reason.JWT_INVALID
    assert asked == []


# -- what the application sees ----------------------------------------------------------------


def scrubbed(
    using: TokenVerifier, headers: list[tuple[bytes, bytes]], *, verified: bool = True
) -> list[tuple[bytes, bytes]]:
    claims: RequestClaims | None = using.claims(HTTPRequest("GET", b"/", headers))
    return list(using.scrub(headers, claims if verified else None))


def test_headers_stay_the_same_object_where_nothing_is_about_tokens() -> None:
    headers = [(b"host", b"api"), (b"accept", b"*/*")]
    using = verifier()
    assert using.scrub(headers) is headers
    assert using.scrub(headers, using.claims(HTTPRequest("GET", b"/", headers))) is headers
    assert TokenVerifier([]).scrub(headers) is headers


@pytest.mark.parametrize("text", [token(), b"opaque", b"", token(exp=1)])
@pytest.mark.parametrize("scheme", [b"Bearer ", b"bearer ", b"BEARER\t", b"  Bearer   "])
def test_the_token_is_removed_whether_good_or_bad(text: bytes, scheme: bytes) -> None:
    using = verifier()
    headers = [(b"host", b"api"), (b"Authorization", scheme + text)]
    assert scrubbed(using, headers) == [(b"host", b"api")]


def test_other_schemes_are_the_applications() -> None:
    headers = [(b"authorization", b"Basic YTpi"), (b"authorization", b"Bearerx y")]
    assert scrubbed(verifier(), headers) == headers


def test_a_forwarded_header_stays() -> None:
    using = verifier(locations=(HeaderLocation("X-Token", forward=True),))
    headers = [(b"x-token", token())]
    assert scrubbed(using, headers) == headers


def test_a_header_that_one_provider_hides_is_hidden() -> None:
    keys = KeySet.from_json(jwks(jwk()))
    shown = provider("a", locations=(HeaderLocation("x-token", forward=True),))
    hidden = provider("b", locations=(HeaderLocation("x-token", "T "), HeaderLocation("x-token")))
    using = TokenVerifier([(shown, keys), (hidden, keys)], clock=lambda: NOW)
    assert using.scrub([(b"x-token", b"a")]) == []


@pytest.mark.parametrize("name", [b"x-token", b"X_Token"])
def test_tokens_are_hidden_under_every_spelling_of_the_header(name: bytes) -> None:
    using = verifier(locations=(HeaderLocation("X-Token"),))
    assert scrubbed(using, [(name, b"whatever")]) == []


FORWARDING = Forwarding("X-JWT-Payload")


def decoded(value: bytes) -> Any:
    return json.loads(base64.urlsafe_b64decode(value + b"=="))


@pytest.mark.parametrize("pad", [True, False])
@pytest.mark.parametrize("filling", ["", "1", "12", "123"])
def test_the_payload_is_forwarded(pad: bool, filling: str) -> None:
    using = verifier(forwarding=Forwarding("X-JWT-Payload", pad=pad))
    text = token(x=filling)
    host, (name, value) = scrubbed(
        using, [(b"host", b"api"), (b"authorization", b"Bearer " + text)]
    )
    assert host == (b"host", b"api")
    assert name == b"x-jwt-payload"
    assert decoded(value) == payload(x=filling)
    assert len(value.rstrip(b"=")) == len(text.split(b".")[1])
    if pad:
        assert len(value) % 4 == 0
    else:
        assert not value.endswith(b"=")


@pytest.mark.parametrize("name", [b"x-jwt-payload", b"X-JWT-Payload", b"x_jwt_payload"])
@pytest.mark.parametrize("text", [None, b"bad", token()])
@pytest.mark.parametrize("verified", [True, False])
def test_a_payload_header_from_a_client_is_removed(
    name: bytes, text: bytes | None, verified: bool
) -> None:
    using = verifier(forwarding=FORWARDING)
    headers = [(name, b"Zm9yZ2Vk"), (b"host", b"api")]
    if text is not None:
        headers.append((b"authorization", b"Bearer " + text))
    found = scrubbed(using, headers, verified=verified)
    assert (b"host", b"api") in found
    assert b"Zm9yZ2Vk" not in {value for _, value in found}
    assert len(found) == (2 if verified and text == token_that_counts(text) else 1)


def token_that_counts(text: bytes | None) -> bytes | None:
    """`text`, if it looks like one of ours."""
    return text if text is not None and text.count(b".") == 2 else b"none"


def test_a_payload_header_that_is_a_token_header_too_is_removed() -> None:
    using = verifier(
        locations=(HeaderLocation("x-token", "T ", forward=True), HeaderLocation("x-token", "T ")),
        forwarding=Forwarding("x-token"),
    )
    assert using.scrub([(b"x-token", b"something else")]) == []


def test_each_provider_forwards_what_it_verified() -> None:
    keys = KeySet.from_json(jwks(jwk()))
    providers = [
        provider("one", forwarding=Forwarding("x-one")),
        provider("two", forwarding=Forwarding("x-two"), issuer="https://two.example"),
        provider("three"),
    ]
    using = TokenVerifier([(each, keys) for each in providers], clock=lambda: NOW)
    found = scrubbed(using, [(b"authorization", b"Bearer " + token())])
    assert [name for name, _ in found] == [b"x-one"]
