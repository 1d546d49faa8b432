"""When to ask next, and with which index: blocking queries without any I/O.

A blocking query is an ordinary GET with the index of the last answer; the agent answers when it
has something newer, or after ``wait``. `BlockingQuery` is told what happened and says what to do:

===  =========================================  =====================  =============
row  what happened                              next index             pause before
===  =========================================  =====================  =============
1    answer with a larger index                 that index             none
2    answer with the same index (timeout)       that index             none
3    answer with a smaller index: the agent's   0, to get the truth    none
     state went back
4    answer without an index                    0, and `polling`       the poll's
5    failure (transport, status, undecodable)   0                      backoff
6    refused by ACL (403)                       0                      longest backoff
===  =========================================  =====================  =============

All rows also wait for the bucket: after a burst, no more than `RATE` requests a second, whatever
the agent answers. An error reply may carry an index; it is never used.

Source: Consul, "Blocking queries"; numbers: docs/reference/settings.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

BACKOFF_FIRST = 0.1
BACKOFF_MAX = 1.5
"""Seconds; doubling in between, each time a random part of it (full jitter)."""

RATE = 2.0
"""Requests a second, when nothing else limits them."""

BURST = 10.0
"""Requests that may come at once after a quiet time."""


@dataclass(frozen=True, slots=True)
class Ask:
    """The next request: its index (0: don't block) and how many seconds to wait before it."""

    index: int
    delay: float


# Of our own: the module's shared state belongs to the application, and forks would share it.
_jitter = random.SystemRandom().random


class Pace:
    """Backoff and rate limit of one series of requests. `jitter` gives numbers in [0, 1)."""

    def __init__(self, jitter: Callable[[], float] = _jitter) -> None:
        self._jitter = jitter
        self._tokens = BURST
        self._at: float | None = None
        self.failures = 0
        self._denied = False

    def succeeded(self) -> None:
        """Forget all failures."""
        self.failures = 0
        self._denied = False

    def failed(self, *, denied: bool = False) -> None:
        """Count a failure; `denied`: by ACL, where hurry does not help."""
        self.failures += 1
        self._denied = denied

    def delay(self, now: float) -> float:
        """Seconds to wait before the next request; it counts as made. `now`: monotonic seconds."""
        pause = self._backoff()
        start = now + pause
        if self._at is not None:
            self._tokens = min(BURST, self._tokens + max(0.0, start - self._at) * RATE)
        shortage = max(0.0, 1.0 - self._tokens) / RATE
        self._tokens += shortage * RATE - 1.0
        self._at = start + shortage
        return pause + shortage

    def _backoff(self) -> float:
        if not self.failures:
            return 0.0
        # Doublings are capped: 2.0 ** 1024 does not fit a float.
        grown = BACKOFF_FIRST * 2.0 ** min(self.failures - 1, 16)
        return self._jitter() * (BACKOFF_MAX if self._denied else min(BACKOFF_MAX, grown))


class BlockingQuery:
    """Tells one watch what to ask next. `polling`: the agent gives no index to block on."""

    def __init__(self, jitter: Callable[[], float] = _jitter) -> None:
        self._pace = Pace(jitter)
        self.index = 0
        self.polling = False

    def __repr__(self) -> str:
        mode = "polling" if self.polling else f"index={self.index}"
        return f"<BlockingQuery {mode} failures={self._pace.failures}>"

    def next(self, now: float) -> Ask:
        """What to ask; `now` in monotonic seconds. Each call stands for one request."""
        return Ask(self.index, self._pace.delay(now))

    def answered(self, sent: int, got: int | None) -> None:
        """A good answer to a request with index `sent` carried the index `got`."""
        self._pace.succeeded()
        self.polling = got is None  # row 4
        # rows 1 to 3
        self.index = got if got is not None and got >= sent else 0

    def failed(self, *, denied: bool = False) -> None:
        """There was no good answer (rows 5 and 6)."""
        self._pace.failed(denied=denied)
        self.index = 0
