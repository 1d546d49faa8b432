"""hypercorn's settings; what it does with them is in test_table."""

from __future__ import annotations

from typing import Any

import pytest
from hypercorn.config import Config

from mesh_middleware import ConfigError
from mesh_middleware.errors import NotReadyError
from mesh_middleware.server.hypercorn import HypercornConfig, MeshTCPServer
from mesh_middleware.testing import mesh_for
from tests.middleware.calls import verified


@pytest.mark.parametrize(
    "settings",
    [{"insecure_bind": ["127.0.0.1:1"]}, {"quic_bind": ["127.0.0.1:1"]}, {"worker_class": "trio"}],
)
def test_a_way_in_without_a_caller_is_a_mistake(settings: dict[str, Any]) -> None:
    config = HypercornConfig("api")
    for name, value in settings.items():
        setattr(config, name, value)
    with pytest.raises(ConfigError, match=next(iter(settings))):
        config.create_ssl_context()


def test_a_service_needs_a_name() -> None:
    with pytest.raises(ConfigError, match="service"):
        HypercornConfig("")


def test_before_the_first_leaf_connections_are_dropped() -> None:
    with mesh_for("api"):
        context = HypercornConfig("api").create_ssl_context()
        with pytest.raises(NotReadyError, match="api"):
            context.wrap_bio(None, None, server_side=True)  # type: ignore[arg-type]


class Writer:
    def get_extra_info(self, name: str) -> None:
        return None


def test_another_config_is_served_as_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    """The class stays in hypercorn's module; what is not ours it leaves alone."""
    monkeypatch.setattr("mesh_middleware.server.hypercorn.verified_peer", lambda _: verified())
    application: Any = object()
    theirs = MeshTCPServer(application, None, Config(), None, {}, None, Writer())
    assert theirs.app is application
    monkeypatch.setattr("mesh_middleware.server.hypercorn.tls_extension", lambda *_: {})
    ours = MeshTCPServer(application, None, HypercornConfig("api"), None, {}, None, Writer())
    assert ours.app is not application
