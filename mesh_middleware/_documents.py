"""Files people write, as plain values: YAML, JSON, or JSON Lines with one document a line.

All three give JSON's types and nothing else. YAML resolves only ``null``, ``true``, ``false``
and JSON numbers; every other plain scalar is text, so ``on``, ``yes``, ``0x10``, ``1_000`` and
``2024-01-01`` stay what was written (YAML 1.1 would turn them into other things). A key that
occurs twice in one object is an error in all of them: the usual libraries keep the last one, and
in an access rule that hides a mistake.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import PurePath
from typing import Any, ClassVar

import yaml

from mesh_middleware.errors import DecodeError

MAX_DEPTH = 100
"""Deepest nesting of a document; intentions need less than 20."""

MAX_ALIASED = 10_000
"""How many values the aliases of a YAML document may stand for: a few lines can mean billions."""

_JSON_SUFFIXES = {".json", ".jsonl", ".ndjson"}
_YAML_SUFFIXES = {".yaml", ".yml"}
_BLANK = re.compile(r"[ \t\r\n]*")


def load_documents(data: bytes, name: str = "-", *, first: int = 0) -> list[Any]:
    """Every document in `data`, in order.

    The format is JSON when it reads as JSON (one value, or one a line), otherwise YAML (one or
    several documents). `name` is the file's name: a suffix of JSON or YAML says which of the two
    an error is about. `first` is the number of the first document, for messages.

    Raises DecodeError whose `field` names document and position.
    """
    text = _text(data)
    suffix = PurePath(name).suffix.lower()
    if suffix not in _JSON_SUFFIXES and text.lstrip()[:1] not in {"{", "["}:
        return list(_numbered(_yaml_documents(text), first))
    try:
        return list(_numbered(_json_documents(text), first))
    except DecodeError as not_json:
        if suffix in _JSON_SUFFIXES:
            raise
        # `{a: 1}` is YAML that starts like JSON.
        try:
            return list(_numbered(_yaml_documents(text), first))
        except DecodeError:
            if suffix in _YAML_SUFFIXES:
                raise
            raise not_json from None


def _text(data: bytes) -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DecodeError(f"not UTF-8 at byte {error.start}") from None


def _numbered(documents: Iterator[Any], number: int) -> Iterator[Any]:
    while True:
        try:
            value = next(documents)
        except StopIteration:
            return
        except DecodeError as error:
            raise DecodeError(str(error), field=f"document {number}") from None
        yield value
        number += 1


# --- JSON -----------------------------------------------------------------------------------


def _json_documents(text: str) -> Iterator[Any]:
    position = _skip_blank(text, 0)
    line_end = -1
    while position < len(text):
        if line_end >= 0 and "\n" not in text[line_end:position]:
            raise DecodeError(
                "a second document must start on a new line", field=_place(text, position)
            )
        try:
            value, line_end = _DECODER.raw_decode(text, position)
        except json.JSONDecodeError as error:
            raise DecodeError(f"not JSON: {error.msg}", field=_place(text, error.pos)) from None
        except RecursionError:
            raise DecodeError("nested too deeply", field=_place(text, position)) from None
        except ValueError as error:
            raise DecodeError(f"not JSON: {error}", field=_place(text, position)) from None
        yield value
        position = _skip_blank(text, line_end)


def _skip_blank(text: str, position: int) -> int:
    found = _BLANK.match(text, position)
    return found.end() if found else position


def _place(text: str, position: int) -> str:
    line = text.count("\n", 0, position) + 1
    return f"line {line}, column {position - text.rfind(chr(10), 0, position)}"


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"the key {twice!r} occurs twice in one object")
    return result


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not a JSON number")


_DECODER = json.JSONDecoder(object_pairs_hook=_unique, parse_constant=_no_constant)


# --- YAML -----------------------------------------------------------------------------------


def _yaml_documents(text: str) -> Iterator[Any]:
    excess = _excess(text)
    documents = yaml.load_all(text, Loader=_Loader)
    index = -1
    while True:
        index += 1
        if excess is not None and index == excess[0]:
            raise DecodeError(excess[1], field=excess[2])
        try:
            yield next(documents)
        except StopIteration:
            return
        except yaml.MarkedYAMLError as error:
            place = _mark(error.problem_mark or error.context_mark)
            raise DecodeError(f"not YAML: {error.problem or error}", field=place) from None
        except (yaml.YAMLError, ValueError) as error:
            raise DecodeError(f"not YAML: {' '.join(str(error).split())}") from None


def _mark(mark: Any) -> str:
    return f"line {mark.line + 1}, column {mark.column + 1}" if mark else ""


def _excess(text: str) -> tuple[int, str, str] | None:
    """The first document that would grow beyond bounds: its index, why, and where."""
    # The composer recurses on the C stack without a limit of its own, and aliases make much of
    # little: both are counted beforehand, by the parser, which does neither.
    number, document = -1, _Measured()
    try:
        for event in yaml.parse(text, Loader=_Loader):
            if isinstance(event, yaml.DocumentStartEvent):
                number, document = number + 1, _Measured()
            why = document.measure(event)
            if why:
                return number, why, _mark(event.start_mark)
    except yaml.YAMLError:
        pass  # loading comes to the same place, with the document's number
    return None


class _Measured:
    """How deep and how large a document is once its aliases are written out."""

    def __init__(self) -> None:
        self._aliased = 0
        self._open: list[tuple[str | None, int, int]] = []  # anchor, nodes and levels so far
        self._anchors: dict[str, tuple[int, int] | None] = {}  # None: still open

    def measure(self, event: yaml.Event) -> str:
        """Take the next event; why the document is refused, or nothing."""
        anchor: str | None = getattr(event, "anchor", None)
        if isinstance(event, yaml.CollectionStartEvent):
            self._open.append((anchor, 1, 1))
            if anchor is not None:
                self._anchors[anchor] = None
            return "nested too deeply" if len(self._open) > MAX_DEPTH else ""
        if isinstance(event, yaml.AliasEvent):
            return self._alias(anchor or "")
        if isinstance(event, yaml.CollectionEndEvent):
            self._value(*self._open.pop())
        elif isinstance(event, yaml.ScalarEvent):
            self._value(anchor, 1, 0)
        return ""

    def _alias(self, name: str) -> str:
        known = self._anchors.get(name, (0, 0))  # an unknown one is loading's affair
        if known is None:
            return f"the alias *{name} is within what it stands for"
        nodes, levels = known
        self._aliased += nodes
        self._value(None, nodes, levels)
        if self._aliased > MAX_ALIASED:
            return f"its aliases stand for more than {MAX_ALIASED} values"
        return "nested too deeply" if len(self._open) + levels > MAX_DEPTH else ""

    def _value(self, anchor: str | None, nodes: int, levels: int) -> None:
        if anchor is not None:
            self._anchors[anchor] = nodes, levels
        if self._open:
            above, before, high = self._open[-1]
            self._open[-1] = above, before + nodes, max(high, levels + 1)


class _Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]  # libyaml is optional in PyYAML
    """YAML with JSON's types: no dates, no octal numbers, no merge keys, no tags of its own."""

    yaml_implicit_resolvers: ClassVar[dict[str, list[tuple[str, re.Pattern[str]]]]] = {}
    yaml_constructors: ClassVar[dict[str | None, Any]] = {}

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        result: dict[Any, Any] = {}
        for key_node, value_node in node.value:
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, str):
                raise yaml.constructor.ConstructorError(
                    None, None, "a key must be text; put it in quotes", key_node.start_mark
                )
            if key in result:
                raise yaml.constructor.ConstructorError(
                    None,
                    None,
                    f"the key {key!r} occurs twice in one object",
                    key_node.start_mark,
                )
            result[key] = self.construct_object(value_node, deep=deep)
        return result

    def construct_number(self, node: yaml.ScalarNode) -> int | float:
        return json.loads(self.construct_scalar(node))  # type: ignore[no-any-return]  # a JSON number

    def construct_true_false(self, node: yaml.ScalarNode) -> bool:
        return bool(self.construct_scalar(node).lower() == "true")


