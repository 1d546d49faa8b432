"""Decodes what Consul knows of the instances of a service: ``/v1/health``.

Rows of two kinds belong to the mesh: connect-native instances, and sidecar proxies in front of
ordinary ones. Others are left out. Sources: Consul /v1/health/connect, /v1/health/service.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from mesh_middleware._fields import Place, kind_of
from mesh_middleware.errors import DecodeError
from mesh_middleware.policy.spiffe import DEFAULT


class Health(StrEnum):
    """The worst status of an instance's checks, those of its node included."""

    PASSING = "passing"
    WARNING = "warning"
    CRITICAL = "critical"


_WORSE = (Health.PASSING, Health.WARNING, Health.CRITICAL)


@dataclass(frozen=True, slots=True)
class Instance:
    """One instance of a service.

    `service`: the service that its certificate names; "" when it is not in the mesh. `port`: 0
    when there is none. `weight`: its share of the requests in its present health; 0 means none.
    """

    id: str
    service: str
    host: str
    port: int
    node: str
    namespace: str
    partition: str
    datacenter: str
    tags: tuple[str, ...]
    weight: int
    health: Health


def decode_health(document: Any) -> tuple[Instance, ...]:
    """The instances in an answer of ``/v1/health/…``; null is none. DecodeError names the field."""
    if document is None:
        return ()
    if not isinstance(document, list):
        raise DecodeError(f"must be a list, not {kind_of(document)}")
    return tuple(_instance(row, Place(f"[{at}]")) for at, row in enumerate(document))


def _instance(row: Any, where: Place) -> Instance:
    fields = where.mapping(row)
    node = where.mapping(fields.get("Node"), "Node")
    service = where.mapping(fields.get("Service"), "Service")
    at = where.within("Service")
    health = _health(fields.get("Checks"), where)
    host = at.text(service, "Address") or where.within("Node").text(node, "Address")
    port = _number(service, "Port", at, 65535)
    return Instance(
        id=at.text(service, "ID"),
        service=_mesh_name(service, at),
        host=host,
        port=port,
        node=where.within("Node").text(node, "Node"),
        namespace=at.text(service, "Namespace") or DEFAULT,
        partition=at.text(service, "Partition") or DEFAULT,
        datacenter=where.within("Node").text(node, "Datacenter", required=True),
        tags=tuple(at.string(tag, key) for key, tag in at.items(service, "Tags")),
        weight=_weight(service, health, at),
        health=health,
    )


def _mesh_name(service: Mapping[str, Any], at: Place) -> str:
    """The service that the certificate names: of a native row its own, of a sidecar its master."""
    if at.text(service, "Kind") == "connect-proxy":
        proxy = at.mapping(service.get("Proxy"), "Proxy")
        return at.within("Proxy").text(proxy, "DestinationServiceName", required=True)
    native = at.mapping(service.get("Connect") or {}, "Connect").get("Native")
    return at.text(service, "Service", required=True) if native is True else ""


def _health(checks: Any, where: Place) -> Health:
    worst = Health.PASSING
    for key, check in where.items({"Checks": checks}, "Checks"):
        text = where.within(key).text(where.mapping(check, key), "Status")
        # "maintenance" and whatever comes next: not to be called
        status = Health(text) if text in _WORSE else Health.CRITICAL
        worst = max(worst, status, key=_WORSE.index)
    return worst


def _weight(service: Mapping[str, Any], health: Health, at: Place) -> int:
    """Its weight in this health. Consul's defaults, also those of instances before 1.2.3: 1."""
    if health is Health.CRITICAL:
        return 0
    key = "Passing" if health is Health.PASSING else "Warning"
    weights = at.mapping(service.get("Weights") or {}, "Weights")
    return _number(weights, key, at.within("Weights"), 2**31) if key in weights else 1


def _number(fields: Mapping[str, Any], key: str, at: Place, largest: int) -> int:
    value = fields.get(key, 0)
    if type(value) is not int or not 0 <= value <= largest:
        raise at.error(f"must be a number of 0 to {largest}, not {kind_of(value)}", key)
    return value
