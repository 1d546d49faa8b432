"""Requests by service name, over real TLS: who is reached, who is refused, what stays the same."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from types import ModuleType
from typing import Any

import httpx
import httpx2
import pytest

from mesh_middleware.errors import ConfigError
from mesh_middleware.state import StaticState, sources
from mesh_middleware.testing import mesh_for
from mesh_middleware.tls.certificates import X509SVID
from mesh_middleware.tls.contexts import TLSContexts
from mesh_middleware.upstream.catalog import catalog_of
from mesh_middleware.upstream.endpoints import Endpoint, Endpoints
from mesh_middleware.upstream.names import UpstreamName
from mesh_middleware.upstream.resolver import StaticResolver
from mesh_middleware.upstream.transport import AsyncMeshTransport, MeshTransport
from tests.server.mesh import serving
from tests.support import await_for, wait_for
from tests.upstream.world import Instance, World, new_world

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


LIBRARIES = [httpx, httpx2]


@pytest.fixture(params=LIBRARIES, ids=["httpx", "httpx2"])
def library(request: pytest.FixtureRequest) -> Any:
    return request.param


@pytest.fixture
def calling(world: World) -> Callable[..., contextlib.AbstractContextManager[Any]]:
    """A blocking client for the mesh."""

    @contextlib.contextmanager
    def client(library: ModuleType = httpx, **options: Any) -> Iterator[Any]:
        transport = MeshTransport(world.manager, httpx=library, **options)
        with library.Client(transport=transport) as made:
            yield made

    return client


def test_a_service_is_called_by_its_name(world: World, calling: Any, library: Any) -> None:
    server = world.add("billing")
    with calling(library) as client:
        answer = client.get("http://billing/invoices?year=2026", headers={"traceparent": "00-a"})
    said = answer.json()
    assert answer.status_code == 200
    assert said["caller"] == "web"
    assert said["target"] == "/invoices?year=2026"
    assert said["headers"]["traceparent"] == "00-a"
    # what the user wrote stays the user's
    assert said["headers"]["Host"] == "billing"
    assert str(answer.request.url) == "http://billing/invoices?year=2026"
    assert str(answer.url) == "http://billing/invoices?year=2026"
    assert server.connections == 1


async def test_a_service_is_called_by_its_name_with_asyncio(world: World, library: Any) -> None:
    world.add("billing")
    transport = AsyncMeshTransport(world.manager, httpx=library)
    async with library.AsyncClient(transport=transport) as client:
        first = await client.post("https://billing.service.consul/x", content=b"body")
        second = await client.get("http://billing.connect/y")
    assert first.json()["headers"]["Host"] == "billing.service.consul"
    assert first.json()["body"] == "body"
    assert str(first.request.url) == "https://billing.service.consul/x"
    # one identity, one pool: the connection is kept
    assert (first.json()["connection"], second.json()["connection"]) == (1, 1)


@pytest.mark.parametrize("anyio_backend", ["trio"])
async def test_trio_works_as_well(world: World) -> None:
    world.add("billing")
    async with httpx.AsyncClient(transport=AsyncMeshTransport(world.manager)) as client:
        assert (await client.get("http://billing/")).json()["caller"] == "web"


@pytest.mark.parametrize("path", ["//a/../b", "/%2e%2e/x", "/a%2Fb", "/%41", "/a;b=c", "/?", "/ü"])
def test_the_target_goes_out_as_httpx_alone_would_send_it(
    world: World, calling: Any, path: str
) -> None:
    world.add("billing")
    with calling() as client:
        url = httpx.URL(f"http://billing{path}")
        assert client.get(url).json()["target"] == url.raw_path.decode()


def test_a_wrong_server_receives_no_byte(world: World, calling: Any) -> None:
    """The catalogue says billing; at that address the certificate says other."""
    wrong = world.serve("other")
    world.register("billing", wrong.port)
    with calling() as client, pytest.raises(httpx.ConnectError) as caught:
        client.post("http://billing/", content=b"secret")
    assert "the peer is spiffe://" in str(caught.value)
    assert "/svc/other" in str(caught.value)
    assert wrong.received == 0


async def test_a_wrong_server_receives_no_byte_with_asyncio(world: World, library: Any) -> None:
    wrong = world.serve("other")
    world.register("billing", wrong.port)
    transport = AsyncMeshTransport(world.manager, httpx=library)
    async with library.AsyncClient(transport=transport) as client:
        with pytest.raises(library.ConnectError, match="/svc/other"):
            await client.post("http://billing/", content=b"secret")
    assert wrong.received == 0


def test_two_services_at_one_address_never_share_a_connection(world: World, calling: Any) -> None:
    """The pooling trap: libraries pool by address, and know nothing of identities."""
    server = world.add("billing")
    world.register("other", server.port)
    with calling() as client:
        assert client.get("http://billing/").status_code == 200
        with pytest.raises(httpx.ConnectError, match=r"expected was .*/svc/other"):
            client.get("http://other/")
    assert server.requests == 1


def test_a_tag_and_an_alias_choose_instances(world: World, calling: Any) -> None:
    world.add("billing", "old", Tags=["v1"])
    world.add("billing", "new", Tags=["v2"])
    names = {"Money.example": UpstreamName("billing", tag="v1"), "cash": "billing"}
    with calling(upstreams=names) as client:
        for _ in range(5):
            assert client.get("http://v2.billing.service/").json()["instance"] == "new"
            assert client.get("http://money.example/").json()["instance"] == "old"
        assert client.get("http://cash/").json()["headers"]["Host"] == "cash"


def test_a_sidecar_is_called_for_its_service(world: World, calling: Any) -> None:
    server = world.serve("billing")
    proxy = {"DestinationServiceName": "billing"}
    world.register(
        "billing-sidecar-proxy", server.port, Kind="connect-proxy", Proxy=proxy, Connect={}
    )
    with calling() as client:
        assert client.get("http://billing/").json()["caller"] == "web"


def test_rotation_moves_new_requests_and_lets_a_running_answer_end(
    world: World, calling: Any
) -> None:
    server = world.add("billing")
    with calling() as client:
        with client.stream("GET", "http://billing/wait") as running:
            world.rotated()
            server.renew()
            after = client.get("http://billing/")
            assert after.json()["connection"] == 2
            assert len(server.open) == 2
            server.release()
            assert running.read()
        wait_for(lambda: len(server.open) == 1, message="the old connection stayed")
        assert client.get("http://billing/").json()["connection"] == 2


async def test_rotation_with_asyncio_closes_the_old_connection_with_its_last_answer(
    world: World,
) -> None:
    server = world.add("billing")
    async with httpx.AsyncClient(transport=AsyncMeshTransport(world.manager)) as client:
        async with client.stream("GET", "http://billing/wait") as running:
            world.rotated()
            server.renew()
            assert (await client.get("http://billing/")).json()["connection"] == 2
            server.release()
            assert await running.aread()
        await await_for(lambda: len(server.open) == 1)


@pytest.mark.parametrize("remove_old", [False, True])
def test_a_rotation_closes_idle_connections_at_once(
    world: World, calling: Any, remove_old: bool
) -> None:
    server = world.add("billing")
    with calling() as client:
        client.get("http://billing/")
        assert len(server.open) == 1
        world.rotated(remove_old=remove_old)
        wait_for(lambda: not server.open, message="an idle connection outlived its root")


async def test_a_rotation_closes_idle_connections_at_once_with_asyncio(world: World) -> None:
    """Also those beside an answer that is still running, which goes on."""
    server = world.add("billing")
    async with (
        httpx.AsyncClient(transport=AsyncMeshTransport(world.manager)) as client,
        client.stream("GET", "http://billing/wait") as running,
    ):
        assert (await client.get("http://billing/")).json()["connection"] == 2
        assert len(server.open) == 2
        before = world.manager.state.contexts
        world.agent.rotate_ca()
        await await_for(lambda: world.manager.state.contexts is not before)
        await await_for(lambda: len(server.open) == 1)
        server.release()
        assert await running.aread()


@pytest.mark.parametrize("anyio_backend", ["trio"])
async def test_without_asyncio_the_next_request_notices_a_rotation(world: World) -> None:
    server = world.add("billing")
    async with httpx.AsyncClient(transport=AsyncMeshTransport(world.manager)) as client:
        await client.get("http://billing/")
        world.rotated(remove_old=True)
        server.renew()
        assert (await client.get("http://billing/")).json()["connection"] == 2
        wait_for(lambda: len(server.open) == 1)


def test_an_intention_change_closes_nothing(world: World, calling: Any) -> None:
    world.add("billing")
    with calling() as client:
        client.get("http://billing/")
        before = world.manager.state.generation
        row = {"SourceName": "a", "DestinationName": "web", "Action": "deny"}
        world.agent.put_intentions([row])
        wait_for(lambda: world.manager.state.generation > before)
        assert client.get("http://billing/").json()["connection"] == 1


def leave(world: World, server: Instance) -> None:
    world.remove(server.name)


def become_another(world: World, server: Instance) -> None:
    """Another service has the address, and the ID in the catalogue."""
    world.register("other", server.port, server.name)


LEAVING = pytest.mark.parametrize("change", [leave, become_another])


@LEAVING
def test_an_instance_that_leaves_loses_its_connections_at_once(
    world: World, calling: Any, change: Any
) -> None:
    """With no further request; a response that still runs ends on its connection."""
    server, stays = world.add("billing", "leaves"), world.add("ledger")
    with calling() as client:
        client.get("http://ledger/")
        with client.stream("GET", "http://billing/wait") as running:
            assert client.get("http://billing/").json()["connection"] == 2
            change(world, server)
            wait_for(lambda: len(server.open) == 1, 5, "an idle connection outlived its instance")
            server.release()
            assert running.read()
        wait_for(lambda: not server.open, 5)
        assert client.get("http://ledger/").json()["connection"] == 1
        assert stays.connections == 1


@LEAVING
async def test_an_instance_that_leaves_loses_its_connections_at_once_with_asyncio(
    world: World, library: Any, change: Any
) -> None:
    server, stays = world.add("billing", "leaves"), world.add("ledger")
    transport = AsyncMeshTransport(world.manager, httpx=library)
    async with library.AsyncClient(transport=transport) as client:
        await client.get("http://ledger/")
        async with client.stream("GET", "http://billing/wait") as running:
            assert (await client.get("http://billing/")).json()["connection"] == 2
            change(world, server)
            await await_for(lambda: len(server.open) == 1, 5)
            server.release()
            assert await running.aread()
        await await_for(lambda: not server.open, 5)
        assert (await client.get("http://ledger/")).json()["connection"] == 1
        assert stays.connections == 1


def test_without_news_of_a_resolver_the_next_request_notices_who_left(world: World) -> None:
    first, second = world.serve("billing", "first"), world.serve("billing", "second")
    resolver = Lists(world, [first], [second])
    with httpx.Client(transport=MeshTransport(world.manager, resolver=resolver)) as client:
        assert client.get("http://billing/").json()["instance"] == "first"
        resolver.at = 1
        assert client.get("http://billing/").json()["instance"] == "second"
        wait_for(lambda: not first.open, 5)


class Lists:
    """A resolver of one list after the other. `at`: which; `later`: which after the next look."""

    def __init__(self, world: World, *servers: list[Instance]) -> None:
        self._lists = [
            Endpoints((tuple(Endpoint("127.0.0.1", s.port, "billing") for s in each),))
            for each in servers
        ]
        self.at = 0
        self.later = 0

    def known(self, name: UpstreamName) -> Endpoints | None:
        found = self._lists[self.at]
        self.at = self.later or self.at
        return found

    def wait(self, name: UpstreamName, timeout: float | None) -> Endpoints:
        return self._lists[self.at]


def test_an_instance_that_leaves_before_it_is_connected_to_keeps_no_connection(
    world: World,
) -> None:
    """Who hears of its leaving then has nothing to close yet."""
    first, second = world.serve("billing", "first"), world.serve("billing", "second")
    resolver = Lists(world, [first], [second])
    resolver.later = 1
    with httpx.Client(transport=MeshTransport(world.manager, resolver=resolver)) as client:
        assert client.get("http://billing/").json()["instance"] == "first"
        wait_for(lambda: not first.open, 5)


def test_a_request_that_fails_leaves_no_idle_connection_to_an_instance_that_left(
    world: World, calling: Any
) -> None:
    """While a response is waited for, nobody can say which connection is idle."""
    server = world.add("billing")
    with calling() as client:
        with ThreadPoolExecutor() as threads:
            hanging = threads.submit(client.get, "http://billing/hang")
            wait_for(lambda: server.requests == 1)
            assert client.get("http://billing/").json()["connection"] == 2
            world.remove("billing")
            wait_for(lambda: not catalog_of(world.manager).wait(UpstreamName("billing"), 5).all)
            server.release()
            with pytest.raises(httpx.RemoteProtocolError):
                hanging.result(10)
        wait_for(lambda: not server.open, 5)


async def test_a_request_that_fails_with_asyncio_leaves_no_idle_connection_either(
    world: World,
) -> None:
    server = world.add("billing")
    async with httpx.AsyncClient(transport=AsyncMeshTransport(world.manager)) as client:
        hanging = asyncio.ensure_future(client.get("http://billing/hang"))
        await await_for(lambda: server.requests == 1)
        assert (await client.get("http://billing/")).json()["connection"] == 2
        world.remove("billing")
        await await_for(lambda: not catalog_of(world.manager).wait(UpstreamName("billing"), 5).all)
        server.release()
        with pytest.raises(httpx.RemoteProtocolError):
            await hanging
        await await_for(lambda: not server.open, 5)


def test_connect_failures_go_to_another_instance(world: World, calling: Any) -> None:
    world.add("billing", "alive")
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        for number in range(2):
            world.register("billing", closed.getsockname()[1], f"dead-{number}")
        with calling() as client:
            for _ in range(10):
                assert client.get("http://billing/").json()["instance"] == "alive"


def test_nobody_reachable_names_each_attempt(world: World, calling: Any) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        world.register("billing", closed.getsockname()[1], "dead")
        with (
            calling() as client,
            pytest.raises(httpx.ConnectError, match=r"dead at 127\.0\.0\.1") as e,
        ):
            client.get("http://billing/")
        assert "refused" in str(e.value).lower()
        assert e.value.request.url.host == "billing"


def test_a_request_that_was_sent_is_not_repeated(world: World, calling: Any) -> None:
    servers = [world.add("billing", name) for name in ("a", "b")]
    with calling() as client, pytest.raises(httpx.RemoteProtocolError):
        client.get("http://billing/drop")
    assert sum(server.requests for server in servers) == 1


@pytest.mark.parametrize(
    ("method", "content", "times"),
    [("GET", None, 2), ("PUT", b"x", 2), ("POST", b"x", 1), ("PUT", iter([b"x"]), 1)],
)
def test_idempotent_requests_are_repeated_when_the_user_allows(
    world: World, calling: Any, method: str, content: Any, times: int
) -> None:
    servers = [world.add("billing", name) for name in ("a", "b")]
    headers = {"content-length": "1"} if content else {}
    with calling(retry_idempotent=True) as client, pytest.raises(httpx.TransportError):
        client.request(method, "http://billing/drop", content=content, headers=headers)
    assert sum(server.requests for server in servers) == times


def test_the_connect_timeout_bounds_finding_and_connecting(world: World, calling: Any) -> None:
    """A server that takes connections and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        for name in ("a", "b", "c"):
            world.register("billing", silent.getsockname()[1], name)
        started = time.monotonic()
        with calling() as client, pytest.raises(httpx.ConnectError, match="no connection") as e:
            client.get("http://billing/", timeout=httpx.Timeout(5, connect=0.5))
        assert str(e.value).count("at 127") > 1  # none may use it up for the others
        assert time.monotonic() - started < 1.5


