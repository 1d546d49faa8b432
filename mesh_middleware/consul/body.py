"""Reading a body with a bound that compression cannot get around.

An HTTP library unpacks each piece as a whole before anybody can count: 64 KiB become 64 MiB, and
packed twice, gigabytes. Here the unpacking itself stops at the bound.
"""

from __future__ import annotations

import zlib
from collections.abc import AsyncIterator

from mesh_middleware.errors import DecodeError

ACCEPTED = "gzip"
"""What we ask for; Consul has no other."""

_GZIP = 16 + zlib.MAX_WBITS


async def read_body(
    chunks: AsyncIterator[bytes], encoding: str, limit: int, where: str = "body"
) -> bytes:
    """The body behind `chunks`, as they came over the wire; at most `limit` bytes when unpacked.

    `encoding`: the ``Content-Encoding``, empty for none. `where`: begins the message of the
    DecodeError for a body that is longer, packed in another way, or broken.
    """
    packed = _is_packed(encoding, where)
    unpacker = zlib.decompressobj(_GZIP)
    body = bytearray()
    came = False
    async for chunk in chunks:
        came = came or bool(chunk)
        try:
            # one byte more than allowed shows that there is more
            body += unpacker.decompress(chunk, limit + 1 - len(body)) if packed else chunk
        except zlib.error as error:
            raise DecodeError(f"{where}: the compressed answer cannot be read") from error
        if len(body) > limit:
            raise DecodeError(f"{where}: the answer is longer than {limit} bytes")
    if packed and came and not unpacker.eof:
        raise DecodeError(f"{where}: the compressed answer is cut off")
    return bytes(body)


def _is_packed(encoding: str, where: str) -> bool:
    name = encoding.strip().lower()
    if name in ("", "identity"):
        return False
    if name in ("gzip", "x-gzip"):
        return True
    raise DecodeError(f"{where}: the compressed answer cannot be read: {name[:40]!r}")
