"""Instances by DNS, from a small DNS server here and from a real Consul's."""

from __future__ import annotations

import contextlib
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

from mesh_middleware import ConfigError, MeshTransport, UpstreamName
from mesh_middleware.state import MeshState, StaticState
from mesh_middleware.upstream.dns import DNSResolver
from mesh_middleware.upstream.endpoints import Endpoints
from mesh_middleware.upstream.resolver import ResolutionError
from tests.consul_agent import running_consul
from tests.support import wait_for
from tests.upstream.world import World, new_world


class Server:
    """Answers each question with the records of `zone`, or not at all: by UDP, or else by TCP.

    `silent`: names that it says nothing about. `lost`: how many questions get lost first.
    `forged`: each answer comes after some that are none. `mute`: it takes connections, and says
    nothing on them.
    """

    def __init__(self, *, tcp: bool = False, mute: bool = False) -> None:
        self.zone: dict[tuple[str, str], list[str]] = {}
        self.additional: list[tuple[str, str, str]] = []
        self.silent: set[str] = set()
        self.lost = 0
        self.forged = False
        self.rcode = dns.rcode.NOERROR
        self.asked: list[str] = []
        # whoever speaks UDP only has its TCP port too, so that connections to it are refused
        self._tcp, self._udp = _same_port()
        self.address = f"127.0.0.1:{self._udp.getsockname()[1]}"
        if tcp or mute:
            self._tcp.listen()
        self._thread = threading.Thread(target=self._serve_tcp if tcp else self._serve_udp)
        self._thread.start()

    def close(self) -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
            sender.sendto(b"end", self._udp.getsockname())
        with contextlib.suppress(OSError):
            socket.create_connection(self._tcp.getsockname()).close()
        self._thread.join()
        self._tcp.close()
        self._udp.close()

    def _serve_udp(self) -> None:
        while (received := self._udp.recvfrom(4096))[0] != b"end":
            answer = self._answer(received[0])
            if answer is None:
                continue
            if self.forged:
                self._forge(received[0], received[1])
            self._udp.sendto(answer.to_wire(), received[1])

    def _forge(self, data: bytes, client: Any) -> None:
        query = dns.message.from_wire(data)
        no_such_name = dns.message.make_response(query)
        no_such_name.set_rcode(dns.rcode.NXDOMAIN)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as stranger:
            stranger.sendto(no_such_name.to_wire(), client)
        no_such_name.id = (query.id + 1) % 65536
        self._udp.sendto(no_such_name.to_wire(), client)
        self._udp.sendto(b"junk", client)

    def _serve_tcp(self) -> None:
        while True:
            connection, _ = self._tcp.accept()
            with connection:
                length = int.from_bytes(connection.recv(2))
                if not length:
                    return
                answer = self._answer(connection.recv(length))
                assert answer is not None
                connection.sendall(answer.to_wire(prepend_length=True))

    def _answer(self, data: bytes) -> dns.message.Message | None:
        query = dns.message.from_wire(data)
        name, kind = str(query.question[0].name), query.question[0].rdtype.name
        self.asked.append(f"{name} {kind}")
        if self.lost:
            self.lost -= 1
            return None
        if name in self.silent:
            return None
        response = dns.message.make_response(query)
        records = self.zone.get((name, kind))
        response.set_rcode(self.rcode if records else self.rcode or dns.rcode.NXDOMAIN)
        if records:
            response.answer.append(dns.rrset.from_text(name, 0, "IN", kind, *records))
        for extra_name, extra, text in self.additional:
            response.additional.append(dns.rrset.from_text(extra_name, 0, "IN", extra, text))
        return response


def _same_port() -> tuple[socket.socket, socket.socket]:
    """A TCP and a UDP socket on one port of loopback; the TCP one does not listen yet."""
    while True:
        tcp = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        tcp.bind(("127.0.0.1", 0))
        udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        try:
            udp.bind(tcp.getsockname())
        except OSError:
            tcp.close()
            udp.close()
        else:
            return tcp, udp


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
    server.silent = {QUERY}
    wait_for(lambda: resolver.known(NAME) is None)
    assert resolver.wait(NAME, 0.2) is first
    server.silent.clear()
    server.zone.clear()
    wait_for(lambda: resolver.known(NAME) is None)
    assert resolver.wait(NAME, 5).tiers == ()


