"""Hosts of URLs as names of upstreams."""

from __future__ import annotations

import pytest

from mesh_middleware.errors import ConfigError
from mesh_middleware.upstream.names import UpstreamName

NAMES = [
    ("billing", UpstreamName("billing")),
    ("BILLING", UpstreamName("billing")),
    ("billing.", UpstreamName("billing")),
    ("bil_ling-2", UpstreamName("bil_ling-2")),
    ("billing.connect", UpstreamName("billing")),
    ("billing.service", UpstreamName("billing")),
    ("billing.service.consul", UpstreamName("billing")),
    ("billing.service.consul.", UpstreamName("billing")),
    ("billing.virtual.consul", UpstreamName("billing")),
    ("v2.billing.service.consul", UpstreamName("billing", tag="v2")),
    ("billing.service.dc2.consul", UpstreamName("billing", datacenter="dc2")),
    ("billing.connect.dc2", UpstreamName("billing", datacenter="dc2")),
    ("billing.service.dc2.dc.consul", UpstreamName("billing", datacenter="dc2")),
    ("v2.billing.service.dc2", UpstreamName("billing", tag="v2", datacenter="dc2")),
    (
        "billing.service.team.ns.part.ap.dc2.dc.consul",
        UpstreamName("billing", namespace="team", partition="part", datacenter="dc2"),
    ),
    (
        "billing.service.team.dc2.consul",
        UpstreamName("billing", namespace="team", datacenter="dc2"),
    ),
    ("billing.virtual.cluster2.consul", UpstreamName("billing", peer="cluster2")),
    (
        "billing.virtual.team.cluster2.consul",
        UpstreamName("billing", namespace="team", peer="cluster2"),
    ),
    ("billing.service.cluster2.peer.consul", UpstreamName("billing", peer="cluster2")),
    ("service.service.consul", UpstreamName("service")),
    ("connect.connect", UpstreamName("connect")),
]
NO_NAMES = [
    "",
    ".",
    "127.0.0.1",
    "::1",
    "example.com",
    "billing.example.com",
    "billing.consul",
    "service",
    "a.b.c.service.consul",
    "v2.billing.connect",
    "billing.service.a.b.c.consul",
    "billing.service.team.ns.dc2.consul",
    "billing.service.a.ns.b.ns.consul",
    "billing.service.consul.example.com",
    "-billing",
    "billing-",
    "bil ling",
    "bil/ling",
    "bill\u00e9ng",
    "billing..service",
    "a" * 64,
]


@pytest.mark.parametrize(("host", "name"), NAMES)
def test_a_host_names_an_upstream(host: str, name: UpstreamName) -> None:
    assert UpstreamName.from_host(host) == name


@pytest.mark.parametrize("host", [h for h in NO_NAMES if h != "service"])
def test_other_hosts_name_none_and_the_error_says_what_does(host: str) -> None:
    with pytest.raises(ConfigError, match="http://billing/"):
        UpstreamName.from_host(host)


def test_a_single_label_is_always_a_service() -> None:
    assert UpstreamName.from_host("service") == UpstreamName("service")


@pytest.mark.parametrize("service", ["", "a/b", "a\nb"])
def test_an_impossible_service_is_refused(service: str) -> None:
    with pytest.raises(ConfigError, match="cannot be the name"):
        UpstreamName(service)


@pytest.mark.parametrize("expression", ["", " "])
def test_an_empty_filter_is_refused(expression: str) -> None:
    with pytest.raises(ConfigError, match="empty filter"):
        UpstreamName("billing", filter=expression)


def test_a_name_says_all_it_asks_for() -> None:
    name = UpstreamName(
        "billing", tag="v2", filter="a == b", datacenter="dc2", failover=("dc3", "dc4")
    )
    assert str(name) == "'billing', tag v2, filter a == b, datacenter dc2, failover dc3, dc4"
