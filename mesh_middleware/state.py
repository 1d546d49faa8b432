"""The one immutable snapshot that the learning side writes and everybody else reads.

A manager replaces its `MeshState` by one assignment; a reader takes ``source.state`` once and
works with that value, so it never sees half a change. `generation` grows with every published
change, which is how open connections notice that they must be judged again.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Protocol

from mesh_middleware.errors import ConfigError
from mesh_middleware.policy.decision import Reason
from mesh_middleware.policy.enforcement import EnforcementMode
from mesh_middleware.policy.engine import Policy
from mesh_middleware.tls.certificates import X509SVID, TrustBundle
from mesh_middleware.tls.contexts import TLSContexts
from mesh_middleware.tls.tokens import TokenVerifier

PARTS = ("roots", "leaf", "intentions", "default action", "mesh entry", "jwt providers")
"""What must be known before a state is ready, in the words of messages.

The last only for intentions that ask for tokens: until then there is no policy, because nobody
knows which headers are not to be believed.
"""


_POLICY = ("intentions", "default action", "mesh entry")
"""What a policy is made of, besides the trust domain of the roots."""


@dataclass(frozen=True, slots=True)
class MeshState:
    """What is known about the mesh, seen from one service.

    `generation`: 0 while nothing is known, then grows by one with each published change.
    `tokens`: verifies the tokens that rules of `policy` ask for, and hides what only providers
    may say; None while no rule does. A manager gives no such policy without it. `fault`: set while
    no request may be decided although a policy may be there (an answer could not be decoded, say);
    everything is refused with it. `updated`: unix seconds of the last good answer for each of
    `PARTS` but the last; a part whose newest answer could not be decoded is not among them.
    `enforcement`: what to do with what the policy refuses, where nothing else says it.
    """

    service: str
    generation: int = 0
    svid: X509SVID | None = None
    bundle: TrustBundle | None = None
    contexts: TLSContexts | None = None
    policy: Policy | None = None
    tokens: TokenVerifier | None = None
    fault: Reason | None = None
    updated: Mapping[str, float] = field(default_factory=lambda: MappingProxyType({}))
    enforcement: EnforcementMode = EnforcementMode.ENFORCE

    def missing(self, *, now: float | None = None) -> tuple[str, ...]:
        """The parts of `PARTS` that keep this state from being ready; empty when it is ready."""
        now = time.time() if now is None else now
        parts = []
        if self.bundle is None:
            parts.append("roots")
        if self.svid is None or self.contexts is None or not self.svid.valid_at(now):
            parts.append("leaf")
        if self.policy is None or self.fault is not None:
            unknown = [part for part in _POLICY if part not in self.updated]
            if not unknown and self.fault is not None:
                unknown = ["intentions"]  # they are known, but too old
            if not unknown and self.bundle is not None:
                unknown = ["jwt providers"]
            parts += unknown
        return tuple(parts)

    @property
    def ready(self) -> bool:
        """True when all of `PARTS` are known that the policy needs, and the leaf is valid now."""
        return self.policy is not None and not self.missing()


class StateSource(Protocol):
    """Whatever holds the newest state of one service."""

    @property
    def state(self) -> MeshState:
        """The newest snapshot; cheap, never blocks, safe from any thread."""
        ...


@dataclass(frozen=True, slots=True)
class StaticState:
    """A source whose state never changes: for tests, and for policies that come with the code.

    >>> StaticState.from_policy(compile_policy([...]), service="web")  # doctest: +SKIP
    """

    state: MeshState

    @classmethod
    def from_policy(cls, policy: Policy, *, service: str) -> StaticState:
        """A state that knows `policy` and nothing of certificates."""
        return cls(MeshState(service=service, generation=1, policy=policy))


class Registry:
    """Sources by service name: how a middleware that was given only a name finds its manager."""

    def __init__(self) -> None:
        self._sources: dict[str, StateSource] = {}
        self._lock = threading.Lock()
        os.register_at_fork(after_in_child=self._renew_lock)

    def _renew_lock(self) -> None:
        # A thread that the child does not have may hold the old one.
        self._lock = threading.Lock()

    def add(self, service: str, source: StateSource) -> None:
        """Make `source` the one for `service`; ConfigError when another is there already."""
        with self._lock:
            if self._sources.setdefault(service, source) is not source:
                raise ConfigError(f"service {service!r} already has a mesh manager here")

    def remove(self, service: str, source: StateSource) -> None:
        """Forget `source`; nothing happens when it is not the one for `service`."""
        with self._lock:
            if self._sources.get(service) is source:
                del self._sources[service]

    def put(self, service: str, source: StateSource | None) -> StateSource | None:
        """Make `source` the one for `service` whatever was there (None: nothing); gives that."""
        with self._lock:
            before = self._sources.pop(service, None)
            if source is not None:
                self._sources[service] = source
            return before

    def services(self) -> list[str]:
        """The services that have a source, sorted."""
        with self._lock:
            return sorted(self._sources)

    def get(self, service: str) -> StateSource | None:
        """The source for `service`, or None."""
        return self._sources.get(service)


sources = Registry()
"""The process's sources."""
