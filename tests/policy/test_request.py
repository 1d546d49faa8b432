"""Readings of a path, malformed targets, and headers as rules see them."""

from __future__ import annotations

import pytest

from mesh_middleware.policy.request import (
    PLAIN_TARGET,
    EscapedSlashes,
    HTTPRequest,
    MalformedRequestError,
    Normalization,
    canonical_path,
    read_path,
    resolve_path,
    split_target,
)

KEEP = Normalization()
OFF = Normalization(path=False)
MERGE = Normalization(merge_slashes=True)
FORWARD = Normalization(escaped_slashes=EscapedSlashes.UNESCAPE_AND_FORWARD)
REJECT = Normalization(escaped_slashes=EscapedSlashes.REJECT_REQUEST)
REDIRECT = Normalization(escaped_slashes=EscapedSlashes.UNESCAPE_AND_REDIRECT)

# wire path, normalisation, what Envoy matches and forwards
CANONICAL = [
    ("/", KEEP, "/"),
    ("/./admin", KEEP, "/admin"),
    ("/x/../admin", KEEP, "/admin"),
    ("/../../admin", KEEP, "/admin"),
    ("/x/%2e%2e/admin", KEEP, "/admin"),
    ("/x/%2E./admin", KEEP, "/admin"),
    ("/x/.%2e/admin", KEEP, "/admin"),
    ("/x/%2e/admin", KEEP, "/x/admin"),
    ("/admin/.", KEEP, "/admin/"),
    ("/admin/%2e", KEEP, "/admin/"),
    ("/admin/..", KEEP, "/"),
    ("/a/b/..", KEEP, "/a/"),
    ("/admin.", KEEP, "/admin."),
    ("/.../admin", KEEP, "/.../admin"),
    ("/x\\..\\admin", KEEP, "/admin"),
    ("/a/..;x/b", KEEP, "/b"),
    ("/a/.;x/b", KEEP, "/a/b"),
    ("/a/..;", KEEP, "/"),
    ("/a/...;x/b", KEEP, "/a/...;x/b"),
    ("/a/%2e%2e;x/b", KEEP, "/a/..;x/b"),
    ("/a/.%2e;x/b", KEEP, "/a/..;x/b"),
    ("/a/..%3bx/b", KEEP, "/a/..%3bx/b"),
    ("/%61dmin", KEEP, "/admin"),
    ("/%41dmin", KEEP, "/Admin"),
    ("//admin", KEEP, "//admin"),
    ("/x//..//admin", KEEP, "/x//admin"),
    ("/%2Fadmin", KEEP, "/%2Fadmin"),
    ("/x%5cadmin", KEEP, "/x%5cadmin"),
    ("/%252e%252e/admin", KEEP, "/%252e%252e/admin"),
    ("/admin;x=1", KEEP, "/admin;x=1"),
    ("/a%21b", KEEP, "/a%21b"),
    ("/%7Eu", KEEP, "/~u"),
    ("/%7eu%2D%5F", KEEP, "/~u-_"),
    ("/%ff%FF", KEEP, "/%ff%FF"),
    ("/a|b", KEEP, "/a%7Cb"),
    ('/"<>^`{}', KEEP, "/%22%3C%3E%5E%60%7B%7D"),
    ("/!$&'()*+,-.:;=@[]_~", KEEP, "/!$&'()*+,-.:;=@[]_~"),
    ("/x/../admin", OFF, "/x/../admin"),
    ("/%61|", OFF, "/%61|"),
    ("//a///b//", MERGE, "/a/b/"),
    ("/", MERGE, "/"),
    ("//", MERGE, "//"),
    ("////", MERGE, "//"),
    ("//.;x/", MERGE, "//"),
    ("/./", MERGE, "/"),
    ("/x//..//admin", MERGE, "/x/admin"),
    ("//a", Normalization(path=False, merge_slashes=True), "/a"),
    ("/%2Fadmin", FORWARD, "//admin"),
    ("/x%2F..%2fadmin", FORWARD, "/admin"),
    ("/x%5C..%5cadmin", FORWARD, "/admin"),
    ("/x%5Ca", Normalization(False, False, EscapedSlashes.UNESCAPE_AND_FORWARD), "/x\\a"),
    ("/plain", REJECT, "/plain"),
    ("/plain%20", REDIRECT, "/plain%20"),
]


