"""Matchers answer True, False or None, for each condition and for all of them together."""

from __future__ import annotations

from typing import Any

import pytest

from mesh_middleware.policy.intentions import ClaimMatch, HeaderMatch, HTTPMatch
from mesh_middleware.policy.match import claim_matches, compile_http
from mesh_middleware.policy.request import HTTPRequest

Lines = list[tuple[bytes, bytes]]


def matches(
    http: HTTPMatch | None,
    path: str = "/",
    lines: Lines | None = None,
    *,
    method: str = "GET",
    tail: str = "",
    **options: Any,
) -> bool | None:
    request = HTTPRequest(method, b"/", lines or [])
    return compile_http(http, **options).matches(request, path.encode(), tail.encode())


# condition, path, answer
PATHS = [
    (HTTPMatch(path_exact="/a"), "/a", True),
    (HTTPMatch(path_exact="/a"), "/A", False),
    (HTTPMatch(path_exact="/a"), "/a/", False),
    (HTTPMatch(path_exact="/ä"), "/ä", True),
    (HTTPMatch(path_exact="/a.c"), "/abc", False),
    (HTTPMatch(path_prefix="/a.c"), "/abc", False),
    (HTTPMatch(path_prefix="/a"), "/abc", True),
    (HTTPMatch(path_prefix="/a/"), "/a", False),
    (HTTPMatch(path_prefix="/a"), "/A", False),
    (HTTPMatch(path_prefix="/a"), "/b/a", False),
    (HTTPMatch(path_regex="/a"), "/a", True),
    (HTTPMatch(path_regex="/a"), "/ab", False),
    (HTTPMatch(path_regex="a"), "/a", False),
    (HTTPMatch(path_regex="(?i)/A.*"), "/ab", True),
    (HTTPMatch(path_regex="/.*"), "/a\n", False),
    (HTTPMatch(path_regex="/a$"), "/a\n", False),
    # In characters it matches, in bytes it does not: unknown. Where both agree, it is known.
    (HTTPMatch(path_regex="/."), "/ä", None),
    (HTTPMatch(path_regex="/.."), "/ä", None),
    (HTTPMatch(path_regex="/.*"), "/ä", True),
    (HTTPMatch(path_regex="/..."), "/ä", False),
    (HTTPMatch(path_regex="/ä"), "/ä", True),
    (HTTPMatch(path_regex="/ä?"), "/", None),
    (HTTPMatch(path_regex=r"/\x{100}?a"), "/a", None),
    (HTTPMatch(path_regex="/("), "/(", None),
    (HTTPMatch(path_regex="(?=/a)/a"), "/a", None),
    (HTTPMatch(path_regex=r"/(a)\1"), "/aa", None),
    (HTTPMatch(path_exact="/a", path_prefix="/a"), "/a", None),
    (HTTPMatch(path_exact="/a", path_regex="/a"), "/a", None),
]


@pytest.mark.parametrize(("http", "path", "answer"), PATHS)
def test_paths(http: HTTPMatch, path: str, answer: bool | None) -> None:
    assert matches(http, path, tail="?q=/a") is answer


@pytest.mark.parametrize(
    ("methods", "method", "answer"),
    [
        (("GET",), "GET", True),
        (("GET", "PUT"), "PUT", True),
        (("GET",), "get", False),
        (("GET",), "GETS", False),
        ((".*",), "GET", False),
    ],
)
def test_methods(methods: tuple[str, ...], method: str, answer: bool) -> None:
    assert matches(HTTPMatch(methods=methods), method=method) is answer


def header(**criteria: Any) -> HTTPMatch:
    return HTTPMatch(headers=(HeaderMatch(**{"name": "X-A", **criteria}),))


ONE: Lines = [(b"x-A", b"one")]
TWO: Lines = [(b"x-a", b"one"), (b"X-a", b"two")]
NONE: Lines = [(b"x-b", b"one")]
EMPTY: Lines = [(b"x-a", b"")]
BYTES: Lines = [(b"x-a", b"\xff")]

