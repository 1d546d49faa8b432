"""A WSGI request that is open when the mesh changes: decided again, and ended when refused now."""

from __future__ import annotations

import errno
import io
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import Any
from wsgiref.util import FileWrapper
from wsgiref.validate import validator

import pytest

from mesh_middleware.errors import ConfigError
from mesh_middleware.middleware import PEER_KEY
from mesh_middleware.middleware import live_wsgi as live_module
from mesh_middleware.middleware.wsgi import MeshWSGIMiddleware
from mesh_middleware.observe.decisions import DecisionLog
from mesh_middleware.policy.decision import Reason
from mesh_middleware.policy.intentions import Action, Intention
from mesh_middleware.state import sources
from mesh_middleware.testing import static_mesh
from tests.middleware.calls import WEB_MAY, verified
from tests.middleware.test_live import NO_ROOTS, Source
from tests.middleware.test_wsgi import environ_for
from tests.support import wait_for


@pytest.fixture(autouse=True)
def every_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mesh_middleware.middleware.enforcer.decision_log", DecisionLog())


class Chunks:
    """A response of `chunks`, and how far it came."""

    def __init__(self, chunks: Iterable[bytes] = (b"a", b"b", b"c", b"d")) -> None:
        self._chunks = iter(chunks)
        self.given = 0
        self.closed = 0

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        chunk = next(self._chunks)
        self.given += 1
        return chunk

    def close(self) -> None:
        self.closed += 1


def gives(result: Any) -> Callable[..., Any]:
    def app(_environ: dict[str, Any], start_response: Any) -> Any:
        start_response("200 OK", [("Content-Type", "text/plain")])
        return result

    return app


class Server:
    """What a WSGI server keeps of one response."""

    def __init__(self, app: Any, **environ: Any) -> None:
        environ.setdefault(PEER_KEY, verified())
        self.environ = environ_for(**environ)
        self.heads: list[tuple[str, dict[str, str]]] = []
        self.written: list[bytes] = []
        self.response = app(self.environ, self.start_response)
        self._chunks = iter(self.response)

    def start_response(self, status: str, headers: Any, exc_info: Any = None) -> Any:
        if exc_info and self.heads:
            raise exc_info[1].with_traceback(exc_info[2])
        assert not self.heads, "headers already set"
        self.heads.append((status, dict(headers)))
        return self.written.append

    def next(self) -> bytes:
        chunk = next(self._chunks)
        assert self.heads, "write() before start_response"
        return chunk

    @property
    def refused(self) -> str:
        """The reason of a refusal that is the whole response."""
        ((status, headers),) = self.heads
        assert status == "403 Forbidden"
        body = self.next()
        assert len(body) == int(headers["content-length"])
        with pytest.raises(StopIteration):
            self.next()
        assert not self.written
        return headers["x-mesh-refused"]

    def is_cut(self) -> None:
        """The next chunk is none, and nothing that looks like an end."""
        with pytest.raises(ConnectionResetError, match="ended by the mesh: ") as ended:
            self.next()
        assert ended.value.errno == errno.ECONNRESET  # gunicorn logs a traceback for others


def guarded(app: Any, mesh: Any, **options: Any) -> MeshWSGIMiddleware:
    return MeshWSGIMiddleware(app, mesh=mesh, **options)


# -- responses ---------------------------------------------------------------------------------


def test_a_response_is_cut_when_its_intention_goes(caplog: pytest.LogCaptureFixture) -> None:
    source, chunks = Source(), Chunks()
    server = Server(guarded(gives(chunks), source), PATH_INFO="/feed", QUERY_STRING="token=1")
    assert server.next() == b"a"
    source.intend()
    server.is_cut()
    assert (chunks.given, chunks.closed) == (2, 1)
    server.response.close()
    assert chunks.closed == 1
    (record,) = caplog.records
    assert record.getMessage().startswith("ended GET /feed from spiffe://")
    assert vars(record)["mesh_reason"] == "default_deny"
    server.is_cut()  # a server that goes on asking
    assert len(caplog.records) == 1


