"""Registered services and their checks, as a Consul agent keeps them and its catalog shows them.

Only TTL checks exist: the development agent calls nobody. A check is critical until somebody
passes it, and again when nobody did for its TTL. What a check says (its output) reaches the
catalog only together with a change of status, as with Consul's ``check_update_interval``, so that
a heartbeat wakes nobody.

Source: Consul /v1/agent/service/register, /v1/agent/check/update, /v1/health/connect.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from ipaddress import ip_address
from typing import Any

from mesh_middleware.devagent.durations import seconds
from mesh_middleware.devagent.schema import Entry, RefusedError

STATUSES = ("passing", "warning", "critical")


@dataclass(slots=True)
class Check:
    """A check of one service. `ttl` in seconds; 0 means that it never expires."""

    id: str
    name: str
    ttl: float
    status: str
    output: str = ""
    notes: str = ""
    kind: str = "ttl"
    reap_after: float = 0.0
    expires: float = 0.0
    critical_since: float = 0.0
    seen_output: str = ""


@dataclass(slots=True)
class Service:
    """One registered instance. `document`: as ``/v1/agent/service/<id>`` gives it, no hash."""

    id: str
    name: str
    document: Entry
    native: bool
    checks: dict[str, Check] = field(default_factory=dict)
    create_index: int = 0
    modify_index: int = 0

    def described(self) -> Entry:
        """The document with its content hash. Source: ``X-Consul-Contenthash``."""
        digest = hashlib.sha256(json.dumps(self.document, sort_keys=True).encode()).hexdigest()[:16]
        return {**self.document, "ContentHash": digest}

    @property
    def upstream_of(self) -> str:
        """Name under which the mesh reaches this instance, "" when it is not in the mesh."""
        if self.native:
            return self.name
        return str(self.document.get("Proxy", {}).get("DestinationServiceName", ""))

    @property
    def status(self) -> str:
        """The worst status of its checks; passing without any."""
        return max(
            (check.status for check in self.checks.values()),
            key=STATUSES.index,
            default=("passing"),
        )


def service_from(body: Mapping[str, Any], now: float) -> Service:
    """The service that a registration (read by `schema`) describes; RefusedError if impossible."""
    if "Name" not in body:
        raise RefusedError(400, "Missing service name")
    connect = body.get("Connect", {})
    if connect.get("Native") and body.get("Kind"):
        raise RefusedError(
            400, "Invalid service: A Proxy cannot also be Connect Native, only typical services"
        )
    native = bool(connect.get("Native"))
    if native and not (body.get("Port") or body.get("SocketPath")):
        raise RefusedError(400, "Port or SocketPath must be set for a Connect native service")
    if not 0 <= body.get("Port", 0) <= 65535:
        raise RefusedError(400, f"Invalid port {body['Port']}: must be between 0 and 65535")
    service = Service(body.get("ID", body["Name"]), body["Name"], _document(body), native)
    single = [body["Check"]] if "Check" in body else []
    definitions = [*single, *body.get("Checks", [])]
    for number, definition in enumerate(definitions, 1):
        suffix = f":{number}" if len(definitions) > 1 else ""
        check = _check(definition, f"service:{service.id}{suffix}", service.name, now)
        service.checks[check.id] = check
    return service


def _document(body: Mapping[str, Any]) -> Entry:
    address, port = body.get("Address", ""), body.get("Port", 0)
    document: Entry = {
        "ID": body.get("ID", body["Name"]),
        "Service": body["Name"],
        "Tags": body.get("Tags", []),
        "Meta": body.get("Meta", {}),
        "Port": port,
        "Address": address,
    }
    if address:
        tagged = {"Address": address, "Port": port}
        family = _family(address)
        addresses = {f"lan_{family}": tagged, f"wan_{family}": tagged} if family else {}
        document["TaggedAddresses"] = {**addresses, **body.get("TaggedAddresses", {})}
    weights = body.get("Weights", {})
    document["Weights"] = {
        "Passing": weights.get("Passing", 1),
        "Warning": weights.get("Warning", 1),
    }
    document["EnableTagOverride"] = body.get("EnableTagOverride", False)
    optional = ("Kind", "SocketPath", "Proxy", "Connect", "Locality")
    return document | {name: body[name] for name in optional if name in body}


def _family(address: str) -> str:
    try:
        return f"ipv{ip_address(address).version}"
    except ValueError:
        return ""


def _check(definition: Mapping[str, Any], default_id: str, service: str, now: float) -> Check:
    if "TTL" not in definition:
        raise RefusedError(
            400, "Invalid check: the development agent runs TTL checks only; TTL must be set"
        )
    status = definition.get("Status", "critical")
    if status not in STATUSES:
        raise RefusedError(400, f"Invalid check status: '{status}'")
    ttl = seconds(definition["TTL"])
    if ttl <= 0:
        raise RefusedError(400, "Invalid check: TTL must be > 0")
    return Check(
        id=definition.get("CheckID") or definition.get("ID") or default_id,
        name=definition.get("Name", f"Service '{service}' check"),
        ttl=ttl,
        status=status,
        output=definition.get("Output", ""),
        notes=definition.get("Notes", ""),
        reap_after=seconds(definition.get("DeregisterCriticalServiceAfter", "0s")),
        expires=now + ttl,
        critical_since=now,
        seen_output=definition.get("Output", ""),
    )


def set_status(check: Check, status: str, output: str, now: float) -> bool:
    """Write a result into the check; True when its status changed, and so the catalog."""
    check.output = output
    check.expires = now + check.ttl
    if status == check.status:
        return False
    check.status, check.seen_output = status, output
    check.critical_since = now
    return True


def expire(check: Check, now: float) -> bool:
    """Make a check critical that nobody updated for its TTL; True when that changed it."""
    if check.kind != "ttl" or now < check.expires or check.status == "critical":
        return False
    output = f"TTL expired (last output before timeout follows): {check.output}"
    return set_status(check, "critical", output, now)


def check_document(service: Service, check: Check, *, node: str, in_catalog: bool) -> Entry:
    """The check as ``/v1/agent/checks`` (or, `in_catalog`, ``/v1/health``) shows it."""
    return {
        "Node": node,
        "CheckID": check.id,
        "Name": check.name,
        "Status": check.status,
        "Notes": check.notes,
        "Output": check.seen_output if in_catalog else check.output,
        "ServiceID": service.id,
        "ServiceName": service.name,
        "ServiceTags": service.document["Tags"],
        "Type": check.kind,
        "Definition": {},
        "CreateIndex": service.create_index if in_catalog else 0,
        "ModifyIndex": service.modify_index if in_catalog else 0,
    }
