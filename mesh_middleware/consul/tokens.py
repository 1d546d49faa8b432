"""From ``jwt-provider`` entries and their keys to the `TokenVerifier` of a state.

Only what the policy names is looked at: without a rule that needs tokens, the agent is not asked
for providers; and of those it lists, only the named ones fetch keys and hide headers.

What a provider hides from applications outlives its entry: once known it stays hidden while a rule
names the provider, whether the entry is gone, cannot be used, or must not be read any more.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from typing import Final

from mesh_middleware._text import one_line
from mesh_middleware.config import MeshConfig
from mesh_middleware.consul.client import Answer, ConsulClient
from mesh_middleware.consul.decode_provider import KIND, Providers, decode_providers
from mesh_middleware.consul.failures import Failure, FailureKind, Failures
from mesh_middleware.consul.jwks import RemoteKeys, keys_of
from mesh_middleware.consul.watcher import Watcher
from mesh_middleware.errors import DecodeError, MeshError
from mesh_middleware.policy.engine import Policy
from mesh_middleware.policy.intentions import Intention, JWTRequirement
from mesh_middleware.tls.jwks import NO_KEYS, KeySet
from mesh_middleware.tls.providers import HiddenHeaders, TokenProvider
from mesh_middleware.tls.remembered import Remembered
from mesh_middleware.tls.signatures import INSTALL, library_present
from mesh_middleware.tls.tokens import TokenVerifier, VerifiedToken

logger = logging.getLogger("mesh_middleware.consul")

PART: Final = "jwt providers"
"""The providers as a part of the state, in the words of messages."""


def providers_named(policy: Policy | None) -> frozenset[str]:
    """The providers that the rules of a policy name."""
    if policy is None or not policy.needs_tokens:
        return frozenset()
    return frozenset(
        provider.name
        for row in policy.intentions
        for requirement in _requirements(row)
        for provider in requirement.providers
    )


def _requirements(row: Intention) -> list[JWTRequirement]:
    found = [row.jwt, *(permission.jwt for permission in row.permissions)]
    return [requirement for requirement in found if requirement is not None]


class _Source:
    """A provider in use: its entry, its keys and the task that keeps them fresh."""

    __slots__ = ("keys", "provider", "task")

    def __init__(self, provider: TokenProvider, keys: RemoteKeys, task: asyncio.Task[None]) -> None:
        self.provider = provider
        self.keys = keys
        self.task = task


_Published = tuple[frozenset[str], list[tuple[TokenProvider, KeySet]], dict[str, HiddenHeaders]]
"""What a verifier was made of: the names that rules have, and what is known of them."""


class TokenKeeper:
    """Makes the verifier for what `need` asked for; `publish` gets it, None for none.

    Everything runs in the event loop of `run`, but for the verifier's call for unknown keys.
    """

    def __init__(
        self,
        config: MeshConfig,
        client: ConsulClient,
        publish: Callable[[TokenVerifier | None], object],
        *,
        failures: Failures,
        clock: Callable[[], float] = time.time,
        wait: float | None = None,
    ) -> None:
        self._service = config.service
        self._allow_http = config.allow_plaintext_jwks
        self._client = client
        self._publish = publish
        self._failures = failures
        self._clock = clock
        self._wait = wait
        self._policy: Policy | None = None
        self._named: frozenset[str] = frozenset()
        self._hidden: dict[str, HiddenHeaders] = {}
        self._covered: frozenset[str] = frozenset()
        self._listed: Providers | None = None
        self._known = True
        self._sources: dict[str, _Source] = {}
        self._remembered: Remembered[VerifiedToken] = Remembered()
        self._published: _Published | None = None
        self._complaints: set[str] = set()
        self._news = asyncio.Event()

    def need(self, policy: Policy | None) -> bool:
        """The policy is to be `policy`: look after the providers that it names.

        Whether the newest verifier was made knowing of all of them, usable or not.
        """
        if policy is not self._policy:
            self._policy = policy
            named = providers_named(policy)
            if named != self._named:
                self._named = named
                self._news.set()
        return self._named <= self._covered

    async def run(self) -> None:
        """Watch, fetch and publish until cancelled."""
        watch: asyncio.Task[None] | None = None
        async with asyncio.TaskGroup() as tasks:
            while True:
                await self._news.wait()
                self._news.clear()
                wanted = bool(self._named)
                if wanted and watch is None:
                    watch = tasks.create_task(self._watcher().run())
                elif not wanted and watch is not None:
                    watch.cancel()
                    watch, self._listed = None, None
                    self._failures.clear(PART)
                self._note_library()
                self._use_sources(tasks)
                self._complain()
                self._publish_news()

    def _note_library(self) -> None:
        """Without the library the list still says which headers to hide."""
        if self._listed is not None and self._known and self._named and not library_present():
            text = f"{INSTALL}; until then rules that need tokens refuse"
            self._failures.set(PART, Failure.of(text, FailureKind.OTHER))

    # -- the list of providers ----------------------------------------------------------------

    def _watcher(self) -> Watcher:
        return Watcher(
            fetch=lambda index: self._client.config_entries(KIND, index, self._wait),
            deliver=self._deliver,
            failed=self._fail,
            hurry=self._client.token_changed,
        )

    async def _deliver(self, answer: Answer) -> None:
        listed = decode_providers(answer.json, allow_http=self._allow_http)
        if library_present():
            self._failures.clear(PART)
        if listed != self._listed or not self._known:
            self._listed, self._known = listed, True
            self._remember_hidden(listed)
            self._news.set()

    def _remember_hidden(self, listed: Providers) -> None:
        """What is hidden for each provider now, and was when its entry could be read last."""
        kept = {name: self._hidden[name] for name in self._named & self._hidden.keys()}
        unusable = {
            name: hidden | self._hidden.get(name, HiddenHeaders())
            for name, hidden in listed.hidden.items()
        }
        usable = {name: provider.hidden for name, provider in listed.usable.items()}
        self._hidden = kept | unusable | usable

    def _fail(self, error: Exception) -> None:
        self._failures.set(PART, error)
        if isinstance(error, DecodeError) and self._known:
            self._known = False  # what was listed says which headers to hide, but not who may sign
            self._news.set()

    # -- their keys ---------------------------------------------------------------------------

    def _use_sources(self, tasks: asyncio.TaskGroup) -> None:
        """One source for each provider that is named and listed; an unchanged one goes on."""
        usable = {} if self._listed is None or not library_present() else self._listed.usable
        wanted = {name: usable[name] for name in sorted(self._named) if name in usable}
        for name, source in list(self._sources.items()):
            if name not in wanted or wanted[name].keys != source.provider.keys:
                source.task.cancel()
                del self._sources[name]
                self._failures.clear(_keys_part(name))
        for name, provider in wanted.items():
            if name in self._sources:
                self._sources[name].provider = provider
                continue
            keys = keys_of(provider, changed=self._news.set, failed=self._keys_failed(name))
            self._sources[name] = _Source(provider, keys, tasks.create_task(keys.run()))

    def _keys_failed(self, name: str) -> Callable[[MeshError | None], None]:
        part = _keys_part(name)

        def failed(error: MeshError | None) -> None:
            if error is None:
                self._failures.clear(part)
            else:
                text = f"{error}; tokens are verified with the last keys, if there are any"
                self._failures.set(part, Failure.of(text, FailureKind.OTHER))

        return failed

    def _unknown_key(self, name: str) -> None:
        """From any thread."""
        source = self._sources.get(name)
        if source is not None:
            source.keys.hurry()

    # -- the verifier -------------------------------------------------------------------------

    def _publish_news(self) -> None:
        if self._listed is None:
            if not self._named and self._published is not None:
                self._published, self._covered = None, frozenset()
                self._publish(None)
            return
        sources = [
            (source.provider, source.keys.keys if self._known else NO_KEYS)
            for source in self._sources.values()
        ]
        hidden = {name: self._hidden[name] for name in self._named & self._hidden.keys()}
        published = (self._named, sources, hidden)
        if published == self._published:
            return
        self._published, self._covered = published, self._named
        verifier = TokenVerifier(
            sources,
            hidden=hidden.values(),
            remembered=self._remembered,
            clock=self._clock,
            unknown_key=self._unknown_key,
        )
        self._publish(verifier)

    def _complain(self) -> None:
        """Say once what makes rules refuse that are written well."""
        complaints: set[str] = set()
        if self._listed is not None:
            for name in self._named - self._listed.usable.keys():
                why = self._listed.problems.get(name, "there is no such jwt-provider entry")
                complaints.add(f"jwt provider {name!r}: {why}; rules that name it refuse")
        for name, source in self._sources.items():
            for problem in source.keys.keys.problems:
                complaints.add(f"jwt provider {name!r}: {problem}")
        for text in sorted(complaints - self._complaints):
            logger.warning(
                "%s: %s",
                self._service,
                one_line(text),
                extra={"mesh_event": "problem", "mesh_service": self._service},
            )
        self._complaints = complaints


def _keys_part(name: str) -> str:
    return f"keys of jwt provider {name!r}"
