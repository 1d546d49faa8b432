"""A JSON Web Key Set turned into keys, each with the algorithms it may be used for.

The *key* says which algorithm verifies, never the token: a token that could choose would choose
``none``, or take an RSA public key for an HMAC secret. So each key gets its list here:

==========================  ===============================================
key                         algorithms
==========================  ===============================================
``RSA``, 2048 to 8192 bits  RS256 RS384 RS512 PS256 PS384 PS512
``EC`` ``P-256``            ES256
``EC`` ``P-384``            ES384
``EC`` ``P-521``            ES512
``OKP`` ``Ed25519``         EdDSA
==========================  ===============================================

An ``alg`` in the key leaves only that one. Symmetric keys are never used: who can check a token
could make one. A key that cannot be used is left out and named in `problems`.

Source: RFC 7517, RFC 7518 6, RFC 8037, RFC 8725 3.1.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from mesh_middleware.errors import DecodeError
from mesh_middleware.tls.signatures import load_key

if TYPE_CHECKING:
    from jwt import PyJWK

MAX_DOCUMENT: Final = 1024 * 1024
"""Bytes of a JWKS document."""

MAX_KEYS: Final = 64
"""Keys of one set; with more, the first ones count."""

_RSA: Final = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512")
_RSA_BITS: Final = range(2048, 8192 + 1)  # a longer one makes each verification slow
_CURVES: Final[Mapping[tuple[str, str], tuple[str, ...]]] = {
    ("EC", "P-256"): ("ES256",),
    ("EC", "P-384"): ("ES384",),
    ("EC", "P-521"): ("ES512",),
    ("OKP", "Ed25519"): ("EdDSA",),
}


@dataclass(frozen=True, slots=True)
class VerificationKey:
    """One public key: its ``kid``, and what verifies for each algorithm it is for."""

    kid: str | None
    algorithms: Mapping[str, PyJWK] = field(repr=False)


@dataclass(frozen=True, slots=True)
class KeySet:
    """The usable keys of one document. `digest`: SHA-256 of the document."""

    digest: bytes = field(repr=False)
    keys: tuple[VerificationKey, ...] = ()
    problems: tuple[str, ...] = ()

    @classmethod
    def from_json(cls, document: bytes) -> KeySet:
        """The keys of a JWKS document; DecodeError when it is none, however few keys are usable.

        ConfigError when the library for tokens is missing.
        """
        if len(document) > MAX_DOCUMENT:
            raise DecodeError(f"a JWKS has at most {MAX_DOCUMENT} bytes")
        try:
            fields = json.loads(document)
        except (ValueError, RecursionError) as error:
            raise DecodeError("the JWKS is not JSON") from error
        items = fields.get("keys") if isinstance(fields, dict) else None
        if not isinstance(items, list):
            raise DecodeError("a JWKS is an object with a list", field="keys")
        keys = []
        problems = []
        for n, item in enumerate(items[:MAX_KEYS]):
            try:
                keys.append(_key(item))
            except DecodeError as error:
                problems.append(f"keys[{n}]: {error}")
        if len(items) > MAX_KEYS:
            problems.append(f"keys[{MAX_KEYS}] and later: left out, {MAX_KEYS} keys are enough")
        return cls(hashlib.sha256(document).digest(), tuple(keys), tuple(problems))

    def candidates(self, kid: str | None, algorithm: str) -> list[PyJWK]:
        """The keys to try for a token: those of its `kid`, else those without one.

        A token without a kid is tried with all keys of its algorithm.
        """
        named = [key for key in self.keys if kid is None or key.kid == kid]
        keys = named or [key for key in self.keys if key.kid is None]
        return [key.algorithms[algorithm] for key in keys if algorithm in key.algorithms]

    def names(self, kid: str | None) -> bool:
        """Whether the set has a key of this name."""
        return kid is not None and any(key.kid == kid for key in self.keys)


NO_KEYS: Final = KeySet(b"")
"""What is there before the first fetch."""


def _key(item: Any) -> VerificationKey:
    if not isinstance(item, dict):
        raise DecodeError("left out, it is not an object")
    kid = item.get("kid")
    if not isinstance(kid, str | None):
        raise DecodeError("left out, its kid is not text")
    if item.get("use", "sig") != "sig":
        raise DecodeError("left out, its use is not 'sig'")
    operations = item.get("key_ops", ["verify"])
    if not isinstance(operations, list) or "verify" not in operations:
        raise DecodeError("left out, its key_ops have no 'verify'")
    if "d" in item:
        raise DecodeError("left out, it is a private key: whoever read it can sign")
    algorithms = _algorithms(item)
    if (alg := item.get("alg")) is not None:
        if alg not in algorithms:
            raise DecodeError(f"left out, its alg is not {' or '.join(algorithms)}")
        algorithms = (alg,)
    return VerificationKey(kid, {name: load_key(item, name) for name in algorithms})


def _algorithms(item: Mapping[str, Any]) -> tuple[str, ...]:
    kty = item.get("kty")
    if kty == "RSA":
        bits = _modulus_bits(item.get("n"))
        if bits not in _RSA_BITS:
            raise DecodeError(f"left out, RSA keys have 2048 to 8192 bits, this one {bits}")
        return _RSA
    crv = item.get("crv")
    if isinstance(kty, str) and isinstance(crv, str) and (kty, crv) in _CURVES:
        return _CURVES[kty, crv]
    raise DecodeError("left out, its kty and crv are none that verify tokens here")


def _modulus_bits(text: Any) -> int:
    try:
        modulus = base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
    except (TypeError, ValueError) as error:
        raise DecodeError("left out, its n is not base64url") from error
    return int.from_bytes(modulus, "big").bit_length()