def test_no_answer_is_a_timeout_and_a_failure_an_error(world: World, server: Server) -> None:
    resolver = DNSResolver(world.manager, server.address)
    server.silent = {QUERY}
    with pytest.raises(TimeoutError, match="billing"):
        resolver.wait(NAME, 0.3)
    server.silent, server.rcode = set(), dns.rcode.SERVFAIL
    with pytest.raises(ResolutionError, match="SERVFAIL"):
        resolver.wait(NAME, 2)


# -- deadlines --------------------------------------------------------------------------------

LATE = 0.5
"""Seconds that a call may be later than its limit, on a busy machine."""


class Waiting:
    """A call of ``resolver.wait`` in a thread. `took`: seconds until it was over."""

    def __init__(self, resolver: DNSResolver, name: UpstreamName, timeout: float | None) -> None:
        self.found: Endpoints | Exception | None = None
        self.took = 0.0
        self._call = resolver.wait, name, timeout
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        wait, name, timeout = self._call
        started = time.monotonic()
        try:
            self.found = wait(name, timeout)
        except Exception as error:
            self.found = error
        self.took = time.monotonic() - started

    def end(self) -> Endpoints | Exception | None:
        self._thread.join(20)
        return self.found


def test_names_do_not_wait_for_each_other_and_each_call_ends_in_time(
    world: World, server: Server
) -> None:
    server.silent = {"slow.connect.consul.", "dead.connect.consul."}
    server.zone[QUERY, "SRV"] = ["1 1 8443 a.addr."]
    server.additional = [("a.addr.", "A", "10.0.0.1")]
    resolver = DNSResolver(world.manager, server.address)
    calls = [
        (limit, Waiting(resolver, UpstreamName(name), limit))
        for name in ("slow", "dead")
        for limit in (2.5, 0.2, 0.2, 1.0)
    ]
    wait_for(lambda: server.asked)
    other = Waiting(resolver, NAME, 2)
    assert isinstance(other.end(), Endpoints)
    assert other.took < 1
    wait_for(lambda: len(set(server.asked)) == 3, timeout=1)
    for limit, call in calls:
        assert isinstance(call.end(), TimeoutError)
        assert limit <= call.took < limit + LATE
    assert not resolver._asking


def test_who_still_has_time_asks_when_the_first_has_given_up(world: World, server: Server) -> None:
    server.silent = {QUERY}
    server.zone[QUERY, "SRV"] = ["1 1 8443 a.addr."]
    server.additional = [("a.addr.", "A", "10.0.0.1")]
    resolver = DNSResolver(world.manager, server.address)
    first = Waiting(resolver, NAME, 0.3)
    wait_for(lambda: server.asked)
    others = [Waiting(resolver, NAME, 10) for _ in range(4)]
    assert isinstance(first.end(), TimeoutError)
    server.silent.clear()
    for other in others:
        found = other.end()
        assert isinstance(found, Endpoints)
        assert found.all
        assert other.took < 3


@pytest.mark.parametrize("limit", [0.5, None])
def test_the_limit_is_for_all_questions_together(
    world: World, server: Server, monkeypatch: pytest.MonkeyPatch, limit: float | None
) -> None:
    """The instances are known at once, their addresses never."""
    monkeypatch.setattr("mesh_middleware.upstream.dns._LIMIT_SECONDS", 0.5)
    targets = [f"{letter}.addr." for letter in "abcdef"]
    server.zone[QUERY, "SRV"] = [f"1 1 8443 {target}" for target in targets]
    server.silent = set(targets)
    call = Waiting(DNSResolver(world.manager, server.address), NAME, limit)
    assert isinstance(call.end(), TimeoutError)
    assert call.took < 0.5 + LATE


def test_a_question_that_got_lost_is_asked_again(world: World, server: Server) -> None:
    server.zone[QUERY, "SRV"] = ["1 1 8443 a.addr."]
    server.additional = [("a.addr.", "A", "10.0.0.1")]
    server.lost = 1
    assert DNSResolver(world.manager, server.address).wait(NAME, 10).all
    assert len(server.asked) == 2


def test_answers_to_nothing_that_was_asked_count_for_nothing(world: World, server: Server) -> None:
    """From another address, to another question, or no DNS at all."""
    server.zone[QUERY, "SRV"] = ["1 1 8443 a.addr."]
    server.additional = [("a.addr.", "A", "10.0.0.1")]
    server.forged = True
    assert DNSResolver(world.manager, server.address).wait(NAME, 5).all


