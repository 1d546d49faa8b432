"""Applications of real frameworks whose answers say which handler ran, and for what path.

Every answer has lines ``ran:<path>``: the path that the handler is registered under, or, where it
takes the rest of the path as a parameter, that path as received and as a file system would read it.
"""

from __future__ import annotations

import posixpath
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from a2wsgi import WSGIMiddleware
from fastapi import APIRouter, FastAPI
from fastapi.responses import PlainTextResponse as Text
from flask import Flask
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import BaseRoute, Mount, Route, WebSocketRoute
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp
from starlette.websockets import WebSocket

Guard = Callable[[ASGIApp], ASGIApp]
"""Puts the middleware around an application."""

PATHS = ("/admin", "/admin/secret", "/public/page")
METHODS = ("GET", "POST", "DELETE")


def ran(*paths: str) -> str:
    """What a handler answers."""
    return "".join(f"ran:{path!r}\n" for path in paths)


def at(prefix: str, rest: str) -> str:
    """What a handler at `prefix` answers that takes the rest of the path."""
    path = f"{prefix}/{rest}"
    folded = path.replace("\\", "/")
    slash = "/" if folded.endswith(("/", "/.", "/..")) else ""
    return ran(path, "/" + posixpath.normpath(folded).lstrip("/") + slash)


@dataclass(frozen=True)
class Case:
    """An application, the prefix under which clients reach it, and where the middleware stands."""

    name: str
    prefix: str
    build: Callable[..., ASGIApp]
    websockets: bool = False
    needs_files: bool = False

    def over(self, files: Path) -> Case:
        """The case with `files` to serve, where it serves any."""
        if not self.needs_files:
            return self
        return replace(self, build=lambda guard: self.build(guard, files))


def starlette_routes(prefix: str = "") -> list[BaseRoute]:
    """The protected, the public, one that takes everything below it, and one that takes all."""

    def fixed(path: str) -> list[BaseRoute]:
        async def handler(request: Request) -> PlainTextResponse:
            return PlainTextResponse(ran(prefix + path))

        async def socket(websocket: WebSocket) -> None:
            await websocket.accept()
            await websocket.send_text(ran(prefix + path))
            await websocket.close()

        return [Route(path, handler, methods=list(METHODS)), WebSocketRoute(path, socket)]

    def rest(path: str) -> list[BaseRoute]:
        async def handler(request: Request) -> PlainTextResponse:
            return PlainTextResponse(at(prefix + path, request.path_params["p"]))

        async def socket(websocket: WebSocket) -> None:
            await websocket.accept()
            await websocket.send_text(at(prefix + path, websocket.path_params["p"]))
            await websocket.close()

        route = path + "/{p:path}"
        return [Route(route, handler, methods=list(METHODS)), WebSocketRoute(route, socket)]

    return [*[r for path in PATHS for r in fixed(path)], *rest("/files"), *rest("/public")]


def starlette(guard: Guard) -> ASGIApp:
    return guard(Starlette(routes=starlette_routes()))


def starlette_catch_all(guard: Guard) -> ASGIApp:
    async def anything(request: Request) -> PlainTextResponse:
        return PlainTextResponse(at("", request.path_params["p"]))

    return guard(Starlette(routes=[*starlette_routes(), Route("/{p:path}", anything)]))


def mounted(guard: Guard) -> ASGIApp:
    """A mount in a mount; the middleware is the outermost."""
    inner = Starlette(routes=starlette_routes("/sub"))
    return guard(Starlette(routes=[Mount("/", routes=[Mount("/sub", app=inner)])]))


def guarded_below_a_mount(guard: Guard) -> ASGIApp:
    return Starlette(routes=[Mount("/sub", app=guard(Starlette(routes=starlette_routes("/sub"))))])


def mount_of_its_own_name(guard: Guard) -> ASGIApp:
    """Routes whose own path starts with the mount's: what is taken off twice, opens them."""
    inner = [Route("/sub" + path, _named("/sub/sub" + path)) for path in PATHS]
    return guard(Starlette(routes=[Mount("/sub", routes=[*inner, *starlette_routes("/sub")])]))


