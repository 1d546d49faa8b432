"""Where a request carries a token: a header, a query parameter or a cookie.

A location gives every token that stands there, so that "two" can be told from "one": a client
that sends two ``Authorization`` lines hopes that two readers pick different ones.

Source: Consul, ``jwt-provider`` ``Locations``; RFC 6750 for the default ones.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final
from urllib.parse import unquote_to_bytes

from mesh_middleware.errors import ConfigError
from mesh_middleware.policy.request import HTTPRequest

_BLANK: Final = b" \t"
_HEADER_NAME = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")


def check_header_name(name: str) -> None:
    """ConfigError unless `name` can be the name of a header (RFC 9110 5.1)."""
    if not _HEADER_NAME.fullmatch(name):
        raise ConfigError(f"{name!r} cannot be the name of a header")


def same_name(name: bytes) -> bytes:
    """`name` as CGI and WSGI tell headers apart: without case, ``_`` as ``-``."""
    return name.replace(b"_", b"-").lower()


@dataclass(frozen=True, slots=True)
class HeaderLocation:
    """A header whose value starts with `prefix`, compared without case (RFC 9110 11.1).

    `forward`: whether the application sees the header too.
    """

    name: str
    prefix: str = ""
    forward: bool = False
    _name: bytes = field(init=False, repr=False, compare=False)
    _prefix: bytes = field(init=False, repr=False, compare=False)
    _blank: bool = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        check_header_name(self.name)
        prefix = self.prefix.encode("utf-8", "surrogateescape").lower()
        object.__setattr__(self, "_name", self.name.lower().encode())
        object.__setattr__(self, "_prefix", prefix.strip(_BLANK))
        object.__setattr__(self, "_blank", prefix.endswith((b" ", b"\t")))

    def tokens(self, request: HTTPRequest) -> Sequence[bytes]:
        """Every token in the header, blanks around it removed."""
        found = []
        for value in request.values(self._name):
            token = self.token_of(value)
            if token:
                found.append(token)
        return found

    def token_of(self, value: bytes) -> bytes | None:
        """What follows the prefix in a value of the header; None without the prefix."""
        value = value.strip(_BLANK)
        size = len(self._prefix)
        if value[:size].lower() != self._prefix:
            return None
        rest = value[size:]
        if self._blank and rest and rest[0] not in _BLANK:
            return None
        return rest.strip(_BLANK)


@dataclass(frozen=True, slots=True)
class QueryLocation:
    """A parameter of the query. The application sees it too: targets are never rewritten."""

    name: str

    def tokens(self, request: HTTPRequest) -> Sequence[bytes]:
        """Every value of the parameter, its escapes undone."""
        _, mark, query = request.target.partition(b"?")
        if not mark:
            return ()
        wanted = self.name.encode("utf-8", "surrogateescape")
        found = []
        for pair in query.split(b"&"):
            name, _, value = pair.partition(b"=")
            if value and unquote_to_bytes(name.replace(b"+", b" ")) == wanted:
                found.append(unquote_to_bytes(value))
        return found


@dataclass(frozen=True, slots=True)
class CookieLocation:
    """A cookie. The application sees it too."""

    name: str

    def tokens(self, request: HTTPRequest) -> Sequence[bytes]:
        """Every value of the cookie, without the quotes that RFC 6265 permits around it."""
        wanted = self.name.encode("utf-8", "surrogateescape")
        found = []
        for line in request.values(b"cookie"):
            for pair in line.split(b";"):
                name, _, value = pair.partition(b"=")
                value = value.strip(_BLANK)
                if len(value) > 1 and value.startswith(b'"') and value.endswith(b'"'):
                    value = value[1:-1]
                if value and name.strip(_BLANK) == wanted:
                    found.append(value)
        return found


Location = HeaderLocation | QueryLocation | CookieLocation

DEFAULT_LOCATIONS: Final[tuple[Location, ...]] = (
    HeaderLocation("authorization", "Bearer "),
    QueryLocation("access_token"),
)
"""Where a provider without ``Locations`` looks."""


def tokens_at(locations: Iterable[Location], request: HTTPRequest) -> Sequence[bytes]:
    """Every token in the first location that has one; empty when none has."""
    for location in locations:
        found = location.tokens(request)
        if found:
            return found
    return ()
