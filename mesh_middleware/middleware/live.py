"""What is open when the mesh changes: decided again, and ended when it is refused now.

A request is decided when it comes. WebSockets, streams and uploads stay open after that, so they
are decided again when

1. the state's generation is another one: intentions, roots, providers or the default changed, or
2. the caller's certificate ends.

Both are looked for every `LOOK_SECONDS` by one timer per event loop, which runs only while
something is open. Requests that are over before it looks pay for being put into a set and taken
out again, for nothing else.

What is refused now ends so, with the reason in the decision log:

=============================  ==================================================================
WebSocket, accepted            closed with 1008 and the reason code; nothing more is delivered
WebSocket, not yet accepted    refused as if it came now
HTTP, no response yet          the application is cancelled; the refusal is the response
HTTP, response has started     the application is cancelled; the body ends early, which clients
                               see as an error (HTTP/1: closed connection, HTTP/2: reset stream)
HTTP, response is complete     left alone: background work of the application
=============================  ==================================================================

HTTP may be given `drain_seconds` to finish; whether it is refused is asked again after them.

An application runs in a task of the server's; cancelling that task is how it is ended, and what
survives it (a thread, an application that goes on all the same) can neither send nor receive.

Source: ASGI HTTP 2.4 and WebSocket 2.4 (``send`` raises OSError once the client is gone).
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Final, Protocol

from mesh_middleware._types import Message, Receive, Scope, Send
from mesh_middleware.errors import ConfigError
from mesh_middleware.middleware.peer import Caller
from mesh_middleware.middleware.refusal import (
    LAST,
    WEBSOCKET_POLICY_VIOLATION,
    Refusal,
    send_refusal,
)
from mesh_middleware.policy.decision import Decision
from mesh_middleware.policy.engine import Claims
from mesh_middleware.policy.request import HTTPRequest
from mesh_middleware.state import MeshState, StateSource

LOOK_SECONDS: Final = 0.25
"""How often the generation is looked at while something is open: well within a second."""

CLOSE_SECONDS: Final = 1.0
"""How long a close frame may take to be written before the connection is given up."""

AT_ONCE: Final = 64
"""So many are decided again before the event loop gets its turn: less than a millisecond, and a few
when all of them are ended."""

_LAST: Final = frozenset(
    f"http.response.{name}" for name in ("body", "zerocopysend", "pathsend", "trailers")
)


@dataclass(frozen=True, slots=True)
class Ending:
    """Why something that is open must end, and how a response that has not begun says it."""

    decision: Decision
    refusal: Refusal

    def error(self) -> OSError:
        """What the application gets that goes on to send."""
        return ConnectionAbortedError(f"ended by the mesh: {self.decision.reason}")


@dataclass(slots=True, eq=False)
class Question:
    """What is decided about, as it was when it came: routers change a scope as they go down it.

    `extensions`: those of the scope, `ours`: what our own servers and middlewares say there.
    `claims`: of the tokens that came with it. `caller`: as first decided; None before, and for
    nobody.
    """

    scope: Scope
    request: HTTPRequest
    extensions: dict[str, Any]
    ours: dict[str, Any]
    claims: Claims
    caller: Caller | None = None


class Judge(Protocol):
    """Who decides: an `Enforcer`."""

    def judge_again(self, asked: Question, state: MeshState) -> Ending | None:
        """None while what was asked about may go on."""
        ...

    def judged_until(self, asked: Question) -> float:
        """Unix seconds until which the proof of the caller holds, unless the state changes."""
        ...

    def ended(self, asked: Question, decision: Decision, state: MeshState) -> None:
        """It is being ended: tell."""
        ...


def checked_drain(seconds: float) -> float:
    """`seconds` as a middleware's ``drain_seconds``; ConfigError when they cannot be."""
    if not 0 <= seconds < math.inf:
        raise ConfigError(f"drain_seconds {seconds!r}: give 0 or more seconds")
    return seconds


