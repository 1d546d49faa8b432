"""Open WebSockets end with 1001, whichever implementation carries them."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
import uvicorn
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect as websocket_connect

from mesh_middleware.server.goaway import GoAway
from mesh_middleware.server.heartbeat import Phase
from mesh_middleware.server.worker import UvicornServer
from tests.server.mesh import running
from tests.support import wait_for


class Recorder:
    """A WebSocket application that notes how its connections ended."""

    def __init__(self) -> None:
        self.ends: list[Any] = []
        self.connected = 0

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        assert scope["type"] == "websocket"
        await receive()
        await send({"type": "websocket.accept"})
        self.connected += 1
        message = await receive()
        self.ends.append(message["type"])
        try:
            await send({"type": "websocket.send", "text": "too late"})
        except OSError as error:
            self.ends.append(str(error))
            raise  # as most applications let it


@pytest.mark.filterwarnings("ignore:remove second argument:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:.*is deprecated:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:.*is deprecated:uvicorn.config.UvicornDeprecationWarning")
@pytest.mark.parametrize("ws", ["websockets", "websockets-sansio", "wsproto"])
def test_a_stop_closes_websockets_with_1001(ws: Any, caplog: pytest.LogCaptureFixture) -> None:
    app = Recorder()
    goaway = GoAway(app)
    config = uvicorn.Config(
        goaway,
        interface="asgi3",
        ws=ws,
        log_config=None,
        lifespan="off",
        timeout_graceful_shutdown=5,
    )
    beats: list[Phase] = []
    server = UvicornServer(config, goaway, beats.append)
    with running(server) as port:
        with websocket_connect(f"ws://127.0.0.1:{port}/", proxy=None) as websocket:
            wait_for(lambda: app.connected)
            server.should_exit = True
            with pytest.raises(ConnectionClosed) as closed:
                websocket.recv(10)
            assert closed.value.rcvd is not None
            assert closed.value.rcvd.code == 1001
        wait_for(lambda: len(app.ends) == 2)
    assert app.ends == ["websocket.disconnect", "the server is going away"]
    assert "Exception in ASGI application" not in caplog.text
    assert (beats[0], beats[-1]) == (Phase.SERVING, Phase.STOPPING)


def test_an_error_of_the_applications_own_is_not_hidden() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        raise FileNotFoundError("mine")

    with pytest.raises(FileNotFoundError, match="mine"):
        asyncio.run(GoAway(app)({"type": "websocket"}, None, None))  # type: ignore[arg-type]


def test_only_accepted_open_websockets_are_closed() -> None:
    async def scenario() -> list[str]:
        sent: list[str] = []

        async def send(message: Any) -> None:
            sent.append(message["type"])

        async def refusing(_scope: Any, _receive: Any, send: Any) -> None:
            await send({"type": "websocket.close"})
            await asyncio.Event().wait()

        goaway = GoAway(refusing)
        task = asyncio.ensure_future(goaway({"type": "websocket"}, None, send))  # type: ignore[arg-type]
        await asyncio.sleep(0)
        await goaway.close_all()
        task.cancel()
        return sent

    assert asyncio.run(scenario()) == ["websocket.close"]