# criteria, header lines, answer
HEADERS: list[tuple[dict[str, Any], Lines, bool | None]] = [
    ({"present": True}, ONE, True),
    ({"present": True}, EMPTY, True),
    ({"present": True}, NONE, False),
    ({"present": True, "invert": True}, ONE, False),
    ({"present": True, "invert": True}, NONE, True),
    ({"exact": "one"}, ONE, True),
    ({"exact": "One"}, ONE, False),
    ({"exact": "One", "ignore_case": True}, ONE, True),
    ({"exact": "on"}, ONE, False),
    ({"exact": "one"}, NONE, False),
    ({"exact": "two"}, TWO, True),
    ({"exact": "one,two"}, TWO, False),
    ({"exact": "one", "invert": True}, ONE, False),
    ({"exact": "two", "invert": True}, ONE, True),
    ({"exact": "one", "invert": True}, NONE, False),
    ({"exact": "two", "invert": True}, TWO, False),
    ({"exact": "six", "invert": True}, TWO, True),
    ({"exact": "a b"}, [(b"x-a", b"\t a b ")], True),
    ({"exact": "a b"}, [(b"x-a", b"\na b")], False),
    ({"exact": "ä"}, [(b"x-a", "ä".encode())], True),
    ({"exact": "Ä", "ignore_case": True}, [(b"x-a", "ä".encode())], False),
    ({"prefix": "on"}, ONE, True),
    ({"prefix": "ne"}, ONE, False),
    ({"prefix": "ON", "ignore_case": True}, ONE, True),
    ({"suffix": "ne"}, ONE, True),
    ({"suffix": "on"}, ONE, False),
    ({"suffix": "NE", "ignore_case": True}, ONE, True),
    ({"contains": "n"}, ONE, True),
    ({"contains": "N"}, ONE, False),
    ({"contains": "N", "ignore_case": True}, ONE, True),
    ({"regex": "o.e"}, ONE, True),
    ({"regex": "o"}, ONE, False),
    ({"regex": "o.e", "invert": True}, ONE, False),
    ({"regex": "x", "invert": True}, ONE, True),
    ({"regex": ".*"}, BYTES, None),
    ({"regex": ".*", "invert": True}, BYTES, None),
    ({"regex": "one"}, [*BYTES, *ONE], True),
    ({"regex": "one", "invert": True}, [*BYTES, *ONE], False),
    ({"regex": "two"}, [*BYTES, *ONE], None),
    ({"regex": "("}, ONE, None),
    ({"regex": "("}, NONE, None),
    ({"contains": "\udcff"}, BYTES, False),
    # one criterion, known ones only, and a name
    ({}, ONE, None),
    ({"invert": True}, ONE, None),
    ({"present": True, "exact": "one"}, ONE, None),
    ({"exact": "one", "prefix": "o"}, ONE, None),
    ({"name": "", "present": True}, ONE, None),
    ({"present": True, "unknown": ("Novel",)}, ONE, None),
    # a flag that reaches neither of these (and that Consul does not store with them)
    ({"present": True, "ignore_case": True}, ONE, True),
    ({"regex": "o.e", "ignore_case": True}, ONE, True),
    ({"regex": "O.E", "ignore_case": True}, ONE, False),
    # pseudo headers
    ({"name": ":METHOD", "exact": "GET"}, [], True),
    ({"name": ":method", "exact": "PUT"}, [(b":method", b"PUT")], False),
    ({"name": ":path", "exact": "/p?q"}, [], True),
    ({"name": ":path", "exact": "/p"}, [], False),
    ({"name": ":scheme", "exact": "https"}, [], True),
    ({"name": ":authority", "exact": "api"}, [(b"host", b"api")], True),
    ({"name": "Host", "exact": "api"}, [(b"HOST", b"api")], True),
    ({"name": ":authority", "exact": "x"}, [(b":authority", b"x")], False),
    ({"name": ":authority", "present": True}, [], False),
    ({"name": ":x", "present": True}, [(b":x", b"1")], False),
    ({"name": ":x", "present": True, "invert": True}, [(b":x", b"1")], True),
    ({"name": "\u212a", "present": True}, [(b"k", b"1")], False),
]


@pytest.mark.parametrize(("criteria", "lines", "answer"), HEADERS)
def test_headers(criteria: dict[str, Any], lines: Lines, answer: bool | None) -> None:
    assert matches(header(**criteria), "/p", lines, tail="?q") is answer


def test_dropped_headers_are_absent() -> None:
    lines = [(b"x_a", b"one")]
    assert matches(header(name="x_a", present=True), lines=lines) is True
    assert matches(header(name="x_a", present=True), lines=lines, drop_underscores=True) is False


YES = HeaderMatch("x-a", present=True)
NO = HeaderMatch("x-none", present=True)
MAYBE = HeaderMatch("x-a")

# all conditions of a block, the answer for their AND
TOGETHER = [
    ((YES, YES), True),
    ((YES, NO), False),
    ((NO, YES), False),
    ((YES, MAYBE), None),
    ((MAYBE, YES), None),
    ((MAYBE, MAYBE), None),
    ((NO, MAYBE), False),
    ((MAYBE, NO), False),
    ((MAYBE, YES, NO), False),
]


@pytest.mark.parametrize(("headers", "answer"), TOGETHER)
def test_false_and_unknown_is_false(headers: tuple[HeaderMatch, ...], answer: bool | None) -> None:
    assert matches(HTTPMatch(headers=headers), lines=ONE) is answer


