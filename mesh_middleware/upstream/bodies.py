"""What a transport hands to its library, of the library's own kind.

httpx asks for objects of its own classes, and httpx2 for those of its own, so that there are
classes for each, made on first use: response streams that say when they are closed, and requests
that cost no parsing.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

_CLASSES: dict[tuple[str, str], Any] = {}


def async_stream(library: Any) -> Any:
    """The class for `library`: takes a stream, and a function for when it is closed.

    What the function returns is awaited, unless it is None.
    """
    found = _CLASSES.get((library.__name__, "async"))
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
                    rest = self._ended()
                    if rest is not None:
                        await rest

    return _CLASSES.setdefault((library.__name__, "async"), MeshStream)


def sync_stream(library: Any) -> Any:
    """As `async_stream`, for blocking code."""
    found = _CLASSES.get((library.__name__, "sync"))
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

    return _CLASSES.setdefault((library.__name__, "sync"), MeshStream)


def request_class(library: Any) -> Any:
    """The class for `library`: a request of what is given, without a copy or a look at it."""
    found = _CLASSES.get((library.__name__, "request"))
    if found is not None:
        return found

    class MeshRequest(library.Request):  # type: ignore[misc]  # a class of a module argument
        def __init__(self, request: Any, url: Any, extensions: dict[str, Any]) -> None:
            self.method, self.headers, self.stream = request.method, request.headers, request.stream
            self.url, self.extensions = url, extensions

    return _CLASSES.setdefault((library.__name__, "request"), MeshRequest)
