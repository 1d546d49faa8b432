"""Typed fields out of an agent's JSON; every error is a DecodeError that names the field.

A field that is absent or null is not set, as Go's encoder means it: it reads as empty, false or
zero, or as the default given. `at` is where the object stands, ready to be put before a key.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Any, TypeVar

from mesh_middleware.errors import DecodeError


def kind_of(value: Any) -> str:
    """What `value` is, in JSON's words."""
    return "null" if value is None else _JSON_KINDS.get(type(value), type(value).__name__)


_JSON_KINDS = {
    dict: "an object",
    list: "a list",
    str: "text",
    bool: "true or false",
    int: "a number",
    float: "a number",
}


def object_at(value: Any, field: str) -> Mapping[str, Any]:
    """`value`, which must be an object; `field` is where it stands."""
    if not isinstance(value, Mapping):
        raise DecodeError(f"expected an object, got {kind_of(value)}", field=field)
    return value


def list_at(fields: Mapping[str, Any], key: str, at: str) -> list[Any]:
    """The list at `key`; empty when it is not set."""
    value = fields.get(key)
    if value is None:
        return []
    if not isinstance(value, list):
        raise DecodeError(f"expected a list, got {kind_of(value)}", field=f"{at}{key}")
    return value


def texts_at(fields: Mapping[str, Any], key: str, at: str) -> tuple[str, ...]:
    """The list of texts at `key`; empty when it is not set."""
    values = list_at(fields, key, at)
    for n, value in enumerate(values):
        if not isinstance(value, str):
            raise DecodeError(f"expected text, got {kind_of(value)}", field=f"{at}{key}[{n}]")
    return tuple(values)


def text_at(fields: Mapping[str, Any], key: str, at: str, *, default: str | None = None) -> str:
    """The text at `key`; `default` when it is not set, an error without one."""
    value = fields.get(key)
    if value is None and default is not None:
        return default
    if not isinstance(value, str):
        raise DecodeError(f"expected text, got {kind_of(value)}", field=f"{at}{key}")
    return value


def name_at(fields: Mapping[str, Any], key: str, at: str) -> str:
    """The text at `key`, which must be set and not empty."""
    value = text_at(fields, key, at)
    if not value:
        raise DecodeError("must not be empty", field=f"{at}{key}")
    return value


def integer_at(fields: Mapping[str, Any], key: str, at: str) -> int:
    """The whole number at `key`; 0 when it is not set."""
    value = fields.get(key)
    if value is None:
        return 0
    if not isinstance(value, int) or isinstance(value, bool):
        raise DecodeError(f"expected a whole number, got {kind_of(value)}", field=f"{at}{key}")
    return value


def flag_at(fields: Mapping[str, Any], key: str, at: str) -> bool:
    """The truth value at `key`; False when it is not set."""
    value = fields.get(key)
    if value is None:
        return False
    if not isinstance(value, bool):
        raise DecodeError(f"expected true or false, got {kind_of(value)}", field=f"{at}{key}")
    return value


_Choice = TypeVar("_Choice", bound=StrEnum)


def choice_at(fields: Mapping[str, Any], key: str, at: str, default: _Choice) -> _Choice:
    """The member of `default`'s class that the text at `key` names; `default` when not set."""
    value = text_at(fields, key, at, default="")
    if value in {"", "IMPLEMENTATION_SPECIFIC_DEFAULT"}:
        return default
    try:
        return type(default)(value)
    except ValueError:
        known = ", ".join(type(default))
        raise DecodeError(f"{value!r} is not one of {known}", field=f"{at}{key}") from None
