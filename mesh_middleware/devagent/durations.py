"""Go's durations: ``300ms``, ``10s``, ``1h30m``."""

from __future__ import annotations

import re

from mesh_middleware.devagent.schema import RefusedError

_UNITS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
_PART = re.compile(r"([0-9]+(?:\.[0-9]*)?|\.[0-9]+)(ns|us|µs|ms|s|m|h)")
_WHOLE = re.compile(rf"([+-]?)((?:{_PART.pattern})+)")


def seconds(text: str) -> float:
    """The duration in seconds, which may be negative; RefusedError (400) if it is none.

    Source: Go's time.ParseDuration.
    """
    if text in ("0", "+0", "-0"):
        return 0.0
    found = _WHOLE.fullmatch(text)
    if not found:
        raise RefusedError(400, f'Request decode failed: time: invalid duration "{text}"')
    total = sum(float(number) * _UNITS[unit] for number, unit in _PART.findall(found[2]))
    return -total if found[1] == "-" else total
