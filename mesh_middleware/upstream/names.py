"""The names by which upstreams are called: from the host of a URL to what Consul is asked.

=================================================================  ==============================
host                                                               meaning
=================================================================  ==============================
``billing``                                                        the service, next to the caller
``billing.connect``, ``billing.service``, ``billing.virtual``      the same
``v2.billing.service``                                             instances with the tag ``v2``
``billing.service.dc2``                                            in the datacenter ``dc2``
``billing.service.team.ns.part.ap.dc2.dc``                         namespace, partition, datacenter
``billing.service.team.dc2``                                       namespace and datacenter (old)
``billing.virtual.cluster2``, ``billing.service.cluster2.peer``    at the peer ``cluster2``
=================================================================  ==============================

All but the first also with ``.consul`` at the end. HTTP clients write hosts in lower case; a
service whose name has capitals, dots or other bytes is reached through an `UpstreamName` made by
hand.

Source: Consul, "DNS: service lookups".
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from mesh_middleware.errors import ConfigError

DOMAIN = "consul"
"""What Consul's DNS names end with, unless its agents are configured otherwise."""

_LABEL = re.compile(r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?")
_KINDS = ("service", "connect", "virtual")
_MARKS = {"ns": "namespace", "ap": "partition", "dc": "datacenter", "peer": "peer"}


@dataclass(frozen=True, slots=True)
class UpstreamName:
    """What is called: a service and, where it is not next to the caller, where it is.

    `tag`: only instances that carry it. `filter`: only those for which this expression of Consul's
    is true, such as ``Service.Meta.version == "v2"``; the agent evaluates it. `datacenter`,
    `namespace`, `partition`: None is the caller's own. `peer`: another cluster. `failover`:
    datacenters whose instances are called, in this order, while those before have none that can
    be. ConfigError for an empty service or filter.
    """

    service: str
    tag: str | None = None
    datacenter: str | None = None
    namespace: str | None = None
    partition: str | None = None
    peer: str | None = None
    failover: tuple[str, ...] = ()
    filter: str | None = None

    def __post_init__(self) -> None:
        if not self.service or "/" in self.service or not self.service.isprintable():
            raise ConfigError(
                f"{self.service!r} cannot be the name of an upstream; write the service's name in "
                "Consul, such as billing"
            )
        if self.filter is not None and not self.filter.strip():
            raise ConfigError(
                f"{self.service!r}: an empty filter chooses nothing; write one, such as "
                'Service.Meta.version == "v2", or None'
            )

    @classmethod
    def from_host(cls, host: str) -> UpstreamName:
        """The upstream that the host of a URL names; ConfigError when it names none."""
        labels = host.lower().removesuffix(".").split(".")
        if not all(_LABEL.fullmatch(label) for label in labels) or _is_address(labels):
            raise ConfigError(_no_name(host))
        if len(labels) == 1:
            return cls(labels[0])
        if labels[-1] == DOMAIN:
            labels.pop()
        before, after, kind = _split(labels)
        if not before or len(before) > 2 or (len(before) == 2 and kind != "service"):
            raise ConfigError(_no_name(host))
        where = _marked(after) if after and after[-1] in _MARKS else _unmarked(after, kind)
        if where is None:
            raise ConfigError(_no_name(host))
        tag = before[0] if len(before) == 2 else None
        return replace(cls(before[-1], tag=tag), **where)  # type: ignore[arg-type] # all are text

    def __str__(self) -> str:
        fields = ("tag", "filter", "datacenter", "namespace", "partition", "peer")
        said = [f"{field} {getattr(self, field)}" for field in fields if getattr(self, field)]
        if self.failover:
            said.append(f"failover {', '.join(self.failover)}")
        return ", ".join([repr(self.service), *said])


def _is_address(labels: list[str]) -> bool:
    return len(labels) == 4 and all(label.isdigit() for label in labels)


def _no_name(host: str) -> str:
    return (
        f"{host!r} does not name a service of the mesh; write http://billing/, "
        "https://billing.service.consul/ or https://billing.connect/, or give the transport an "
        "entry for this host in upstreams="
    )


def _split(labels: list[str]) -> tuple[list[str], list[str], str]:
    """What stands before and after the word for the kind of lookup, and that word.

    The word may be a service's name too: ``service.service.consul``. The first place that has
    anything before it is meant.
    """
    for at in range(1, len(labels)):
        if labels[at] in _KINDS:
            return labels[:at], labels[at + 1 :], labels[at]
    return [], [], ""


def _marked(labels: list[str]) -> dict[str, str] | None:
    """``team.ns.part.ap.dc2.dc`` as fields; None when it is something else."""
    if len(labels) % 2:
        return None
    found: dict[str, str] = {}
    for value, mark in zip(labels[::2], labels[1::2], strict=True):
        field = _MARKS.get(mark)
        if field is None or field in found:
            return None
        found[field] = value
    return found


def _unmarked(labels: list[str], kind: str) -> dict[str, str] | None:
    """The forms that count labels: ``.service.<dc>``, ``.service.<ns>.<dc>``, ``.virtual.<peer>``.

    `.virtual.<namespace>.<peer>` is one of them.
    """
    last = "peer" if kind == "virtual" else "datacenter"
    match labels:
        case []:
            return {}
        case [only]:
            return {last: only}
        case [namespace, only]:
            return {"namespace": namespace, last: only}
        case _:
            return None
