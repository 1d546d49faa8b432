"""Which interface an application has: ASGI, or WSGI by the look of it."""

from __future__ import annotations

import inspect


def is_wsgi(app: object) -> bool:
    """Whether `app` takes ``(environ, start_response)``: two arguments, and is no coroutine."""
    if not callable(app) or inspect.isclass(app):
        return False
    call = app if inspect.isroutine(app) else type(app).__call__
    if inspect.iscoroutinefunction(call):
        return False
    try:
        parameters = inspect.signature(app).parameters.values()
    except (TypeError, ValueError):
        return False
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    needed = [p for p in parameters if p.default is p.empty and p.kind in positional]
    return len(needed) == 2