def test_what_is_still_allowed_goes_on_to_its_end() -> None:
    source, chunks = Source(), Chunks()
    server = Server(guarded(gives(chunks), source))
    assert server.next() == b"a"
    source.intend(*WEB_MAY, Intention("batch", "api", Action.DENY))
    assert list(server.response) == [b"b", b"c", b"d"]
    server.response.close()
    assert chunks.closed == 1


def test_what_was_given_in_full_is_not_cut() -> None:
    source = Source()
    server = Server(guarded(gives(Chunks([b"a"])), source))
    assert server.next() == b"a"
    source.intend()
    with pytest.raises(StopIteration):
        server.next()


def test_it_is_decided_again_by_generation_only() -> None:
    source, decided = Source(), []
    middleware = guarded(gives(Chunks()), source)
    judge = middleware._enforcer.judge_again
    middleware._enforcer.judge_again = lambda *args: decided.append(1) or judge(*args)  # type: ignore[method-assign, func-returns-value]
    server = Server(middleware)
    assert server.next() == b"a"
    source.publish(source.state)
    assert [server.next(), server.next()] == [b"b", b"c"]
    assert len(decided) == 1


def test_a_chain_that_was_looked_at_again_is_believed_for_a_while() -> None:
    """As `ChainVerifier` says, and not asked about with each chunk from then on."""
    asked: list[float] = []

    class Chains:
        def caller(self, _tls: Any, _state: Any, now: float) -> Any:
            asked.append(now)
            return verified().certificate.identity

        def until(self, _tls: Any, now: float) -> float:
            return now + 60 if len(asked) > 1 else now - 1

    middleware = guarded(gives(Chunks()), Source())
    middleware._enforcer._chains = Chains()  # type: ignore[assignment]
    server = Server(middleware, **{PEER_KEY: None, "asgi.scope": {"extensions": {"tls": {}}}})
    assert list(server.response) == [b"a", b"b", b"c", b"d"]
    assert len(asked) == 2


def test_responses_without_close_are_fine() -> None:
    server = Server(guarded(gives(iter([b"a", b"b"])), Source()))
    assert list(server.response) == [b"a", b"b"]
    server.response.close()


def test_a_list_of_one_stays_one() -> None:
    """Servers give it its length."""
    body = [b"all of it"]
    assert Server(guarded(gives(body), Source())).response is body


def test_a_list_of_many_is_cut() -> None:
    source = Source()
    server = Server(guarded(gives([b"a", b"b"]), source))
    assert server.next() == b"a"
    source.intend()
    server.is_cut()


def test_a_file_is_cut_as_well() -> None:
    """No server gets the file: it would hand all of it to the kernel."""
    source, file = Source(), io.BytesIO(b"x" * 30_000)

    def app(environ: dict[str, Any], start_response: Any) -> Any:
        start_response("200 OK", [])
        return environ["wsgi.file_wrapper"](file, 10_000)

    class Sending:
        def __init__(self, *_: Any) -> None:
            raise AssertionError("the server has the file")

    server = Server(guarded(app, source), **{"wsgi.file_wrapper": Sending})
    assert server.environ["wsgi.file_wrapper"] is FileWrapper
    assert len(server.next()) == 10_000
    source.intend()
    server.is_cut()
    assert file.closed


def test_a_server_without_file_wrapper_gets_none() -> None:
    assert "wsgi.file_wrapper" not in Server(guarded(gives([b""]), Source())).environ


def test_what_write_passes_on_is_cut() -> None:
    source, ends = Source(), []

    def app(_environ: dict[str, Any], start_response: Any) -> Any:
        write = start_response("200 OK", [])
        write(b"a")
        source.intend()
        try:
            write(b"b")
        except OSError as error:
            ends.append(str(error))
            raise
        return []

    with pytest.raises(ConnectionResetError, match="ended by the mesh"):
        Server(guarded(app, source))
    assert ends == ["[Errno 104] ended by the mesh: default_deny"]


