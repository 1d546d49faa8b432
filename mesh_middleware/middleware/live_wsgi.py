"""A WSGI request that is open when the mesh changes: decided again, as `live` does it for ASGI.

A thread of the server's runs it, and nobody else can end it; so it is looked at where it passes
anything on: with each read of its body, with the response as the application gives it, and with
each chunk of that. What is refused by then ends so, with the reason in the decision log:

==================================  ============================================================
the application has not returned,   the refusal is the response, whatever the application does;
nor called its ``write``            reading the body raises in it
the response has begun              the iterable is closed, and an error that servers take for a
                                    client that went makes them cut the connection (HTTP/2: reset
                                    the stream): the response never looks complete
==================================  ============================================================

So that there can be a refusal, the server's ``start_response`` is called when the application has
returned, or with its first chunk where it waits for so long itself.

An application that waits for something between two chunks is ended with the second of them: it
sends nothing until then. A file for ``wsgi.file_wrapper`` is given to the server in chunks, because
no one could stop one that was given the file.
"""

from __future__ import annotations

import errno
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Final
from wsgiref.util import FileWrapper

from mesh_middleware._types import Environ, StartResponse, WSGIApp
from mesh_middleware.middleware.live import Ending, Judge, Question
from mesh_middleware.middleware.refusal import Refusal
from mesh_middleware.state import StateSource

Refuse = Callable[[Environ, StartResponse, Refusal], Iterable[bytes]]

_BODY: Final = "wsgi.input"
_FILES: Final = "wsgi.file_wrapper"


class OpenCall:
    """What was allowed by `source` and goes on. One thread at a time.

    `current`: where the state comes from now; None when there is none any more, which ends nothing.
    `drain_seconds`: as in `live.Live`. `ending` is set once it is ended.
    """

    ending: Ending | None = None

    def __init__(
        self,
        judge: Judge,
        current: Callable[[], StateSource | None],
        asked: Question,
        seen: tuple[StateSource, int],
        drain_seconds: float,
    ) -> None:
        self.asked = asked
        self._judge = judge
        self._current = current
        self._source, self._generation = seen
        self._until = judge.judged_until(asked)
        self._drain_seconds = drain_seconds
        self._drains_until: float | None = None

    def look(self) -> Ending | None:
        """Why it must end now, or None while it may go on."""
        if self.ending is not None:
            return self.ending
        source = self._current()
        if source is None:
            return None
        state, now = source.state, time.time()
        if state.generation == self._generation and now <= self._until and source is self._source:
            return None
        if self._drains_until is not None and now < self._drains_until:
            return None
        ending = self._judge.judge_again(self.asked, state)
        if ending is None:
            self._source, self._generation = source, state.generation
            self._until = self._judge.judged_until(self.asked)
            self._drains_until = None
        elif self._drain_seconds and self._drains_until is None:
            self._drains_until = now + self._drain_seconds
        else:
            self.ending = ending
            self._judge.ended(self.asked, ending.decision, state)
        return self.ending

    def pass_on(self) -> None:
        """Raise what ends the connection when it must end."""
        if (ending := self.look()) is not None:
            raise cut(ending)


def cut(ending: Ending) -> OSError:
    """What servers take for a client that went: they say nothing, and cut the connection."""
    return ConnectionResetError(errno.ECONNRESET, f"ended by the mesh: {ending.decision.reason}")


class OpenResponse:
    """The response to one `call`: an iterable for the server, `start` for the application.

    `refuse` answers a refusal as WSGI applications do.
    """

    def __init__(
        self, call: OpenCall, environ: Environ, start_response: StartResponse, refuse: Refuse
    ) -> None:
        self._call = call
        self._environ = environ
        self._start_response = start_response
        self._refuse = refuse
        self._head: tuple[str, list[tuple[str, str]]] | None = None
        self._begun = False
        self._write: Any = None  # the server's, from then on
        self._chunks: Iterator[bytes] = iter(())
        self._result: Any = ()
        if _BODY in environ:
            environ[_BODY] = _Body(call, environ[_BODY])
        if _FILES in environ:
            environ[_FILES] = FileWrapper

    def of(self, app: WSGIApp, start: StartResponse) -> Iterable[bytes]:
        """What `app` gives the server; `start` is `self.start`, or something around it."""
        try:
            self._result = app(self._environ, start)
        except OSError:
            if not self._can_refuse():
                raise
        ending = self._call.look()
        if ending is not None:
            return self._ended(ending)
        self._begin()
        if isinstance(self._result, list | tuple) and len(self._result) <= 1:
            return self._result
        self._chunks = iter(self._result)
        return self

    def start(
        self, status: str, headers: list[tuple[str, str]], exc_info: Any = None
    ) -> Callable[[bytes], object]:
        """The application's ``start_response``."""
        if self._begun:
            return self._start_response(status, headers, exc_info)
        if self._head is not None and not exc_info:
            raise AssertionError("start_response was called already")
        self._head = (status, headers)
        return self.write

    def write(self, data: bytes) -> None:
        """What ``start_response`` returns."""
        self._call.pass_on()
        self._begin()
        self._write(data)

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        """The next chunk; with it the response begins, where it has not."""
        try:
            chunk = next(self._chunks, None)
        except OSError:
            if not self._can_refuse():
                raise
            chunk = None
        if chunk is not None or not self._begun:
            ending = self._call.look()
            if ending is not None:
                self._chunks = iter(self._ended(ending))
                chunk = next(self._chunks, None)
            self._begin()
        if chunk is None:
            raise StopIteration
        return chunk

    def close(self) -> None:
        """Close what the application gave, once."""
        result, self._result = self._result, ()
        if hasattr(result, "close"):
            result.close()

    def _begin(self) -> None:
        if not self._begun and self._head is not None:
            self._begun = True
            self._write = self._start_response(*self._head)

    def _can_refuse(self) -> bool:
        """Whether what the application raises may be answered with our refusal."""
        return self._call.ending is not None and not self._begun

    def _ended(self, ending: Ending) -> Iterable[bytes]:
        self.close()
        if self._begun:
            raise cut(ending)
        self._begun = True
        return self._refuse(self._environ, self._start_response, ending.refusal)


class _Body:
    """``wsgi.input`` of one call, with the methods that PEP 3333 gives it."""

    def __init__(self, call: OpenCall, given: Any) -> None:
        self._call = call
        self._given = given

    def read(self, *size: int) -> bytes:
        data: bytes = self._given.read(*size)
        self._call.pass_on()
        return data

    def readline(self, *size: int) -> bytes:
        line: bytes = self._given.readline(*size)
        self._call.pass_on()
        return line

    def readlines(self, *hint: int) -> list[bytes]:
        lines: list[bytes] = self._given.readlines(*hint)
        self._call.pass_on()
        return lines

    def __iter__(self) -> Iterator[bytes]:
        for line in self._given:
            self._call.pass_on()
            yield line
