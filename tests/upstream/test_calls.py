"""How the time of a call is shared among the instances it tries."""

from __future__ import annotations

import pytest

from mesh_middleware.upstream.calls import Attempts
from mesh_middleware.upstream.endpoints import Endpoint, Endpoints
from mesh_middleware.upstream.names import UpstreamName

A, B, C = (Endpoint(name, 1, "billing") for name in "abc")


def share(seconds: float | None, *instances: Endpoint, tried: int = 0, most: int = 3) -> float:
    attempts = Attempts(UpstreamName("billing"), seconds)
    for endpoint in instances[:tried]:
        attempts.failed(endpoint, OSError("refused"))
    given = attempts.share(Endpoints((instances,)), most)
    return -1.0 if given is None else given


def test_an_instance_gets_half_of_the_rest_while_others_wait() -> None:
    assert share(10, A, B, C) == pytest.approx(5, abs=0.1)
    assert share(10, A, B, C, tried=1) == pytest.approx(5, abs=0.1)
    assert share(10, A, B, C, tried=2) == pytest.approx(10, abs=0.1)
    assert share(10, A) == pytest.approx(10, abs=0.1)
    assert share(10, A, B, C, most=1) == pytest.approx(10, abs=0.1)


def test_no_limit_stays_none() -> None:
    assert share(None, A, B) == -1.0


def test_hardly_any_time_is_not_shared_but_never_exceeded() -> None:
    assert share(0.04, A, B) == pytest.approx(0.04, abs=0.01)
    assert share(0.0, A, B) == 0.0
