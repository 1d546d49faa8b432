"""The model: precedence, order, and how rows are named."""

from __future__ import annotations

import itertools
import random
from typing import Any

import pytest

from mesh_middleware.policy.intentions import Intention, in_precedence_order, precedence

# source ns, source name, destination ns, destination name -> value: Consul's table
PRECEDENCE = [
    ("default", "web", "default", "api", 9),
    ("default", "*", "default", "api", 8),
    ("*", "*", "default", "api", 7),
    ("default", "web", "default", "*", 6),
    ("default", "*", "default", "*", 5),
    ("*", "*", "default", "*", 4),
    ("default", "web", "*", "*", 3),
    ("default", "*", "*", "*", 2),
    ("*", "*", "*", "*", 1),
]


@pytest.mark.parametrize(
    ("source_ns", "source", "destination_ns", "destination", "value"), PRECEDENCE
)
def test_precedence_is_computed_as_consul_does(
    source_ns: str, source: str, destination_ns: str, destination: str, value: int
) -> None:
    row = Intention(
        source,
        destination,
        source_namespace=source_ns,
        destination_namespace=destination_ns,
        source_peer="east",
        source_partition="p",
    )
    assert row.precedence == precedence(row) == value


@pytest.mark.parametrize("value", [-1, 10])
def test_precedence_is_within_its_range(value: int) -> None:
    with pytest.raises(ValueError, match="1 to 9"):
        Intention("web", "api", precedence=value)


def test_a_given_precedence_is_kept() -> None:
    assert Intention("web", "api", precedence=1).precedence == 1


TIES = [
    Intention("a", "api", precedence=9),
    Intention("b", "api", precedence=9),
    Intention("a", "api", source_namespace="n", precedence=9),
    Intention("a", "api", source_partition="p", precedence=9),
    Intention("a", "api", source_peer="q", precedence=9),
    Intention("a", "api", source_sameness_group="g", precedence=9),
    Intention("a", "api", precedence=8),
    Intention("a", "apj", precedence=8),
    Intention("a", "api", destination_namespace="n", precedence=8),
    Intention("a", "api", destination_partition="p", precedence=8),
]


def test_the_order_is_precedence_then_names() -> None:
    shuffled = TIES[:]
    random.Random(1).shuffle(shuffled)
    assert in_precedence_order(shuffled) == TIES


# fields, the source in words, the destination in words
LABELS: list[tuple[dict[str, Any], str, str]] = [
    ({}, "web", "api"),
    ({"source_namespace": "n"}, "n/web", "api"),
    ({"source_partition": "p"}, "p/default/web", "api"),
    ({"source_peer": "east"}, "web (peer east)", "api"),
    ({"source_sameness_group": "g"}, "web (sameness group g)", "api"),
    ({"destination_namespace": "n"}, "web", "n/api"),
    ({"destination_partition": "p", "destination_namespace": "n"}, "web", "p/n/api"),
]


@pytest.mark.parametrize(("fields", "source", "destination"), LABELS)
def test_rows_are_named_as_people_write_them(
    fields: dict[str, Any], source: str, destination: str
) -> None:
    row = Intention("web", "api", **fields)
    assert (row.source, row.destination) == (source, destination)
    assert str(row) == f"{source} => {destination} (precedence 9)"


def test_a_source_key_is_what_a_caller_is_looked_up_by() -> None:
    local = Intention("web", "api", source_namespace="n", source_partition="FOO")
    assert local.source_key == ("", "foo", "n", "web")
    peered = Intention("web", "api", source_peer="east", source_partition="FOO")
    assert peered.source_key == ("east", "default", "default", "web")
    assert Intention("web", "api", source_partition="").source_key == (
        "",
        "default",
        "default",
        "web",
    )


def test_no_two_labels_of_different_sources_are_alike() -> None:
    for one, other in itertools.combinations([row[0] for row in LABELS[:5]], 2):
        assert Intention("web", "api", **one).source != Intention("web", "api", **other).source