def test_write_comes_before_the_chunks() -> None:
    def app(_environ: dict[str, Any], start_response: Any) -> Any:
        start_response("200 OK", [])(b"a")
        return iter([b"b"])

    server = Server(guarded(app, Source()))
    assert (server.written, list(server.response)) == ([b"a"], [b"b"])


# -- before the response has begun -------------------------------------------------------------


@pytest.mark.parametrize("result", [[b"secret"], Chunks([b"sec", b"ret"])], ids=["list", "chunks"])
def test_a_response_that_comes_too_late_is_the_refusal(result: Any) -> None:
    source = Source()

    def app(_environ: dict[str, Any], start_response: Any) -> Any:
        start_response("200 OK", [("X-Secret", "1")])
        source.intend()
        return result

    server = Server(guarded(app, source))
    assert server.refused == "default_deny"
    assert getattr(result, "closed", 1) == 1


def test_head_is_refused_without_a_body() -> None:
    source = Source()

    def app(_environ: dict[str, Any], start_response: Any) -> Any:
        start_response("200 OK", [])
        source.intend()
        return []

    assert list(Server(guarded(app, source), REQUEST_METHOD="HEAD").response) == []


def lazy(chunks: Iterable[bytes], before: Callable[[], None]) -> Callable[..., Any]:
    """An application that is a generator, so that it starts with its first chunk."""

    def app(_environ: dict[str, Any], start_response: Any) -> Any:
        before()
        start_response("200 OK", [("X-Secret", "1")])
        yield from chunks

    return app


def test_one_that_starts_late_is_refused_as_late() -> None:
    source = Source()
    server = Server(guarded(lazy([b"secret"], source.intend), source))
    assert not server.heads
    body = server.next()
    assert server.heads[0][0] == "403 Forbidden"
    assert b"default_deny" in body
    with pytest.raises(StopIteration):
        server.next()


@pytest.mark.parametrize("chunks", [[], [b"a", b"b"]])
def test_one_that_starts_late_starts(chunks: list[bytes]) -> None:
    server = Server(guarded(lazy(chunks, lambda: None), Source()))
    assert list(server.response) == chunks
    assert server.heads == [("200 OK", {"X-Secret": "1"})]


def test_one_that_starts_late_and_is_empty_is_refused_too() -> None:
    source = Source()
    server = Server(guarded(lazy([], source.intend), source), REQUEST_METHOD="HEAD")
    assert list(server.response) == []
    assert server.heads[0][0] == "403 Forbidden"


def test_a_fault_of_the_state_is_503() -> None:
    source = Source()

    def app(_environ: dict[str, Any], start_response: Any) -> Any:
        start_response("200 OK", [])
        source.publish(replace(source.state, fault=Reason.POLICY_UNDECODABLE))
        return []

    assert Server(guarded(app, source)).heads[0][0] == "503 Service Unavailable"


# -- uploads -----------------------------------------------------------------------------------

READS: dict[str, Callable[[Any], Any]] = {
    "read": lambda body: body.read(2),
    "all": lambda body: body.read(),
    "readline": lambda body: body.readline(),
    "readlines": lambda body: body.readlines(),
    "iteration": lambda body: next(iter(body)),
}


@pytest.mark.parametrize("read", READS.values(), ids=READS)
def test_an_upload_is_ended(read: Callable[[Any], Any]) -> None:
    source, got = Source(), []

    def app(environ: dict[str, Any], start_response: Any) -> Any:
        source.intend()
        got.append(read(environ["wsgi.input"]))
        start_response("200 OK", [])
        return [b"done"]

    body = io.BytesIO(b"one\ntwo\n")
    assert Server(guarded(app, source), **{"wsgi.input": body}).refused == "default_deny"
    assert got == []