def test_an_agent_that_does_not_answer_is_a_timeout(world: World, calling: Any) -> None:
    world.agent.stop()
    started = time.monotonic()
    with calling() as client, pytest.raises(httpx.ConnectTimeout, match="billing"):
        client.get("http://billing/", timeout=httpx.Timeout(5, connect=0.4))
    assert 0.3 < time.monotonic() - started < 2


async def test_many_calls_that_wait_are_over_in_time(world: World) -> None:
    """More than there are threads to wait in."""
    world.agent.stop()
    started = time.monotonic()
    timeout = httpx.Timeout(5, connect=0.5)
    transport = AsyncMeshTransport(world.manager)
    async with httpx.AsyncClient(transport=transport, timeout=timeout) as client:
        calls = (client.get("http://billing/") for _ in range(60))
        answers = await asyncio.gather(*calls, return_exceptions=True)
    assert {type(answer) for answer in answers} == {httpx.ConnectTimeout}
    assert time.monotonic() - started < 2


REGISTERED = [
    ({}, "nothing has that name"),
    ({"Connect": {}}, "none of them in the mesh"),
    ({"Check": {"TTL": "60s"}}, r"billing \(critical, node"),
    ({"Tags": ["v1"]}, r"billing \(passing, node \S+, tags v1\)"),
]