class Open:
    """What was allowed and goes on: what it was decided by, and the way to the server.

    `kind`: the type of the scope. `home`: the set that it is in. `ending` is set once it is being
    ended; from then on nothing is sent or received. Without slots: what only long-lived ones need
    is not written for the others.
    """

    kind: ClassVar[str]

    ending: Ending | None = None
    until: float | None = None
    """As `Judge.judged_until`; None until it has been open for long enough to be looked at."""
    draining = False
    cancelled = False
    leaving = False
    """Whether a response asks the caller to make a new connection (HTTP/1)."""

    def __init__(
        self,
        asked: Question,
        receive: Receive,
        send: Send,
        task: asyncio.Task[Any] | None,
        home: set[Any],
    ) -> None:
        self.asked = asked
        self._receive = receive
        self._send = send
        self.task = task
        self.home = home

    def cancel(self) -> None:
        """Cancel the application."""
        if self.task is not None:
            self.cancelled = True
            self.task.cancel()

    async def finish(self, scope: Scope) -> None:
        """The application has ended, because it was ended or while it was."""
        if self.task is not None:
            if self.cancelled:
                self.task.uncancel()
            if self.task.cancelling():
                raise asyncio.CancelledError  # by somebody else, too
        if self.ending is not None:
            await self._refuse(scope, self.ending.refusal)

    async def _refuse(self, scope: Scope, refusal: Refusal) -> None:
        """Tell the client, where that is still to be done."""


class OpenRequest(Open):
    """A request without its whole response yet."""

    kind = "http"
    _last: Message | None = None

    def receive(self) -> Awaitable[Message]:
        """The server's next message, or that the client is gone."""
        return self._receive() if self.ending is None else _http_disconnect()

    def send(self, message: Message) -> Awaitable[None]:
        """Pass `message` on and remember it: it tells how far the response is."""
        if self.ending is not None:
            raise self.ending.error()
        self._last = message
        if self.leaving and message["type"] == "http.response.start":
            message = {**message, "headers": [*message.get("headers", ()), LAST]}
        return self._send(message)

    @property
    def complete(self) -> bool:
        """Whether the whole response has been given to the server."""
        last = self._last
        return (
            last is not None
            and last["type"] in _LAST
            and not last.get("more_body")
            and not last.get("more_trailers")
        )

    def end(self, ending: Ending) -> None:
        """Begin to end it."""
        self.ending = ending
        self.cancel()

    async def _refuse(self, scope: Scope, refusal: Refusal) -> None:
        if self._last is not None:
            return
        # The rest of an upload must not be read as the next request.
        refusal = replace(refusal, last=True)
        await send_refusal({**scope, "headers": ()}, self._send, refusal)


class OpenSocket(Open):
    """A WebSocket, from its handshake to its end."""

    kind = "websocket"
    complete = False
    _accepted = False

    async def receive(self) -> Message:
        """The server's next message; a disconnect for any that comes once it is being ended."""
        if self.ending is None:
            message = await self._receive()
            if self.ending is None:
                return message
        return {
            "type": "websocket.disconnect",
            "code": WEBSOCKET_POLICY_VIOLATION,
            "reason": str(self.ending.decision.reason),
        }

    async def send(self, message: Message) -> None:
        """Pass `message` on. OSError once it is being ended, as when a client is gone."""
        if self.ending is not None:
            raise self.ending.error()
        if message["type"] == "websocket.accept":
            self._accepted = True
        elif message["type"] != "websocket.send":
            self.complete = True  # closed or refused by the application
        await self._send(message)

    def end(self, ending: Ending) -> None:
        """Begin to end it."""
        self.ending = ending
        # Kept here, because nobody awaits it.
        self._closing = asyncio.get_running_loop().create_task(self._close(ending))

    async def _close(self, ending: Ending) -> None:
        close = {
            "type": "websocket.close",
            "code": WEBSOCKET_POLICY_VIOLATION,
            "reason": str(ending.decision.reason),
        }
        handshake = {"type": "websocket", "extensions": self.asked.extensions}
        try:
            async with asyncio.timeout(CLOSE_SECONDS):
                if self._accepted:
                    await self._send(close)
                else:
                    await send_refusal(handshake, self._send, ending.refusal)
        except TimeoutError:
            # A client that does not read keeps us from writing; without its application the
            # server drops the connection.
            self.cancel()
        except (OSError, RuntimeError):
            pass  # the client or the application was faster


AnyOpen = OpenRequest | OpenSocket


async def _http_disconnect() -> Message:
    return {"type": "http.disconnect"}


