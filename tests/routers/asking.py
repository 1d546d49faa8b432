"""Asks applications behind the middleware, and says which of what ran must not have run.

What may run is judged by the path that a handler is registered under, and by nothing of ours.
"""

from __future__ import annotations

import ast
import asyncio
import re
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote, urlsplit

from mesh_middleware.middleware import EXTENSION, MeshMiddleware
from mesh_middleware.policy.engine import compile_policy
from mesh_middleware.policy.intentions import Action, HeaderMatch, HTTPMatch, Intention, Permission
from mesh_middleware.policy.request import DEFAULT_NORMALIZATION, Normalization
from mesh_middleware.server.protocols import MeshScope
from mesh_middleware.state import StaticState
from mesh_middleware.testing import TRUST_DOMAIN, as_service
from tests.routers.apps import Case

Scope = dict[str, Any]
KINDS = ("launcher", "plain server", "no raw path")
"""With our outermost wrapper; without; and a server that gives no ``raw_path``."""


# -- policies ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Rules:
    """Permissions below a prefix, and which handlers may run then."""

    name: str
    default: Action
    permissions: Callable[[str], list[Permission]]
    may_run: Callable[[str], bool]


def deny(**http: Any) -> Permission:
    return Permission(Action.DENY, HTTPMatch(**http))


def allow(**http: Any) -> Permission:
    return Permission(Action.ALLOW, HTTPMatch(**http))


def is_admin(path: str) -> bool:
    return path == "/admin" or path.startswith("/admin/")


NO_ROLE = (HeaderMatch("x-role", exact="admin", invert=True),)
POLICIES = [
    Rules(
        "deny a prefix",
        Action.ALLOW,
        lambda at: [deny(path_prefix=at + "/admin")],
        lambda path: not path.startswith("/admin"),
    ),
    Rules(
        "deny exactly",
        Action.ALLOW,
        lambda at: [deny(path_exact=at + "/admin")],
        lambda path: path != "/admin",
    ),
    Rules(
        "deny a pattern",
        Action.ALLOW,
        lambda at: [deny(path_regex=at + "/admin(/.*)?")],
        lambda path: not is_admin(path),
    ),
    Rules(
        "deny a prefix to a role",
        Action.ALLOW,
        lambda at: [deny(path_prefix=at + "/admin", headers=NO_ROLE)],
        lambda path: not path.startswith("/admin"),
    ),
    Rules(
        "deny reading a prefix, allow the rest",
        Action.DENY,
        lambda at: [deny(path_prefix=at + "/admin", methods=("GET",)), allow(path_prefix="/")],
        lambda path: not path.startswith("/admin"),
    ),
    Rules(
        "deny where :path says so",
        Action.ALLOW,
        lambda at: [deny(headers=(HeaderMatch(":path", prefix=at + "/admin"),))],
        lambda path: not path.startswith("/admin"),
    ),
    Rules(
        "allow only a prefix",
        Action.DENY,
        lambda at: [allow(path_prefix=at + "/public/")],
        lambda path: path.startswith("/public/") or path == "/public",
    ),
    Rules(
        "allow only one path",
        Action.DENY,
        lambda at: [allow(path_exact=at + "/public/page")],
        lambda path: path == "/public/page",
    ),
    Rules(
        "allow only a pattern",
        Action.DENY,
        lambda at: [allow(path_regex=at + "/public/[a-z.;=%/]*")],
        lambda path: path.startswith("/public/") or path == "/public",
    ),
]


def mesh_for(
    rules: Rules, prefix: str, normalization: Normalization = DEFAULT_NORMALIZATION
) -> StaticState:
    """The state of a mesh with these rules for what is below `prefix`."""
    policy = compile_policy(
        [Intention("web", "api", permissions=tuple(rules.permissions(prefix)))],
        default_action=rules.default,
        trust_domain=TRUST_DOMAIN,
        service="api",
        normalization=normalization,
    )
    return StaticState.from_policy(policy, service="api")


# -- scopes --------------------------------------------------------------------------------------


def distinct(scopes: list[Scope]) -> list[Scope]:
    """One scope of each kind: two servers that agree count once."""
    keys = ("type", "method", "path", "raw_path", "query_string", "root_path")
    return list({tuple(scope.get(key) for key in keys): scope for scope in scopes}.values())