# block, names of unknown conditions beside it, answer for path /a, what is said of it
UNKNOWN: list[tuple[HTTPMatch | None, tuple[str, ...], bool | None, list[str]]] = [
    (None, (), None, ["HTTP block is missing"]),
    (None, ("Novel",), None, ["HTTP block is missing", "Novel is not known"]),
    (HTTPMatch(), (), None, ["HTTP block is empty"]),
    (HTTPMatch(unknown=("X",)), (), None, ["HTTP.X is not known"]),
    (HTTPMatch(path_exact="/a", unknown=("X",)), (), None, ["HTTP.X is not known"]),
    (HTTPMatch(path_exact="/b", unknown=("X",)), (), False, ["HTTP.X is not known"]),
    (HTTPMatch(path_exact="/a"), ("Novel",), None, ["Novel is not known"]),
    (HTTPMatch(path_exact="/b"), ("Novel",), False, ["Novel is not known"]),
    (HTTPMatch(path_exact="/a"), (), True, []),
    (HTTPMatch(path_regex="("), (), None, ["PathRegex '(' does not compile in RE2"]),
    (
        HTTPMatch(path_exact="/a", path_prefix="/a"),
        (),
        None,
        ["PathExact and PathPrefix exclude each other"],
    ),
    (header(unknown=("N", "O")), (), None, ["Header 'X-A': N, O not known"]),
    (header(name=""), (), None, ["Header '': no name"]),
    (header(), (), None, ["Header 'X-A': no criterion"]),
    (
        header(present=True, exact="1"),
        (),
        None,
        ["Header 'X-A': Present and Exact exclude each other"],
    ),
    (header(regex="("), (), None, ["Header 'X-A': Regex '(' does not compile in RE2"]),
]


@pytest.mark.parametrize(("http", "beside", "answer", "said"), UNKNOWN)
def test_what_cannot_be_evaluated_is_unknown_and_said(
    http: HTTPMatch | None, beside: tuple[str, ...], answer: bool | None, said: list[str]
) -> None:
    matcher = compile_http(http, unknown=beside)
    assert matcher.matches(HTTPRequest("GET", b"/a"), b"/a", b"") is answer
    assert list(matcher.problems) == [f"cannot be evaluated: {text}" for text in said]


# block, the first condition that fails for GET /p with `x-a: one`
FAILURES = [
    (HTTPMatch(path_exact="/p"), ""),
    (HTTPMatch(path_exact="/q"), "path is not PathExact '/q'"),
    (HTTPMatch(path_prefix="/q", methods=("PUT",)), "path is not PathPrefix '/q'"),
    (HTTPMatch(path_prefix="/p", methods=("PUT", "POST")), "method is not PUT or POST"),
    (HTTPMatch(path_regex="/q"), "path is not PathRegex '/q'"),
    (header(name="x-b", present=True), "header 'x-b' is absent"),
    (header(present=True, invert=True), "header 'X-A' is present"),
    (header(exact="1"), "header 'X-A' is absent or does not satisfy Exact '1'"),
    (
        header(exact="one", invert=True),
        "header 'X-A' is absent or does not satisfy not Exact 'one'",
    ),
    (header(), "cannot be evaluated: Header 'X-A': no criterion"),
]


@pytest.mark.parametrize(("http", "words"), FAILURES)
def test_the_first_condition_that_fails_is_said(http: HTTPMatch, words: str) -> None:
    request = HTTPRequest("GET", b"/p", ONE)
    assert compile_http(http).first_failure(request, b"/p", b"") == words


PAYLOAD = {
    "role": "admin",
    "roles": ["a", "admin", 1],
    "n": 1,
    "yes": True,
    "null": None,
    "perms": {"role": "admin", "a.b": {"c": "d"}},
    "perms.role": "x",
    "numbers": [1],
}

# claim path, wanted value, answer
CLAIMS = [
    (("role",), "admin", True),
    (("role",), "Admin", False),
    (("roles",), "admin", True),
    (("roles",), "b", False),
    (("perms", "role"), "admin", True),
    (("perms.role",), "x", True),
    (("perms", "a.b", "c"), "d", True),
    (("perms", "a", "b", "c"), "d", False),
    (("perms",), "admin", False),
    (("role", "x"), "admin", False),
    (("role", "min"), "admin", False),
    (("roles", "a"), "admin", False),
    (("roles", "1"), "admin", False),
    (("n",), "1", False),
    (("yes",), "True", False),
    (("null",), "None", False),
    (("numbers",), "1", False),
    (("missing",), "", False),
    ((), "admin", False),
]


@pytest.mark.parametrize(("path", "value", "answer"), CLAIMS)
def test_claims(path: tuple[str, ...], value: str, answer: bool) -> None:
    assert claim_matches(PAYLOAD, ClaimMatch(path, value)) is answer