@pytest.mark.parametrize(("wire", "normalization", "expected"), CANONICAL)
def test_the_canonical_path_is_envoys(
    wire: str, normalization: Normalization, expected: str
) -> None:
    assert canonical_path(wire.encode(), normalization).decode() == expected


@pytest.mark.parametrize("normalization", [REJECT, REDIRECT])
@pytest.mark.parametrize("path", ["/a%2Fb", "/a%2fb", "/a%5Cb", "/a%5cb"])
def test_escaped_slashes_are_malformed_where_the_mesh_refuses_them(
    path: str, normalization: Normalization
) -> None:
    with pytest.raises(MalformedRequestError):
        canonical_path(path.encode(), normalization)


RESOLVED = [
    ("/", "/"),
    ("//admin", "/admin"),
    ("/a\\b", "/a/b"),
    ("/x//..//admin", "/admin"),
    ("/x/..//../admin", "/admin"),
    ("/a/.", "/a/"),
    ("/a/b/..", "/a/"),
    ("/..", "/"),
    ("/a/..;x", "/a/..;x"),
    ("/...", "/..."),
    ("admin/x", "/admin/x"),
    ("", "/"),
    ("\\admin", "/admin"),
]


@pytest.mark.parametrize(("path", "expected"), RESOLVED)
def test_the_resolved_path_has_one_slash_and_no_dots(path: str, expected: str) -> None:
    assert resolve_path(path.encode()).decode() == expected


# wire path, received path, all readings in order
READINGS = [
    ("/a", None, [("canonical", "/a")]),
    ("/a", "/a", [("canonical", "/a")]),
    ("/a%20b", None, [("canonical", "/a%20b"), ("decoded", "/a b")]),
    ("/%61", None, [("canonical", "/a")]),
    ("//a", None, [("canonical", "//a"), ("resolved", "/a")]),
    (
        "/x%2F..%2fa",
        None,
        [("canonical", "/x%2F..%2fa"), ("decoded", "/x/../a"), ("resolved", "/a")],
    ),
    ("/x/../a", None, [("canonical", "/a"), ("decoded", "/x/../a")]),
    ("/a", "/b", [("canonical", "/a"), ("received", "/b")]),
    ("/a", "//ä", [("canonical", "/a"), ("received", "//ä"), ("resolved", "/ä")]),
]


@pytest.mark.parametrize(("wire", "received", "expected"), READINGS)
def test_every_distinct_reading_is_listed_once(
    wire: str, received: str | None, expected: list[tuple[str, str]]
) -> None:
    found = read_path(wire.encode(), KEEP, received)
    assert [(name, path.decode()) for name, path in found] == expected


@pytest.mark.parametrize(
    ("path", "word"),
    [
        ("/%", "'%'"),
        ("/%4", "'%'"),
        ("/%zz", "'%'"),
        ("/%00", "NUL"),
        ("/%ff", "UTF-8"),
        ("/%c3", "UTF-8"),
        ("/%ed%a0%80", "UTF-8"),
    ],
)
def test_a_path_that_cannot_be_read_is_malformed(path: str, word: str) -> None:
    with pytest.raises(MalformedRequestError, match=word):
        read_path(path.encode(), KEEP)


@pytest.mark.parametrize("received", ["/\ud800", "/a\x00b"])
def test_a_received_path_that_cannot_be_read_is_malformed(received: str) -> None:
    with pytest.raises(MalformedRequestError):
        read_path(b"/a", KEEP, received)


