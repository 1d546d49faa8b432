"""Giving a private key to OpenSSL without leaving it on a disk in clear.

`ssl.SSLContext.load_cert_chain` only takes file names, in every Python up to 3.15. On Linux an
anonymous memory file has a name below ``/proc``; elsewhere, and where ``/proc`` is not mounted, a
file that only we may read holds the key encrypted under a password that nobody else ever sees.
"""

from __future__ import annotations

import os
import secrets
import ssl
import tempfile
from pathlib import Path

from cryptography.hazmat.primitives import serialization

from mesh_middleware.errors import DecodeError
from mesh_middleware.tls.certificates import X509SVID

_OPEN_FILES = Path("/proc/self/fd")


def load_svid(context: ssl.SSLContext, svid: X509SVID) -> None:
    """Make `context` present `svid`, intermediates included.

    DecodeError when OpenSSL does not take the certificate or key, a key too short for it, say.
    """
    try:
        if not _load_from_memory(context, svid):
            _load_from_file(context, svid)
    except ssl.SSLError as error:
        raise DecodeError(f"OpenSSL refuses it: {error}", field="certificate") from error


def _load_from_memory(context: ssl.SSLContext, svid: X509SVID) -> bool:
    """False when this system has no memory files, or no names for them."""
    try:
        descriptor = os.memfd_create("mesh-svid", os.MFD_CLOEXEC)
    except (AttributeError, OSError):
        return False
    with os.fdopen(descriptor, "wb", buffering=0) as file:
        name = _OPEN_FILES / str(descriptor)
        if not name.exists():
            return False
        file.write(_pem(svid, serialization.NoEncryption()))
        context.load_cert_chain(name)
    return True


def _load_from_file(context: ssl.SSLContext, svid: X509SVID) -> None:
    password = secrets.token_hex(32).encode("ascii")
    descriptor, name = tempfile.mkstemp(prefix="mesh-svid-")  # mode 0600
    try:
        with os.fdopen(descriptor, "wb", buffering=0) as file:
            file.write(_pem(svid, serialization.BestAvailableEncryption(password)))
        context.load_cert_chain(name, password=password)
    finally:
        Path(name).unlink()


def _pem(svid: X509SVID, encryption: serialization.KeySerializationEncryption) -> bytes:
    key = svid.private_key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, encryption
    )
    chain = (each.public_bytes(serialization.Encoding.PEM) for each in svid.certificates)
    return b"".join((key, *chain))
