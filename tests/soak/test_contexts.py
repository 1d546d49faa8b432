"""No event loop makes a context that the manager's thread could have made before."""

from __future__ import annotations

import ssl
import threading

import pytest

from mesh_middleware.config import MeshConfig
from mesh_middleware.consul.manager import MeshManager
from mesh_middleware.devagent import DevAgent
from mesh_middleware.devagent.ca import CertificateAuthority
from mesh_middleware.policy.spiffe import ServiceIdentity
from mesh_middleware.tls import contexts
from mesh_middleware.tls.contexts import MeshContext, TLSContexts
from tests.support import wait_for
from tests.tls.mesh import contexts_of


def born(context: MeshContext, *, server_side: bool) -> None:
    """What a new connection does with a context."""
    context.wrap_bio(
        ssl.MemoryBIO(),
        ssl.MemoryBIO(),
        server_side=server_side,
        server_hostname=None if server_side else "mesh",
    )


def test_contexts_in_use_are_made_anew_in_the_manager_s_thread(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    makers: list[str] = []
    load = contexts.load_svid

    def noted(*arguments: object) -> None:
        makers.append(threading.current_thread().name)
        load(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(contexts, "load_svid", noted)
    with DevAgent() as agent, MeshManager(MeshConfig("web", address=agent.address)) as manager:
        state = manager.wait_ready(20)
        assert state.svid is not None
        api = ServiceIdentity(state.svid.identity.trust_domain, "api")
        server = manager.server_context(("h2", "http/1.1"))
        client = manager.client_context(api, ("http/1.1",))
        born(server, server_side=True)
        born(client, server_side=False)
        here = threading.current_thread().name
        assert makers.count(here) == 2
        for _ in range(2):  # the second time nobody has connected in between
            before, served = manager.state.svid, len(agent.ca.roots())
            agent.rotate_ca()
            wait_for(
                lambda before=before, served=served: (
                    manager.state.svid is not before
                    and manager.state.bundle
                    and len(manager.state.bundle.roots) == served + 1
                )
            )
        born(server, server_side=True)
        born(client, server_side=False)
        assert makers.count(here) == 2


def test_what_is_prepared_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    ca = CertificateAuthority("a.consul")
    before = contexts_of(ca, "web")
    monkeypatch.setattr(contexts, "PREPARED", 3)
    for number in range(9):
        before.client(ServiceIdentity(before.svid.identity.trust_domain, f"s{number}"))
    after = TLSContexts(before.svid, before.bundle, generation=2, like=before)
    assert len(after._cache) == 3


def test_nothing_is_prepared_that_nobody_used() -> None:
    """One is made to find out whether OpenSSL takes the certificates, when there is no other."""
    ca = CertificateAuthority("a.consul")
    before = contexts_of(ca, "web")
    before.server(("h2",))
    second = TLSContexts(before.svid, before.bundle, generation=2, like=before)
    assert set(second._cache) == {(("h2",), None)}
    unused = TLSContexts(before.svid, before.bundle, generation=1)
    assert len(TLSContexts(before.svid, before.bundle, generation=2, like=unused)._cache) == 1
