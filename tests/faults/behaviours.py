"""Ways in which an agent, or what stands before it, answers badly."""

from __future__ import annotations

import asyncio
import gzip
import itertools
from collections.abc import Callable, Collection

from tests.faults.proxy import Answer, Behaviour, Exchange

MIB = 2**20
BOMB = gzip.compress(b"\0" * 64 * MIB)
_TIMES = itertools.count()


def status(*codes: int, text: str = "no") -> Behaviour:
    """These, in turn, each with a text that differs from the last one."""
    turns = itertools.cycle(codes)

    async def answer(exchange: Exchange) -> None:
        words = f"{text} (request {next(_TIMES)})"
        await exchange.send(Answer(next(turns), {"content-type": "text/plain"}, words.encode()))

    return answer


def tokens(accepted: Collection[str]) -> Behaviour:
    """403, in Consul's words, for any other token."""

    async def answer(exchange: Exchange) -> None:
        if exchange.token in accepted:
            await exchange.send(await exchange.fetch())
        else:
            await exchange.send(Answer(403, {}, b"ACL not found"))

    return answer


def index(change: Callable[[str], str | None]) -> Behaviour:
    """The right body under another index; None leaves the header out."""

    async def answer(exchange: Exchange) -> None:
        found = await exchange.fetch()
        if "x-consul-index" in found.headers:
            new = change(found.headers["x-consul-index"])
            headers = {k: v for k, v in found.headers.items() if k != "x-consul-index"}
            if new is not None:
                headers["x-consul-index"] = new
            found = Answer(found.status, headers, found.body)
        await exchange.send(found)

    return answer


def backwards() -> Behaviour:
    """Each answer with a smaller index than the one before."""
    falling = itertools.count(10_000, -1)
    return index(lambda _: str(next(falling)))


def body(change: Callable[[bytes], bytes], **headers: str) -> Behaviour:
    """Status, index and length are right, the content is not."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}

    async def answer(exchange: Exchange) -> None:
        found = await exchange.fetch()
        await exchange.send(found.with_body(change(found.body), **named))

    return answer


async def hang(exchange: Exchange) -> None:
    """Takes the request and says nothing, ever."""
    await exchange.hang()


async def drip(exchange: Exchange) -> None:
    """A byte now and then: each read is quick, the answer never ends."""
    for byte in (await exchange.fetch()).wire():
        await exchange.send_raw(bytes([byte]))
        await asyncio.sleep(0.1)


async def reset(exchange: Exchange) -> None:
    """Half the answer, then RST."""
    wire = (await exchange.fetch()).wire()
    await exchange.send_raw(wire[:-10])
    exchange.reset()


async def close(exchange: Exchange) -> None:
    """FIN instead of an answer."""
    exchange.writer.close()


async def not_http(exchange: Exchange) -> None:
    await exchange.send_raw(b"220 mail.example ESMTP\r\n")
    exchange.writer.close()


async def endless_headers(exchange: Exchange) -> None:
    await exchange.send_raw(b"HTTP/1.1 200 OK\r\n")
    for number in range(20_000):
        await exchange.send_raw(f"x-{number}: {'y' * 100}\r\n".encode())
    await exchange.hang()


async def endless_body(exchange: Exchange) -> None:
    await exchange.send_raw(b"HTTP/1.1 200 OK\r\nx-consul-index: 9\r\n\r\n")
    for _ in range(1000):
        await exchange.send_raw(b" " * MIB)
    exchange.writer.close()


HTML = body(lambda _: b"<html><title>Sign in</title></html>", content_type="text/html")
WRONG = body(lambda _: b'{"web": "is not a list of intentions", "Roots": 7}')
TRUNCATED = body(lambda good: good[: len(good) // 2] or b"{")
GZIP_BOMB = body(lambda _: BOMB, content_encoding="gzip")
TWICE_PACKED = body(lambda _: gzip.compress(BOMB), content_encoding="gzip, gzip")
BROKEN_GZIP = body(lambda good: gzip.compress(good)[:-12], content_encoding="gzip")
