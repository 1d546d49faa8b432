"""The shape of regular expressions: which repeat ambiguously, and which tell cases apart."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh_middleware.policy.patterns import DEEPEST_GROUP, MOST_POSITIONS, shape_of
from tests.fuzzing import fuzz

AMBIGUOUS = [
    "(a+)+",
    "/((a+))+b",
    "(a*)*?",
    "(a*b*)*",
    "(a??b*)*",
    "(?P<name>a+)+b",
    "(?<name>a+)+b",
    "(a{2,}){3,}",
    "(a{1,2})*",
    "(a{2,3})*",
    "([a-z]*)+x",
    "([a-z]+[0-9]*)*",
    "(/.*)*",
    "(.*,)*",
    "/(a|a)*b",
    "(a|aa)+",
    "(a|b|ab)*",
    r"(\w|\d)+",
    r"(\pN|[[:digit:]])*",
    r"(\x61|\x{61})*",
    r"(\141|a)*",
    r"(\Qa|\E|a\|)*",
    "((a|b)|[a-c])*",
    "(?:(?:a|b)+)*",
    "(ä|ä)*",
    "(?i)(a|A)*",
    "((?i)a|A)*",
    "(?i:a|A)*",
    "(?s)(.|\n)*",
]

HARMLESS = [
    "",
    "/v[0-9]+/items/[^/]+",
    "(/.*)?",
    "/(a|b)+",
    "(?i)/admin(/.*)?",
    "/api(/[^/]+)*",
    "([a-z]+/)+",
    "/(users|units)(/[0-9]+)*",
    "(/(users|units))*",
    "[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}",
    r"[a-z]{1,63}(\.[a-z]{1,63})*",
    "a*a*",
    ".*a.*a.*",
    "(ab|ac)*",
    "(a{2})*",
    "(a{3}b|ab)*",
    "(a{,2})+",
    "(a?)*",
    "(a|A)*",
    "(?i:a|b)*(A|a)*",
    "((?i)a)|(a|A)*",
    "((?i)a|b)*(?-i)(a|A)*",
    "(.|\n)*",
    "[]a]+[^]a]*",
    r"(^a$|\Ab\z|\bc\B)*",
    r"(\\Q|\d)*",
    "({|})*",
    "(a{0}a|b{0,0}b)*",
]


@pytest.mark.parametrize("pattern", [f"{before}{p}" for p in AMBIGUOUS for before in ("", "/x+")])
def test_what_can_match_one_text_in_many_ways_is_ambiguous(pattern: str) -> None:
    shape = shape_of(pattern)
    assert shape
    assert shape.ambiguous


@pytest.mark.parametrize("pattern", HARMLESS)
def test_what_can_be_matched_in_one_way_is_not(pattern: str) -> None:
    shape = shape_of(pattern)
    assert shape
    assert not shape.ambiguous


@pytest.mark.parametrize(
    ("pattern", "tells"),
    [
        ("/admin", True),
        ("/[aA]dmin", True),
        ("(?i:/ad)min", True),
        ("(?i)/a(?-i)b", True),
        (r"\x41", True),
        ("(?i)/admin", False),
        ("/[aA][dD]", False),
        (r"/\d+/\w*/[^/]+.", False),
        ("/[A-Za-z]", False),
        ("/1ä", False),
    ],
)
def test_which_patterns_tell_cases_apart(pattern: str, tells: bool) -> None:
    shape = shape_of(pattern)
    assert shape
    assert shape.tells_case is tells


@pytest.mark.parametrize("pattern", ["(", "(?=a)", r"(a)\1"])
def test_what_does_not_compile_has_no_shape(pattern: str) -> None:
    assert shape_of(pattern) is None


def test_a_pattern_that_is_too_large_has_no_shape() -> None:
    assert shape_of("a" * MOST_POSITIONS)
    assert shape_of("a" * (MOST_POSITIONS + 1)) is None
    assert shape_of(f"(a{{{MOST_POSITIONS}}}){{2}}") is None
    assert shape_of("(" * DEEPEST_GROUP + "a" + ")" * DEEPEST_GROUP)
    assert shape_of("(" * 900 + "a" + ")" * 900) is None
    assert shape_of("(a)" * (MOST_POSITIONS - 1))


PIECES = [*"ab(|)*+?.[]^$-", "(?i)", "(?-i:", "(?:", "{2}", "{1,}", "{,3}", "[^a", r"\Q", r"\E",
          r"\d", r"\pN", r"\p{Greek}", r"\x{61}", r"\12", "[[:alpha:]]", "(?P<n>", "\\", "ä", "\n",
          "\x00", "\ud800"]  # fmt: skip


@fuzz(100, cost=4)
@given(st.lists(st.sampled_from(PIECES), max_size=12).map("".join))
def test_no_pattern_makes_it_fail(pattern: str) -> None:
    shape_of(pattern)