def test_an_application_that_takes_it_for_a_client_that_left_is_not_heard() -> None:
    source = Source()

    def app(environ: dict[str, Any], start_response: Any) -> Any:
        source.intend()
        try:
            environ["wsgi.input"].read()
        except OSError:
            start_response("400 Bad Request", [])
            return [b"the client left"]

    server = Server(guarded(app, source), **{"wsgi.input": io.BytesIO(b"x")})
    assert server.refused == "default_deny"


def test_reading_while_answering_is_cut_or_refused() -> None:
    def echo(environ: dict[str, Any], start_response: Any) -> Iterator[bytes]:
        body = environ["wsgi.input"]
        first = body.read(1)
        start_response("200 OK", [])
        yield first
        yield body.read(1)

    for before in (0, 1):
        source = Source()
        server = Server(guarded(echo, source), **{"wsgi.input": io.BytesIO(b"abc")})
        for _ in range(before):
            server.next()
        source.intend()
        if before:
            server.is_cut()
        else:
            assert b"default_deny" in server.next()


def test_a_body_is_read_as_it_is() -> None:
    def app(environ: dict[str, Any], start_response: Any) -> Any:
        body = environ["wsgi.input"]
        start_response("200 OK", [])
        return [body.read(1), body.readline(), body.readline(2), *body.readlines(1), *body]

    body = io.BytesIO(b"one\ntwo\nthree\nfour\n")
    server = Server(guarded(app, Source()), **{"wsgi.input": body})
    assert list(server.response) == [b"o", b"ne\n", b"tw", b"o\n", b"three\n", b"four\n"]


# -- the application's own mistakes ------------------------------------------------------------


@pytest.mark.parametrize("start_late", [False, True])
def test_errors_of_the_application_are_the_servers(start_late: bool) -> None:
    def fails() -> Iterator[bytes]:
        raise OSError("mine")
        yield b""

    def app(_environ: dict[str, Any], _start_response: Any) -> Any:
        return fails() if start_late else next(fails())

    with pytest.raises(OSError, match="mine"):
        Server(guarded(app, Source())).next()


def test_a_second_start_needs_a_reason() -> None:
    def app(_environ: dict[str, Any], start_response: Any) -> Any:
        start_response("200 OK", [])
        with pytest.raises(AssertionError):
            start_response("200 OK", [])
        error = ValueError("so it is")
        start_response("500 Oh", [], (ValueError, error, None))
        return [b"x"]

    assert Server(guarded(app, Source())).heads == [("500 Oh", {})]


def test_a_reason_that_comes_too_late_is_raised() -> None:
    def app(_environ: dict[str, Any], start_response: Any) -> Iterator[bytes]:
        start_response("200 OK", [])
        yield b"a"
        start_response("500 Oh", [], (ValueError, ValueError("too late"), None))

    server = Server(guarded(app, Source()))
    assert server.next() == b"a"
    with pytest.raises(ValueError, match="too late"):
        server.next()


@pytest.mark.filterwarnings("ignore:Unknown REQUEST_METHOD")
def test_it_is_wsgi_on_both_sides() -> None:
    outside = validator(guarded(validator(gives(Chunks())), Source()))
    environ = {
        **environ_for(**{PEER_KEY: verified(), "QUERY_STRING": ""}),
        "wsgi.version": (1, 0),
        "wsgi.input": io.BytesIO(),
        "wsgi.errors": io.StringIO(),
        "wsgi.multithread": True,
        "wsgi.multiprocess": False,
        "wsgi.run_once": False,
    }

    def start_response(_status: str, _headers: Any, _exc_info: Any = None) -> Any:
        return lambda _data: None

    response = outside(environ, start_response)
    try:
        assert list(response) == [b"a", b"b", b"c", b"d"]
    finally:
        response.close()  # type: ignore[attr-defined]


# -- what else ends it, or does not ------------------------------------------------------------


