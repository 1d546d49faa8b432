"""Who may sign tokens, and how: a ``jwt-provider`` config entry as a value.

Source: Consul, ``jwt-provider`` configuration entry.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from mesh_middleware.tls.locations import (
    DEFAULT_LOCATIONS,
    HeaderLocation,
    Location,
    check_header_name,
)

CLOCK_SKEW_SECONDS: Final = 30.0
"""How far clocks may be apart. Consul stores this number where an entry has none."""

CACHE_SECONDS: Final = 300.0
"""How long fetched keys are good. Consul's documentation says so for an entry without one."""

FETCH_SECONDS: Final = 5.0
"""How long a fetch may take, where an entry does not say."""


@dataclass(frozen=True, slots=True)
class LocalJWKS:
    """Keys that come with the entry: as a JWKS `document`, or in the file `filename`."""

    document: bytes = b""
    filename: str = ""


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """What to do when a fetch fails: `retries` more, `base_seconds` doubling to `max_seconds`."""

    retries: int = 0
    base_seconds: float = 1.0
    max_seconds: float = 10.0


@dataclass(frozen=True, slots=True)
class TrustedCA:
    """Which CAs may vouch for the server that has the keys: at most one field is not empty.

    None of them: the system's. `variable` names an environment variable with PEM text.
    """

    filename: str = ""
    variable: str = ""
    pem: str = ""


@dataclass(frozen=True, slots=True)
class RemoteJWKS:
    """Keys that are fetched from `uri`. All times in seconds, positive."""

    uri: str
    timeout_seconds: float = FETCH_SECONDS
    cache_seconds: float = CACHE_SECONDS
    retry: RetryPolicy = RetryPolicy()
    ca: TrustedCA = TrustedCA()


@dataclass(frozen=True, slots=True)
class Forwarding:
    """The header that brings a verified payload to the application, base64url.

    `pad`: with ``=`` at its end, to a multiple of four characters.
    """

    header: str
    pad: bool = False

    def __post_init__(self) -> None:
        check_header_name(self.header)


@dataclass(frozen=True, slots=True)
class HiddenHeaders:
    """What applications do not see of a client's headers because of a provider.

    `tokens`: headers with tokens. `payloads`: names that only we may use. They are known of
    entries too that are of no other use.
    """

    tokens: tuple[HeaderLocation, ...] = ()
    payloads: tuple[str, ...] = ()

    @classmethod
    def of(cls, locations: Iterable[Location], forwarding: Forwarding | None) -> HiddenHeaders:
        """What a provider with these hides; not the headers that its entry forwards."""
        tokens = (each for each in locations if isinstance(each, HeaderLocation))
        return cls(
            tuple(each for each in tokens if not each.forward),
            () if forwarding is None else (forwarding.header,),
        )

    def __or__(self, other: HiddenHeaders) -> HiddenHeaders:
        """What either hides."""
        return HiddenHeaders(
            tuple(dict.fromkeys(self.tokens + other.tokens)),
            tuple(dict.fromkeys(self.payloads + other.payloads)),
        )


@dataclass(frozen=True, slots=True)
class TokenProvider:
    """One issuer of tokens, as intentions name it.

    A token counts when one of the provider's keys signed it, its ``iss`` equals `issuer` (which is
    never so for an empty issuer), `audiences` is empty or has one of its ``aud``, and now is
    between ``nbf`` and ``exp``, give or take `clock_skew_seconds`.
    """

    name: str
    issuer: str
    keys: LocalJWKS | RemoteJWKS
    audiences: frozenset[str] = frozenset()
    locations: tuple[Location, ...] = DEFAULT_LOCATIONS
    forwarding: Forwarding | None = None
    clock_skew_seconds: float = CLOCK_SKEW_SECONDS

    @property
    def hidden(self) -> HiddenHeaders:
        """What applications do not see because of this provider."""
        return HiddenHeaders.of(self.locations, self.forwarding)
