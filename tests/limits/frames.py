"""HTTP/2 a frame at a time, so that a peer can do what no library would."""

from __future__ import annotations

import enum
import struct
from collections.abc import Iterator
from typing import NamedTuple

from hpack import Encoder

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"


class Kind(enum.IntEnum):
    """Frame types. Source: RFC 9113 6."""

    DATA = 0
    HEADERS = 1
    RST_STREAM = 3
    SETTINGS = 4
    PING = 6
    GOAWAY = 7
    WINDOW_UPDATE = 8
    CONTINUATION = 9


NO_ERROR, REFUSED_STREAM, CANCEL, ENHANCE_YOUR_CALM = 0, 7, 8, 11  # RFC 9113 7
MAX_CONCURRENT_STREAMS, INITIAL_WINDOW_SIZE = 3, 4  # RFC 9113 6.5.2
END_STREAM, END_HEADERS, ACK = 1, 4, 1


class Frame(NamedTuple):
    kind: int
    flags: int
    stream: int
    payload: bytes


def frame(kind: Kind, flags: int = 0, stream: int = 0, payload: bytes = b"") -> bytes:
    head = struct.pack(">I", len(payload))[1:] + bytes([kind, flags]) + struct.pack(">I", stream)
    return head + payload


HELLO = PREFACE + frame(Kind.SETTINGS)


def get(stream: int, path: str = "/", *, flags: int = END_STREAM | END_HEADERS) -> bytes:
    """A HEADERS frame; without END_STREAM a body is to come."""
    fields = [(":method", "GET"), (":scheme", "https"), (":authority", "mesh"), (":path", path)]
    return frame(Kind.HEADERS, flags, stream, Encoder().encode(fields))


def error(kind: Kind, stream: int, code: int) -> bytes:
    """A frame of `kind` that is an error code and nothing else."""
    return frame(kind, 0, stream, struct.pack(">I", code))


def frames(data: bytes) -> Iterator[Frame]:
    """The whole frames in `data`."""
    at = 0
    while at + 9 <= len(data):
        end = at + 9 + int.from_bytes(data[at : at + 3], "big")
        if end > len(data):
            return
        stream = int.from_bytes(data[at + 5 : at + 9], "big")
        yield Frame(data[at + 3], data[at + 4], stream, data[at + 9 : end])
        at = end


def error_code(of: Frame) -> int:
    """That of a RST_STREAM or GOAWAY frame."""
    return int.from_bytes(of.payload[4:8] if of.kind == Kind.GOAWAY else of.payload[:4], "big")


def last_stream(goaway: Frame) -> int:
    """The last stream that whoever sent it has taken, or will take."""
    return int.from_bytes(goaway.payload[:4], "big")
