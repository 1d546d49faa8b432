"""Response streams that say when they are closed, of the HTTP library's own kind.

httpx asks for a stream of its own class, and httpx2 for one of its own, so that there is a class
for each, made on first use.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

_STREAMS: dict[tuple[str, str], Any] = {}


def async_stream(library: Any) -> Any:
    """The class for `library`: takes a stream, and a coroutine function for when it is closed."""
    found = _STREAMS.get((library.__name__, "async"))
    if found is not None:
        return found

    class MeshStream(library.AsyncByteStream):  # type: ignore[misc]  # a class of a module argument
        def __init__(self, stream: Any, ended: Callable[[], Any]) -> None:
            self._stream, self._ended, self._open = stream, ended, True

        def __aiter__(self) -> AsyncIterator[bytes]:
            iterator: AsyncIterator[bytes] = self._stream.__aiter__()
            return iterator

        async def aclose(self) -> None:
            try:
                await self._stream.aclose()
            finally:
                if self._open:
                    self._open = False
                    await self._ended()

    return _STREAMS.setdefault((library.__name__, "async"), MeshStream)


def sync_stream(library: Any) -> Any:
    """As `async_stream`, for blocking code."""
    found = _STREAMS.get((library.__name__, "sync"))
    if found is not None:
        return found

    class MeshStream(library.SyncByteStream):  # type: ignore[misc]  # a class of a module argument
        def __init__(self, stream: Any, ended: Callable[[], Any]) -> None:
            self._stream, self._ended, self._open = stream, ended, True

        def __iter__(self) -> Iterator[bytes]:
            iterator: Iterator[bytes] = self._stream.__iter__()
            return iterator

        def close(self) -> None:
            try:
                self._stream.close()
            finally:
                if self._open:
                    self._open = False
                    self._ended()

    return _STREAMS.setdefault((library.__name__, "sync"), MeshStream)
