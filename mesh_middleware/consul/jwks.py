"""A provider's keys, kept fresh: fetched, fetched again when they age or one is missing.

When what happens to a `RemoteKeys`:

=========================================  ====================================================
what                                       then
=========================================  ====================================================
a good answer                              its keys replace the old ones; next after the cache
                                           duration
no good answer                             the last keys stay; the retries of the entry with its
                                           backoff, then every `FAILED_SECONDS`
no good answer for `MAX_STALE_SECONDS`     no keys: every token is refused
a token names a key that is not there      fetched again, but not within `HURRY_SECONDS` of the
                                           last fetch; that request is refused
=========================================  ====================================================

Source: Consul, ``jwt-provider`` ``JSONWebKeySet``.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import os
import ssl
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Final

import httpx

from mesh_middleware.config import host_of
from mesh_middleware.consul.body import ACCEPTED, read_body
from mesh_middleware.errors import DecodeError, MeshError
from mesh_middleware.tls.jwks import MAX_DOCUMENT, NO_KEYS, KeySet
from mesh_middleware.tls.providers import (
    CACHE_SECONDS,
    LocalJWKS,
    RemoteJWKS,
    RetryPolicy,
    TokenProvider,
    TrustedCA,
)

logger = logging.getLogger("mesh_middleware.consul")

HURRY_SECONDS: Final = 10.0
"""Unknown keys lead to a fetch at most so often: anybody can make up names of keys."""

FAILED_SECONDS: Final = 10.0
"""How long to wait when the retries of an entry are used up."""

_HEADERS: Final = {"Accept": "application/json", "Accept-Encoding": ACCEPTED}

MAX_STALE_SECONDS: Final = 86400.0
"""How long the last keys count when they cannot be fetched: a day."""

Fetch = Callable[[], Awaitable[bytes]]


class KeysError(MeshError):
    """Keys could not be fetched."""


class RemoteKeys:
    """The newest keys of one provider. Belongs to the event loop that it is made in.

    `fetch`: gives a JWKS document or raises MeshError. `cache_seconds`: None for a document that
    never changes. `changed`: called when `keys` is another set. `failed`: called with each
    failure, and with None after a good answer. `clock`: monotonic seconds, as those of `sleep`.
    """

    def __init__(
        self,
        fetch: Fetch,
        *,
        cache_seconds: float | None,
        changed: Callable[[], object],
        failed: Callable[[MeshError | None], object],
        retry: RetryPolicy = RetryPolicy(),  # noqa: B008  (a frozen value)
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
        hurry_seconds: float = HURRY_SECONDS,
        failed_seconds: float = FAILED_SECONDS,
        max_stale_seconds: float = MAX_STALE_SECONDS,
    ) -> None:
        self.keys = NO_KEYS
        self._fetch = fetch
        self._cache_seconds = cache_seconds
        self._retry = retry
        self._changed = changed
        self._failed = failed
        self._clock = clock
        self._sleep = sleep
        self._hurry_seconds = hurry_seconds
        self._failed_seconds = failed_seconds
        self._max_stale_seconds = max_stale_seconds
        self._loop = asyncio.get_running_loop()
        self._hurried = asyncio.Event()
        self._asked = clock()
        self._answered = clock()
        self._failures = 0

    def hurry(self) -> None:
        """A key is missing: fetch soon. From any thread; cheap when it was said already."""
        if not self._hurried.is_set():
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody fetches any more
                self._loop.call_soon_threadsafe(self._hurried.set)

    async def run(self) -> None:
        """Keep the keys fresh until cancelled."""
        while True:
            await self._pause(await self._refresh_safely())

    async def _refresh_safely(self) -> float | None:
        """`refresh`; what it does not expect is one more failure, to be tried again.

        Entries are written by people: none may end the task, and with it all that is learned.
        """
        try:
            return await self.refresh()
        except Exception as error:  # the task's edge
            if self._failures == 0:
                logger.exception("the keys of a jwt provider could not be fetched")
            return self._after(KeysError(f"the keys cannot be fetched: {type(error).__name__}"))

    async def refresh(self) -> float | None:
        """Fetch once; gives the seconds until the next time, None for never."""
        self._hurried.clear()
        self._asked = self._clock()
        try:
            document = await self._fetch()
            keys = self.keys
            if hashlib.sha256(document).digest() != keys.digest:
                keys = await asyncio.to_thread(KeySet.from_json, document)
        except MeshError as error:
            return self._after(error)
        self._answered = self._clock()
        self._failures = 0
        self._failed(None)
        self._use(keys)
        return self._cache_seconds

    def _after(self, error: MeshError) -> float:
        self._failures += 1
        self._failed(error)
        if self._clock() - self._answered >= self._max_stale_seconds:
            self._use(NO_KEYS)
        retry = self._retry
        if self._failures > retry.retries:
            return self._failed_seconds
        # Doublings are capped: 2.0 ** 1024 does not fit a float.
        return min(retry.max_seconds, retry.base_seconds * 2.0 ** min(self._failures - 1, 16))

    def _use(self, keys: KeySet) -> None:
        if keys is not self.keys:
            self.keys = keys
            self._changed()

    async def _pause(self, seconds: float | None) -> None:
        try:
            async with asyncio.timeout(seconds):
                await self._hurried.wait()
        except TimeoutError:
            return
        await self._sleep(max(0.0, self._asked + self._hurry_seconds - self._clock()))


def keys_of(
    provider: TokenProvider,
    *,
    changed: Callable[[], object],
    failed: Callable[[MeshError | None], object],
) -> RemoteKeys:
    """The keeper of a provider's keys, wherever they come from. A file is read again as it ages."""
    keys = provider.keys
    if isinstance(keys, RemoteJWKS):
        return RemoteKeys(
            lambda: fetch(keys),
            cache_seconds=keys.cache_seconds,
            retry=keys.retry,
            changed=changed,
            failed=failed,
        )
    return RemoteKeys(
        lambda: asyncio.to_thread(local_document, keys),
        cache_seconds=CACHE_SECONDS if keys.filename else None,
        changed=changed,
        failed=failed,
    )