@pytest.mark.parametrize(("registration", "words"), REGISTERED)
def test_nobody_to_call_says_what_is_registered(
    world: World, calling: Any, registration: dict[str, Any], words: str
) -> None:
    if registration:
        world.register("billing", 1, **registration)
    started = time.monotonic()
    host = "v2.billing.service" if "Tags" in registration else "billing"
    with calling() as client, pytest.raises(httpx.ConnectError, match=words):
        client.get(f"http://{host}/")
    assert time.monotonic() - started < 2


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("http://example.com/", "does not name a service"),
        ("http://127.0.0.1/", "does not name a service"),
        ("http://billing:8080/", "the catalogue says on which port"),
        ("ftp://billing/", "not ftp://"),
    ],
)
def test_other_urls_are_refused(world: World, calling: Any, url: str, words: str) -> None:
    with calling() as client, pytest.raises(httpx.UnsupportedProtocol, match=words):
        client.get(url)


def test_a_peer_is_refused_in_words(calling: Any) -> None:
    with calling() as client, pytest.raises(httpx.ConnectError, match="roots of peer 'far'"):
        client.get("http://billing.virtual.far.consul/")


def test_http2_is_spoken_where_asked(world: World) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": scope["http_version"].encode()})

    context = world.contexts("billing").server(("h2", "http/1.1"))
    with serving(app, context, http="zttp", http2=True) as port:
        world.register("billing", port)
        with httpx.Client(transport=MeshTransport(world.manager, http2=True)) as client:
            answer = client.get("http://billing/")
    assert (answer.http_version, answer.text) == ("HTTP/2", "2")


