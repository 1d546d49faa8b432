"""`DevAgent`: a Consul agent for development and tests, in a thread of this process."""

from __future__ import annotations

import contextlib
import functools
import socket
import threading
from collections.abc import Iterable, Mapping
from ipaddress import ip_address
from pathlib import Path
from typing import Any, Self

from mesh_middleware.devagent import intentions as model
from mesh_middleware.devagent.ca import CertificateAuthority
from mesh_middleware.devagent.files import WatchedFiles, entries_of
from mesh_middleware.devagent.schema import Entry, RefusedError
from mesh_middleware.devagent.serving import AgentServer
from mesh_middleware.devagent.store import Store
from mesh_middleware.errors import ConfigError
from mesh_middleware.policy.intentions import Action

_START_SECONDS = 15.0

Intentions = (
    str | Path | Iterable[str | Path] | Mapping[str, Any] | Iterable[Mapping[str, Any]] | None
)


class DevAgent:
    """A Consul agent for development only: no ACLs, keys in memory, loopback addresses only.

    `port`: 0 takes a free one, which stays the same for the agent's life. `host`: a loopback
    address. `intentions`: match-API rows or config entries, or the path of a JSON or YAML file of
    them, or several paths; a file is read again when it changes. `default_action`: what happens if
    no intention matches, ``allow`` or ``deny``. `leaf_ttl_seconds`: life of a leaf certificate.

    A context manager; `start` and `stop` may be called by hand, and again. ConfigError for a wrong
    argument, an unusable intentions file, or a port that is taken (its cause is the OSError).
    """

    def __init__(
        self,
        port: int = 0,
        *,
        host: str = "127.0.0.1",
        intentions: Intentions = None,
        default_action: Action | str = Action.DENY,
        trust_domain: str | None = None,
        datacenter: str = "dc1",
        leaf_ttl_seconds: float = 259200,
    ) -> None:
        self._host = _loopback(host)
        self._port = port
        self._default_action = _action(default_action)
        self._new_ca = functools.partial(
            CertificateAuthority,
            trust_domain,
            datacenter=datacenter,
            leaf_ttl_seconds=leaf_ttl_seconds,
        )
        self._paths, self._given = _paths_and_entries(intentions)
        self._files: WatchedFiles | None = None
        self._control = threading.Lock()
        self._thread: threading.Thread | None = None
        self._server: AgentServer | None = None
        self._store = self._new_store()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.stop()

    def __repr__(self) -> str:
        state = "running" if self._thread else "stopped"
        return f"<DevAgent {self.address} {state} {len(self.services)} services>"

    @property
    def address(self) -> str:
        """Base URL of the API, such as ``http://127.0.0.1:8500``; port 0 before the first start."""
        host = f"[{self._host}]" if ":" in self._host else self._host
        return f"http://{host}:{self._port}"

    @property
    def port(self) -> int:
        """The port listened on; 0 before the first start if none was asked for."""
        return self._port

    @property
    def ca(self) -> CertificateAuthority:
        """The certificate authority; another one after ``restart(lose_state=True)``."""
        return self._store.ca

    @property
    def services(self) -> dict[str, Entry]:
        """Registered instances by ID, as ``/v1/agent/services`` shows them."""
        return {key: service.document for key, service in self._store.catalog.services.items()}

    @property
    def statuses(self) -> dict[str, str]:
        """Status of every check by its ID: passing, warning or critical."""
        with self._store.lock:
            return {check.id: check.status for _, check in self._store.catalog.checks()}

    def start(self) -> None:
        """Listen and answer; returns when requests are served. Nothing happens when it runs."""
        with self._control:
            if self._thread is None:
                self._start()

    def _start(self) -> None:
        sock = self._listen()
        self._port = sock.getsockname()[1]
        self._store.reopen()
        self._server = AgentServer(self._store, self._files)
        self._thread = threading.Thread(
            target=self._server.serve_socket, args=(sock,), name="mesh-dev-agent", daemon=True
        )
        self._thread.start()
        if not self._server.serving.wait(_START_SECONDS) or not self._server.started:
            raise RuntimeError(f"the development agent did not start on {self.address}")

    def stop(self) -> None:
        """Answer whoever waits, close every connection, end the thread. The state stays."""
        with self._control:
            if self._thread is None or self._server is None:
                return
            self._store.close()
            self._server.should_exit = True
            self._thread.join()
            self._thread = self._server = None

    def restart(self, *, lose_state: bool = False) -> None:
        """Stop and start on the same port.

        `lose_state`: as a real ``-dev`` agent, forget registrations, leaves, what was written
        through the API, and the CA: new roots, and a new trust domain unless one was given. The
        index starts anew. The intentions given to the constructor are there again.
        """
        self.stop()
        if lose_state:
            self._store = self._new_store()
        self.start()

    def put_intentions(self, intentions: Mapping[str, Any] | Iterable[Mapping[str, Any]]) -> None:
        """Write rows or config entries; each destination named gets exactly what is given.

        ConfigError says which one Consul would refuse and why; nothing is written then.
        """
        given = intentions if isinstance(intentions, Mapping) else list(intentions)
        entries = entries_of(given)
        try:
            self._store.replace_entries((), entries)
        except RefusedError as error:
            raise ConfigError(error.text) from None

    def delete_intentions(self, service: str) -> None:
        """Remove every intention whose destination is exactly `service` (may be ``*``)."""
        self._store.delete_entry(model.KIND, service)

    def intentions(self, service: str) -> list[Entry]:
        """The match API's rows for a destination, in the order in which they decide."""
        return self._store.rows(destination=service)

    def rotate_ca(self) -> None:
        """New active root, cross-signed by the one before; leaves are issued anew at once."""
        self._store.rotate()

    def remove_inactive_roots(self) -> None:
        """Distrust the roots before the active one from now on."""
        self._store.remove_inactive_roots()

    def _new_store(self) -> Store:
        store = Store(self._new_ca(), default_action=self._default_action)
        try:
            store.replace_entries((), self._given)
        except RefusedError as error:
            raise ConfigError(f"intentions: {error.text}") from None
        if self._paths:
            self._files = WatchedFiles(self._paths)
            self._files.load(store)
        return store

    def _listen(self) -> socket.socket:
        family = socket.AF_INET6 if ":" in self._host else socket.AF_INET
        sock = socket.socket(family, socket.SOCK_STREAM)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            sock.bind((self._host, self._port))
            sock.listen(256)
        except OSError as error:
            sock.close()
            raise ConfigError(
                f"cannot listen on {self.address}: {error.strerror}; choose another port"
            ) from error
        return sock


def _paths_and_entries(intentions: Intentions) -> tuple[list[Path], list[Entry]]:
    """What was given, as files or as entries; one of the two is empty."""
    if intentions is None:
        return [], []
    if isinstance(intentions, (str, Path)):
        return [Path(intentions)], []
    if isinstance(intentions, Mapping):
        return [], entries_of(intentions)
    given = list(intentions)
    paths = [Path(item) for item in given if isinstance(item, (str, Path))]
    return (paths, []) if paths and len(paths) == len(given) else ([], entries_of(given))


def _loopback(host: str) -> str:
    if host == "localhost":
        return "127.0.0.1"
    with contextlib.suppress(ValueError):
        if ip_address(host).is_loopback:
            return host
    raise ConfigError(
        f"the development agent has no access control and listens on loopback only: "
        f"{host!r} must be 127.0.0.1, ::1 or localhost"
    )


def _action(value: Action | str) -> Action:
    try:
        return Action(value)
    except ValueError:
        raise ConfigError(f"default_action {value!r} must be 'allow' or 'deny'") from None
