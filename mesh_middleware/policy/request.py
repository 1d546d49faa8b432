"""What rules see of a request: the bytes on the wire, and every way a path can be read.

A path that a proxy, a server and a framework read differently is a way around a rule, so rules
judge each reading and all of them must be allowed:

==========  ====================================================================================
reading     what it is
==========  ====================================================================================
canonical   Envoy's normalised path, with the mesh's own normalisation settings applied
decoded     the path with its percent-escapes undone, as routers see it
received    the path that the server handed over, where it differs from ``decoded``
resolved    ``decoded`` (and ``received``) with ``\\`` as ``/``, slashes merged, then dot segments
            removed
==========  ====================================================================================

A plain path, which is nearly every path, has one reading. The path itself is never rewritten.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from urllib.parse import unquote_to_bytes

from mesh_middleware.errors import MeshError

Headers = Sequence[tuple[bytes, bytes]]


class EscapedSlashes(StrEnum):
    """What to do with ``%2F`` and ``%5C`` in a path. Consul: ``PathWithEscapedSlashesAction``."""

    KEEP_UNCHANGED = "KEEP_UNCHANGED"
    REJECT_REQUEST = "REJECT_REQUEST"
    UNESCAPE_AND_REDIRECT = "UNESCAPE_AND_REDIRECT"
    UNESCAPE_AND_FORWARD = "UNESCAPE_AND_FORWARD"


class Underscores(StrEnum):
    """What to do with ``_`` in header names. Consul: ``HeadersWithUnderscoresAction``."""

    ALLOW = "ALLOW"
    REJECT_REQUEST = "REJECT_REQUEST"
    DROP_HEADER = "DROP_HEADER"


@dataclass(frozen=True, slots=True)
class Normalization:
    """How the mesh normalises requests before rules see them.

    Source: Consul, the ``mesh`` config entry's ``HTTP.Incoming.RequestNormalization``; the
    defaults are those of an absent entry. Whatever is set here, the other readings are judged too.
    """

    path: bool = True
    merge_slashes: bool = False
    escaped_slashes: EscapedSlashes = EscapedSlashes.KEEP_UNCHANGED
    underscores: Underscores = Underscores.ALLOW


DEFAULT_NORMALIZATION = Normalization()


class MalformedRequestError(MeshError, ValueError):
    """The request cannot be judged because what was sent is malformed; it is refused with 400."""


class HTTPRequest:
    """One request as rules see it.

    `target` is the request target as on the wire, query included. `headers` are (name, value)
    pairs as on the wire, names in any case, repeated lines apart. `decoded_path` is the path the
    application will route by, where the server gives one (ASGI: ``scope["path"]``).
    A WebSocket handshake counts as GET.
    """

    __slots__ = ("_tables", "decoded_path", "headers", "method", "scheme", "target")

    def __init__(
        self,
        method: str,
        target: bytes,
        headers: Headers = (),
        *,
        scheme: str = "https",
        decoded_path: str | None = None,
    ) -> None:
        self.method = method
        self.target = target
        self.headers = headers
        self.scheme = scheme
        self.decoded_path = decoded_path
        self._tables: dict[bool, dict[bytes, list[bytes]]] | None = None

    def values(self, name: bytes, *, drop_underscores: bool = False) -> Sequence[bytes]:
        """The values of a header, one for each line, SP and HTAB stripped; `name` in lower case.

        Entries whose own name starts with ``:`` are never found. With `drop_underscores`, neither
        are those with ``_`` in their name.
        """
        tables = self._tables
        if tables is None:
            tables = self._tables = {}
        table = tables.get(drop_underscores)
        if table is None:
            table = tables[drop_underscores] = self._table(drop_underscores)
        return table.get(name, ())

    def authorities(self) -> Sequence[bytes]:
        """What rules see as ``:authority``: that of an absolute-form target, else Host's value."""
        absolute = _ABSOLUTE.match(self.target)
        return self.values(b"host") if absolute is None else (absolute[1],)

    def _table(self, drop_underscores: bool) -> dict[bytes, list[bytes]]:
        table: dict[bytes, list[bytes]] = {}
        for name, value in self.headers:
            if name.startswith(b":") or (drop_underscores and b"_" in name):
                continue
            table.setdefault(name.lower(), []).append(value.strip(b" \t"))
        return table

    def __repr__(self) -> str:
        return f"HTTPRequest({self.method!r}, {self.target.split(b'?')[0]!r})"


Reading = tuple[str, bytes]
"""A reading's name and the path it gives."""

_SEGMENT = rb"(?!\.\.?(?:[;/?]|\Z))[A-Za-z0-9\-._~!$&'()*+,;=:@]+"
PLAIN_TARGET = re.compile(rb"(/(?:" + _SEGMENT + rb"(?:/" + _SEGMENT + rb")*/?)?)(?:\?[!\"$-~]*)?")
"""Matches a target whose path, group 1, has exactly one reading."""

