"""Raw tokens of requests, judged with the keys that the document's own providers bring.

Nothing is fetched and no file is read here: keys count when they stand in the entry
(``JSONWebKeySet.Local.JWKS``). Everything else is as at run time, expiry included.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from mesh_middleware.consul.decode_provider import decode_provider
from mesh_middleware.policy.jwt import BadToken, JWTProvider
from mesh_middleware.policy.request import HTTPRequest
from mesh_middleware.tls.jwks import NO_KEYS, KeySet
from mesh_middleware.tls.locations import DEFAULT_LOCATIONS
from mesh_middleware.tls.providers import LocalJWKS, TokenProvider
from mesh_middleware.tls.tokens import TokenVerifier


def brings_keys(entry: Mapping[str, Any]) -> bool:
    """Whether a ``jwt-provider`` entry says where its keys are; `check` does not insist."""
    return any(key.replace("_", "").lower() == "jsonwebkeyset" for key in entry)


def provider_with_keys(entry: Mapping[str, Any]) -> tuple[TokenProvider, KeySet]:
    """The provider of an entry, and its keys if they stand in it.

    DecodeError when entry or keys cannot be used; ConfigError without the library for tokens.
    """
    provider = decode_provider(entry, allow_http=True)
    # The document says "this request has this token", wherever it would travel.
    anywhere = replace(provider, locations=DEFAULT_LOCATIONS)
    if isinstance(provider.keys, LocalJWKS) and provider.keys.document:
        return anywhere, KeySet.from_json(provider.keys.document)
    return anywhere, NO_KEYS


def claims_of(
    token: str, providers: Iterable[JWTProvider], verifier: TokenVerifier
) -> Mapping[str, Mapping[str, Any] | BadToken]:
    """Provider name to the token's payload, or why the provider cannot prove it."""
    line = b"Bearer " + token.encode("utf-8", "surrogatepass")
    request = HTTPRequest("GET", b"/", [(b"authorization", line)])
    found = verifier.claims(request)
    with_keys = {provider.name for provider in verifier.providers}

    def judged(name: str) -> Mapping[str, Any] | BadToken:
        payload = found.get(name)
        if isinstance(payload, Mapping):
            return payload
        if name not in with_keys:
            return BadToken("the provider's entry brings no keys")
        return BadToken(verifier.why(name, request) or "it is empty")

    return {provider.name: judged(provider.name) for provider in providers}
