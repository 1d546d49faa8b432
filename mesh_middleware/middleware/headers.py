"""Headers by which a proxy would tell an application who called: the application never sees them.

In a mesh without a proxy nobody but the client itself can have sent them, so an application that
believes them would believe the client. They are removed by name, read without case and with ``_``
as ``-``, because CGI, WSGI and many proxies make no difference between the two.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable
from typing import Final

Headers = list[tuple[bytes, bytes]]

IDENTITY_PREFIXES: Final = (
    b"x-forwarded-client-cert",  # Envoy, Consul
    b"x-forwarded-tls-client-",  # Traefik
    b"x-forwarded-ssl-client-",
    b"x-forwarded-spiffe",
    b"client-cert",  # RFC 9440: Client-Cert, Client-Cert-Chain
    b"ssl-client-",  # ingress-nginx
    b"ssl-clientcert",
    b"x-ssl-client-",  # HAProxy
    b"x-ssl-cert",
    b"x-tls-client-",
    b"x-client-cert",  # Google Cloud
    b"x-client-verify",
    b"x-client-dn",
    b"x-amzn-mtls-",  # AWS ALB
    b"x-arr-clientcert",  # Azure
    b"cf-client-cert",  # Cloudflare
    b"x-spiffe-",
)
"""Every header whose name starts with one of these is removed."""

_HARMLESS: Final = frozenset(
    b"""accept accept-charset accept-encoding accept-language access-control-request-headers
    access-control-request-method authorization cache-control connection content-encoding
    content-length content-type cookie date dnt expect forwarded host idempotency-key if-match
    if-modified-since if-none-match if-range if-unmodified-since keep-alive max-forwards origin
    pragma priority range referer sec-ch-ua sec-ch-ua-mobile sec-ch-ua-platform sec-fetch-dest
    sec-fetch-mode sec-fetch-site sec-fetch-user sec-websocket-extensions sec-websocket-key
    sec-websocket-protocol sec-websocket-version te traceparent tracestate transfer-encoding
    upgrade upgrade-insecure-requests user-agent via x-api-key x-b3-sampled x-b3-spanid
    x-b3-traceid x-correlation-id x-forwarded-for x-forwarded-host x-forwarded-proto x-real-ip
    x-request-id x-requested-with""".split()
)


@functools.lru_cache(maxsize=1024)
def is_identity_header(name: bytes) -> bool:
    """Whether a header of this name claims to say who the client is."""
    return name.replace(b"_", b"-").lower().startswith(IDENTITY_PREFIXES)


def visible_headers(
    headers: Iterable[tuple[bytes, bytes]], *, drop_underscores: bool = False
) -> Headers:
    """What the application may see of `headers`, always as a new list.

    With `drop_underscores` (Consul: ``HeadersWithUnderscoresAction`` is ``DROP_HEADER``) every
    name with ``_`` goes. Nearly every request has only well-known names and costs a set lookup
    for each; a name that is not known is looked at closely.
    """
    return [
        line
        for line in headers
        if line[0] in _HARMLESS
        or not (is_identity_header(line[0]) or (drop_underscores and b"_" in line[0]))
    ]