_ALLOWED_BYTES = re.compile(rb"[!\"$-~]+")
_ABSOLUTE = re.compile(rb"[A-Za-z][A-Za-z0-9+.\-]*://([^/?]*)")
_BAD_ESCAPE = re.compile(rb"%(?![0-9A-Fa-f]{2})")
_ESCAPED_SLASH = re.compile(rb"%(2[Ff]|5[Cc])")
_UNRESERVED_ESCAPE = re.compile(rb"%([0-9A-Fa-f]{2})")
_UNSAFE = re.compile(rb"[\"<>^`{|}]")
_UNRESERVED = frozenset(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_~.")
_SLASHES = re.compile(rb"/{2,}")


def split_target(request: HTTPRequest) -> tuple[bytes, bytes, bytes | None]:
    """Path, the rest (``?`` and query, or empty), and the authority of an absolute-form target.

    MalformedRequestError for anything but a path after an absolute-form prefix is removed, and for
    bytes that no request target may hold (RFC 9112 3.2: visible ASCII without ``#``).
    """
    target = request.target
    if request.method == "CONNECT":
        raise MalformedRequestError("CONNECT names no path")
    if not _ALLOWED_BYTES.fullmatch(target):
        raise MalformedRequestError("the target is empty or has a byte that must be escaped")
    authority = None
    if (prefix := _ABSOLUTE.match(target)) is not None:
        authority, target = prefix[1], target[prefix.end() :]
    if not target.startswith(b"/"):
        raise MalformedRequestError("the request target does not start with '/'")
    path, mark, query = target.partition(b"?")
    return path, mark + query, authority


def read_path(
    path: bytes, normalization: Normalization, decoded_path: str | None = None
) -> tuple[Reading, ...]:
    """Every distinct reading of `path`, the canonical one first.

    MalformedRequestError for a bad escape, a NUL or line feed, text that is not UTF-8 once decoded,
    and an escaped slash where the mesh refuses it (a redirect is a refusal here: nothing is
    rewritten). Line feeds: the ``$`` of a router's regular expression overlooks one at the end.
    """
    if _BAD_ESCAPE.search(path):
        raise MalformedRequestError("the path has a '%' without two hex digits")
    decoded = unquote_to_bytes(path)
    if b"\x00" in decoded or b"\n" in decoded:
        raise MalformedRequestError("the path has a NUL or a line feed")
    try:
        decoded.decode("utf-8")
    except UnicodeDecodeError:
        raise MalformedRequestError("the path is not UTF-8 once its escapes are undone") from None
    found: list[Reading] = [
        ("canonical", canonical_path(path, normalization)),
        ("decoded", decoded),
    ]
    if decoded_path is not None:
        found.append(("received", _received(decoded_path)))
    found += [("resolved", resolve_path(reading)) for _, reading in found[1:]]
    distinct: dict[bytes, str] = {}
    for name, reading in found:
        distinct.setdefault(reading, name)
    return tuple((name, reading) for reading, name in distinct.items())


def _received(decoded_path: str) -> bytes:
    try:
        received = decoded_path.encode("utf-8")
    except UnicodeEncodeError:
        raise MalformedRequestError("the path that the server handed over is not text") from None
    if b"\x00" in received or b"\n" in received:
        raise MalformedRequestError("the path that the server handed over has a NUL or line feed")
    return received


def canonical_path(path: bytes, normalization: Normalization = DEFAULT_NORMALIZATION) -> bytes:
    """`path` as Envoy would match and forward it. MalformedRequestError where it would refuse."""
    action = normalization.escaped_slashes
    if action is not EscapedSlashes.KEEP_UNCHANGED and _ESCAPED_SLASH.search(path):
        if action is not EscapedSlashes.UNESCAPE_AND_FORWARD:
            raise MalformedRequestError("the mesh refuses escaped slashes in paths")
        path = _ESCAPED_SLASH.sub(lambda found: bytes.fromhex(found[1].decode()), path)
    if normalization.path:
        path = _canonicalize(path)
    return _merged(path) if normalization.merge_slashes else path


def _merged(path: bytes) -> bytes:
    """One slash for each run of them; where there is nothing else, two (observed, Envoy 1.40)."""
    merged = _SLASHES.sub(b"/", path)
    return b"//" if merged == b"/" != path else merged


def _canonicalize(path: bytes) -> bytes:
    kept: list[bytes] = []
    segments = path.replace(b"\\", b"/").split(b"/")[1:]
    last = len(segments) - 1
    for position, raw in enumerate(segments):
        # A raw dot segment may carry parameters (observed with Envoy 1.40); an escaped one may not.
        dots = raw.partition(b";")[0] if raw.startswith(b".") else raw
        segment = _UNRESERVED_ESCAPE.sub(_undo_unreserved, raw)
        if dots in {b".", b".."} or segment in {b".", b".."}:
            up = dots == b".." or segment == b".."
            if up and kept:
                kept.pop()
            if position == last:
                kept.append(b"")
            continue
        kept.append(_UNSAFE.sub(lambda found: b"%%%02X" % found[0][0], segment))
    return b"/" + b"/".join(kept)


def _undo_unreserved(found: re.Match[bytes]) -> bytes:
    byte = int(found[1], 16)
    return bytes((byte,)) if byte in _UNRESERVED else found[0]


def resolve_path(path: bytes) -> bytes:
    """`path` with ``\\`` as ``/``, slashes merged, then dot segments removed."""
    merged = _SLASHES.sub(b"/", path.replace(b"\\", b"/"))
    kept: list[bytes] = []
    segments = merged.removeprefix(b"/").split(b"/")
    last = len(segments) - 1
    for position, segment in enumerate(segments):
        if segment not in {b".", b".."}:
            kept.append(segment)
            continue
        if segment == b".." and kept:
            kept.pop()
        if position == last:
            kept.append(b"")
    return b"/" + b"/".join(kept)
