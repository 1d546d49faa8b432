"""A WSGI environ as a scope, so that the code that decides about scopes decides about it.

*The target.* ``RAW_URI`` (gunicorn, werkzeug) or ``REQUEST_URI`` (uWSGI, mod_wsgi) is what was on
the wire; a2wsgi hands the scope's on. Without any the path is quoted again from what the
application sees. Either way the path that the application routes by, ``SCRIPT_NAME`` and
``PATH_INFO``, is judged beside it, so that a server or a layer that changed it is no way around a
rule. The query is the one that the application sees.

*Headers.* ``HTTP_X_ROLE`` is ``x-role``; what the client called it is not known any more.

Source: PEP 3333 (text is latin-1, one character for one byte).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final
from urllib.parse import unquote_to_bytes

from mesh_middleware._types import Environ, Scope
from mesh_middleware.middleware.target import quoted
from mesh_middleware.policy.peering import XFCC

Headers = list[tuple[bytes, bytes]]

_CONTENT: Final = {"CONTENT_TYPE": b"content-type", "CONTENT_LENGTH": b"content-length"}


def scope_of(environ: Environ) -> Scope:
    """The scope that says what `environ` says. ``extensions`` are those of an ASGI scope in it."""
    outer: Scope = environ.get("asgi.scope") or {}
    root, info = _text(environ.get("SCRIPT_NAME", "")), _text(environ.get("PATH_INFO", ""))
    raw = _raw_path(environ, outer)
    if _is_moved(environ, root + info, raw):
        root = ""  # then the path must be allowed as it is routed, and as it was sent
    extensions: dict[str, Any] = dict(outer.get("extensions") or {})
    scope: Scope = {
        "type": "http",
        "http_version": environ.get("SERVER_PROTOCOL", "HTTP/1.1").removeprefix("HTTP/"),
        "method": environ["REQUEST_METHOD"],
        "scheme": environ.get("wsgi.url_scheme", "http"),
        "path": root + info,
        "raw_path": quoted(root + info) if raw is None else raw,
        "query_string": _bytes(environ.get("QUERY_STRING", "")),
        "root_path": root,
        "headers": headers_of(environ),
        "extensions": extensions,
    }
    if "app_root_path" in outer and outer.get("root_path", "") == root:
        scope["app_root_path"] = outer["app_root_path"]  # the rest is prefixes of mounts
    return scope


def _raw_path(environ: Environ, outer: Scope) -> bytes | None:
    """The path on the wire as far as the server tells it."""
    raw: bytes | None = outer.get("raw_path")
    uri = environ.get("RAW_URI") or environ.get("REQUEST_URI")
    return _bytes(uri).partition(b"?")[0] if raw is None and uri else raw


def _is_moved(environ: Environ, path: str, raw: bytes | None) -> bool:
    """Whether ``SCRIPT_NAME`` may be somebody else's word than the operator's.

    gunicorn takes it from a header of whom ``forwarded_allow_ips`` trusts: a client that calls
    ``/public/admin`` and says ``SCRIPT_NAME: /public`` gets ``/admin``.
    """
    if "HTTP_SCRIPT_NAME" in environ:
        return True
    return raw is not None and unquote_to_bytes(raw) != path.encode("utf-8", "surrogateescape")


def headers_of(environ: Environ) -> Headers:
    """The headers of a request as the application sees them, names in lower case."""
    return [
        (_CONTENT.get(key) or key[5:].lower().replace("_", "-").encode("latin-1"), _bytes(value))
        for key, value in environ.items()
        if isinstance(value, str) and (key.startswith("HTTP_") or (key in _CONTENT and value))
    ]


def put_headers(
    environ: Environ, before: Iterable[tuple[bytes, bytes]], after: Iterable[tuple[bytes, bytes]]
) -> None:
    """Do to `environ` what was done to its headers: some are gone `after`, some new."""
    was, wanted = _joined(before), _joined(after)
    for name in was.keys() - wanted.keys():
        for key in (_http_key(name), environ_key(name)):  # CONTENT_TYPE has two with some servers
            environ.pop(key, None)
    for name, value in wanted.items():
        if was.get(name) != value:
            environ[environ_key(name)] = value


def _joined(headers: Iterable[tuple[bytes, bytes]]) -> dict[bytes, str]:
    joined: dict[bytes, str] = {}
    for name, value in headers:
        text = value.decode("latin-1")
        joined[name] = f"{joined[name]},{text}" if name in joined else text
    return joined


def without_collisions(environ: Environ) -> None:
    """Take headers with ``_`` in their name out of an `environ` that was made of an ASGI scope.

    a2wsgi (1.10) joins ``x-role`` and ``x_role`` to one value, so that a client could write
    ``x_role`` past a rule or a proxy that looks at ``x-role``.
    """
    scope = environ.get("asgi.scope")
    headers: Headers = (scope.get("headers") if scope else None) or []
    for key in {_http_key(name) for name, _ in headers if b"_" in name}:
        environ.pop(key, None)
        values = [value for name, value in headers if b"_" not in name and _http_key(name) == key]
        if values:
            environ[key] = b",".join(values).decode("latin-1")


def split_lines(headers: Iterable[tuple[bytes, bytes]]) -> Headers | None:
    """`headers` with each value that has commas as lines of their own; None where none has.

    A gateway's list of callers is left whole: its first element says who calls, and only a gateway
    is believed.
    """
    given = list(headers)
    if not any(b"," in value and name != XFCC for name, value in given):
        return None
    return [
        (name, part)
        for name, value in given
        for part in ([value] if name == XFCC else value.split(b","))
    ]


def environ_key(name: bytes) -> str:
    """The key of an environ for a header."""
    text = name.decode("latin-1").upper().replace("-", "_")
    return text if text in _CONTENT else f"HTTP_{text}"


def _http_key(name: bytes) -> str:
    return "HTTP_" + name.decode("latin-1").upper().replace("-", "_")


def _bytes(text: str) -> bytes:
    # What is not latin-1 breaks PEP 3333; "?" matches no name, and no rule takes it for a letter.
    return text.encode("latin-1", "replace")


def _text(wsgi: str) -> str:
    """A path as ASGI has it: UTF-8, bytes that are not as surrogates, which nothing allows."""
    return _bytes(wsgi).decode("utf-8", "surrogateescape")
