"""Tokens of requests turned into verified payloads, at most once a request and provider.

How a token is judged for one provider:

1. It is the only token in the first of the provider's locations that has any. None: no claims.
2. At most `MAX_TOKEN` bytes, three parts of base64url; header and payload are JSON objects; no
   ``crit``.
3. ``iss`` is the provider's issuer. Asked before the signature, because several providers may
   look at the same header and only one of them can know the key.
4. A key of the provider, for the algorithm that the key allows, signed it (`tls.jwks`).
5. ``aud`` has one of the provider's audiences, if it names any.
6. Now is before ``exp`` and not before ``nbf``, give or take the clock skew. Both may be absent.

What passed 1 to 5 is remembered by a hash over provider, keys and token; 6 is asked each time.

Source: RFC 7519, RFC 8725; Consul, ``jwt-provider``.
"""

from __future__ import annotations

import hashlib
import json
import re
import time
from base64 import b64decode
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final

from mesh_middleware.policy.decision import Reason
from mesh_middleware.policy.jwt import JWTProvider
from mesh_middleware.policy.request import HTTPRequest
from mesh_middleware.tls.jwks import KeySet
from mesh_middleware.tls.locations import HeaderLocation, same_name, tokens_at
from mesh_middleware.tls.providers import HiddenHeaders, TokenProvider
from mesh_middleware.tls.remembered import Remembered
from mesh_middleware.tls.signatures import signed_payload

Headers = Sequence[tuple[bytes, bytes]]

MAX_TOKEN: Final = 16 * 1024
"""Bytes of a token; servers limit a header line to about as much."""

_TOKEN: Final = re.compile(rb"[\w-]+={0,2}\.[\w-]+={0,2}\.[\w-]+={0,2}")  # base64url, three times
_LATEST: Final = 2**53  # seconds; beyond it a JSON number is no longer exact


@dataclass(frozen=True, slots=True)
class VerifiedToken:
    """A token that its issuer made for us. `segment`: its payload, base64url without padding.

    It counts from `not_before` until `expires`, unix seconds; None: no such limit.
    """

    payload: Mapping[str, Any]
    segment: bytes
    not_before: float | None
    expires: float | None


def _nobody(provider: str) -> None:
    """Nobody wants to know of unknown keys."""