def test_a_connection_of_an_expired_server_is_not_used_again(world: World, calling: Any) -> None:
    """Its certificate was valid in the handshake, and lives two seconds."""
    server = world.add("billing")
    short = world.agent.ca.issue("billing", not_after=time.time() + 2)
    bundle = world.contexts("billing").bundle
    svid = X509SVID.from_pem(short.cert_pem, short.key_pem)
    server.current = TLSContexts(svid, bundle, generation=1)
    with calling() as client:
        assert client.get("http://billing/").json()["connection"] == 1
        wait_for(lambda: time.time() > short.not_after)
        server.renew()
        assert client.get("http://billing/").json()["connection"] == 2


def test_gateways_are_told_the_service(world: World, calling: Any) -> None:
    """By Consul's TLS server name."""
    names: list[str | None] = []
    seen = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        world.register("billing", listener.getsockname()[1])
        seen.sni_callback = lambda _object, name, _context: names.append(name)

        def accept() -> None:
            connection, _ = listener.accept()
            with contextlib.suppress(OSError), connection:
                seen.wrap_socket(connection, server_side=True)

        thread = threading.Thread(target=accept)
        thread.start()
        with calling() as client, pytest.raises(httpx.ConnectError):
            client.get("http://billing/")
        thread.join(10)
    assert names == [f"billing.default.dc1.internal.{world.agent.ca.trust_domain}"]


