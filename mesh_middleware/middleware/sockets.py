"""Who is at the other end of a connection that a WSGI server hands to the application.

gunicorn gives ``gunicorn.socket``, werkzeug's development server ``werkzeug.socket``. A connection
that our context wrapped was judged in its handshake, which is forced here where it was not done
yet. Another one is asked for its certificates, which must then lead to the mesh's roots like those
of any foreign server (`peer.ChainVerifier`); whatever that server verified does not count.
"""

from __future__ import annotations

import ssl
from typing import Any, Final, cast

from mesh_middleware._types import Environ
from mesh_middleware.tls.contexts import VerifiedPeer, verified_peer
from mesh_middleware.tls.handshake import MeshSSLSocket, certificate_chain

SOCKETS: Final = ("gunicorn.socket", "werkzeug.socket")
"""Keys of an environ under which servers put the connection."""


def connection_proof(environ: Environ) -> tuple[VerifiedPeer | None, dict[str, Any] | None]:
    """What the connection proves: a peer of our own handshake, or the value of a TLS extension.

    Two times None: the server gives no connection, or one without TLS or without a certificate.
    """
    for key in SOCKETS:
        connection = environ.get(key)
        if isinstance(connection, MeshSSLSocket):
            return _judged(connection), None
        if isinstance(connection, ssl.SSLSocket):
            return None, _foreign(connection)
    return None, None


def _judged(connection: MeshSSLSocket) -> VerifiedPeer | None:
    if connection.mesh_peer is None:
        try:
            connection.do_handshake()
        except (OSError, ValueError):  # refused, closed, or not done and not to be waited for
            return None
    return verified_peer(connection)


def _foreign(connection: ssl.SSLSocket) -> dict[str, Any] | None:
    try:
        leaf = connection.getpeercert(binary_form=True)
    except (OSError, ValueError):  # closed, or its handshake is not done
        return None
    if not leaf:
        return None
    sent = certificate_chain(cast("MeshSSLSocket", connection), "get_unverified_chain")
    return {"client_cert_chain": (leaf, *sent[1:])}
