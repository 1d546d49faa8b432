"""What is open when the mesh changes: decided again, and ended when it is refused now."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import pytest
import trio

from mesh_middleware._types import Message, Receive, Scope, Send
from mesh_middleware.devagent import CertificateAuthority
from mesh_middleware.errors import ConfigError
from mesh_middleware.middleware import MeshMiddleware
from mesh_middleware.middleware import live as live_module
from mesh_middleware.middleware.live import LOOK_SECONDS
from mesh_middleware.middleware.peer import RECHECK_SECONDS, ChainVerifier
from mesh_middleware.observe.decisions import DecisionLog
from mesh_middleware.policy.decision import Reason
from mesh_middleware.policy.intentions import Action, Intention
from mesh_middleware.state import MeshState, sources
from mesh_middleware.testing import static_mesh
from mesh_middleware.tls.certificates import TrustBundle
from tests.middleware.calls import (
    ROOT,
    WEB_MAY,
    bundle_of,
    http_scope,
    rule,
    verified,
    web_permissions,
)
from tests.support import await_for

START: Message = {"type": "http.response.start", "status": 200, "headers": []}
FAST = 0.01

ROOTS = cast(
    "TrustBundle",
    SimpleNamespace(fingerprints={ROOT}, trust_domain=verified().certificate.identity.trust_domain),
)
NO_ROOTS = cast("TrustBundle", SimpleNamespace(fingerprints=set()))

App = Callable[[Scope, Receive, Send], Awaitable[None]]


LOOKS: list[Any] = []
"""Every look that a watch took."""


async def looks(count: int = 5) -> None:
    """Until what is open has been looked at `count` times more: then nothing more will happen."""
    until = len(LOOKS) + count
    await await_for(lambda: len(LOOKS) >= until)


@pytest.fixture(autouse=True)
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live_module, "LOOK_SECONDS", FAST)
    look = live_module.Watch._look

    def counted(watch: Any) -> None:
        LOOKS.append(watch)
        look(watch)

    monkeypatch.setattr(live_module.Watch, "_look", counted)
    monkeypatch.setattr("mesh_middleware.middleware.enforcer.decision_log", DecisionLog())


def test_it_looks_well_within_a_second() -> None:
    assert LOOK_SECONDS <= 0.5


class Source:
    """A state that tests change as a manager does."""

    def __init__(self, *rows: Intention) -> None:
        self.state = replace(static_mesh("api", rows or WEB_MAY).state, bundle=ROOTS)

    def publish(self, state: MeshState) -> None:
        self.state = replace(state, generation=self.state.generation + 1)

    def intend(self, *rows: Intention) -> None:
        self.publish(replace(static_mesh("api", rows).state, bundle=self.state.bundle))


class Call:
    """A request or WebSocket that runs in a task of its own."""

    def __init__(self, app: Any, scope: Scope, **peer: Any) -> None:
        self.sent: list[Message] = []
        self.incoming: asyncio.Queue[Message] = asyncio.Queue()
        self.blocked = False
        self.hangs_up = True
        self.scope = scope
        self.task = asyncio.ensure_future(app(scope, self.incoming.get, self._send))

    async def _send(self, message: Message) -> None:
        if self.blocked:
            await asyncio.Event().wait()
        self.sent.append(message)
        if message["type"] == "websocket.close" and self.hangs_up:
            self.incoming.put_nowait({"type": "websocket.disconnect", "code": 1006})

    @property
    def types(self) -> list[str]:
        return [message["type"].rpartition("response.")[2] for message in self.sent]

    async def over(self) -> None:
        await asyncio.wait_for(self.task, 5)

    async def reaches(self, count: int) -> None:
        await await_for(lambda: len(self.sent) >= count)


def entry_of(call: Call) -> Any:
    """What the middleware keeps about a running call."""
    coroutine: Any = call.task.get_coro()
    return coroutine.cr_frame.f_locals["entry"]


class Apps:
    """Applications, and what became of them."""

    def __init__(self) -> None:
        self.ends: list[str] = []

    async def stream(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send(START)
        try:
            while True:
                await send({"type": "http.response.body", "body": b"x", "more_body": True})
                await asyncio.sleep(FAST)
        except BaseException as error:
            self.ends.append(type(error).__name__)
            raise

    async def upload(self, scope: Scope, receive: Receive, send: Send) -> None:
        while (await receive()).get("more_body"):
            pass
        await send(START)
        await send({"type": "http.response.body", "body": b"done"})

    async def stubborn(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send(START)
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            self.ends.append((await receive())["type"])
        await send({"type": "http.response.body", "body": b"secret"})

    async def background(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send(START)
        await send({"type": "http.response.body", "body": b"done"})
        await receive()
        self.ends.append("finished")

    async def echo(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "websocket.accept"})
        while (message := await receive())["type"] != "websocket.disconnect":
            await send({"type": "websocket.send", "text": message["text"]})
        self.ends.append(f"{message['code']} {message['reason']}")


@pytest.fixture
def apps() -> Apps:
    return Apps()


def run(scenario: Callable[[], Awaitable[None]]) -> None:
    asyncio.run(asyncio.wait_for(scenario(), 10))


def web(path: str = "/", **options: Any) -> Scope:
    options.setdefault("peer", verified())
    return http_scope(path, **options)


def socket_scope(**options: Any) -> Scope:
    return web(kind="websocket", **options)


# -- HTTP --------------------------------------------------------------------------------------


def test_a_stream_is_cut_when_its_intention_goes(
    apps: Apps, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario() -> None:
        source = Source()
        call = Call(MeshMiddleware(apps.stream, mesh=source), web("/feed?token=1"))
        await call.reaches(10)
        source.intend()
        await call.over()
        assert call.sent[-1]["more_body"]  # never a body that looks complete

    run(scenario)
    assert apps.ends == ["CancelledError"]
    (record,) = caplog.records
    assert record.getMessage().startswith("ended GET /feed from spiffe://")
    assert vars(record)["mesh_reason"] == "default_deny"
    assert record.levelno == logging.WARNING


def test_an_upload_without_response_is_refused(apps: Apps) -> None:
    async def scenario() -> None:
        source = Source()
        call = Call(MeshMiddleware(apps.upload, mesh=source), web(method="POST"))
        call.incoming.put_nowait({"type": "http.request", "body": b"x", "more_body": True})
        await await_for(call.incoming.empty)
        source.intend()
        await call.over()
        assert call.types == ["start", "body"]
        headers = dict(call.sent[0]["headers"])
        assert call.sent[0]["status"] == 403
        assert headers[b"x-mesh-refused"] == b"default_deny"
        assert headers[b"connection"] == b"close"

    run(scenario)


@pytest.mark.parametrize(("version", "closes"), [("1.0", True), ("1.1", True), ("2", False)])
def test_only_http_1_has_a_connection_header(apps: Apps, version: str, closes: bool) -> None:
    async def scenario() -> None:
        source = Source()
        call = Call(MeshMiddleware(apps.upload, mesh=source), web(http_version=version))
        await asyncio.sleep(0)
        source.intend()
        await call.over()
        assert (b"connection" in dict(call.sent[0]["headers"])) is closes

    run(scenario)


def test_a_fault_of_the_state_is_503_for_what_is_open_too(apps: Apps) -> None:
    async def scenario() -> None:
        source = Source()
        call = Call(MeshMiddleware(apps.upload, mesh=source), web())
        await asyncio.sleep(0)
        source.publish(replace(source.state, fault=Reason.POLICY_UNDECODABLE))
        await call.over()
        assert call.sent[0]["status"] == 503

    run(scenario)


def test_an_application_that_survives_cannot_send_or_receive(apps: Apps) -> None:
    async def scenario() -> None:
        source = Source()
        call = Call(MeshMiddleware(apps.stubborn, mesh=source), web())
        await call.reaches(1)
        source.intend()
        await call.over()
        assert call.types == ["start"]

    run(scenario)
    assert apps.ends == ["http.disconnect"]


def test_background_work_after_the_response_goes_on(apps: Apps) -> None:
    async def scenario() -> None:
        source = Source()
        call = Call(MeshMiddleware(apps.background, mesh=source), web())
        await call.reaches(2)
        source.intend()
        await looks()
        call.incoming.put_nowait({"type": "http.disconnect"})
        await call.over()

    run(scenario)
    assert apps.ends == ["finished"]


@pytest.mark.parametrize(
    ("message", "complete"),
    [
        (START, False),
        ({"type": "http.response.body", "more_body": True}, False),
        ({"type": "http.response.body"}, True),
        ({"type": "http.response.zerocopysend", "more_body": True}, False),
        ({"type": "http.response.pathsend"}, True),
        ({"type": "http.response.trailers", "more_trailers": True}, False),
        ({"type": "http.response.trailers"}, True),
        ({"type": "http.response.push"}, False),
        (None, False),
    ],
)
def test_when_a_response_is_complete(message: Message | None, complete: bool) -> None:
    entry = live_module.OpenRequest(None, None, None, None, set())  # type: ignore[arg-type]
    entry._last = message
    assert entry.complete is complete


def test_what_is_still_allowed_goes_on(apps: Apps) -> None:
    async def scenario() -> None:
        source = Source()
        call = Call(MeshMiddleware(apps.stream, mesh=source), web())
        await call.reaches(2)
        source.intend(*WEB_MAY, Intention("batch", "api", Action.DENY))
        await call.reaches(len(call.sent) + 10)
        source.intend()
        await call.over()

    run(scenario)


def test_it_is_decided_again_by_generation_only() -> None:
    """One decision per change for what is open, however often it is looked at."""
    apps, decided = Apps(), []

    async def scenario() -> None:
        source = Source()
        middleware = MeshMiddleware(apps.echo, mesh=source)
        judge = middleware._enforcer.judge_again
        middleware._enforcer.judge_again = lambda *args: decided.append(1) or judge(*args)  # type: ignore[method-assign, func-returns-value]
        calls = [Call(middleware, socket_scope()) for _ in range(600)]
        await looks(20)
        assert decided == []
        source.publish(source.state)
        await await_for(lambda: len(decided) == 600)
        await looks(20)
        assert len(decided) == 600
        source.intend()
        await asyncio.gather(*(call.over() for call in calls))

    run(scenario)
    assert apps.ends == ["1008 default_deny"] * 600


def test_a_path_rule_is_asked_with_the_path_of_the_request(apps: Apps) -> None:
    """Routers change the scope; what was asked for stays."""

    async def mounted(scope: Scope, receive: Receive, send: Send) -> None:
        scope["path"], scope["root_path"] = "/mount/admin", "/mount"
        await apps.stream(scope, receive, send)

    async def scenario() -> None:
        rules = (rule(Action.DENY, path_exact="/admin"), rule(Action.ALLOW, path_exact="/feed"))
        source = Source(*web_permissions(*rules))
        call = Call(MeshMiddleware(mounted, mesh=source), web("/feed"))
        rooted = Call(MeshMiddleware(mounted, mesh=source), web("/feed", root_path="/root"))
        await call.reaches(2)
        source.publish(source.state)
        await call.reaches(len(call.sent) + 10)
        await rooted.reaches(len(rooted.sent) + 10)
        source.intend(*web_permissions(rule(Action.ALLOW, path_exact="/mount/admin")))
        await call.over()
        await rooted.over()

    run(scenario)


# -- drain -------------------------------------------------------------------------------------


def test_drain_lets_a_response_finish(apps: Apps) -> None:
    async def scenario() -> None:
        source = Source()
        call = Call(MeshMiddleware(apps.upload, mesh=source, drain_seconds=5), web())
        call.incoming.put_nowait({"type": "http.request", "body": b"x", "more_body": True})
        await asyncio.sleep(0)
        source.intend()
        await looks()
        call.incoming.put_nowait({"type": "http.request", "body": b"x"})
        await call.over()
        assert call.sent[-1]["body"] == b"done"

    run(scenario)


def test_drain_has_a_bound(apps: Apps) -> None:
    async def scenario() -> None:
        source = Source()
        call = Call(MeshMiddleware(apps.stream, mesh=source, drain_seconds=0.2), web())
        await call.reaches(2)
        source.intend()
        changed = time.monotonic()
        source.intend()
        await call.over()
        assert 0.2 <= time.monotonic() - changed < 2

    run(scenario)


def test_after_draining_it_is_asked_again(apps: Apps) -> None:
    async def scenario() -> None:
        source = Source()
        middleware = MeshMiddleware(apps.stream, mesh=source, drain_seconds=0.5)
        call = Call(middleware, web())
        await call.reaches(2)
        source.intend()
        watch = middleware._live._watch
        assert watch is not None
        await await_for(lambda: any(entry.draining for entry in watch._old))
        source.intend(*WEB_MAY)
        await await_for(lambda: not any(entry.draining for entry in watch._old))
        await call.reaches(len(call.sent) + 20)
        source.intend()
        await call.over()

    run(scenario)


def test_websockets_do_not_drain(apps: Apps) -> None:
    async def scenario() -> None:
        source = Source()
        call = Call(MeshMiddleware(apps.echo, mesh=source, drain_seconds=60), socket_scope())
        await call.reaches(1)
        source.intend()
        await call.over()

    run(scenario)


@pytest.mark.parametrize("seconds", [-1, float("inf"), float("nan")])
def test_a_bound_is_a_number_of_seconds(seconds: float) -> None:
    with pytest.raises(ConfigError, match="drain_seconds"):
        MeshMiddleware(Apps().echo, mesh=Source(), drain_seconds=seconds)


# -- certificates and roots --------------------------------------------------------------------


def test_a_certificate_that_ends_ends_what_is_open(apps: Apps) -> None:
    async def scenario() -> None:
        middleware = MeshMiddleware(apps.stream, mesh=Source())
        short = Call(middleware, web(peer=verified(life=0.3)))
        longer = Call(middleware, web(peer=verified(life=0.6)))
        lasting = Call(middleware, web())
        await short.over()
        assert not longer.task.done()
        await longer.over()
        assert not lasting.task.done()
        lasting.task.cancel()

    run(scenario)


def test_a_root_that_is_removed_ends_what_is_open(
    apps: Apps, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario() -> None:
        source = Source()
        call = Call(MeshMiddleware(apps.stream, mesh=source), web())
        await call.reaches(2)
        source.publish(replace(source.state, bundle=NO_ROOTS))
        await call.over()

    run(scenario)
    assert [vars(record)["mesh_reason"] for record in caplog.records] == ["root_not_trusted"]


def test_the_chain_of_another_server_is_looked_at_again(apps: Apps) -> None:
    """`ChainVerifier` believes a chain for a while; as long may go on what is open."""

    async def scenario() -> None:
        middleware = MeshMiddleware(apps.stream, mesh=Source())
        until = [time.time() + 0.1]
        asked: list[float] = []

        class Chains:
            def caller(self, tls: Any, state: MeshState, now: float) -> Any:
                asked.append(now)
                return verified().certificate.identity if len(asked) < 4 else Reason.NO_IDENTITY

            def until(self, tls: Any, now: float) -> float:
                return max(until[0], now + 0.05)

        middleware._enforcer._chains = Chains()  # type: ignore[assignment]
        call = Call(middleware, http_scope(extensions={"tls": {}}))
        await call.over()
        assert len(asked) == 4

    run(scenario)


def test_until_when_a_chain_is_believed() -> None:
    ca, now = CertificateAuthority(), time.time()
    state = replace(static_mesh("api").state, bundle=bundle_of(ca))
    chains = ChainVerifier()
    for life, until in ((3600.0, RECHECK_SECONDS), (4.0, 4.0)):
        tls = {"client_cert_chain": [ca.issue("web", not_after=now + life).cert_pem]}
        assert chains.until(tls, now) == now  # never seen: ask
        chains.caller(tls, state, now)
        assert chains.until(tls, now) == pytest.approx(now + until, abs=1.1)
    forged = {"client_cert_chain": [CertificateAuthority().issue("web").cert_pem]}
    chains.caller(forged, state, now)
    assert chains.until(forged, now) == now


# -- WebSockets --------------------------------------------------------------------------------


def test_a_websocket_is_closed_with_1008_and_the_reason(apps: Apps) -> None:
    async def scenario() -> None:
        source = Source()
        call = Call(MeshMiddleware(apps.echo, mesh=source), socket_scope())
        call.incoming.put_nowait({"type": "websocket.receive", "text": "before"})
        await call.reaches(2)
        call.hangs_up = False
        source.intend(Intention("web", "api", Action.DENY))
        await call.reaches(3)
        assert call.sent[2:] == [
            {"type": "websocket.close", "code": 1008, "reason": "intention_deny"}
        ]
        call.incoming.put_nowait({"type": "websocket.receive", "text": "after"})
        await call.over()
        assert len(call.sent) == 3

    run(scenario)
    assert apps.ends == ["1008 intention_deny"]


def test_what_is_being_ended_is_ended_once(apps: Apps) -> None:
    async def scenario() -> None:
        source = Source()
        call = Call(MeshMiddleware(apps.echo, mesh=source), socket_scope())
        call.hangs_up = False
        for count in (2, 2, 2):
            await call.reaches(1)
            source.intend()
            await call.reaches(count)
            await looks()
        assert call.types == ["websocket.accept", "websocket.close"]
        call.incoming.put_nowait({"type": "websocket.disconnect", "code": 1008})
        await call.over()

    run(scenario)


def test_what_drains_has_one_end(apps: Apps, monkeypatch: pytest.MonkeyPatch) -> None:
    ends: list[Any] = []
    monkeypatch.setattr(live_module.Watch, "_drained", lambda _, entry: ends.append(entry))

    async def scenario() -> None:
        source = Source()
        call = Call(MeshMiddleware(apps.stream, mesh=source, drain_seconds=0.2), web())
        await call.reaches(1)
        for _ in range(3):
            source.intend()
            await looks()
        await await_for(lambda: ends)
        # Timers of one loop fire in the order of their times: a second end would come before this.
        await asyncio.sleep(0.3)
        assert len(ends) == 1
        call.task.cancel()

    run(scenario)


def test_a_websocket_that_only_sends_gets_an_oserror() -> None:
    ends = []

    async def ticker(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "websocket.accept"})
        try:
            while True:
                await send({"type": "websocket.send", "text": "x"})
                await asyncio.sleep(FAST)
        except OSError as error:
            ends.append(str(error))
            raise

    async def scenario() -> None:
        source = Source()
        call = Call(MeshMiddleware(ticker, mesh=source), socket_scope())
        await call.reaches(2)
        source.intend()
        await call.over()
        assert call.types[-1] == "websocket.close"

    run(scenario)
    assert ends == ["ended by the mesh: default_deny"]


@pytest.mark.parametrize("offered", [True, False])
def test_a_handshake_that_is_not_accepted_yet_is_refused(offered: bool) -> None:
    async def slow(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "websocket.accept"})

    async def scenario() -> None:
        source = Source()
        scope = socket_scope(extensions={"websocket.http.response": {}} if offered else {})
        call = Call(MeshMiddleware(slow, mesh=source), scope)
        await asyncio.sleep(0)
        source.intend()
        await call.reaches(1)
        call.incoming.put_nowait({"type": "websocket.connect"})
        await call.over()
        assert call.types == (["start", "body"] if offered else ["websocket.close"])

    run(scenario)


def test_a_client_that_does_not_read_is_dropped(
    apps: Apps, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(live_module, "CLOSE_SECONDS", 0.05)

    async def scenario() -> None:
        source = Source()
        call = Call(MeshMiddleware(apps.echo, mesh=source), socket_scope())
        await call.reaches(1)
        call.blocked = True
        source.intend()
        await call.over()

    run(scenario)


def test_a_websocket_that_the_application_has_closed_is_left_alone() -> None:
    async def closed(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "websocket.accept"})
        await send({"type": "websocket.close"})
        await receive()

    async def scenario() -> None:
        source = Source()
        call = Call(MeshMiddleware(closed, mesh=source), socket_scope())
        call.hangs_up = False
        await call.reaches(2)
        source.intend()
        await looks()
        assert not call.task.done()
        call.incoming.put_nowait({"type": "websocket.disconnect"})
        await call.over()
        assert len(call.sent) == 2

    run(scenario)


def test_a_client_that_is_faster_is_no_error(apps: Apps) -> None:
    async def scenario() -> None:
        source = Source()
        call = Call(MeshMiddleware(apps.echo, mesh=source), socket_scope())
        await call.reaches(1)

        async def gone(message: Message) -> None:
            raise RuntimeError("Unexpected ASGI message 'websocket.close'")

        entry = entry_of(call)
        entry._send = gone
        source.intend()
        await await_for(lambda: entry.ending is not None)
        call.incoming.put_nowait({"type": "websocket.disconnect", "code": 1006})
        await call.over()

    run(scenario)


# -- audit, sources, loops ---------------------------------------------------------------------


def test_in_audit_rules_end_nothing_but_certificates_do(apps: Apps) -> None:
    async def scenario() -> None:
        source = Source()
        middleware = MeshMiddleware(apps.stream, mesh=source, enforcement="audit")
        call = Call(middleware, web(peer=verified(life=0.5)))
        await call.reaches(2)
        source.intend()
        await call.reaches(len(call.sent) + 10)
        await call.over()

    run(scenario)
    assert apps.ends == ["CancelledError"]


def test_an_exempt_path_has_nothing_to_lose(apps: Apps) -> None:
    async def scenario() -> None:
        source = Source()
        middleware = MeshMiddleware(apps.stream, mesh=source, exempt_paths=["/health"])
        call = Call(middleware, web("/health", peer=None))
        source.intend()
        await call.reaches(20)
        call.task.cancel()

    run(scenario)


def test_a_service_whose_manager_is_another_one_now(apps: Apps) -> None:
    """The same generation from another source is another state; without any, nothing changes."""

    async def scenario() -> None:
        first, second = Source(), Source()
        second.state = static_mesh("api").state
        sources.add("api", first)
        call = Call(MeshMiddleware(apps.stream, service="api"), web())
        await call.reaches(2)
        sources.remove("api", first)
        await call.reaches(len(call.sent) + 10)
        sources.add("api", second)
        try:
            await call.over()
        finally:
            sources.remove("api", second)

    run(scenario)


def test_it_works_in_one_loop_after_the_other(apps: Apps) -> None:
    source = Source()
    middleware = MeshMiddleware(apps.stream, mesh=source)

    async def scenario() -> None:
        source.intend(*WEB_MAY)
        call = Call(middleware, web())
        await call.reaches(2)
        source.intend()
        await call.over()

    run(scenario)
    run(scenario)


def test_nothing_runs_while_nothing_is_open(apps: Apps) -> None:
    async def scenario() -> None:
        source = Source()
        middleware = MeshMiddleware(apps.background, mesh=source)
        call = Call(middleware, web())
        call.incoming.put_nowait({"type": "http.disconnect"})
        await call.over()
        watch = middleware._live._watch
        assert watch is not None
        await await_for(lambda: watch.idle)
        assert not watch.new
        again = Call(middleware, web())
        await again.reaches(2)
        source.publish(source.state)
        await looks()
        assert not watch.idle
        again.incoming.put_nowait({"type": "http.disconnect"})
        await again.over()
        assert not watch._old
        await await_for(lambda: watch.idle)

    run(scenario)


def test_a_change_between_decision_and_first_look_is_seen(apps: Apps) -> None:
    async def scenario() -> None:
        source = Source()

        async def at_once(scope: Scope, receive: Receive, send: Send) -> None:
            source.intend()
            await apps.stream(scope, receive, send)

        await Call(MeshMiddleware(at_once, mesh=source), web()).over()

    run(scenario)


def test_a_change_while_it_is_decided_is_seen(apps: Apps) -> None:
    class Racing(Source):
        """Publishes just after its state was read for the first time."""

        def __getattribute__(self, name: str) -> Any:
            value = super().__getattribute__(name)
            if name == "state" and self.armed:
                self.armed = False
                self.intend()
            return value

        armed = False

    async def scenario() -> None:
        source = Racing()
        source.armed = True
        await Call(MeshMiddleware(apps.stream, mesh=source), web()).over()

    run(scenario)


def test_a_cancellation_by_the_server_stays_one(apps: Apps) -> None:
    async def scenario() -> None:
        source = Source()
        middleware = MeshMiddleware(apps.stream, mesh=source)
        calls = [Call(middleware, web()) for _ in range(2)]
        await calls[0].reaches(2)
        calls[0].task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await calls[0].task
        middleware._enforcer.ended = lambda *_: calls[1].task.cancel()  # type: ignore[method-assign]
        source.intend()
        with pytest.raises(asyncio.CancelledError):
            await calls[1].task

    run(scenario)


def test_a_cancellation_while_a_websocket_closes_stays_one(apps: Apps) -> None:
    async def scenario() -> None:
        source = Source()
        call = Call(MeshMiddleware(apps.echo, mesh=source), socket_scope())
        call.hangs_up = False
        await call.reaches(1)
        source.intend()
        await call.reaches(2)
        call.task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call.task

    run(scenario)


def test_an_error_of_the_application_stays_one() -> None:
    async def broken(scope: Scope, receive: Receive, send: Send) -> None:
        raise OSError("disk full")

    async def scenario() -> None:
        call = Call(MeshMiddleware(broken, mesh=Source()), web())
        with pytest.raises(OSError, match="disk full"):
            await call.over()

    run(scenario)


def test_under_another_event_loop_requests_are_served_all_the_same() -> None:
    sent: list[Message] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send(START)

    async def send(message: Message) -> None:
        sent.append(message)

    trio.run(MeshMiddleware(app, mesh=Source()), web(), send, send)
    assert sent == [START]
