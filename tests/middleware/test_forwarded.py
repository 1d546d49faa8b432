"""Which element of x-forwarded-client-cert counts, whatever a client put before it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh_middleware.middleware.forwarded import MAX_LENGTH, last_element

OURS = (
    'By=spiffe://td/svc/api;Hash=ab;Cert="-----BEGIN%20X";Chain="a";Subject="";URI=spiffe://td/web'
)


def test_the_last_element_counts() -> None:
    found = last_element(f"By=x;URI=spiffe://td/admin, {OURS}")
    assert found is not None
    assert found["uri"] == ["spiffe://td/web"]
    assert (found["by"], found["hash"], found["cert"]) == (
        ["spiffe://td/svc/api"],
        ["ab"],
        ["-----BEGIN%20X"],
    )
    assert found["dns"] == []


def test_keys_are_read_without_case_and_kept_apart() -> None:
    found = last_element("by=1;BY=2;URI=a;URI=b")
    assert found is not None
    assert (found["by"], found["uri"]) == (["1", "2"], ["a", "b"])


@pytest.mark.parametrize(
    ("header", "subject"),
    [
        (r'Subject="CN=a\",By=b"', 'CN=a",By=b'),
        ('Subject="a,b;c=d"', "a,b;c=d"),
        (r'Subject="\\"', "\\"),
        ('Subject=""', ""),
        ("Subject=", ""),
    ],
)
def test_quotes(header: str, subject: str) -> None:
    found = last_element(header)
    assert found is not None
    assert found["subject"] == [subject]


@pytest.mark.parametrize(
    "header",
    [
        "",
        " ",
        ",",
        "x",
        "By",
        "By=a,",
        "By=a,,By=b",
        "By=a;;URI=b",
        "Unknown=a",
        'By="a',
        'By="a"b',
        'By=a"b"',
        "By=a By=b,c",
        f'{OURS};Subject="" x',
        f'By="{"a" * MAX_LENGTH}"',
    ],
)
def test_what_is_not_readable_is_nobody(header: str) -> None:
    assert last_element(header) is None


@given(st.text(alphabet='ab\\",;= ByURI', max_size=40))
def test_nothing_before_it_changes_who_is_last(before: str) -> None:
    """Either the last element is the one that Envoy wrote, or nobody is."""
    found = last_element(f"{before},{OURS}")
    assert found is None or found == last_element(OURS)