def test_while_nobody_answers_only_one_call_asks_and_soon_gives_up(
    world: World, server: Server
) -> None:
    """The others, and then everybody for a while, have the last answer at once."""
    server.zone[QUERY, "SRV"] = ["1 1 8443 a.addr."]
    server.additional = [("a.addr.", "A", "10.0.0.1")]
    resolver = DNSResolver(world.manager, server.address, refresh_seconds=0.3)
    first = resolver.wait(NAME, 5)
    server.silent = {QUERY}
    wait_for(lambda: resolver.known(NAME) is None)
    asking = Waiting(resolver, NAME, 8)
    wait_for(lambda: len(server.asked) == 2)
    other = Waiting(resolver, NAME, 8)
    assert other.end() is first
    assert other.took < LATE
    assert asking.end() is first
    assert asking.took < 1 + LATE
    assert resolver.known(NAME) is first


# -- how it is asked --------------------------------------------------------------------------


def test_a_server_that_takes_connections_is_asked_by_tcp(world: World) -> None:
    with contextlib.closing(Server(tcp=True)) as server:
        server.zone[QUERY, "SRV"] = ["1 1 8443 a.addr."]
        server.zone["a.addr.", "A"] = ["10.0.0.1"]
        found = DNSResolver(world.manager, server.address).wait(NAME, 5)
    assert [e.address for e in found.all] == ["10.0.0.1:8443"]
    assert len(server.asked) == 2


def test_where_tcp_gets_no_answer_udp_does_and_goes_on_to(world: World) -> None:
    with contextlib.closing(Server(mute=True)) as server:
        server.zone[QUERY, "SRV"] = ["1 1 8443 a.addr."]
        server.additional = [("a.addr.", "A", "10.0.0.1")]
        resolver = DNSResolver(world.manager, server.address)
        first = Waiting(resolver, NAME, 1)
        found = first.end()
        assert isinstance(found, Endpoints)
        assert first.took >= 0.5  # half of its time went to TCP
        other = Waiting(resolver, UpstreamName("other"), 10)
        assert isinstance(other.end(), Endpoints)
        assert other.took < 0.9


def test_an_address_of_the_other_family_is_asked_for(world: World, server: Server) -> None:
    """Targets with AAAA records only, and none in the first answer; one has no address at all."""
    server_six = world.serve("billing", host="::1")
    server.zone[QUERY, "SRV"] = [f"1 1 {server_six.port} six.addr.", "1 1 1 none.addr."]
    server.zone["six.addr.", "AAAA"] = ["::1"]
    resolver = DNSResolver(world.manager, server.address)
    with httpx.Client(transport=MeshTransport(world.manager, resolver=resolver)) as client:
        assert client.get("http://billing/").json()["instance"] == "billing"
    assert [e.host for e in resolver.wait(NAME, 5).all] == ["::1"]
    asked = [question for question in server.asked if question.startswith("six")]
    assert asked[:2] == ["six.addr. A", "six.addr. AAAA"]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        (UpstreamName("billing", tag="v2"), "no tags"),
        (UpstreamName("billing", filter="a == b"), "no filters"),
        (UpstreamName("billing", peer="x"), "peer"),
        (UpstreamName("b" * 64), "label"),
    ],
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
    with pytest.raises(ConfigError, match="IP address"):
        DNSResolver(nobody, "localhost:8600")


@pytest.mark.consul
def test_a_real_consuls_dns() -> None:
    """Its SRV answer brings the address along; a name without instances does not exist."""
    with running_consul() as consul, new_world("api", consul) as world:
        world.add("billing")
        resolver = DNSResolver(world.manager, f"127.0.0.1:{consul._ports[2]}")
        wait_for(lambda: resolver.wait(NAME, 5).tiers)
        with httpx.Client(transport=MeshTransport(world.manager, resolver=resolver)) as client:
            assert client.get("http://billing/").json()["caller"] == "api"
            with pytest.raises(httpx.ConnectError, match="as far as DNS tells"):
                client.get("http://nobody/")
        for number in range(8):  # more than Consul tells by plain UDP
            world.register("many", 8000 + number, f"many-{number}")
        wait_for(lambda: len(resolver.wait(UpstreamName("many"), 5).all) == 8)
