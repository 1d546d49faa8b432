"""How many inputs a fuzz test takes: a few that are the same every time, unless told otherwise.

`make fuzz` sets ``MESH_FUZZ_EXAMPLES``: then it takes so many, other ones in each run. Tests of
hypothesis get it from the profile that is loaded here for all of them, or from `fuzz`.
"""

from __future__ import annotations

import os
import time

from hypothesis import HealthCheck, settings

EXAMPLES = int(os.environ.get("MESH_FUZZ_EXAMPLES", "0"))

settings.register_profile(
    "mesh",
    max_examples=EXAMPLES or 100,
    deadline=None,
    derandomize=not EXAMPLES,
    database=None,
    suppress_health_check=list(HealthCheck),
)
settings.load_profile("mesh")


def examples(few: int, *, cost: int = 1) -> int:
    """How many: `few` in an ordinary run, else all that are wanted, divided by their `cost`."""
    return max(EXAMPLES // cost, 1) if EXAMPLES else few


def fuzz(few: int, *, cost: int = 1) -> settings:
    """The profile with another number of `examples`."""
    return settings(max_examples=examples(few, cost=cost))


def first_seed() -> int:
    """Where to begin counting seeds."""
    return time.time_ns() if EXAMPLES else 0
