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
from typing import Any

from mesh_middleware.config import MeshConfig
from mesh_middleware.consul.assembly import Assembly
from mesh_middleware.consul.blocking import Pace
from mesh_middleware.consul.client import Answer, ConsulClient
from mesh_middleware.consul.decode import (
    decode_intention,
    decode_leaf,
    decode_matches,
    decode_roots,
)
from mesh_middleware.consul.default_action import (
    PROBE_SECONDS,
    DefaultAction,
    Silence,
    header_action,
    is_final,
    probe_result,
    probe_uri,
)
from mesh_middleware.consul.failures import Failure, FailureKind, Failures, rejected
from mesh_middleware.consul.tokens import TokenKeeper
from mesh_middleware.consul.watcher import Watcher, is_denied
from mesh_middleware.errors import ConsulError, DecodeError
from mesh_middleware.policy.decision import Reason
from mesh_middleware.policy.intentions import Intention
from mesh_middleware.policy.spiffe import TrustDomain
from mesh_middleware.state import MeshState
from mesh_middleware.tls.tokens import TokenVerifier

logger = logging.getLogger("mesh_middleware.consul")

TICK_SECONDS = 1.0
"""How often what only time changes is looked at: staleness, validity, parts that wait."""

_TURN_ROWS = 20  # about half a millisecond of decoding
_STALE_SHARE = 4  # a watch is heard of at least so often within the staleness bound