def test_a_certificate_that_ends_ends_what_is_open() -> None:
    server = Server(guarded(gives(Chunks()), Source()), **{PEER_KEY: verified(life=0.3)})
    lasting = Server(guarded(gives(Chunks()), Source()))
    assert server.next() == b"a"
    end = time.time() + 0.35
    wait_for(lambda: time.time() > end)
    server.is_cut()
    assert lasting.next() == b"a"


def test_a_root_that_is_removed_ends_what_is_open(caplog: pytest.LogCaptureFixture) -> None:
    source = Source()
    server = Server(guarded(gives(Chunks()), source))
    source.publish(replace(source.state, bundle=NO_ROOTS))
    server.is_cut()
    assert [vars(record)["mesh_reason"] for record in caplog.records] == ["root_not_trusted"]


def test_another_source_of_the_same_generation_is_another_state() -> None:
    sources.put("api", Source())
    try:
        server = Server(MeshWSGIMiddleware(gives(Chunks()), service="api"))
        sources.put("api", static_mesh("api"))
        assert static_mesh("api").state.generation == Source().state.generation
        server.is_cut()
    finally:
        sources.put("api", None)


def test_without_a_source_nothing_ends() -> None:
    sources.put("api", Source())
    try:
        server = Server(MeshWSGIMiddleware(gives(Chunks()), service="api"))
        sources.put("api", None)
        assert len(list(server.response)) == 4
    finally:
        sources.put("api", None)


def test_in_audit_rules_end_nothing() -> None:
    source = Source()
    server = Server(guarded(gives(Chunks()), source, enforcement="audit"))
    source.intend()
    assert server.next() == b"a"
    source.publish(replace(source.state, bundle=NO_ROOTS))
    server.is_cut()


def test_exempt_paths_are_left_alone() -> None:
    chunks = Chunks()
    app = guarded(gives(chunks), Source(), exempt_paths=["/live"])
    assert Server(app, PATH_INFO="/live").response is chunks


def test_of_two_middlewares_the_outer_one_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Any] = []
    original = live_module.OpenCall

    def counted(*args: Any) -> Any:
        calls.append(args)
        return original(*args)

    monkeypatch.setattr("mesh_middleware.middleware.wsgi.OpenCall", counted)
    source = Source()
    server = Server(guarded(guarded(gives(Chunks()), source), source))
    assert server.next() == b"a"
    assert len(calls) == 1


# -- drain -------------------------------------------------------------------------------------


def test_drain_lets_a_response_finish() -> None:
    source = Source()
    server = Server(guarded(gives(Chunks()), source, drain_seconds=60))
    source.intend()
    assert list(server.response) == [b"a", b"b", b"c", b"d"]


def test_drain_has_a_bound() -> None:
    source = Source()
    server = Server(guarded(gives(Chunks([b"x"] * 1_000_000)), source, drain_seconds=0.2))
    source.intend()
    began = time.monotonic()

    def is_over() -> bool:
        source.intend()  # a change does not begin it anew
        try:
            server.next()
        except ConnectionResetError:
            return True
        return False

    wait_for(is_over, 5)
    assert time.monotonic() - began >= 0.2


def test_after_draining_it_is_asked_again() -> None:
    source = Source()
    server = Server(guarded(gives(Chunks([b"x"] * 1_000_000)), source, drain_seconds=0.2))
    for _ in range(2):  # and may drain once more
        source.intend()
        assert server.next() == b"x"
        source.intend(*WEB_MAY)
        end = time.monotonic() + 0.3
        while time.monotonic() < end:
            assert server.next() == b"x"


@pytest.mark.parametrize("seconds", [-1, float("inf"), float("nan")])
def test_a_bound_is_a_number_of_seconds(seconds: float) -> None:
    with pytest.raises(ConfigError, match="drain_seconds"):
        guarded(gives([]), Source(), drain_seconds=seconds)