def fresh(scope: Scope, server: str = "") -> Scope:
    """A copy as a server would hand it over; ``no raw path`` is one that gives none."""
    made = {**scope, "headers": list(scope["headers"]), "http_version": "1.1", "extensions": {}}
    made |= {"server": ("api", 80), "client": ("127.0.0.1", 1), "asgi": {"version": "3.0"}}
    if made["type"] == "websocket":
        made["extensions"]["websocket.http.response"] = {}
    if server == "no raw path":
        del made["raw_path"]
    return made


# -- asking --------------------------------------------------------------------------------------


class Answer:
    """What an application did with a scope."""

    def __init__(self) -> None:
        self.status = 0
        self.headers: dict[bytes, bytes] = {}
        self.text = ""

    @property
    def ran(self) -> list[str]:
        return [ast.literal_eval(found) for found in re.findall(r"ran:(.*)\n", self.text)]

    @property
    def refused(self) -> bool:
        return b"x-mesh-refused" in self.headers


async def ask(app: Any, scope: Scope) -> Answer:
    answer = Answer()
    kind = scope["type"]
    first = "websocket.connect" if kind == "websocket" else "http.request"
    messages = [{"type": first, "body": b"", "more_body": False}]

    async def receive() -> Any:
        return messages.pop() if messages else await asyncio.get_running_loop().create_future()

    async def send(message: Any) -> None:
        if message["type"].endswith("response.start"):
            answer.status = message["status"]
            answer.headers = dict(message["headers"])
        elif message["type"].endswith("response.body"):
            answer.text += message.get("body", b"").decode()
        elif message["type"] == "websocket.send":
            answer.text += message["text"]

    await app(scope, receive, send)
    return answer


async def ask_on(app: Any, scope: Scope, server: str = "") -> list[Answer]:
    """The answer, and those to the redirects that it leads to."""
    answers = [await ask(app, fresh(scope, server))]
    for _ in range(3):
        location = answers[-1].headers.get(b"location", b"").decode("latin-1")
        if not location:
            break
        raw = urlsplit(location).path or "/"
        path = scope["root_path"] + unquote(raw) if server == "launcher" else unquote(raw)
        following = {**scope, "path": path, "raw_path": path.encode("utf-8", "replace")}
        answers.append(await ask(app, fresh(following, server)))
    return answers


def served(case: Case, mesh: StaticState | None, server: str) -> Any:
    """The application as a server calls it. ``launcher``: with our outermost wrapper."""
    if mesh is None:
        return case.build(lambda app: app)
    app = as_service(case.build(lambda app: MeshMiddleware(app, mesh=mesh)), "web")
    if server != "launcher":
        return app
    peer = app._peer

    async def called(scope: Any, receive: Any, send: Any) -> None:
        scope["extensions"][EXTENSION]["peer"] = peer
        await app.app(scope, receive, send)

    return MeshScope(called)


def forbidden(case: Case, rules: Rules, answers: list[Answer]) -> list[str]:
    """The paths of what ran and must not."""
    ran = [path for answer in answers for path in answer.ran]
    prefix = case.prefix + "/"
    return [path for path in ran if not rules.may_run("/" + path.removeprefix(prefix).lstrip("/"))]


async def walk(
    case: Case,
    scopes: list[Scope],
    met: Counter[str],
    *,
    policies: Iterable[Rules] = tuple(POLICIES),
    normalization: Normalization = DEFAULT_NORMALIZATION,
) -> list[str]:
    """The holes of one application: handlers that ran and must not.

    What runs without the middleware is asked again with it; of what may run, every tenth.
    """
    bare = served(case, None, "")
    before = [(scope, await ask_on(bare, scope)) for scope in scopes]
    before = [(scope, answers) for scope, answers in before if any(a.ran for a in answers)]
    met["targets"] += len(scopes)
    met["reached a handler"] += len(before)
    found = []
    for rules in policies:
        mesh = mesh_for(rules, case.prefix, normalization)
        apps = {kind: served(case, mesh, kind) for kind in KINDS}
        for number, (scope, answers) in enumerate(before):
            must_not = forbidden(case, rules, answers)
            if not must_not and number % 10:
                continue
            for kind in KINDS[0], KINDS[1 + number % 2]:
                after = await ask_on(apps[kind], scope, kind)
                outcome = "refused" if any(a.refused for a in after) else "passed"
                met[f"{'must not' if must_not else 'may'} run: {outcome}"] += 1
                for path in forbidden(case, rules, after):
                    target = scope["raw_path"][:200] + b"?" + scope["query_string"][:50]
                    found.append(f"{case.name} / {rules.name} / {kind}: {target!r} ran {path!r}")
    return found
