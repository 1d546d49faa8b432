"""One agent for the tests of a module."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from mesh_middleware.devagent import DevAgent

ENTRY = {
    "Kind": "service-intentions",
    "Name": "api",
    "Sources": [
        {
            "Name": "web",
            "Permissions": [
                {"Action": "deny", "HTTP": {"PathPrefix": "/admin"}},
                {"Action": "allow", "HTTP": {"PathPrefix": "/"}},
            ],
        }
    ],
}


@pytest.fixture(scope="module")
def agent() -> Iterator[DevAgent]:
    with DevAgent(intentions=[ENTRY]) as started:
        yield started
