"""Random intentions that Consul would store, and random requests that are about them."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

from mesh_middleware.policy.intentions import (
    Action,
    HeaderMatch,
    HTTPMatch,
    Intention,
    Permission,
    in_precedence_order,
)

T = TypeVar("T")

TRUST_DOMAIN = "11111111-2222-3333-4444-555555555555.consul"
PATHS = ("/", "/admin", "/admin/", "/admin/x", "/a", "/a/b", "/b", "/A", "/a.b", "/a!b", "/a;x")
REGEXES = ("/a.*", "/(a|b)", "(?i)/ADMIN", "/[^/]+", "/admin(/.*)?", "/.", r"/\w+", r"/a\.b", "/a$")
REGEXES += (r"^/a$", "/a|/b", "/(?:admin|a)/?", r"/\pL+", "(?s)/.*", "/.{1,3}", r"/[[:alpha:]]*")
VALUES = ("a", "A", "b", "ab", "a,b", "", "admin", "x a", "\xe4", "\xc3\xa4", "a b", "!~", "%61")
VALUE_REGEXES = ("a", "a*", "a|b", ".*", "(?i)ADMIN", "[^a]", "a,b", r"\S+", "a.b", ".", "..")
VALUE_REGEXES += (r"\pL", r"\w", "[[:^ascii:]]", "(?s).{1,2}", "\u00e4", "(?i)\u00c4")
NAMES = ("x-a", "X-B", "x-team", "x_a", ":method", ":path", ":scheme")
METHODS = ("GET", "POST", "PUT", "DELETE", "HEAD", "OPTIONS", "PATCH", "TRACE")
PLAIN = (
    "a",
    "admin",
    "b",
    "A",
    "x",
    "a.b",
    "a!b",
    "a;x",
    "a-b_c~",
    "(a)",
    "a@b",
    "a:b",
    "a=b",
    "...",
)
SLY = """%61 %61dmin . .. %2e %2E%2e .%2e ..; .;x ..;x=1 ..%3b %2e; a%3bx %2f %2F.. { %7b %2fadmin
    ..%2fadmin x%5c.. %5c a\\b ..\\admin \\ %00 %zz % a%20b a%21b %7Ea %c3%a4 %C3%A4 %ff %2b %0a %0d
    [ ] %25 %2561 %252e%252e # a%3Fb ' a%09b a" | ^ ` < > $ & * + , %2 %u002f admin%2f
    %41dmin""".split()
SLY += ["", "", "", "\xff", "\xc3\xa4", "\x01", "\x7f", "\t"]
QUERIES = ("", "", "", "?", "?a=1", "?x=/../admin", "?%", "?a?b", "?a=%2f", "?/admin")
CALLERS = ("web", "web", "web", "cron", "batch")


@dataclass(frozen=True)
class World:
    """The intentions of one service."""

    rows: list[Intention]
    default: Action

    def corner(self, caller: str) -> bool:
        """Whether a wildcard outranks a row that names the caller: Envoy is told otherwise."""
        about = [row for row in in_precedence_order(self.rows) if row.source_name in (caller, "*")]
        sources = [row.source_name for row in about]
        return sources[:1] == ["*"] and caller in sources


@dataclass(frozen=True)
class Ask:
    """One request, before it has a Host."""

    caller: str
    method: str
    target: bytes
    headers: tuple[tuple[bytes, bytes], ...]

    def identity(self) -> str:
        return f"spiffe://{TRUST_DOMAIN}/ns/default/dc/dc1/svc/{self.caller}"

    def fields(self, host: str) -> list[tuple[bytes, bytes]]:
        caller = (b"x-caller", self.identity().encode())
        return [(b"host", host.encode()), caller, *self.headers]

    def wire(self, host: str) -> bytes:
        lines = b"".join(name + b": " + value + b"\r\n" for name, value in self.fields(host))
        return self.method.encode() + b" " + self.target + b" HTTP/1.1\r\n" + lines + b"\r\n"


class Dice:
    """Everything random of one run, from one seed."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)

    def one(self, values: Sequence[T]) -> T:
        return self.random.choice(values)

    def chance(self, of_hundred: int) -> bool:
        return self.random.randrange(100) < of_hundred

    def action(self) -> Action:
        return self.one([Action.ALLOW, Action.DENY])

    def world(self) -> World:
        rows: dict[tuple[str, str], Intention] = {}
        for _ in range(self.random.randint(0, 4)):
            source, destination = (
                self.one(["web", "web", "cron", "*"]),
                self.one(["api", "api", "*"]),
            )
            many = destination == "api" and self.chance(80)
            permissions = [
                self.permission() for _ in range(self.random.randint(1, 4) if many else 0)
            ]
            rows[source, destination] = Intention(
                source, destination, self.action(), tuple(permissions)
            )
        return World(list(rows.values()), self.action())

    def permission(self) -> Permission:
        path = {}
        if self.chance(75):
            kind = self.one(["path_exact", "path_prefix", "path_prefix", "path_regex"])
            path[kind] = self.one(REGEXES if kind == "path_regex" else PATHS)
        methods = tuple({self.one(METHODS) for _ in range(self.random.choice([0, 0, 1, 2]))})
        headers = [self.header() for _ in range(self.random.choice([0, 0, 0, 1, 2]))]
        if not path and not methods and not headers:
            path = {"path_prefix": "/"}
        return Permission(self.action(), HTTPMatch(**path, methods=methods, headers=tuple(headers)))

    def header(self) -> HeaderMatch:
        name, invert = self.one(NAMES), self.chance(30)
        kind = self.one(["present", "exact", "prefix", "suffix", "contains", "regex"])
        if kind == "present":
            return HeaderMatch(name, present=True, invert=invert)
        value = self.one(VALUE_REGEXES if kind == "regex" else VALUES) or "a"
        if name.startswith(":") and kind != "regex":
            value = self.one(["GET", "/a", "http", "h", "/admin", "?a=1", "PUT"])
        folded = kind != "regex" and self.chance(30)
        return HeaderMatch(name, **{kind: value}, invert=invert, ignore_case=folded)

    def ask(self, sly: int) -> Ask:
        """A request; `sly`: of a hundred, how many have a path that can be read in several ways."""
        words = [*PLAIN, *SLY, *SLY] if self.chance(sly) else list(PLAIN)
        parts = [self.one(words) for _ in range(self.random.choice([0, 1, 1, 1, 2, 2, 3]))]
        target = "/" + "/".join(parts) + self.one(["", "", "", "/"]) + self.one(QUERIES)
        headers = []
        for _ in range(self.random.choice([0, 1, 1, 2, 3])):
            name = self.one(["x-a", "x-a", "x-b", "X-A", "x-team", "x_a"])
            value = self.one(VALUES).encode("latin-1")
            headers.append((name.encode(), self.one([b"", b"", b" ", b"\t"]) + value))
        method = self.one(["GET", "GET", *METHODS])
        return Ask(self.one(CALLERS), method, target.encode("latin-1"), tuple(headers))