class TokenVerifier:
    """The providers that a policy asks for, with the keys they have now. Immutable, thread-safe.

    `providers`: each with its keys. `hidden`: what is hidden besides, for providers that cannot be
    used. `remembered`: what was verified before; hand the one of the
    verifier that this one replaces. `clock`: unix seconds. `unknown_key`: called, from any thread,
    with the name of a provider whose keys do not fit a token that names it as issuer.
    """

    __slots__ = ("_clock", "_hidden", "_judges", "_unknown_key", "providers", "remembered")

    def __init__(
        self,
        providers: Iterable[tuple[TokenProvider, KeySet]],
        *,
        hidden: Iterable[HiddenHeaders] = (),
        remembered: Remembered[VerifiedToken] | None = None,
        clock: Callable[[], float] = time.time,
        unknown_key: Callable[[str], object] = _nobody,
    ) -> None:
        self._judges = {provider.name: _Judge(provider, keys) for provider, keys in providers}
        self.providers = tuple(judge.provider for judge in self._judges.values())
        self.remembered = Remembered[VerifiedToken]() if remembered is None else remembered
        self._clock = clock
        self._unknown_key = unknown_key
        self._hidden = _hidden_locations(
            [*(provider.hidden for provider in self.providers), *hidden]
        )

    @property
    def issuers(self) -> tuple[JWTProvider, ...]:
        """What `compile_policy` needs to know of the providers."""
        return tuple(JWTProvider(provider.name, provider.issuer) for provider in self.providers)

    def claims(self, request: HTTPRequest) -> RequestClaims:
        """The claims of a request, verified when asked for."""
        return RequestClaims(self, request)

    def verify(self, name: str, request: HTTPRequest) -> VerifiedToken | Reason | None:
        """The token of a request for the provider `name`.

        None: it has none, or there is no such provider. JWT_INVALID: what it has is not good.
        """
        judge = self._judges.get(name)
        if judge is None:
            return None
        tokens = tokens_at(judge.provider.locations, request)
        if not tokens:
            return None
        if len(tokens) > 1 or len(tokens[0]) > MAX_TOKEN:
            return Reason.JWT_INVALID
        return self._verified(judge, tokens[0]) or Reason.JWT_INVALID

    def why(self, name: str, request: HTTPRequest) -> str:
        """What is wrong with the token that `verify` calls JWT_INVALID, in words; else empty.

        It is judged anew, for people who ask. Nothing of the token is repeated.
        """
        judge = self._judges.get(name)
        tokens = [] if judge is None else tokens_at(judge.provider.locations, request)
        if judge is None or not tokens:
            return ""
        if len(tokens) > 1:
            return "there are several in one place"
        if len(tokens[0]) > MAX_TOKEN:
            return f"it has more than {MAX_TOKEN} bytes"
        judged = judge.judge(tokens[0])
        if isinstance(judged, _Refused):
            return judged.why
        now, skew = self._clock(), judge.provider.clock_skew_seconds
        if _is_over(judged, now - skew):
            return "its time (exp) is over"
        return "its time (nbf) is still to come" if _is_early(judged, now + skew) else ""

    def _verified(self, judge: _Judge, token: bytes) -> VerifiedToken | None:
        key = hashlib.sha256(judge.fingerprint + token).digest()
        if self.remembered.is_bad(key):
            return None
        found = self.remembered.good(key)
        if found is None:
            judged = judge.judge(token)
            if judged is _KEY_UNKNOWN:  # not remembered: the key may come any moment
                self._unknown_key(judge.provider.name)
                return None
            if isinstance(judged, _Refused):
                self.remembered.add_bad(key)
                return None
            found = judged
            self.remembered.add_good(key, found)
        now, skew = self._clock(), judge.provider.clock_skew_seconds
        if _is_over(found, now - skew):
            self.remembered.add_bad(key)
            return None
        return None if _is_early(found, now + skew) else found

    def scrub(self, headers: Headers, claims: RequestClaims | None = None) -> Headers:
        """What the application sees of an allowed request's headers.

        Tokens are removed but where the provider forwards them, verified or not. So are headers
        that have the name of a payload header; the payloads of the request's good tokens are put
        there instead, none without `claims`. `headers` itself is returned where nothing changes.
        """
        kept = headers
        if any(self._is_hidden(name, value) for name, value in headers):
            kept = [line for line in headers if not self._is_hidden(*line)]
        if claims is None:
            return kept
        added = [
            (judge.payload_header, _padded(found.segment) if judge.pads else found.segment)
            for judge in self._judges.values()
            if judge.payload_header
            and isinstance(found := claims.token(judge.provider.name), VerifiedToken)
        ]
        return [*kept, *added] if added else kept

    def _is_hidden(self, name: bytes, value: bytes) -> bool:
        locations = self._hidden.get(same_name(name))
        if locations is None:
            return False
        return not locations or any(where.token_of(value) is not None for where in locations)

    def __repr__(self) -> str:
        names = ", ".join(
            f"{name}: {len(judge.keys.keys)} keys" for name, judge in self._judges.items()
        )
        return f"<TokenVerifier {names or 'without providers'}>"


class RequestClaims(Mapping[str, Any]):
    """Provider name -> payload of the request's token, or the `Reason` why it has none.

    A provider without a token is not in it. Each is verified when it is first asked for.
    """

    __slots__ = ("_found", "_request", "_verifier")

    def __init__(self, verifier: TokenVerifier, request: HTTPRequest) -> None:
        self._verifier = verifier
        self._request = request
        self._found: dict[str, VerifiedToken | Reason | None] = {}

    def token(self, provider: str) -> VerifiedToken | Reason | None:
        """The verified token, JWT_INVALID, or None when there is no token."""
        try:
            return self._found[provider]
        except KeyError:
            found = self._found[provider] = self._verifier.verify(provider, self._request)
            return found

    def __getitem__(self, provider: str) -> Mapping[str, Any] | Reason:
        found = self.token(provider)
        if found is None:
            raise KeyError(provider)
        return found.payload if isinstance(found, VerifiedToken) else found

    def __iter__(self) -> Iterator[str]:
        names = (provider.name for provider in self._verifier.providers)
        return (name for name in names if self.token(name) is not None)

    def __len__(self) -> int:
        return sum(1 for _ in self)


@dataclass(frozen=True, slots=True)
class _Refused:
    """A token that can never count; `why` in words that repeat nothing of it."""

    why: str


