"""Issuers for the tests: real keys, their JWKS, and tokens signed by them."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from functools import cache
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from jwt.algorithms import get_default_algorithms

from mesh_middleware.policy.request import HTTPRequest
from mesh_middleware.tls.jwks import KeySet
from mesh_middleware.tls.providers import LocalJWKS, TokenProvider
from mesh_middleware.tls.tokens import TokenVerifier

NOW = 1_800_000_000.0
ISSUER = "https://issuer.example"

_CURVES = {"ES256": ec.SECP256R1(), "ES384": ec.SECP384R1(), "ES512": ec.SECP521R1()}
ALGORITHMS = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512", *_CURVES, "EdDSA")


def private_key(algorithm: str, name: str = "a") -> Any:
    """The same key for the same name and kind of key, within one run."""
    return _private_key("RSA" if algorithm.startswith(("RS", "PS")) else algorithm, name)


@cache
def _private_key(kind: str, name: str) -> Any:
    del name
    if kind == "RSA":
        return rsa.generate_private_key(public_exponent=65537, key_size=2048)
    if kind == "EdDSA":
        return ed25519.Ed25519PrivateKey.generate()
    return ec.generate_private_key(_CURVES[kind])


def jwk(algorithm: str = "ES256", name: str = "a", **changes: Any) -> dict[str, Any]:
    """The public JWK of a key; a change to None takes a member out."""
    key = private_key(algorithm, name).public_key()
    found = dict(get_default_algorithms()[algorithm].to_jwk(key, as_dict=True))
    found.pop("key_ops", None)
    found |= {"kid": name, **changes}
    return {member: value for member, value in found.items() if value is not None}


def jwks(*keys: Any) -> bytes:
    return json.dumps({"keys": list(keys)}).encode()


def payload(**changes: Any) -> dict[str, Any]:
    """A good payload; a change to None takes a claim out."""
    found = {"iss": ISSUER, "sub": "alice", "exp": NOW + 600, **changes}
    return {claim: value for claim, value in found.items() if value is not None}


def token(
    algorithm: str = "ES256",
    name: str = "a",
    headers: Mapping[str, Any] | None = None,
    **claims: Any,
) -> bytes:
    """A token with `payload(**claims)`; `headers` are added to its ``kid``."""
    header = {"kid": name, **(headers or {})}
    header = {key: value for key, value in header.items() if value is not None}
    key = private_key(algorithm, name)
    return jwt.encode(payload(**claims), key, algorithm, headers=header).encode()


def raw_token(header: Any, claims: Any, signature: bytes = b"") -> bytes:
    """A token with any header, payload and signature."""
    parts = [header, claims, signature]
    texts = [part if isinstance(part, bytes) else json.dumps(part).encode() for part in parts]
    return b".".join(base64.urlsafe_b64encode(text).rstrip(b"=") for text in texts)


def provider(name: str = "okta", **settings: Any) -> TokenProvider:
    return TokenProvider(**{"name": name, "issuer": ISSUER, "keys": LocalJWKS(b"{}"), **settings})


def verifier(document: bytes | None = None, *, now: float = NOW, **settings: Any) -> TokenVerifier:
    """One provider ``okta`` with the keys of `document`; `settings` are the provider's."""
    keys = KeySet.from_json(jwks(jwk()) if document is None else document)
    return TokenVerifier([(provider(**settings), keys)], clock=lambda: now)


def bearer(text: bytes, *more: tuple[bytes, bytes], target: bytes = b"/") -> HTTPRequest:
    return HTTPRequest("GET", target, [(b"Authorization", b"Bearer " + text), *more])