def test_a_response_says_who_called_whom(world: World, calling: Any) -> None:
    world.add("billing")
    with calling() as client:
        outgoing = client.get("http://billing/").extensions["mesh_middleware"]
    fields = outgoing.log_fields()
    assert fields["mesh_source"].endswith("/svc/web")
    assert fields["mesh_destination"].endswith("/svc/billing")
    assert fields["mesh_instance"] == "billing"


def test_static_instances_need_no_catalogue(world: World) -> None:
    server = world.serve("billing")
    resolver = StaticResolver(world.manager, {"billing": [f"127.0.0.1:{server.port}"]})
    with httpx.Client(transport=MeshTransport(world.manager, resolver=resolver)) as client:
        assert client.get("http://billing/").json()["caller"] == "web"
        with pytest.raises(httpx.ConnectError, match="fixed instances are given for: billing"):
            client.get("http://other/")
        with pytest.raises(httpx.ConnectError, match="fixed instances know no tags"):
            client.get("http://v2.billing.service/")


def test_wrong_arguments_are_found_at_once(world: World) -> None:
    with pytest.raises(TypeError, match="no_such_option"):
        MeshTransport(world.manager, no_such_option=True)
    with pytest.raises(ConfigError, match="attempts"):
        MeshTransport(world.manager, attempts=0)
    with pytest.raises(ConfigError, match="StaticResolver"):
        MeshTransport(StaticState(world.manager.state))
    with pytest.raises(ConfigError, match="host:port"):
        StaticResolver(world.manager, {"billing": ["127.0.0.1"]})


