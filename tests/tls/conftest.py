"""Each test has its own CA and its own log of refusals."""

from __future__ import annotations

import pytest

from mesh_middleware.devagent.ca import CertificateAuthority
from mesh_middleware.tls import handshake


@pytest.fixture
def ca() -> CertificateAuthority:
    return CertificateAuthority("11111111-2222-3333-4444-555555555555.consul")


@pytest.fixture(autouse=True)
def refusals(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> object:
    """Reasons logged in this test so far; the limit of other tests does not count here."""
    monkeypatch.setattr(handshake, "refusals", handshake.RefusalLog())

    def reasons() -> list[str]:
        return [record.mesh_reason for record in caplog.records if hasattr(record, "mesh_reason")]

    return reasons
