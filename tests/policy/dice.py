"""Worlds and requests by weighted dice: fast, and with allows and denies in even numbers.

Hypothesis finds and shrinks odd cases; dice roll many ordinary ones whose parts interact. Callers
are mostly those that rows name, paths mostly those that rules are about.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any, TypeVar

from tests.policy.naive import Ask, World
from tests.policy.worlds import (
    GATEWAY,
    HEADERS,
    METHODS,
    OTHER_DOMAIN,
    PEER_DOMAIN,
    PEERED,
    PEERS,
    PROVIDERS,
    REGEXES,
    TRUST_DOMAIN,
    VALUE_REGEXES,
    VALUES,
    xfcc,
)

T = TypeVar("T")

RULE_PATHS = ("/", "/a", "/a/", "/a/b", "/admin", "/a b", "/a!b", "//a", "/%61", "/ä", "/A", "/a;x")
SEGMENTS = "a b admin A".split()
SLY = [
    *"""%61 %61dmin . .. ... %2e %2E%2e .%2e ..; .;x ..;x=1 ..%3b %2e; a;x a%3bx %2f %2F.. { %7b +
    ..%2fadmin x%5c.. %5c a\\b ..\\admin \\ %00 %zz % a%20b a!b a%21b %7Ea %c3%a4 %C3%A4 %ff %2b
    [ %25 %2561 %252e%252e # a%3Fb ' a%09b %0a a" """.split(),
    *["", "", " ", "\xff", "\n"],
]
QUERIES = ("", "", "", "?", "?a=1", "?x=/../admin", "?%", "?a?b")
ODD: tuple[Any, ...] = (None, False, 0, "", "x", 7, True, [], {}, ["x"], {"k": 1})


class Dice:
    """Everything random of one run, from one seed."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)

    def one(self, values: Sequence[T]) -> T:
        return self.random.choice(values)

    def chance(self, of_hundred: int) -> bool:
        return self.random.randrange(100) < of_hundred

    def several(self, most: int) -> range:
        return range(self.random.randint(0, most))

    # -- rows -------------------------------------------------------------------------------

    def world(self) -> World:
        return World(
            rows=[self.row() for _ in self.several(6)],
            default_allow=self.chance(50),
            trust_domain=TRUST_DOMAIN,
            normalize=self.normalize() if self.chance(25) else {},
            providers=PROVIDERS,
            peers=self.one([[], PEERS, PEERS[:1]]),
        )

    def row(self) -> dict[str, Any]:
        row: dict[str, Any] = {
            "SourceName": self.one(["web", "web", "cron", "*"]),
            "DestinationName": self.one(["api", "api", "*"]),
        }
        if self.chance(20):
            row["SourceNS"] = self.one(["default", "team", "*"])
        if self.chance(10):
            row["SourcePartition"] = self.one(["default", "foo", "FOO", ""])
        if self.chance(10):
            row["SourcePeer"] = self.one(["", "east", "unknown"])
        if self.chance(2):
            row["SourceSamenessGroup"] = "group"
        if self.chance(10):
            row["DestinationNS"] = self.one(["default", "*"])
        if self.chance(10):
            row["Precedence"] = self.random.randint(1, 9)
        if self.chance(70):
            row["Permissions"] = [self.permission() for _ in self.several(5)]
        if self.chance(60):
            row["Action"] = self.action()
        if self.chance(12):
            row["JWT"] = self.jwt()
        if self.chance(5):
            row["Novel"] = self.one(ODD)
        if self.chance(2):
            row["SourceType"] = self.one(["", "consul", "other"])
        return row

    def action(self) -> str:
        return self.one(["allow", "allow", "allow", "deny", "deny", "Allow", "audit"])

    def permission(self) -> dict[str, Any]:
        permission: dict[str, Any] = {"Action": self.action(), "HTTP": self.http()}
        if self.chance(10):
            permission["JWT"] = self.jwt()
        if self.chance(4):
            permission["Novel"] = self.one(ODD)
        if self.chance(2):
            permission["HTTP"] = None
        return permission

    def http(self) -> dict[str, Any]:
        http: dict[str, Any] = {}
        if self.chance(75):
            way = self.one(["PathExact", "PathPrefix", "PathPrefix", "PathRegex"])
            http[way] = self.one(REGEXES if way == "PathRegex" else RULE_PATHS)
        if self.chance(3):
            http["PathExact"] = self.one(RULE_PATHS)
        if self.chance(25):
            http["Methods"] = [self.one(METHODS) for _ in self.several(2)]
        if self.chance(35):
            http["Header"] = [self.header_rule() for _ in self.several(2)]
        if self.chance(5):
            http["Novel"] = self.one(ODD)
        return http

    def header_rule(self) -> dict[str, Any]:
        rule: dict[str, Any] = {"Name": self.one(HEADERS)}
        ways = ["Present", "Exact", "Prefix", "Suffix", "Contains", "Regex"]
        for _ in range(2 if self.chance(5) else 1):
            way = self.one(ways)
            rule[way] = self.one(VALUE_REGEXES if way == "Regex" else VALUES)
            if way == "Present":
                rule[way] = self.chance(90)
        if self.chance(30):
            rule["Invert"] = self.chance(90)
        if self.chance(15):
            rule["IgnoreCase"] = True
        if self.chance(4):
            rule["Novel"] = self.one(ODD)
        return rule

    def jwt(self) -> dict[str, Any] | None:
        if self.chance(10):
            return self.one([None, {}, {"Providers": []}, {"Novel": 1}])
        providers: list[dict[str, Any]] = []
        for _ in range(self.random.randint(1, 2)):
            provider = {"Name": self.one(["okta", "okta", "auth0", "auth0", "void", "nobody"])}
            providers.append(provider)
            if self.chance(50):
                claims = [
                    {"Path": self.one([["role"], ["perms", "role"], ["iss"], [], ["role", "iss"]])}
                    for _ in self.several(2)
                ]
                provider["VerifyClaims"] = [
                    {**claim, "Value": self.one(["admin", "admin", "okta", ""])} for claim in claims
                ]
            if self.chance(3):
                provider["Novel"] = self.one(ODD)
        return {"Providers": providers}

    def normalize(self) -> dict[str, Any]:
        return {
            "path": self.chance(60),
            "merge_slashes": self.chance(40),
            "escaped_slashes": self.one(
                "KEEP_UNCHANGED REJECT_REQUEST UNESCAPE_AND_REDIRECT UNESCAPE_AND_FORWARD".split()
            ),
            "underscores": self.one(["", "ALLOW", "REJECT_REQUEST", "DROP_HEADER", "DROP_HEADER"]),
        }

    # -- requests ---------------------------------------------------------------------------

    def ask(self) -> Ask:
        target = self.target()
        ask = Ask(
            source=self.source(),
            method=self.one([*["GET"] * 7, *METHODS]),
            target=target,
            headers=[self.header() for _ in self.several(3)],
            scheme=self.one(["https", "http"]),
            claims={name: self.payload() for name in PROVIDERS if self.chance(50)},
        )
        if ask.source == GATEWAY:
            lines = (0, 1, 1, 1, 1, 2)
            ask.headers = [*ask.headers, *(self.xfcc() for _ in range(self.one(lines)))]
        if self.chance(15):
            ask.decoded_path = self.decoded_path(target)
        return ask

    def source(self) -> str:
        if self.chance(80):
            name = self.one(["web", "web", "cron", "other"])
            return f"spiffe://{TRUST_DOMAIN}/ns/default/dc/dc1/svc/{name}"
        if self.chance(40):
            return GATEWAY
        domain = self.one([TRUST_DOMAIN] * 6 + [PEER_DOMAIN, OTHER_DOMAIN, "EVIL", ""])
        partition = self.one(["", "", "", "/ap/foo", "/ap/FOO", "/ap/default", "/ap/part1"])
        namespace = self.one(["default", "team", "team", "%2A", "..", ""])
        names = ["web", "cron", "w%65b", "a%2Fb", "web/x", "web?", "%2A", "*", "%ff", "w b"]
        return f"spiffe://{domain}{partition}/ns/{namespace}/dc/dc2/svc/{self.one(names)}"

    def target(self) -> bytes:
        start = "/" if self.chance(96) else self.one(["", "//", "http://api/", "HTTP://API/x", "*"])
        sly = 40 if self.chance(50) else 0
        parts = [self.one(SLY if self.chance(sly) else SEGMENTS) for _ in self.several(4)]
        end = self.one(["", "", "", "/"]) + self.one(QUERIES)
        return (start + "/".join(parts) + end).encode("latin-1")

    def decoded_path(self, target: bytes) -> str:
        if self.chance(50):
            return target.partition(b"?")[0].decode("latin-1")
        start = "/" if self.chance(90) else ""
        parts = ["a", "admin", "..", ".", "b\\", "ä", "", "\x00", "\udc80"]
        return start + "/".join(self.one(parts[:-2] * 5 + parts) for _ in self.several(4))

    def header(self) -> tuple[bytes, bytes]:
        if self.chance(15):
            name = self.one([b"host", b"Host", b":authority"])
            return name, self.one([b"api", b"admin.test", b"API"])
        value = (
            self.one([*VALUES, "one"]).encode() if self.chance(90) else self.one([b"\xff", b"o\nn"])
        )
        return self.one([b"x-a", b"x-a", b"X-a", b"x_a", b":path", b":x"]), value

    def payload(self) -> Any:
        if self.chance(8):
            return self.one([None, "admin", [], 3])
        return {
            "iss": self.one(
                ["https://okta", "https://okta", "https://auth0", "https://auth0", "", 1]
            ),
            "role": self.one(["admin", ["x", "admin"], ["x"], 1, True, {"iss": "okta"}]),
            "perms": self.one([{"role": "admin"}, {"role": {"role": "admin"}}, [], None]),
        }

    def xfcc(self) -> tuple[bytes, bytes]:
        uri = self.one(PEERED[:4])
        line = self.one(
            [xfcc(uri)] * 6
            + [f"{xfcc(uri)},{xfcc(self.one(PEERED))}", f"URI={uri}", f"{xfcc(uri)};Hash=1"]
            + [f"{xfcc(self.one(PEERED))};URI={uri}", xfcc(self.one(PEERED)), f'{xfcc(uri)}"']
            + ["", ",", ";URI=", f";URI={uri}", f'Subject="a,b";URI={uri}']
        )
        return self.one([b"x-forwarded-client-cert", b"X-Forwarded-Client-Cert"]), line.encode()
