"""Intentions from files that a person edits: JSON or YAML, read again when one changes.

A file has one document, several, a list of them, or ``{"intentions": [...]}``; each is a row of the
match API or a config entry.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from mesh_middleware._documents import load_documents
from mesh_middleware.devagent import intentions
from mesh_middleware.devagent.schema import Entry, RefusedError
from mesh_middleware.devagent.store import Store
from mesh_middleware.errors import ConfigError, DecodeError

_log = logging.getLogger("mesh_middleware.devagent")

MAX_BYTES = 16 * 1024 * 1024


def entries_of(document: Any, *, what: str = "intentions") -> list[Entry]:
    """Config entries of a list, of one row or entry, or of ``{"intentions": [...]}``.

    ConfigError says which one is wrong, and why, beginning with `what`.
    """
    try:
        return intentions.from_documents(_flat(document))
    except RefusedError as error:
        raise ConfigError(f"{what}: {error.text}") from None


def read_file(path: Path) -> list[Entry]:
    """The config entries of the file; ConfigError names file, row and cause."""
    try:
        if path.stat().st_size > MAX_BYTES:
            raise ConfigError(f"{path}: more than {MAX_BYTES} bytes")
        documents = load_documents(path.read_bytes(), path.name)
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror or error}") from None
    except DecodeError as error:
        raise ConfigError(f"{path}: {error}") from None
    return entries_of([row for document in documents for row in _flat(document)], what=str(path))


def read_files(paths: Sequence[Path]) -> list[Entry]:
    """The config entries of all files; ConfigError also for an entry that two of them have."""
    found: dict[tuple[str, str], tuple[Path, Entry]] = {}
    for path in paths:
        for entry in read_file(path):
            kind, name = entry["Kind"], entry["Name"]
            other, _ = found.setdefault((kind, name), (path, entry))
            if other is not path:
                raise ConfigError(f"{path}: {kind} {name!r} is in {other}, too; keep it in one")
    return [entry for _, entry in found.values()]


class WatchedFiles:
    """Keeps a store's intentions equal to those of files; `check` often, from one thread.

    A file that cannot be used leaves the last good content of all in place and is reported once
    for each change of its condition. Entries that others wrote through the API stay, unless a file
    has the same destination.
    """

    def __init__(self, paths: Iterable[Path]) -> None:
        self.paths = tuple(paths)
        self._seen: object = None
        self._keys: list[tuple[str, str]] = []
        self._said = ""

    def load(self, store: Store) -> None:
        """Read the files now; ConfigError when one cannot be used, the store is as before then."""
        self._seen = self._stamp()
        self._put(store)

    def check(self, store: Store) -> None:
        """Read the files if one is another than last time; never raises for a bad file."""
        stamp = self._stamp()
        if stamp == self._seen:
            return
        self._seen = stamp
        try:
            self._put(store)
        except ConfigError as error:
            if str(error) != self._said:
                self._said = str(error)
                _log.error("%s; the last good intentions stay in force", error)
        else:
            self._said = ""

    def _put(self, store: Store) -> None:
        entries = read_files(self.paths)
        try:
            store.replace_entries(self._keys, entries)
        except RefusedError as error:
            raise ConfigError(f"{self._names}: {error.text}") from None
        self._keys = [(entry["Kind"], entry["Name"]) for entry in entries]
        names = ", ".join(sorted(name for _, name in self._keys)) or "nothing: the file is empty"
        _log.info("in force from %s: %s", self._names, names)

    @property
    def _names(self) -> str:
        return ", ".join(map(str, self.paths))

    def _stamp(self) -> object:
        return [_stamp(path) for path in self.paths]


def _stamp(path: Path) -> tuple[int, ...] | str:
    try:
        stat = path.stat()
    except OSError as error:
        return str(error)
    return stat.st_mtime_ns, stat.st_ino, stat.st_size


def _flat(document: Any) -> list[Any]:
    if isinstance(document, list):
        return document
    if isinstance(document, dict) and [str(key).lower() for key in document] == ["intentions"]:
        return _flat(next(iter(document.values())))
    return [] if document is None else [document]