def _named(path: str) -> Any:
    async def handler(request: Request) -> PlainTextResponse:
        return PlainTextResponse(ran(path))

    return handler


def folder_of_files(folder: Path) -> Path:
    """`folder`, with files whose content says where they are."""
    for path in ("admin/secret", "admin/index.html", "public/page", "public/index.html", "admi"):
        file = folder / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(ran("/static/" + path.removesuffix("index.html")))
    return folder


def static_files(guard: Guard, files: Path) -> ASGIApp:
    """Files, and the index files of folders."""
    app = StaticFiles(directory=files, html=True)
    return guard(Starlette(routes=[Mount("/static", app=app)]))


def fastapi_app(prefix: str = "", **options: Any) -> FastAPI:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # FastAPI deprecates root_path; applications have it
        app = FastAPI(openapi_url=None, **options)
    router = APIRouter(prefix="/admin")

    @router.api_route("", methods=list(METHODS), response_class=Text)
    def admin() -> str:
        return ran(prefix + "/admin")

    @router.api_route("/{name}", methods=list(METHODS), response_class=Text)
    def below_admin(name: str) -> str:
        return at(prefix + "/admin", name)

    @app.get("/public/{p:path}", response_class=Text)
    def public(p: str) -> str:
        return at(prefix + "/public", p)

    @app.get("/files/{p:path}", response_class=Text)
    def files(p: str) -> str:
        return at(prefix + "/files", p)

    @app.websocket("/admin")
    async def socket(websocket: WebSocket) -> None:
        await websocket.accept()
        await websocket.send_text(ran(prefix + "/admin"))
        await websocket.close()

    app.include_router(router)
    return app


def fastapi(guard: Guard) -> ASGIApp:
    return guard(fastapi_app())


def fastapi_with_a_root_path(guard: Guard) -> ASGIApp:
    return guard(fastapi_app(root_path="/api"))


def fastapi_in_fastapi(guard: Guard) -> ASGIApp:
    app = FastAPI(openapi_url=None)
    app.mount("/sub", fastapi_app("/sub"))
    return guard(app)


def flask_app(prefix: str = "", **rules: Any) -> Any:
    app = Flask("routers", static_folder=None)
    app.url_map.merge_slashes = rules.pop("merge_slashes", True)
    for path in PATHS:
        view = lambda path=path: ran(prefix + path)  # noqa: E731
        app.add_url_rule(path, path, view, methods=METHODS, **rules)
    for path in ("/files", "/public"):
        view = lambda p, path=path: at(prefix + path, p)  # noqa: E731
        app.add_url_rule(path + "/<path:p>", path, view, methods=METHODS)
    return WSGIMiddleware(app)


def flask(guard: Guard) -> ASGIApp:
    return guard(flask_app())


def flask_that_keeps_slashes(guard: Guard) -> ASGIApp:
    return guard(flask_app(merge_slashes=False))


def flask_in_starlette(guard: Guard) -> ASGIApp:
    return guard(Starlette(routes=[Mount("/sub", app=flask_app("/sub"))]))


def flask_under_a_root_path(guard: Guard) -> ASGIApp:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        app = FastAPI(root_path="/api", openapi_url=None)
    app.mount("/", flask_app())
    return guard(app)


CASES = (
    Case("starlette", "", starlette, websockets=True),
    Case("starlette catching all", "", starlette_catch_all, websockets=True),
    Case("mounts", "/sub", mounted, websockets=True),
    Case("guarded below a mount", "/sub", guarded_below_a_mount, websockets=True),
    Case("a mount of its own name", "/sub", mount_of_its_own_name, websockets=True),
    Case("static files", "/static", static_files, needs_files=True),
    Case("fastapi", "", fastapi, websockets=True),
    Case("fastapi with a root path", "", fastapi_with_a_root_path, websockets=True),
    Case("fastapi in fastapi", "/sub", fastapi_in_fastapi, websockets=True),
    Case("flask", "", flask),
    Case("flask that keeps slashes", "", flask_that_keeps_slashes),
    Case("flask in starlette", "/sub", flask_in_starlette),
    Case("flask under a root path", "", flask_under_a_root_path),
)
"""Every application of the table."""
