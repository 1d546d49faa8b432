"""What a call needs besides the sending: whom to call, how long it may take, what went wrong.

Shared by the asynchronous and the blocking transport. No I/O, but for the waiting functions,
which block and are for a thread.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from mesh_middleware.errors import ConfigError, NotReadyError
from mesh_middleware.state import StateSource
from mesh_middleware.tls.contexts import TLSContexts
from mesh_middleware.upstream.endpoints import Endpoint, Endpoints
from mesh_middleware.upstream.names import UpstreamName
from mesh_middleware.upstream.resolver import ResolutionError

_FAIR_SHARE = 2
_LEAST_SECONDS = 0.05
_LOOK_SECONDS = 0.25
MAX_NAMES = 1000


class Names:
    """Upstreams by the host of a URL; remembers what it parsed.

    `given`: the user's own entries, by host.
    """

    def __init__(self, given: Mapping[str, UpstreamName | str]) -> None:
        self._given = {
            host.lower(): UpstreamName(name) if isinstance(name, str) else name
            for host, name in given.items()
        }
        self._parsed: dict[str, UpstreamName] = {}

    def __call__(self, scheme: str, host: str, port: int | None) -> UpstreamName:
        """The upstream that is meant; ConfigError, in words for the caller, when there is none."""
        if scheme not in ("http", "https"):
            raise ConfigError(f"the mesh carries http:// and https:// URLs, not {scheme}://")
        if port is not None:
            raise ConfigError(
                f"{host}:{port}: the catalogue says on which port an instance listens; "
                f"write {scheme}://{host}/"
            )
        found = self._given.get(host) or self._parsed.get(host)
        if found is None:
            found = UpstreamName.from_host(host)
            if len(self._parsed) < MAX_NAMES:
                self._parsed[host] = found
        return found


@dataclass(slots=True)
class Attempts:
    """One call's way through the instances. `seconds`: for finding and connecting, all together.

    None: no limit, as the user asked for.
    """

    name: UpstreamName
    seconds: float | None
    tried: list[Endpoint] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    _deadline: float | None = None

    def __post_init__(self) -> None:
        if self.seconds is not None:
            self._deadline = time.monotonic() + self.seconds

    @property
    def left(self) -> float | None:
        """Seconds that are left, 0 or more; None without a limit."""
        return None if self._deadline is None else max(0.0, self._deadline - time.monotonic())

    def share(self, endpoints: Endpoints, most: int) -> float | None:
        """How long the next instance may take to connect: half of the rest while others wait."""
        left = self.left
        others = min(len(endpoints.all), most) - len(self.tried)
        if left is None or others <= 1:
            return left
        return max(left / _FAIR_SHARE, min(left, _LEAST_SECONDS))

    def failed(self, endpoint: Endpoint, error: BaseException) -> None:
        """No connection to `endpoint`."""
        self.tried.append(endpoint)
        self.failures.append(f"{endpoint}: {cause(error)}")

    def unreachable(self, endpoints: Endpoints) -> str:
        """In words: nobody to call."""
        if self.failures:
            return f"upstream {self.name}: no connection: {'; '.join(self.failures)}"
        return (
            f"upstream {self.name}: looked for passing instances in the mesh and found none; "
            f"registered: {endpoints.described or 'nothing'}"
        )


def contexts_within(mesh: StateSource, seconds: float | None) -> TLSContexts:
    """The TLS contexts of `mesh`, waiting for the first ones. For a thread that may block.

    ResolutionError says why there are none: it is the wrong time, or a source that never has any.
    """
    subscribe = getattr(mesh, "subscribe", None)
    contexts = mesh.state.contexts
    if contexts is not None:
        return contexts
    if subscribe is None:
        raise ResolutionError(
            "the mesh state has no certificate and does not change; calls need a MeshManager"
        )
    woken = threading.Event()
    unsubscribe = subscribe(lambda _state: woken.set())
    deadline = None if seconds is None else time.monotonic() + seconds
    try:
        while (contexts := mesh.state.contexts) is None:
            left = _LOOK_SECONDS if deadline is None else deadline - time.monotonic()
            if left <= 0:
                raise TimeoutError(why_not_ready(mesh))
            woken.wait(min(left, _LOOK_SECONDS))
            woken.clear()
        return contexts
    finally:
        unsubscribe()


def why_not_ready(mesh: Any) -> str:
    """In a manager's words, what is missing."""
    try:
        mesh.wait_ready(0)
    except NotReadyError as error:
        return str(error)
    return "the mesh has given us no certificate in time"


def cause(error: BaseException) -> str:
    """The innermost words of `error`; HTTP libraries' own say little."""
    found, words = error, str(error)
    while (inner := found.__cause__ or found.__context__) is not None:
        found = inner
        words = str(found) or words
    return words or type(error).__name__


@dataclass(frozen=True, slots=True)
class Outgoing:
    """Who called whom: ``response.extensions["mesh_middleware"]`` of a mesh transport's response.

    `source` and `destination`: SPIFFE IDs, the second one proven in the handshake.
    """

    source: str
    destination: str
    endpoint: Endpoint

    def log_fields(self) -> dict[str, Any]:
        """The fields for the ``extra=`` of a log record about the call."""
        return {
            "mesh_source": self.source,
            "mesh_destination": self.destination,
            "mesh_instance": self.endpoint.instance or None,
            "mesh_address": self.endpoint.address,
        }