# target -> path, the rest, authority
TARGETS = [
    ("/", "/", "", None),
    ("/a?b", "/a", "?b", None),
    ("/a?b?c", "/a", "?b?c", None),
    ("/a?", "/a", "?", None),
    ("//h/p", "//h/p", "", None),
    ("http://h/p?q", "/p", "?q", "h"),
    ("HTTPS://h:1/p", "/p", "", "h:1"),
    ("ws+x-1.y://h/", "/", "", "h"),
    ("http:///p", "/p", "", ""),
    ("http://a@h/p", "/p", "", "a@h"),
]


@pytest.mark.parametrize(("target", "path", "tail", "authority"), TARGETS)
def test_a_target_is_split(target: str, path: str, tail: str, authority: str | None) -> None:
    found = split_target(HTTPRequest("GET", target.encode()))
    wanted = None if authority is None else authority.encode()
    assert found == (path.encode(), tail.encode(), wanted)


MALFORMED = [
    b"",
    b"*",
    b"a",
    b"?a",
    b"http://h",
    b"http://h?x=/a",
    b"http:/h/p",
    b"1x://h/p",
    b"h:80",
    b"\\a",
    b"/a#",
    b"/a?b#c",
    b"/a b",
    b"/a\t",
    b"/a\n",
    b"/a\x00",
    b"/a\x7f",
    b"/\x80",
    b"/a?\xff",
    b"/a?\x1f",
]


@pytest.mark.parametrize("target", MALFORMED)
def test_a_target_without_a_path_or_with_a_forbidden_byte_is_malformed(target: bytes) -> None:
    with pytest.raises(MalformedRequestError):
        split_target(HTTPRequest("GET", target))
    assert PLAIN_TARGET.fullmatch(target) is None


def test_connect_is_malformed() -> None:
    with pytest.raises(MalformedRequestError, match="CONNECT"):
        split_target(HTTPRequest("CONNECT", b"/a"))


def test_header_values_are_found_by_lower_case_name_and_stripped() -> None:
    lines = [(b"X-A", b" 1\t"), (b"x-a", b"2"), (b":x-a", b"3"), (b"x_a", b"4"), (b"x-b", b"\n5")]
    request = HTTPRequest("GET", b"/", lines)
    assert request.values(b"x-a") == [b"1", b"2"]
    assert request.values(b"x-b") == [b"\n5"]
    assert request.values(b":x-a") == ()
    assert request.values(b"x_a") == [b"4"]
    assert request.values(b"x_a", drop_underscores=True) == ()
    assert request.values(b"x-a", drop_underscores=True) == [b"1", b"2"]
    assert request.values(b"none") == ()


@pytest.mark.parametrize(
    ("target", "lines", "expected"),
    [
        (b"/", [(b"Host", b" api ")], [b"api"]),
        (b"/", [(b":authority", b"api")], []),
        (b"http://api/", [(b"host", b"other")], [b"api"]),
        (b"http://api/", [], [b"api"]),
        (b"//api/", [], []),
    ],
)
def test_the_authority_is_the_targets_or_else_hosts(
    target: bytes, lines: list[tuple[bytes, bytes]], expected: list[bytes]
) -> None:
    assert list(HTTPRequest("GET", target, lines).authorities()) == expected


def test_a_request_prints_without_its_query() -> None:
    assert repr(HTTPRequest("GET", b"/a?secret")) == "HTTPRequest('GET', b'/a')"


def test_a_plain_target_has_exactly_one_reading() -> None:
    """The fast way may be taken only where the slow way finds one reading, under any settings."""
    alphabet = [b"/", b".", b"..", b";", b"%41", b"\\", b"a", b"~", b"?", b"//", b":", b"|", b"["]
    plain = 0
    for one in alphabet:
        for two in alphabet:
            for three in alphabet:
                for four in alphabet:
                    target = b"/" + one + two + three + four
                    found = PLAIN_TARGET.fullmatch(target)
                    if found is None:
                        continue
                    plain += 1
                    path, _, _ = split_target(HTTPRequest("GET", target))
                    assert found[1] == path
                    for normalization in (KEEP, OFF, MERGE, FORWARD, REJECT):
                        assert read_path(path, normalization) == (("canonical", path),), target
    assert plain > 1000
