"""A successful answer of an agent, as the client hands it on."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from mesh_middleware.errors import DecodeError

_INDEX = re.compile(r"[0-9]{1,20}")
_MAX_INDEX = 2**64 - 1


@dataclass(frozen=True, slots=True)
class Answer:
    """A successful answer.

    `index`: ``X-Consul-Index``, positive; None where the agent sent none that can be read.
    `headers`: by lower-case name.
    """

    status: int
    body: bytes = field(repr=False)
    index: int | None
    headers: Mapping[str, str] = field(repr=False)

    @property
    def json(self) -> Any:
        """The body as JSON, read anew each time; None when empty; DecodeError if it is none."""
        if not self.body:
            return None
        try:
            return json.loads(self.body)
        except (ValueError, RecursionError) as error:
            raise DecodeError(f"the answer is not JSON but {_looks_like(self.body)}") from error


def parse_index(text: str | None) -> int | None:
    """``X-Consul-Index`` as a number of 1 to 2^64-1; None when there is none.

    0 is read as 1, as Consul's documentation on blocking queries tells clients to do.
    """
    if text is None or not _INDEX.fullmatch(text.strip()):
        return None
    index = int(text)
    return max(index, 1) if index <= _MAX_INDEX else None


def _looks_like(body: bytes) -> str:
    """What a person needs to know of an answer, and nothing of a key that may be in it."""
    if body.lstrip()[:1] in (b"{", b"["):
        return "a part of it, or broken"
    return f"starts with {body[:60].decode('utf-8', 'replace')!r}"