class Live:
    """Everything that is open below one middleware.

    `source`: where the state comes from now; None when there is none any more, which ends nothing.
    `drain_seconds`: how long HTTP requests may go on once they are refused; 0 ends them at once.
    """

    def __init__(
        self, judge: Judge, source: Callable[[], StateSource | None], drain_seconds: float
    ) -> None:
        self._judge = judge
        self._source = source
        self._drain_seconds = drain_seconds
        self._watch: Watch | None = None

    def opened(
        self, kind: str, asked: Question, generation: int, receive: Receive, send: Send
    ) -> OpenRequest | OpenSocket:
        """What runs in the current task from now on, allowed by the state of `generation`.

        Give the application its `receive` and `send`. When the application has ended, take it out
        of its `home`, and `finish` it when it is `ending`.
        """
        made = OpenRequest if kind == "http" else OpenSocket
        try:
            task = asyncio.current_task()
        except RuntimeError:
            task = None
        if task is None:  # not asyncio: only the next request is decided anew
            return made(asked, receive, send, None, set())
        watch = self._watch
        if watch is None or watch.loop is not task.get_loop():
            # Loops come and go, in tests; two at a time work with more timers than are needed.
            watch = Watch(task.get_loop(), self._judge, self._source, self._drain_seconds)
            self._watch = watch
        new = watch.new
        entry = made(asked, receive, send, task, new)
        new.add(entry)
        if watch.idle:
            watch.start(generation)
        return entry


class Watch:
    """What is open in one event loop, looked at by one timer while there is anything."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        judge: Judge,
        source: Callable[[], StateSource | None],
        drain_seconds: float,
    ) -> None:
        self.loop = loop
        self.idle = True
        self.new: set[AnyOpen] = set()
        self._old: set[AnyOpen] = set()
        self._judge = judge
        self._source = source
        self._drain_seconds = drain_seconds
        self._seen: tuple[StateSource | None, int] = (None, -1)
        self._next_end = math.inf
        self._waiting: list[AnyOpen] = []

    def start(self, generation: int) -> None:
        """Begin to look: there is something that the state of `generation` allowed."""
        self.idle = False
        self._seen = (self._source(), generation)
        self.loop.call_later(LOOK_SECONDS, self._look)

    def _look(self) -> None:
        if not (self.new or self._old):
            self.idle = True
            return
        # First of all, so that it goes on whatever happens below.
        self.loop.call_later(LOOK_SECONDS, self._look)
        source = self._source()
        if source is None:
            return
        generation, now = source.state.generation, time.time()
        for entry in self.new:
            entry.home = self._old
            self._renew(entry)
        self._old |= self.new
        self.new.clear()
        if self._seen[0] is not source or self._seen[1] != generation:
            self._seen = (source, generation)
            self._ask_again(self._old)
        elif now > self._next_end:
            self._ask_again([entry for entry in self._old if now > (entry.until or 0)])
            self._next_end = min(
                (entry.until for entry in self._old if entry.until and entry.until >= now),
                default=math.inf,
            )

    def _renew(self, entry: AnyOpen) -> None:
        entry.until = self._judge.judged_until(entry.asked)
        self._next_end = min(self._next_end, entry.until)

    def _ask_again(self, entries: Iterable[AnyOpen]) -> None:
        idle = not self._waiting
        self._waiting = list(dict.fromkeys((*self._waiting, *entries)))
        if idle:
            self._ask_some()

    def _ask_some(self) -> None:
        """Decide about some, then let the event loop do what else it has."""
        some, self._waiting = self._waiting[:AT_ONCE], self._waiting[AT_ONCE:]
        if self._waiting:
            self.loop.call_soon(self._ask_some)
        source = self._source()
        for entry in some:
            if source and entry in self._old and not entry.ending and not entry.draining:
                self._ask(entry, source.state)

    def _ask(self, entry: AnyOpen, state: MeshState, *, drained: bool = False) -> None:
        ending = None if entry.complete else self._judge.judge_again(entry.asked, state)
        if ending is None:
            self._renew(entry)
        elif self._drain_seconds and entry.kind == "http" and not drained:
            entry.draining = True
            self.loop.call_later(self._drain_seconds, self._drained, entry)
        else:
            entry.end(ending)
            self._judge.ended(entry.asked, ending.decision, state)

    def _drained(self, entry: AnyOpen) -> None:
        entry.draining = False
        source = self._source()
        if source and entry in self._old:
            self._ask(entry, source.state, drained=True)
