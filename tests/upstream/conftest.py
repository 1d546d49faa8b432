from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.upstream.world import World, new_world


@pytest.fixture
def world() -> Iterator[World]:
    """An agent, a ready manager for the service `web`, and servers to add."""
    with new_world() as made:
        yield made