# But this one may count with a newer set of keys.
_KEY_UNKNOWN: Final = _Refused("no key of the provider that is known here signed it")


class _Judge:
    """Steps 2 to 5 for one provider and its keys."""

    __slots__ = ("fingerprint", "keys", "pads", "payload_header", "provider")

    def __init__(self, provider: TokenProvider, keys: KeySet) -> None:
        self.provider = provider
        self.keys = keys
        about = repr(provider).encode("utf-8", "surrogateescape")
        self.fingerprint = hashlib.sha256(about + keys.digest).digest()
        forwarding = provider.forwarding
        self.payload_header = b"" if forwarding is None else forwarding.header.lower().encode()
        self.pads = forwarding is not None and forwarding.pad

    def judge(self, token: bytes) -> VerifiedToken | _Refused:
        """The token, or why it does not count."""
        if not _TOKEN.fullmatch(token):
            return _Refused("it is not a signed JWT of three parts")
        parts = token.split(b".")
        header, claimed = _json_object(_decoded(parts[0])), _json_object(_decoded(parts[1]))
        if header is None or claimed is None:
            return _Refused("its header or payload is not a JSON object")
        if "crit" in header:
            return _Refused("its header has crit")
        if not self.provider.issuer or claimed.get("iss") != self.provider.issuer:
            return _Refused(f"its iss is not the provider's Issuer, {self.provider.issuer!r}")
        kid, algorithm = header.get("kid"), header.get("alg")
        if not isinstance(kid, str | None) or not isinstance(algorithm, str):
            return _Refused("its kid or alg is not text")
        payload = self._signed(token, kid, algorithm)
        if payload is None:
            if not self.keys.names(kid):
                return _KEY_UNKNOWN
            return _Refused("the key of its kid did not sign it, or is not for its alg")
        return self._accepted(payload, parts[1])

    def _signed(self, token: bytes, kid: str | None, algorithm: str) -> Mapping[str, Any] | None:
        for key in self.keys.candidates(kid, algorithm):
            payload = signed_payload(token, key)
            if payload is not None:
                return _json_object(payload)
        return None

    def _accepted(self, payload: Mapping[str, Any], segment: bytes) -> VerifiedToken | _Refused:
        wanted = self.provider.audiences
        if wanted and wanted.isdisjoint(_audiences(payload.get("aud"))):
            return _Refused("its aud has none of the provider's Audiences")
        expires, not_before = payload.get("exp"), payload.get("nbf")
        if not _is_time(expires) or not _is_time(not_before):
            return _Refused("its exp or nbf is not a number of seconds")
        return VerifiedToken(MappingProxyType(payload), segment.rstrip(b"="), not_before, expires)


def _hidden_locations(
    hidden: Iterable[HiddenHeaders],
) -> Mapping[bytes, tuple[HeaderLocation, ...]]:
    """Headers that applications do not see, by `same_name`; those of payloads have no locations.

    A payload header is removed whatever it holds, even one that is a token location too.
    """
    found: dict[bytes, tuple[HeaderLocation, ...]] = {}
    payloads: list[str] = []
    for each in hidden:
        payloads += each.payloads
        for location in each.tokens:
            name = same_name(location.name.encode())
            found[name] = (*found.get(name, ()), location)
    return found | {same_name(name.encode()): () for name in payloads}


def _decoded(segment: bytes) -> bytes:
    try:
        return b64decode(segment + b"=" * (-len(segment) % 4), altchars=b"-_")
    except ValueError:
        return b""


def _padded(segment: bytes) -> bytes:
    return segment + b"=" * (-len(segment) % 4)


def _json_object(text: bytes) -> dict[str, Any] | None:
    try:
        value = json.loads(text.decode())  # bytes could be read as UTF-16
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _audiences(aud: Any) -> Iterable[str]:
    if isinstance(aud, str):
        return (aud,)
    return [item for item in aud if isinstance(item, str)] if isinstance(aud, list) else ()


def _is_over(token: VerifiedToken, at: float) -> bool:
    return token.expires is not None and at >= token.expires


def _is_early(token: VerifiedToken, at: float) -> bool:
    return token.not_before is not None and at < token.not_before


def _is_time(value: Any) -> bool:
    """Whether ``exp`` or ``nbf`` is absent, or a number that can be compared."""
    if value is None:
        return True
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < _LATEST