def test_a_client_may_be_made_before_its_manager() -> None:
    """As when a module is imported under the launcher, whose manager starts after that."""
    transport = MeshTransport("late")
    assert sources.get("late") is None
    with new_world("late") as world, httpx.Client(transport=transport) as client:
        server = world.add("billing")
        assert client.get("http://billing/").json()["caller"] == "late"
        world.rotated()
        wait_for(lambda: not server.open, message="it does not hear of changes")


async def test_a_client_may_be_made_before_its_manager_with_asyncio() -> None:
    transport = AsyncMeshTransport("late")
    assert sources.get("late") is None
    with new_world("late") as world:
        world.add("billing")
        async with httpx.AsyncClient(transport=transport) as client:
            assert (await client.get("http://billing/")).json()["caller"] == "late"


async def test_a_client_that_never_calls_starts_no_manager() -> None:
    async with httpx.AsyncClient(transport=AsyncMeshTransport("idle")):
        pass
    with httpx.Client(transport=MeshTransport("idle")):
        pass
    assert sources.get("idle") is None


def test_rules_of_a_test_find_nobody_to_call_and_say_so() -> None:
    with httpx.Client(transport=MeshTransport("web")) as client:
        with mesh_for("web"), pytest.raises(ConfigError, match="another httpx client"):
            client.get("http://billing/")
        with new_world() as world:  # the next request looks again
            world.add("billing")
            assert client.get("http://billing/").json()["caller"] == "web"


def test_a_closed_manager_says_so(world: World, calling: Any) -> None:
    world.add("billing")
    with calling() as client:
        client.get("http://billing/")
        world.manager.close()
        with pytest.raises(httpx.TransportError, match="not running"):
            client.get("http://billing/", timeout=0.5)


def test_many_threads_share_a_transport_through_rotations(world: World, calling: Any) -> None:
    server = world.add("billing")
    failures: list[BaseException] = []
    stop = threading.Event()

    with calling() as client:

        def call() -> None:
            while not stop.is_set():
                try:
                    assert client.get("http://billing/").status_code == 200
                except BaseException as error:
                    failures.append(error)
                    return

        threads = [threading.Thread(target=call) for _ in range(4)]
        for thread in threads:
            thread.start()
        for _ in range(3):
            world.agent.rotate_ca()
            known = {each["RootCert"] for each in world.agent.ca.roots()}
            # As Consul's delays have it: a leaf of the new root comes after the roots are known.
            wait_for(lambda known=known: len(world.manager.state.bundle.roots) == len(known))
            server.renew()
        stop.set()
        for thread in threads:
            thread.join(10)
    assert failures == []


@pytest.mark.parametrize("child", ["HTTPTransport", "AsyncHTTPTransport"])
def test_the_environment_has_no_say_in_calls(
    world: World, library: Any, child: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A proxy would see who is called; certificate files would say who is trusted."""
    world.add("billing")
    trusted: list[bool] = []
    original = getattr(library, child)

    def recorded(**options: Any) -> Any:
        trusted.append(options.get("trust_env", True))
        return original(**options)

    async def asked() -> int:
        async with library.AsyncClient(
            transport=AsyncMeshTransport(world.manager, httpx=library)
        ) as client:
            return int((await client.get("http://billing/")).status_code)

    with socket.create_server(("127.0.0.1", 0)) as proxy:
        for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{proxy.getsockname()[1]}")
        monkeypatch.setattr(library, child, recorded)
        if child == "AsyncHTTPTransport":
            assert asyncio.run(asked()) == 200
        else:
            with library.Client(transport=MeshTransport(world.manager, httpx=library)) as client:
                assert client.get("http://billing/").status_code == 200
        proxy.setblocking(False)
        with pytest.raises(BlockingIOError):
            proxy.accept()
    assert set(trusted) == {False}
