"""The loop side of a manager: the watches and the probe, and what their answers lead to.

Everything here runs in one event loop; states leave through `publish`, which is called for each
state that differs from the one before.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from typing import Any

from mesh_middleware.config import MeshConfig
from mesh_middleware.consul import mesh_entry
from mesh_middleware.consul.assembly import Assembly
from mesh_middleware.consul.client import Answer, ConsulClient
from mesh_middleware.consul.decode import (
    decode_intention,
    decode_leaf,
    decode_matches,
    decode_roots,
)
from mesh_middleware.consul.failures import Failure, FailureKind, Failures, rejected
from mesh_middleware.consul.journal import Journal
from mesh_middleware.consul.prober import DefaultProber
from mesh_middleware.consul.tokens import TokenKeeper
from mesh_middleware.consul.watcher import POLL_SECONDS, Watcher
from mesh_middleware.errors import ConsulError, DecodeError
from mesh_middleware.policy.intentions import Action, Intention
from mesh_middleware.policy.peering import PeerBundle
from mesh_middleware.state import MeshState
from mesh_middleware.tls.tokens import TokenVerifier

logger = logging.getLogger("mesh_middleware.consul")

TICK_SECONDS = 1.0
"""How often what only time changes is looked at: staleness, validity, parts that wait."""

HOLD_SECONDS = 2.0
"""How long the last policy counts while the providers that a new one names are looked at."""

_DECIDING = frozenset({"intentions", mesh_entry.PART})

BREATH_SECONDS = 0.001
"""Between two pieces of work, how long the manager's thread leaves Python's lock to others. A turn
of the loop is not enough: it has the lock back before another thread is awake to take it."""

_TURN_ROWS = 80  # about two milliseconds of decoding
_STALE_SHARE = 4  # a watch is heard of at least so often within the staleness bound


class Learner:
    """Watches roots, leaf, intentions and mesh entry for `config.service` through `client`.

    `state`: the newest; starts as the given one. `failures`: shared with whoever shows them.
    `peers`: clusters whose services may call through a mesh gateway.
    """

    def __init__(
        self,
        config: MeshConfig,
        client: ConsulClient,
        publish: Callable[[MeshState], None],
        *,
        state: MeshState,
        failures: Failures,
        peers: tuple[PeerBundle, ...] = (),
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._config = config
        self._client = client
        self._publish = publish
        self._clock = clock
        self._failures = failures
        self._assembly = Assembly(config, peers, pause=_breathe)
        self._prober = DefaultProber(config, client, self._take_default, failures=failures)
        self._journal = Journal(config)
        self._bodies: dict[str, bytes] = {}
        self._wait = min(config.wait_seconds, config.max_staleness_seconds / _STALE_SHARE)
        self._tokens = TokenKeeper(
            config, client, self._take_tokens, failures=failures, clock=clock, wait=self._wait
        )
        self._assembled = state
        self._held_since: float | None = None
        self.state = state

    async def run(self) -> None:
        """Learn until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            for watcher in self._watchers():
                tasks.create_task(watcher.run())
            tasks.create_task(self._tick())
            tasks.create_task(self._tokens.run())
            tasks.create_task(self._prober.run())

    def _watchers(self) -> list[Watcher]:
        client, wait, service = self._client, self._wait, self._config.service

        def watcher(
            part: str,
            fetch: Callable[[int], Awaitable[Answer]],
            take: Callable[[Answer], Awaitable[None]],
            wake: Callable[[int], Awaitable[Answer]] | None = None,
            poll_seconds: float = POLL_SECONDS,
        ) -> Watcher:
            return Watcher(
                fetch=fetch,
                deliver=lambda answer: self._deliver(part, answer, take),
                failed=lambda error: self._fail(part, error),
                wake=wake,
                poll_seconds=poll_seconds,
                hurry=client.token_watch(),
            )

        return [
            watcher("roots", lambda index: client.roots(index, wait), self._take_roots),
            watcher("leaf", lambda index: client.leaf(service, index, wait), self._take_leaf),
            watcher(
                "intentions",
                self._match,
                self._take_intentions,
                lambda index: client.intentions(index, wait),
            ),
            watcher(
                mesh_entry.PART,
                mesh_entry.MeshEntry(client, wait).fetch,
                self._take_mesh_entry,
                poll_seconds=mesh_entry.ABSENT_SECONDS,
            ),
        ]

    # -- answers ------------------------------------------------------------------------------

    async def _match(self, index: int) -> Answer:
        """Fresh intentions; at the start, when the servers are away, the agent's cached ones.

        Only at the start: a cached list can be older than one that we know already.
        """
        service = self._config.service
        try:
            return await self._client.match(service, index, self._wait)
        except ConsulError as error:
            if self._assembly.has_intentions or (error.status or 0) < 500:
                raise
            try:
                cached = await self._client.match(service, 0, self._wait, cached=True)
            except (ConsulError, DecodeError):
                raise error from None
            logger.warning(
                "%s: intentions: %s; starting with what the agent has cached",
                service,
                error,
                extra={"mesh_event": "cached", "mesh_service": service},
            )
            return cached

    async def _deliver(
        self, part: str, answer: Answer, take: Callable[[Answer], Awaitable[None]]
    ) -> None:
        if answer.headers:  # without any it is what we made of a refusal (`MeshEntry.fetch`)
            self._prober.hear(answer)
        digest = hashlib.sha256(answer.body).digest()
        if self._bodies.get(part) == digest:
            self._assembly.touch(part, self._clock() - _age(part, answer))
        else:
            self._bodies.pop(part, None)
            await asyncio.sleep(BREATH_SECONDS)
            await take(answer)
            self._bodies[part] = digest
        if self._failures.clear(part):
            self._prober.hurry()  # the agent was away: it may be another one now
        await asyncio.sleep(BREATH_SECONDS)
        self._advance()
        await asyncio.sleep(BREATH_SECONDS)

    async def _take_roots(self, answer: Answer) -> None:
        bundle = decode_roots(answer.json)
        self._assembly.take_roots(bundle, self._clock())
        self._prober.ask_as(bundle.trust_domain)

    async def _take_leaf(self, answer: Answer) -> None:
        self._assembly.take_leaf(decode_leaf(answer.json), self._clock())

    async def _take_intentions(self, answer: Answer) -> None:
        rows = await decode_in_turns(answer.json, self._config.service)
        self._assembly.take_intentions(rows, self._clock() - _age("intentions", answer))

    async def _take_mesh_entry(self, answer: Answer) -> None:
        normalization = mesh_entry.decode_mesh_entries(answer.json)
        self._assembly.take_normalization(normalization, self._clock())

    def _take_tokens(self, tokens: TokenVerifier | None) -> None:
        self._assembly.take_tokens(tokens)
        self._advance()

    def _fail(self, part: str, error: Exception) -> None:
        self._bodies.pop(part, None)
        self._failures.set(part, error)
        if part in _DECIDING and isinstance(error, DecodeError):
            self._assembly.take_undecodable(part)
        self._advance()

    def _take_default(self, action: Action) -> None:
        self._assembly.take_default(action, self._clock())
        self._advance()

    # -- states -------------------------------------------------------------------------------

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(TICK_SECONDS)
            self._advance()

    def _advance(self) -> None:
        now, before = self._clock(), self.state
        self._assembled = self._assembly.next(self._assembled, now)
        self.state = self._with_known_providers(self._assembled, before)
        self._note_problems()
        self._journal.note_expiry(self.state, now)
        if self.state is not before:
            self._journal.note_changes(before, self.state)
            self._publish(self.state)

    def _with_known_providers(self, state: MeshState, before: MeshState) -> MeshState:
        """`state` once the providers that its policy names were looked at, until then the last.

        Else applications would see headers that only a provider's entry says to hide. After
        `HOLD_SECONDS` there is no policy, and everything is refused: an old one must not stay
        because the list cannot be read.
        """
        if self._tokens.need(state.policy):
            self._held_since = None
            return state
        now = asyncio.get_running_loop().time()
        if self._held_since is None:
            self._held_since = now
        held = now - self._held_since < HOLD_SECONDS and state.fault is None
        if held and before.policy is not None and before.fault is None:
            return before
        shown = replace(state, policy=None)
        return before if shown == before else shown

    def _note_problems(self) -> None:
        for part in ("roots", "leaf"):
            mark = rejected(part)
            problem = self._assembly.problems.get(part)
            if problem is None:
                self._failures.clear(mark)
            else:
                self._failures.set(mark, Failure.of(problem, FailureKind.OTHER))


def _breathe() -> None:
    """Let the application's threads run. It holds this loop up, as the compiling around it does."""
    time.sleep(BREATH_SECONDS)


async def decode_in_turns(document: Any, service: str) -> list[Intention]:
    """`decode_matches` that lets others run in between.

    Ten thousand rows take a quarter of a second, in which a new leaf should not have to wait, nor
    the application for Python's lock.
    """
    rows = document.get(service) if isinstance(document, Mapping) else None
    if not isinstance(rows, list):
        return decode_matches(document, service)
    decoded = []
    for number, row in enumerate(rows):
        decoded.append(decode_intention(row, f"{service}[{number}]"))
        if number % _TURN_ROWS == _TURN_ROWS - 1:
            await asyncio.sleep(BREATH_SECONDS)
    return decoded


def _age(part: str, answer: Answer) -> float:
    """How many seconds ago the servers said this. A leaf's ``Age`` means another thing."""
    text = "" if part == "leaf" else answer.headers.get("age", "")
    return float(text) if text.isascii() and text.isdigit() and len(text) < 10 else 0.0
