"""The last element of an ``x-forwarded-client-cert`` header.

Elements are separated by ``,``, their pairs by ``;``, a name and its value by ``=``. A value may
stand in double quotes, in which ``\\"`` is a quote. Envoy writes its own element last, with
balanced quotes, so that quotes which a client left open before it make the whole header
unreadable, never another last element.

Source: Envoy, HTTP header manipulation, x-forwarded-client-cert.
"""

from __future__ import annotations

import re
from typing import Final

KEYS: Final = frozenset({"by", "hash", "cert", "chain", "subject", "uri", "dns"})

_VALUE = r'(?:"(?:[^"\\]|\\.)*"|[^",;]*)'
_PAIR = rf"[A-Za-z]+={_VALUE}"
_ELEMENT = re.compile(rf"{_PAIR}(?:;{_PAIR})*;?")
_PAIRS = re.compile(rf"([A-Za-z]+)=({_VALUE})")

MAX_LENGTH: Final = 64 * 1024
"""Characters; a certificate is about one thousand, and servers take less than this in a line."""


def last_element(header: str) -> dict[str, list[str]] | None:
    """Values by key, in lower case, of the last element; each of `KEYS` is there.

    None for a header that is not wholly readable, or has a key that is not known in that element.
    """
    element = ""
    position = 0
    if len(header) > MAX_LENGTH:
        return None
    while True:
        while position < len(header) and header[position] in " \t":
            position += 1
        found = _ELEMENT.match(header, position)
        if found is None:
            return None
        element, position = found[0], found.end()
        while position < len(header) and header[position] in " \t":
            position += 1
        if position == len(header):
            break
        if header[position] != ",":
            return None
        position += 1
    values: dict[str, list[str]] = {key: [] for key in KEYS}
    for key, value in _PAIRS.findall(element):
        if key.lower() not in KEYS:
            return None
        values[key.lower()].append(_unquoted(value))
    return values


def _unquoted(value: str) -> str:
    if not value.startswith('"'):
        return value
    return re.sub(r"\\(.)", r"\1", value[1:-1])
