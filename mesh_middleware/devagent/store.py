"""All that the development agent knows, and the index that grows with every write.

One `Store` is read and written from any thread. Each kind of thing (`roots`, `config`, a leaf, a
service) remembers the index of its last change; blocking queries wait in `wait_past` until
anything is written and then look whether their own answer became another one.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import Callable, Iterable, Mapping

from mesh_middleware.devagent import intentions, validate
from mesh_middleware.devagent.ca import CertificateAuthority
from mesh_middleware.devagent.catalog import Catalog
from mesh_middleware.devagent.leaves import Leaves
from mesh_middleware.devagent.schema import Entry
from mesh_middleware.policy.intentions import WILDCARD, Action

FIRST_INDEX = 10
"""Where the index of a new agent starts; a real one has written its own state by then."""


class Store:
    """The agent's state. `default_action`: what happens when no intention matches.

    Destinations count as ``http`` unless a service-defaults entry says otherwise, as if the agent
    had been started with that proxy-defaults entry: L7 intentions need no preparation.
    """

    def __init__(
        self,
        ca: CertificateAuthority,
        *,
        default_action: Action = Action.DENY,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.ca = ca
        self.default_action = default_action
        self.clock = clock
        self.lock = threading.RLock()
        self.index = FIRST_INDEX
        self.closed = False
        self.config: dict[tuple[str, str], Entry] = {}
        self.leaves = Leaves(self)
        self.catalog = Catalog(self)
        self._changed: dict[str, int] = {"roots": FIRST_INDEX}
        self._waiters: set[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = set()
        self._roots_seen = _roots_of(ca)
        self.ca_private_key = ""
        self._put({"Kind": "proxy-defaults", "Name": "global", "Config": {"protocol": "http"}})

    # --- the index -------------------------------------------------------------------------

    def write(self, *tables: str) -> int:
        """Count one write to `tables`, wake everybody who waits; the new index."""
        with self.lock:
            self.index += 1
            self._changed.update(dict.fromkeys(tables, self.index))
            self.wake()
            return self.index

    def forget(self, table: str) -> None:
        """`table` is gone, and the index of its last write with it."""
        with self.lock:
            self._changed.pop(table, None)

    def changed(self, *tables: str) -> int:
        """Index of the last write to any of `tables`, at least 1."""
        return max(1, *(self._changed.get(table, 1) for table in tables))

    def wake(self) -> None:
        """Let every waiting query look again."""
        with self.lock:
            for loop, event in self._waiters:
                with contextlib.suppress(RuntimeError):  # its loop is closed: nobody waits there
                    loop.call_soon_threadsafe(event.set)

    def close(self) -> None:
        """Answer all waiting queries now, and let none wait until `reopen`."""
        with self.lock:
            self.closed = True
            self.wake()

    def reopen(self) -> None:
        """Let queries wait again after `close`."""
        self.closed = False

    async def wait_past(self, index: int, *, wait_seconds: float) -> None:
        """Return when the index exceeds `index`, when woken, or after `wait_seconds`."""
        waiter = (asyncio.get_running_loop(), asyncio.Event())
        with self.lock:
            if self.index > index or self.closed:
                return
            self._waiters.add(waiter)
        try:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(wait_seconds):
                    await waiter[1].wait()
        finally:
            with self.lock:
                self._waiters.discard(waiter)

    def tick(self) -> None:
        """What time alone changes: expired checks, leaves due for renewal. Call it often."""
        now = self.clock()
        with self.lock:
            self.catalog.tick(now)
            self.notice_roots()
            if self.leaves.any_due(now):
                self.wake()

    # --- the CA ----------------------------------------------------------------------------

    def rotate(self) -> None:
        """Make a new active root, cross-signed by the old one; leaves follow at once."""
        with self.lock:
            self.ca.rotate()
            self.notice_roots()

    def remove_inactive_roots(self) -> None:
        """List only the active root from now on."""
        with self.lock:
            self.ca.remove_inactive_roots()
            self.notice_roots()

    def notice_roots(self) -> None:
        """Count a write if the CA's roots are others than last time, whoever changed them."""
        seen = _roots_of(self.ca)
        if seen != self._roots_seen:
            self._roots_seen = seen
            self.write("roots")

    # --- config entries --------------------------------------------------------------------

    def put_entry(self, entry: Entry) -> int:
        """Store a decoded config entry; RefusedError when it contradicts another one."""
        with self.lock:
            after = {**self.config, (entry["Kind"], entry["Name"]): entry}
            self._check_protocols(after)
            return self._put(entry)

    def delete_entry(self, kind: str, name: str) -> None:
        """Take a config entry out; nothing happens when there is none."""
        with self.lock:
            if (kind, name) not in self.config:
                return
            after = {key: entry for key, entry in self.config.items() if key != (kind, name)}
            self._check_protocols(after)
            self.config = after
            self.write("config")

    def replace_entries(self, old: Iterable[tuple[str, str]], new: Iterable[Entry]) -> None:
        """Put `new` in the place of the entries named by `old`; all of it or, refused, nothing."""
        with self.lock:
            entries = {(entry["Kind"], entry["Name"]): entry for entry in new}
            gone = {key for key in old if key not in entries}
            kept = {key: entry for key, entry in self.config.items() if key not in gone}
            self._check_protocols({**kept, **entries})
            if gone & self.config.keys():
                self.config = kept
                self.write("config")
            for entry in entries.values():
                if not _same(entry, self.config.get((entry["Kind"], entry["Name"]))):
                    self._put(entry)

    def _put(self, entry: Entry) -> int:
        key = (entry["Kind"], entry["Name"])
        index = self.write("config")
        created = self.config.get(key, {}).get("CreateIndex", index)
        stored = {**entry, "CreateIndex": created, "ModifyIndex": index}
        self.config = {**self.config, key: stored}
        return index

    def _check_protocols(self, config: Mapping[tuple[str, str], Entry]) -> None:
        for (kind, _), entry in config.items():
            if kind == intentions.KIND:
                validate.l7_protocol(entry, lambda name: _protocol(config, name))

    # --- intentions ------------------------------------------------------------------------

    def rows(self, *, destination: str | None = None, source: str | None = None) -> list[Entry]:
        """Rows of the match API in its order: of one destination, of one source, or all."""
        found: list[Entry] = []
        for (kind, name), entry in self.config.items():
            if kind == intentions.KIND and (destination is None or name in (destination, WILDCARD)):
                found += intentions.rows(entry)
        if source is not None:
            found = [row for row in found if row["SourceName"] in (source, WILDCARD)]
        return intentions.in_order(found)

    def first_match(self, source: str, destination: str, *, namespace: str) -> Entry | None:
        """The row that decides for a local caller, None when the default does."""
        for row in self.rows(destination=destination):
            if intentions.matches(row, source, namespace=namespace):
                return row
        return None


def _roots_of(ca: CertificateAuthority) -> list[str]:
    return [root["ID"] for root in ca.roots()]


def _protocol(config: Mapping[tuple[str, str], Entry], name: str) -> str:
    own = config.get(("service-defaults", name), {}).get("Protocol")
    shared = config.get(("proxy-defaults", "global"), {}).get("Config") or {}
    return str(own or shared.get("protocol") or "tcp")


def _same(new: Entry, old: Entry | None) -> bool:
    if old is None:
        return False
    return new == {k: v for k, v in old.items() if k not in ("CreateIndex", "ModifyIndex")}