_TAG = "tag:yaml.org,2002:"
_Loader.add_implicit_resolver(
    f"{_TAG}null", re.compile(r"(?:~|null|Null|NULL|)\Z"), ["~", "n", "N", ""]
)
_Loader.add_implicit_resolver(
    f"{_TAG}bool", re.compile(r"(?:true|True|TRUE|false|False|FALSE)\Z"), list("tTfF")
)
_Loader.add_implicit_resolver(
    f"{_TAG}float",
    re.compile(r"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][-+]?[0-9]+)?\Z"),
    list("-0123456789"),
)
_Loader.add_constructor(f"{_TAG}null", yaml.SafeLoader.construct_yaml_null)
_Loader.add_constructor(f"{_TAG}bool", _Loader.construct_true_false)
_Loader.add_constructor(f"{_TAG}float", _Loader.construct_number)
_Loader.add_constructor(f"{_TAG}int", _Loader.construct_number)
_Loader.add_constructor(f"{_TAG}str", yaml.SafeLoader.construct_yaml_str)
_Loader.add_constructor(f"{_TAG}seq", yaml.SafeLoader.construct_yaml_seq)
_Loader.add_constructor(f"{_TAG}map", yaml.SafeLoader.construct_yaml_map)
_Loader.add_constructor(None, yaml.SafeLoader.construct_undefined)
