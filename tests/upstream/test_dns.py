"""Instances by DNS, from a small DNS server here and from a real Consul's."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import dns.message
import dns.rcode
import dns.rrset
import httpx
import pytest

from mesh_middleware import ConfigError, MeshConfig, MeshManager, MeshTransport, UpstreamName
from mesh_middleware.state import MeshState, StaticState
from mesh_middleware.tls.certificates import X509SVID
from mesh_middleware.tls.contexts import TLSContexts
from mesh_middleware.upstream.dns import DNSResolver
from mesh_middleware.upstream.resolver import ResolutionError
from tests.consul_agent import running_consul
from tests.support import wait_for
from tests.upstream.world import World


class Server:
    """Answers each question with the records of `zone`, or not at all when `silent`."""

    def __init__(self) -> None:
        self.zone: dict[tuple[str, str], list[str]] = {}
        self.additional: list[tuple[str, str, str]] = []
        self.silent = False
        self.rcode = dns.rcode.NOERROR
        self.asked: list[str] = []
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.bind(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._socket.getsockname()[1]}"
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def close(self) -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
            sender.sendto(b"end", self._socket.getsockname())
        self._thread.join()
        self._socket.close()

    def _serve(self) -> None:
        while True:
            data, client = self._socket.recvfrom(4096)
            if data == b"end":
                return
            query = dns.message.from_wire(data)
            question = query.question[0]
            kind = question.rdtype.name
            self.asked.append(f"{question.name} {kind}")
            if self.silent:
                continue
            response = dns.message.make_response(query)
            records = self.zone.get((str(question.name), kind))
            response.set_rcode(self.rcode if records else self.rcode or dns.rcode.NXDOMAIN)
            if records:
                response.answer.append(dns.rrset.from_text(question.name, 0, "IN", kind, *records))
            for name, extra, text in self.additional:
                response.additional.append(dns.rrset.from_text(name, 0, "IN", extra, text))
            self._socket.sendto(response.to_wire(), client)


@pytest.fixture
def server() -> Iterator[Server]:
    made = Server()
    yield made
    made.close()


QUERY = "billing.connect.consul."
NAME = UpstreamName("billing")


def test_srv_records_and_their_addresses_give_instances(world: World, server: Server) -> None:
    server.zone[QUERY, "SRV"] = ["1 3 8443 a.addr.", "2 1 8444 b.addr.", "1 1 8445 c.addr."]
    server.additional = [("a.addr.", "A", "10.0.0.1"), ("b.addr.", "AAAA", "fd00::2")]
    server.zone["c.addr.", "A"] = ["10.0.0.3"]
    found = DNSResolver(world.manager, server.address).wait(NAME, 5)
    near, far = found.tiers
    assert [(e.address, e.weight, e.service) for e in near] == [
        ("10.0.0.1:8443", 3, "billing"),
        ("10.0.0.3:8445", 1, "billing"),
    ]
    assert [e.address for e in far] == ["[fd00::2]:8444"]
    assert near[0].datacenter == "dc1"


QUERIES = [
    (UpstreamName("billing"), "billing.connect.consul."),
    (UpstreamName("billing", datacenter="dc2"), "billing.connect.dc2.consul."),
    (UpstreamName("billing", namespace="team"), "billing.connect.team.ns.consul."),
    (
        UpstreamName("billing", partition="p", datacenter="dc2"),
        "billing.connect.default.ns.p.ap.dc2.dc.consul.",
    ),
]


@pytest.mark.parametrize(("name", "query"), QUERIES)
def test_the_name_says_what_is_asked(
    world: World, server: Server, name: UpstreamName, query: str
) -> None:
    found = DNSResolver(world.manager, server.address).wait(name, 5)
    assert server.asked == [f"{query} SRV"]
    assert found.tiers == ()
    assert query in found.described


def test_an_answer_is_kept_for_a_while_and_while_nobody_answers(
    world: World, server: Server
) -> None:
    server.zone[QUERY, "SRV"] = ["1 1 8443 a.addr."]
    server.additional = [("a.addr.", "A", "10.0.0.1")]
    resolver = DNSResolver(world.manager, server.address, refresh_seconds=0.05)
    first = resolver.wait(NAME, 5)
    wait_for(lambda: resolver.known(NAME) is None)
    assert resolver.wait(NAME, 5) is first  # asked again, and the same
    assert len(server.asked) == 2
    server.silent = True
    wait_for(lambda: resolver.known(NAME) is None)
    assert resolver.wait(NAME, 0.2) is first
    server.silent = False
    server.zone.clear()
    wait_for(lambda: resolver.known(NAME) is None)
    assert resolver.wait(NAME, 5).tiers == ()


def test_no_answer_is_a_timeout_and_a_failure_an_error(world: World, server: Server) -> None:
    resolver = DNSResolver(world.manager, server.address)
    server.silent = True
    started = time.monotonic()
    with pytest.raises(TimeoutError, match="billing"):
        resolver.wait(NAME, 0.3)
    assert time.monotonic() - started < 2
    server.silent, server.rcode = False, dns.rcode.SERVFAIL
    with pytest.raises(ResolutionError, match="SERVFAIL"):
        resolver.wait(NAME, 2)


@pytest.mark.parametrize(
    ("name", "words"),
    [(UpstreamName("billing", tag="v2"), "no tags"), (UpstreamName("billing", peer="x"), "peer")],
)
def test_what_dns_cannot_say_is_refused(world: World, name: UpstreamName, words: str) -> None:
    with pytest.raises(ResolutionError, match=words):
        DNSResolver(world.manager).wait(name, 1)


def test_who_we_are_must_be_known() -> None:
    nobody = StaticState(MeshState(service="web"))
    with pytest.raises(ResolutionError, match="no certificate"):
        DNSResolver(nobody).wait(NAME, 1)
    with pytest.raises(ConfigError, match="host:port"):
        DNSResolver(nobody, "127.0.0.1")


@pytest.mark.consul
def test_a_real_consuls_dns(world: World) -> None:
    """Its SRV answer brings the address along; a name without instances does not exist."""
    with running_consul() as consul, MeshManager(MeshConfig("api", address=consul.address)) as api:
        api.wait_ready(20)
        leaf = httpx.get(f"{consul.address}/v1/agent/connect/ca/leaf/billing", trust_env=False)
        server = world.serve("billing")
        server.contexts = lambda: _contexts(leaf.json(), api)
        server.renew()
        body: dict[str, Any] = {"Name": "billing", "Port": server.port, "Connect": {"Native": True}}
        url = f"{consul.address}/v1/agent/service/register"
        body["Address"] = "127.0.0.1"
        assert httpx.put(url, json=body, trust_env=False).is_success
        resolver = DNSResolver(api, f"127.0.0.1:{consul._ports[2]}")
        wait_for(lambda: resolver.wait(NAME, 5).tiers)
        with httpx.Client(transport=MeshTransport(api, resolver=resolver)) as client:
            assert client.get("http://billing/").json()["caller"] == "api"
            with pytest.raises(httpx.ConnectError, match="as far as DNS tells"):
                client.get("http://nobody/")


def _contexts(leaf: dict[str, str], manager: MeshManager) -> Any:
    assert manager.state.bundle is not None
    svid = X509SVID.from_pem(leaf["CertPEM"], leaf["PrivateKeyPEM"])
    return TLSContexts(svid, manager.state.bundle, generation=1)