class Learner:
    """Watches roots, leaf and intentions of `config.service` through `client`.

    `state`: the newest; starts as the given one. `failures`: shared with whoever shows them.
    """

    def __init__(
        self,
        config: MeshConfig,
        client: ConsulClient,
        publish: Callable[[MeshState], None],
        *,
        state: MeshState,
        failures: Failures,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._config = config
        self._client = client
        self._publish = publish
        self._clock = clock
        self._failures = failures
        self._assembly = Assembly(config)
        self._default = DefaultAction(setting=config.default_action)
        self._probe_now = asyncio.Event()
        self._bodies: dict[str, bytes] = {}
        self._wait = min(config.wait_seconds, config.max_staleness_seconds / _STALE_SHARE)
        self._tokens = TokenKeeper(
            config, client, self._take_tokens, failures=failures, clock=clock, wait=self._wait
        )
        self._expired = False
        self.state = state

    async def run(self) -> None:
        """Learn until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            for watcher in self._watchers():
                tasks.create_task(watcher.run())
            tasks.create_task(self._tick())
            tasks.create_task(self._tokens.run())
            if self._default.setting is None:
                tasks.create_task(self._probe())
            else:
                self._settle_default()

    def _watchers(self) -> list[Watcher]:
        client, wait, service = self._client, self._wait, self._config.service

        def watcher(
            part: str,
            fetch: Callable[[int], Awaitable[Answer]],
            take: Callable[[Answer], Awaitable[None]],
            wake: Callable[[int], Awaitable[Answer]] | None = None,
        ) -> Watcher:
            return Watcher(
                fetch=fetch,
                deliver=lambda answer: self._deliver(part, answer, take),
                failed=lambda error: self._fail(part, error),
                wake=wake,
                hurry=client.token_changed,
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
        digest = hashlib.sha256(answer.body).digest()
        if self._bodies.get(part) == digest:
            self._assembly.touch(part, self._clock() - _age(part, answer))
        else:
            self._bodies.pop(part, None)
            await take(answer)
            self._bodies[part] = digest
        self._note_header(answer)
        if self._failures.clear(part):
            self._probe_now.set()  # the agent was away: it may be another one now
        self._advance()

    async def _take_roots(self, answer: Answer) -> None:
        self._assembly.take_roots(decode_roots(answer.json), self._clock())
        self._probe_now.set()

    async def _take_leaf(self, answer: Answer) -> None:
        self._assembly.take_leaf(decode_leaf(answer.json), self._clock())

    async def _take_intentions(self, answer: Answer) -> None:
        rows = await decode_in_turns(answer.json, self._config.service)
        self._assembly.take_intentions(rows, self._clock() - _age("intentions", answer))

    def _take_tokens(self, tokens: TokenVerifier | None) -> None:
        self._assembly.take_tokens(tokens)
        self._advance()

    def _fail(self, part: str, error: Exception) -> None:
        self._bodies.pop(part, None)
        self._failures.set(part, error)
        if part == "intentions" and isinstance(error, DecodeError):
            self._assembly.take_undecodable()
        self._advance()

    # -- the default action -------------------------------------------------------------------

    def _note_header(self, answer: Answer) -> None:
        header = header_action(answer)
        if header != self._default.header:
            self._set_default(DefaultAction(self._default.setting, self._default.probe, header))
            self._probe_now.set()

    async def _probe(self) -> None:
        """Ask now, when something suggests a change, and every minute."""
        pace = Pace()
        while True:
            bundle = self._assembly.bundle
            if bundle is not None:
                await asyncio.sleep(pace.delay(time.monotonic()))
                self._probe_now.clear()
                if not await self._probe_once(bundle.trust_domain, pace):
                    continue
            try:
                async with asyncio.timeout(PROBE_SECONDS):
                    await self._probe_now.wait()
            except TimeoutError:
                continue
            self._probe_now.clear()

    async def _probe_once(self, trust_domain: TrustDomain, pace: Pace) -> bool:
        """Whether the probe came to an end, with or without an action."""
        part = "default action"
        try:
            answer = await self._client.authorize(self._config.service, probe_uri(trust_domain))
            result = probe_result(answer)
        except (ConsulError, DecodeError) as error:
            if not is_final(error):
                pace.failed(denied=is_denied(error))
                self._failures.set(part, error)
                return False
            logger.debug("the default action cannot be probed: %s", error)
            result = Silence.CANNOT
        pace.succeeded()
        self._failures.clear(part)
        self._set_default(DefaultAction(self._default.setting, result, self._default.header))
        return True

    def _set_default(self, default: DefaultAction) -> None:
        before, self._default = self._default.resolve(), default
        if default.resolve() != before:
            self._settle_default()
        elif default.resolve() is not None:
            self._assembly.touch("default action", self._clock())

    def _settle_default(self) -> None:
        action = self._default.resolve()
        if action is None:
            return
        logger.info(
            "%s: requests that no intention matches: %s",
            self._config.service,
            self._default,
            extra={"mesh_event": "default action", "mesh_service": self._config.service},
        )
        self._assembly.take_default(action, self._clock())
        self._advance()

    # -- states -------------------------------------------------------------------------------

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(TICK_SECONDS)
            self._advance()

    def _advance(self) -> None:
        now, before = self._clock(), self.state
        self.state = self._assembly.next(before, now)
        self._tokens.need(self.state.policy)
        self._note_problems()
        self._note_expiry(now)
        if self.state is not before:
            self._note_changes(before)
            self._publish(self.state)

    def _note_problems(self) -> None:
        for part in ("roots", "leaf"):
            mark = rejected(part)
            problem = self._assembly.problems.get(part)
            if problem is None:
                self._failures.clear(mark)
            else:
                self._failures.set(mark, Failure.of(problem, FailureKind.OTHER))

    def _note_expiry(self, now: float) -> None:
        svid = self.state.svid
        expired = svid is not None and now > svid.not_after
        if expired and not self._expired and svid is not None:
            logger.error(
                "%s: our certificate expired and the agent gave no new one; peers refuse us "
                "until it does",
                self._config.service,
                extra={"mesh_event": "expired", "mesh_service": self._config.service},
            )
        self._expired = expired

    def _note_changes(self, before: MeshState) -> None:
        after, service = self.state, self._config.service
        extra = {"mesh_service": service, "mesh_generation": after.generation}
        if before.bundle is not None and after.bundle is not None:
            old, new = before.bundle.trust_domain, after.bundle.trust_domain
            if old != new:
                logger.error(
                    "%s: the agent's trust domain changed from %s to %s and is followed; set "
                    "MESH_TRUST_DOMAIN to keep to one",
                    service,
                    old,
                    new,
                    extra=extra | {"mesh_event": "trust domain"},
                )
        if before.fault is not Reason.STALE_POLICY and after.fault is Reason.STALE_POLICY:
            logger.error(
                "%s: the intentions are older than %g s; everything is refused until the agent "
                "answers (MESH_MAX_STALENESS_SECONDS)",
                service,
                self._config.max_staleness_seconds,
                extra=extra | {"mesh_event": "stale"},
            )
        if before.policy is not after.policy and after.policy is not None:
            known = () if before.policy is None else before.policy.problems
            for problem in after.policy.problems:
                if problem not in known:
                    logger.warning(
                        "%s: %s", service, problem, extra=extra | {"mesh_event": "problem"}
                    )


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
            await asyncio.sleep(0)
    return decoded


def _age(part: str, answer: Answer) -> float:
    """How many seconds ago the servers said this. A leaf's ``Age`` means another thing."""
    text = "" if part == "leaf" else answer.headers.get("age", "")
    return float(text) if text.isascii() and text.isdigit() and len(text) < 10 else 0.0
