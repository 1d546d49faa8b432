"""The only module that meets PyJWT, which does the cryptography. It is loaded when first needed.

PyJWT says how a key and a token look and whether one signed the other. What is ours to say is
which keys and algorithms are asked at all (`tls.jwks`) and what the claims must be (`tls.tokens`).
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from mesh_middleware.errors import ConfigError, DecodeError

if TYPE_CHECKING:
    from jwt import PyJWK

INSTALL = "tokens cannot be verified without PyJWT: install mesh-middleware[jwt]"


def library_present() -> bool:
    """Whether tokens can be verified here."""
    try:
        _library()
    except ConfigError:
        return False
    return True


def load_key(jwk: Mapping[str, Any], algorithm: str) -> PyJWK:
    """The public key of a JWK, good for one algorithm. DecodeError when it is no such key.

    ConfigError, which says what to install, when PyJWT is missing.
    """
    library = _library()
    try:
        key: PyJWK = library.PyJWK(dict(jwk), algorithm=algorithm)
    except (library.PyJWTError, ValueError, TypeError, OverflowError) as error:
        raise DecodeError(f"not a key for {algorithm}: {type(error).__name__}") from error
    return key


def signed_payload(token: bytes, key: PyJWK) -> bytes | None:
    """The payload of `token`, if `key` signed it by the algorithm it is for; else None."""
    library = _library()
    try:
        decoded = library.PyJWS().decode_complete(token, key, algorithms=[key.algorithm_name])
    except (library.PyJWTError, ValueError, TypeError):
        return None
    payload: bytes = decoded["payload"]
    return payload


def _library() -> Any:
    try:
        return importlib.import_module("jwt")
    except ImportError as error:
        raise ConfigError(INSTALL) from error
