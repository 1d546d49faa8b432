"""Which keys of a JWKS are used, and for what."""

from __future__ import annotations

import base64
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from hypothesis import given
from hypothesis import strategies as st
from jwt.algorithms import RSAAlgorithm

from mesh_middleware.errors import ConfigError, DecodeError
from mesh_middleware.policy.decision import Reason
from mesh_middleware.tls import signatures
from mesh_middleware.tls.jwks import MAX_DOCUMENT, MAX_KEYS, KeySet
from mesh_middleware.tls.tokens import VerifiedToken
from tests.fuzzing import fuzz
from tests.tls.tokens import ALGORITHMS, bearer, jwk, jwks, private_key, token, verifier

RSA_ALGORITHMS = ["RS256", "RS384", "RS512", "PS256", "PS384", "PS512"]


def algorithms(**changes: Any) -> list[str]:
    of = "RS256" if changes.get("kty", "RSA") == "RSA" else "ES256"
    (key,) = KeySet.from_json(jwks(jwk(of, **changes))).keys
    return list(key.algorithms)


def test_an_rsa_key_is_for_the_rsa_algorithms() -> None:
    assert algorithms() == RSA_ALGORITHMS


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_key_may_name_its_algorithm(algorithm: str) -> None:
    (key,) = KeySet.from_json(jwks(jwk(algorithm, alg=algorithm))).keys
    assert list(key.algorithms) == [algorithm]


@pytest.mark.parametrize("algorithm", ["ES256", "ES384", "ES512", "EdDSA"])
def test_other_keys_are_for_the_one_of_their_curve(algorithm: str) -> None:
    (key,) = KeySet.from_json(jwks(jwk(algorithm, use="sig", key_ops=["verify"]))).keys
    assert list(key.algorithms) == [algorithm]


def weak_key() -> dict[str, Any]:
    key = rsa.generate_private_key(public_exponent=65537, key_size=1024)
    return dict(RSAAlgorithm.to_jwk(key.public_key(), as_dict=True))


def private_jwk() -> dict[str, Any]:
    return {**RSAAlgorithm.to_jwk(private_key("RS256"), as_dict=True), "key_ops": ["verify"]}


_MEGA = base64.urlsafe_b64encode(b"\xff" * 2048).decode()

UNUSABLE: list[tuple[Any, str]] = [
    ("text", "not an object"),
    (None, "not an object"),
    (jwk(kid=1), "kid is not text"),
    (jwk(use="enc"), "use is not 'sig'"),
    (jwk(use=["sig"]), "use is not 'sig'"),
    (jwk(key_ops=["sign"]), "key_ops"),
    (jwk(key_ops="verify"), "key_ops"),
    (private_jwk(), "private key"),
    (jwk("RS256", alg="HS256"), "its alg is not RS256"),
    (jwk("RS256", alg="none"), "its alg is not"),
    (jwk("RS256", alg="ES256"), "its alg is not"),
    (jwk("ES256", alg="ES384"), "its alg is not ES256"),
    (jwk("ES256", alg=["ES256"]), "its alg is not ES256"),
    (jwk("EdDSA", alg="ES256"), "its alg is not EdDSA"),
    ({"kty": "oct", "k": "c2VjcmV0", "alg": "HS256"}, "kty and crv"),
    ({"kty": "oct", "k": "c2VjcmV0"}, "kty and crv"),
    (jwk(kty="RSA"), "n is not base64url"),
    (jwk(kty=["EC"]), "kty and crv"),
    (jwk(crv="secp256k1"), "kty and crv"),
    (jwk(crv=None), "kty and crv"),
    (jwk("EdDSA", crv="Ed448"), "kty and crv"),
    (jwk("EdDSA", crv="X25519"), "kty and crv"),
    ({}, "kty and crv"),
    (weak_key(), "2048 to 8192 bits, this one 1024"),
    (jwk("RS256", n=_MEGA), "2048 to 8192 bits, this one 16384"),
    (jwk("RS256", n="a"), "n is not base64url"),
    (jwk("RS256", n=5), "n is not base64url"),
    (jwk("RS256", e="AQ"), "not a key for RS256"),
    (jwk("RS256", e=None), "not a key for RS256"),
    (jwk("ES256", x="AAAA"), "not a key for ES256"),
    (jwk("ES256", y=jwk("ES256")["x"]), "not a key for ES256"),
    (jwk("EdDSA", x="AAAA"), "not a key for EdDSA"),
]


@pytest.mark.parametrize(("key", "problem"), UNUSABLE)
def test_a_key_that_cannot_be_used_is_left_out_and_named(key: Any, problem: str) -> None:
    keys = KeySet.from_json(jwks(key, jwk()))
    assert [found.kid for found in keys.keys] == ["a"]
    (said,) = keys.problems
    assert said.startswith("keys[0]: ")
    assert problem in said


