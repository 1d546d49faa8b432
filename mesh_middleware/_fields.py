"""Typed fields out of plain JSON values that people wrote, with errors that name the place."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, TypeVar

from mesh_middleware.errors import DecodeError

E = TypeVar("E", bound=StrEnum)
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Place:
    """Where in a file a value stands, in words; every method raises DecodeError naming it."""

    name: str

    def within(self, name: str) -> Place:
        """The place called `name` inside this one."""
        return Place(f"{self.name}: {name}" if self.name else name)

    def error(self, message: str, key: str = "") -> DecodeError:
        """An error about the value at `key`, or about the whole of this place."""
        return DecodeError(message, field=self.within(key).name if key else self.name)

    def mapping(self, value: Any, key: str = "") -> Mapping[str, Any]:
        """`value`, which must be an object."""
        if not isinstance(value, dict):
            raise self.error(f"must be an object, not {kind_of(value)}", key)
        return value

    def object(self, value: Any, known: Iterable[str]) -> Mapping[str, Any]:
        """`value`, which must be an object with no keys but the `known` ones."""
        fields = self.mapping(value)
        for key in fields.keys() - set(known):
            near = difflib.get_close_matches(key.lower(), known, n=1, cutoff=0.6)
            hint = f"; did you mean {near[0]!r}?" if near else f"; known: {', '.join(known)}"
            raise self.error(f"unknown key {key!r}{hint}")
        return fields

    def items(self, fields: Mapping[str, Any], key: str) -> Iterator[tuple[str, Any]]:
        """Name and value of each entry of the list at `key`; none when it is absent or null."""
        value = fields.get(key)
        if value is None:
            return
        if not isinstance(value, list):
            raise self.error(f"must be a list, not {kind_of(value)}", key)
        for index, entry in enumerate(value):
            yield f"{key}[{index}]", entry

    def string(self, value: Any, key: str) -> str:
        """`value`, which must be text."""
        if not isinstance(value, str):
            raise self.error(f"must be text, not {kind_of(value)}; put it in quotes", key)
        return value

    def text(self, fields: Mapping[str, Any], key: str, *, required: bool = False) -> str:
        """The text at `key`; empty when it is absent and not `required`."""
        if key in fields:
            return self.string(fields[key], key)
        if required:
            raise self.error("is missing", key)
        return ""

    def choice(self, fields: Mapping[str, Any], key: str, choices: type[E]) -> E | None:
        """The member of `choices` that the text at `key` names; None when it is absent."""
        if key not in fields:
            return None
        value = fields[key]
        for member in choices:
            if value == member.value:
                return member
        wanted = " or ".join(member.value for member in choices)
        raise self.error(f"must be {wanted}, not {kind_of(value)}", key)

    def decoded(self, key: str, decode: Callable[[Mapping[str, Any]], T], value: Any) -> T:
        """What `decode` makes of the object `value`, its errors placed at `key`."""
        try:
            return decode(self.mapping(value, key))
        except DecodeError as error:
            if error.field.startswith(self.name):
                raise
            raise self.error(str(error), key) from None


def kind_of(value: Any) -> str:
    """What `value` is, in JSON's words, with a short value itself."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (int, float)):
        return "a number"
    if isinstance(value, str):
        return repr(value[:40])
    return "a list" if isinstance(value, list) else "an object"
