"""A body is bounded before it is unpacked, whoever sends it."""

from __future__ import annotations

import asyncio
import gzip
import tracemalloc
import zlib
from collections.abc import AsyncIterator

import httpx
import pytest

from mesh_middleware.config import MeshConfig
from mesh_middleware.consul.body import read_body
from mesh_middleware.consul.client import ConsulClient
from mesh_middleware.errors import ConsulError, DecodeError

PACKED = gzip.compress(b'{"a": 1}' * 100, mtime=0)
MIB = 2**20


def read(*chunks: bytes, encoding: str = "gzip", limit: int = 10_000) -> bytes:
    async def stream() -> AsyncIterator[bytes]:
        for chunk in chunks:
            yield chunk

    return asyncio.run(read_body(stream(), encoding, limit))


@pytest.mark.parametrize("size", [1, 7, len(PACKED)])
def test_pieces_of_any_size_are_unpacked(size: int) -> None:
    pieces = [PACKED[at : at + size] for at in range(0, len(PACKED), size)]
    assert read(*pieces) == b'{"a": 1}' * 100


@pytest.mark.parametrize("encoding", ["", "identity", " Identity "])
def test_plain_bodies_pass(encoding: str) -> None:
    assert read(b"{", b"}", encoding=encoding) == b"{}"


def test_an_empty_body_is_empty_in_every_encoding() -> None:
    assert read() == read(b"") == b""


@pytest.mark.parametrize("encoding", ["", "gzip"])
def test_the_bound_is_exact(encoding: str) -> None:
    body = b"x" * 1000
    sent = gzip.compress(body) if encoding else body
    assert read(sent, encoding=encoding, limit=1000) == body
    with pytest.raises(DecodeError, match="longer than 999 bytes"):
        read(sent, encoding=encoding, limit=999)


@pytest.mark.parametrize("encoding", ["br", "zstd", "deflate", "gzip, gzip", "x" * 500])
def test_packings_that_nobody_asked_for_are_not_unpacked(encoding: str) -> None:
    with pytest.raises(DecodeError, match="cannot be read") as caught:
        read(PACKED, encoding=encoding)
    assert len(str(caught.value)) < 150


@pytest.mark.parametrize("sent", [b"not gzip", PACKED[:20], zlib.compress(b"{}")])
def test_broken_packing_is_undecodable(sent: bytes) -> None:
    with pytest.raises(DecodeError, match="compressed answer"):
        read(sent)


def test_a_bomb_takes_no_more_memory_than_the_bound() -> None:
    """One piece of 64 KiB off the wire would be 64 MiB, were it unpacked as a whole."""
    bomb = gzip.compress(b"\0" * 64 * MIB)
    assert len(bomb) < 2**16
    tracemalloc.start()
    try:
        with pytest.raises(DecodeError, match="longer than"):
            read(bomb, limit=MIB)
        assert tracemalloc.get_traced_memory()[1] < 4 * MIB
    finally:
        tracemalloc.stop()


def test_an_error_whose_body_cannot_be_read_is_still_an_error() -> None:
    """Else a broken proxy's 502 would count as intentions that nobody can read."""
    broken = httpx.Response(
        502, stream=httpx.ByteStream(b"not gzip"), headers={"Content-Encoding": "gzip"}
    )

    async def ask() -> None:
        transport = httpx.MockTransport(lambda _: broken)
        client = ConsulClient(MeshConfig("web"), transport=transport)
        try:
            await client.match("web")
        finally:
            await client.aclose()

    with pytest.raises(ConsulError, match="no text") as caught:
        asyncio.run(ask())
    assert caught.value.status == 502