@pytest.mark.parametrize("key", [private_jwk(), weak_key()])
def test_problems_show_nothing_of_the_key(key: dict[str, Any]) -> None:
    (said,) = KeySet.from_json(jwks(key)).problems
    assert not any(key[member] in said for member in ("n", "e"))


def test_a_set_has_at_most_so_many_keys() -> None:
    keys = KeySet.from_json(jwks(*[jwk()] * (MAX_KEYS + 2)))
    assert len(keys.keys) == MAX_KEYS
    assert keys.problems == ("keys[64] and later: left out, 64 keys are enough",)
    assert KeySet.from_json(jwks(*[jwk()] * MAX_KEYS)).problems == ()


@pytest.mark.parametrize(
    "document",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b"{}",
        b'{"keys": null}',
        b'{"keys": {}}',
        b"\xff",
        b"[" * 100_000,
        jwks(jwk()) + b" " * MAX_DOCUMENT,
    ],
)
def test_what_is_no_key_set_is_refused(document: bytes) -> None:
    with pytest.raises(DecodeError):
        KeySet.from_json(document)


def test_an_empty_set_is_a_set() -> None:
    assert KeySet.from_json(b'{"keys": []}').keys == ()


def test_sets_of_different_documents_differ() -> None:
    first, second = KeySet.from_json(jwks(jwk())), KeySet.from_json(jwks(jwk("ES256", "b")))
    assert first.digest != second.digest
    assert first.digest == KeySet.from_json(jwks(jwk())).digest


# -- the library ------------------------------------------------------------------------------


def test_a_missing_library_is_said_with_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    assert signatures.library_present()
    monkeypatch.setitem(sys.modules, "jwt", None)
    assert not signatures.library_present()
    with pytest.raises(ConfigError, match=r"install mesh-middleware\[jwt\]"):
        KeySet.from_json(jwks(jwk()))


def test_importing_does_not_load_the_library() -> None:
    program = "import sys, mesh_middleware.tls.tokens; sys.exit('jwt' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


def test_one_module_knows_the_library() -> None:
    package = Path(signatures.__file__).parent.parent
    users = [path.name for path in package.rglob("*.py") if '"jwt"' in path.read_text()]
    assert users == ["signatures.py"]


# -- anything at all --------------------------------------------------------------------------

_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner),
    max_leaves=6,
)
_MEMBERS = st.sampled_from(
    ["kty", "crv", "alg", "use", "key_ops", "kid", "n", "e", "x", "y", "d", "k"]
)
_VALUES = _JSON | st.sampled_from(
    ["RSA", "EC", "OKP", "oct", "P-256", "Ed25519", "ES256", "RS256", "none", "HS256", "sig"]
)


@given(st.binary(max_size=200))
def test_any_bytes_are_a_key_set_or_a_decode_error(document: bytes) -> None:
    try:
        KeySet.from_json(document)
    except DecodeError:
        return


@fuzz(100, cost=4)
@given(
    st.sampled_from(["RS256", "ES256", "ES384", "EdDSA"]),
    st.dictionaries(_MEMBERS, _VALUES, max_size=4),
)
def test_any_key_is_used_for_what_it_is_or_left_out(
    algorithm: str, changes: dict[str, Any]
) -> None:
    keys = KeySet.from_json(json.dumps({"keys": [{**jwk(algorithm), **changes}]}).encode())
    assert len(keys.keys) + len(keys.problems) == 1
    for key in keys.keys:
        assert set(key.algorithms) <= set(ALGORITHMS)


_USING = verifier()
_GOOD = token()


@given(st.binary(max_size=300))
def test_any_bytes_as_a_token_are_invalid(text: bytes) -> None:
    assert _USING.claims(bearer(b"x" + text)).get("okta") is Reason.JWT_INVALID


@given(
    st.integers(0, len(_GOOD) - 1),
    st.binary(min_size=1, max_size=3).filter(lambda more: more.strip(b"= \t\x00") != b""),
    st.booleans(),
)
def test_a_token_that_was_changed_anywhere_is_invalid(at: int, more: bytes, insert: bool) -> None:
    text = _GOOD[:at] + more + _GOOD[at if insert else at + len(more) :]
    found = _USING.claims(bearer(text)).token("okta")
    assert text == _GOOD or not isinstance(found, VerifiedToken)


@fuzz(100, cost=4)
@given(_JSON, _JSON, st.binary(max_size=70))
def test_any_header_and_payload_are_invalid_unsigned(
    header: Any, claims: Any, signature: bytes
) -> None:
    parts = [json.dumps(header).encode(), json.dumps(claims).encode(), signature]
    text = b".".join(base64.urlsafe_b64encode(part).rstrip(b"=") for part in parts)
    assert _USING.claims(bearer(text)).get("okta") is Reason.JWT_INVALID