def local_document(keys: LocalJWKS) -> bytes:
    """The document of local keys. KeysError for a file that cannot be read."""
    if not keys.filename:
        return keys.document
    try:
        with Path(keys.filename).open("rb") as file:
            return file.read(MAX_DOCUMENT + 1)
    except (OSError, ValueError) as error:
        raise KeysError(f"cannot read the keys in {keys.filename}: {error}") from error


async def fetch(remote: RemoteJWKS) -> bytes:
    """The document at `remote.uri`; KeysError when there is none.

    No redirects, and no proxies or credentials of the environment.
    """
    where = host_of(remote.uri)
    try:
        async with (
            asyncio.timeout(remote.timeout_seconds),
            httpx.AsyncClient(
                verify=ca_context(remote.ca),
                trust_env=False,
                timeout=remote.timeout_seconds,
                follow_redirects=False,
            ) as client,
            client.stream("GET", remote.uri, headers=_HEADERS) as response,
        ):
            if response.status_code != 200:
                raise KeysError(f"{where}: status {response.status_code} instead of 200")
            encoding = response.headers.get("content-encoding", "")
            return await read_body(response.aiter_raw(), encoding, MAX_DOCUMENT, where)
    except DecodeError as error:
        raise KeysError(str(error)) from error
    except TimeoutError as error:
        raise KeysError(f"{where}: no answer in {remote.timeout_seconds:g} s") from error
    except (httpx.HTTPError, httpx.InvalidURL, ValueError, TypeError) as error:
        # not only its own errors: a host name can fail in the codec for international ones
        raise KeysError(f"{where}: {error or type(error).__name__}") from error


def ca_context(ca: TrustedCA) -> ssl.SSLContext:
    """What proves the server with the keys. KeysError, without contents, for CAs that cannot be."""
    try:
        pem = os.environ.get(ca.variable, "") if ca.variable else ca.pem
        if ca.variable and not pem:
            raise KeysError(f"the environment variable {ca.variable} with the CA is not set")
        return ssl.create_default_context(cafile=ca.filename or None, cadata=pem or None)
    except (OSError, ValueError, TypeError) as error:  # TypeError: text that is not ASCII
        where = ca.filename or ca.variable or "InlineString"
        raise KeysError(f"the CA in {where} cannot be used: {error}") from error
