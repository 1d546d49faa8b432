"""Which instance gets the next request: the less busy one of two taken by chance.

Power of two choices: two instances are drawn, each by its weight, and the one with fewer requests
in flight for its weight gets the request. That avoids slow instances nearly as well as knowing the
best one, and a newcomer is not run over (Mitzenmacher 2001; Envoy's LEAST_REQUEST).

An instance that cannot be connected to `FAILURES` times in a row is left out for a while, longer
each time. When everybody is left out nobody is: then the trouble is likely to be ours (Envoy:
panic threshold).
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

from mesh_middleware.upstream.endpoints import Endpoint, Endpoints

FAILURES = 3
"""Connect failures in a row after which an instance is left out (Envoy has 5 for responses)."""

EJECT_SECONDS = 5.0
EJECT_MAX_SECONDS = 60.0
"""How long an instance is left out the first time, then twice as long each time, up to this."""


@dataclass(slots=True)
class _Load:
    active: int = 0
    failures: int = 0
    ejections: int = 0
    ejected_until: float = 0.0


class Balancer:
    """Chooses instances and keeps their counts. Safe from any thread; does no I/O.

    `clock`: monotonic seconds. `chance`: drawing by weight.
    """

    def __init__(
        self,
        *,
        clock: Callable[[], float] = time.monotonic,
        chance: random.Random | None = None,
    ) -> None:
        self._clock = clock
        self._chance = chance or random.Random()  # noqa: S311 - no secret depends on it
        self._lock = threading.Lock()
        self._loads: dict[Endpoint, _Load] = {}
        self._ejected: set[Endpoint] = set()

    def pick(self, endpoints: Endpoints, tried: Collection[Endpoint] = ()) -> Endpoint | None:
        """The instance for the next request, not one of `tried`; counted as busy from now on.

        None when there is no other. Call `done` when the request is over.
        """
        with self._lock:
            chosen = self._choose(endpoints, tried)
            if chosen is not None:
                self._load(chosen).active += 1
            return chosen

    def done(self, endpoint: Endpoint) -> None:
        """The request that `pick` counted is over."""
        with self._lock:
            self._load(endpoint).active -= 1

    def connected(self, endpoint: Endpoint) -> None:
        """A connection was there, so the instance lives."""
        load = self._loads.get(endpoint)
        if load is not None and (load.failures or load.ejections):
            with self._lock:
                load.failures = load.ejections = 0
                self._ejected.discard(endpoint)

    def failed(self, endpoint: Endpoint) -> None:
        """No connection could be made."""
        with self._lock:
            load = self._load(endpoint)
            load.failures += 1
            if load.failures >= FAILURES:
                seconds = min(EJECT_MAX_SECONDS, EJECT_SECONDS * 2 ** min(load.ejections, 10))
                load.failures = 0
                load.ejections += 1
                load.ejected_until = self._clock() + seconds
                self._ejected.add(endpoint)

    def forget(self, gone: Collection[Endpoint]) -> None:
        """Drop the counts of instances that are not listed any more, unless still busy."""
        with self._lock:
            for endpoint in gone:
                if endpoint in self._loads and not self._loads[endpoint].active:
                    del self._loads[endpoint]
                    self._ejected.discard(endpoint)

    def _load(self, endpoint: Endpoint) -> _Load:
        found = self._loads.get(endpoint)
        if found is None:
            found = self._loads[endpoint] = _Load()
        return found

    def _choose(self, endpoints: Endpoints, tried: Collection[Endpoint]) -> Endpoint | None:
        out: Collection[Endpoint] = self._left_out() if self._ejected else ()
        for avoided in ({*out, *tried}, tried) if out else (tried,):
            for tier in endpoints.tiers:
                left = [e for e in tier if e not in avoided] if avoided else tier
                if left:
                    return self._of_two(left)
        return None

    def _left_out(self) -> Collection[Endpoint]:
        now = self._clock()
        return [e for e in self._ejected if self._loads[e].ejected_until > now]

    def _of_two(self, candidates: Sequence[Endpoint]) -> Endpoint:
        if len(candidates) == 1:
            return candidates[0]
        first, second = self._draw_two(candidates)
        return min(first, second, key=lambda e: (self._load(e).active + 1) / e.weight)

    def _draw_two(self, candidates: Sequence[Endpoint]) -> Sequence[Endpoint]:
        weights = [e.weight for e in candidates]
        if min(weights) == max(weights):
            return self._chance.sample(candidates, 2)
        first = self._chance.choices(candidates, weights)[0]
        others = [e for e in candidates if e != first]
        return first, self._chance.choices(others, [e.weight for e in others])[0]
