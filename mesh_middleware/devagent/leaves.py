"""The leaf certificates that an agent holds, one for each service name, renewed in time.

A new one is made when there is none, when the active root changed, and at a random moment between
60 and 90 percent of its life (Consul's leaf manager). Source: /v1/agent/connect/ca/leaf.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mesh_middleware.devagent.ca import Leaf
from mesh_middleware.devagent.schema import RefusedError
from mesh_middleware.errors import SpiffeIDError

MAX_LEAVES = 1000
"""How many leaves are remembered; the one issued longest ago is forgotten first."""

_dice = random.SystemRandom()

if TYPE_CHECKING:
    from mesh_middleware.devagent.store import Store


@dataclass(frozen=True, slots=True)
class Issued:
    """A leaf with its index, the root that signed it, and when to replace it (unix seconds)."""

    leaf: Leaf
    index: int
    root: str
    issued: float
    renew: float


class Leaves:
    """Part of a `Store`, guarded by its lock."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._issued: dict[str, Issued] = {}

    def current(self, service: str) -> tuple[Issued, bool]:
        """A leaf that needs no renewal yet, and whether it was already there.

        RefusedError (500) for a name that cannot be part of a SPIFFE ID.
        """
        with self._store.lock:
            now, held = self._store.clock(), self._issued.get(service)
            if held and now < held.renew and held.root == self._store.ca.active_root_id:
                return held, True
            held = self._issue(service, now)
            self._issued.pop(service, None)
            self._issued[service] = held
            while len(self._issued) > MAX_LEAVES:
                oldest = next(iter(self._issued))
                del self._issued[oldest]
                self._store.forget(f"leaf:{oldest}")
            return held, False

    def any_due(self, now: float) -> bool:
        """Whether a held leaf should be replaced."""
        return any(now >= held.renew for held in self._issued.values())

    def _issue(self, service: str, now: float) -> Issued:
        ca = self._store.ca
        if not service:
            raise RefusedError(500, "URI must be either service or agent")
        try:
            root, leaf = ca.active_root_id, ca.issue(service)
        except SpiffeIDError:
            uri = f"spiffe://{ca.trust_domain}/ns/default/dc/{ca.datacenter}/svc/{service}"
            raise RefusedError(500, f"SPIFFE ID is not in the expected format: {uri}") from None
        life = leaf.not_after - leaf.not_before
        renew = leaf.not_before + life * _dice.uniform(0.6, 0.9)
        return Issued(leaf, self._store.write(f"leaf:{service}"), root, now, renew)
