"""Instances out of ``/v1/health`` rows."""

from __future__ import annotations

from typing import Any

import pytest

from mesh_middleware.consul.decode_health import Health, Instance, decode_health
from mesh_middleware.errors import DecodeError

NODE = {"Node": "n1", "Address": "10.0.0.1", "Datacenter": "dc2"}


def row(checks: Any = (), **service: Any) -> dict[str, Any]:
    given = {
        "ID": "billing-1",
        "Service": "billing",
        "Address": "10.0.0.9",
        "Port": 8443,
        "Tags": ["v1"],
        "Weights": {"Passing": 5, "Warning": 2},
        "Connect": {"Native": True},
        **service,
    }
    return {"Node": NODE, "Service": given, "Checks": [{"Status": c} for c in checks]}


def one(document: dict[str, Any]) -> Instance:
    (found,) = decode_health([document])
    return found


def test_a_native_row() -> None:
    assert one(row(["passing"])) == Instance(
        id="billing-1",
        service="billing",
        host="10.0.0.9",
        port=8443,
        node="n1",
        namespace="default",
        partition="default",
        datacenter="dc2",
        tags=("v1",),
        weight=5,
        health=Health.PASSING,
    )


def test_a_sidecar_stands_for_its_service() -> None:
    proxy = {"DestinationServiceName": "billing"}
    found = one(row(Service="billing-sidecar-proxy", Kind="connect-proxy", Proxy=proxy, Connect={}))
    assert found.service == "billing"


@pytest.mark.parametrize("connect", [None, {}, {"Native": False}, {"Native": "true"}])
def test_others_are_not_in_the_mesh(connect: Any) -> None:
    assert one(row(Connect=connect)).service == ""


def test_what_is_left_out_has_consuls_defaults() -> None:
    found = one(row(Address="", Weights=None, Tags=None, Namespace="team", Partition="part"))
    assert (found.host, found.weight, found.tags) == ("10.0.0.1", 1, ())
    assert (found.namespace, found.partition) == ("team", "part")


@pytest.mark.parametrize(
    ("checks", "health", "weight"),
    [
        ([], Health.PASSING, 5),
        (["passing", "warning"], Health.WARNING, 2),
        (["warning", "critical", "passing"], Health.CRITICAL, 0),
        (["maintenance"], Health.CRITICAL, 0),
    ],
)
def test_the_worst_check_counts(checks: list[str], health: Health, weight: int) -> None:
    found = one(row(checks))
    assert (found.health, found.weight) == (health, weight)


def test_null_is_nobody() -> None:
    assert decode_health(None) == ()
    assert decode_health([]) == ()


@pytest.mark.parametrize(
    ("document", "field"),
    [
        ({}, "must be a list"),
        ([7], r"\[0\]"),
        ([{"Service": {}}], "Node"),
        ([{"Node": NODE}], "Service"),
        ([{"Node": {"Node": "n"}, "Service": {"ID": "x"}}], "Datacenter"),
        ([row(Port="8443")], "Port"),
        ([row(Port=True)], "Port"),
        ([row(Port=65536)], "Port"),
        ([row(Tags=[1])], r"Tags\[0\]"),
        ([row(Kind="connect-proxy")], "Proxy"),
        ([row(Kind="connect-proxy", Proxy={})], "DestinationServiceName"),
        ([row(Weights={"Passing": -1})], "Passing"),
        ([{**row(), "Checks": {}}], "Checks"),
        ([{**row(), "Checks": [7]}], r"Checks\[0\]"),
    ],
)
def test_other_shapes_are_errors_that_name_the_field(document: Any, field: str) -> None:
    with pytest.raises(DecodeError, match=field):
        decode_health(document)
