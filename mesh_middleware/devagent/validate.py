"""The rules that Consul checks when intentions are written, with its words.

`service_intentions` takes an entry that `schema.read` let through and gives the entry as Consul
stores it: computed precedence, type ``consul``, methods in upper case, sources sorted by falling
precedence. What is refused raises RefusedError with status 500 and the text that Consul answers.
Namespaces, partitions and sameness groups are refused as the open edition does.

Source: Consul's service-intentions config entry (`Validate` and `Normalize`), observed on 1.10.1.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

from mesh_middleware.devagent.schema import Entry, RefusedError
from mesh_middleware.policy.intentions import WILDCARD, Action, Intention
from mesh_middleware.policy.spiffe import DEFAULT

METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "CONNECT", "OPTIONS", "TRACE")
L7_PROTOCOLS = ("http", "http2", "grpc")

_VALUES = ("Exact", "Prefix", "Suffix", "Contains", "Regex")
_MAX_TEXT = 512
_MAX_META = 64
_MAX_META_KEY = 128


def service_intentions(entry: Entry) -> Entry:
    """The entry as Consul would store it; RefusedError when it would not."""
    if "Name" not in entry:
        raise _refused("Name is required")
    sources = [_source_with_defaults(source) for source in entry.get("Sources", [])]
    entry = {**entry, "Kind": "service-intentions", "Sources": sources}
    _open_edition(entry, "")
    _no_partial_wildcard(entry["Name"], "")
    _meta(entry.get("Meta", {}))
    if not sources:
        raise _refused("At least one source is required")
    seen: set[tuple[str, str]] = set()
    for number, source in enumerate(sources):
        place = f"Sources[{number}]"
        _source(source, entry["Name"] == WILDCARD, place)
        key = (source.get("Peer", ""), source["Name"])
        if key in seen:
            raise _refused(f"{place} defines {_quoted(source['Name'])} more than once")
        seen.add(key)
        source["Precedence"] = _precedence(source["Name"], entry["Name"])
    sources.sort(key=lambda source: -source["Precedence"])
    return {key: entry[key] for key in entry if key not in _COMPUTED}


_COMPUTED = ("Hash", "CreateIndex", "ModifyIndex", "Namespace", "Partition")


def l7_protocol(entry: Entry, protocol_of: Callable[[str], str]) -> None:
    """Refuse Permissions for a destination whose protocol is not HTTP, as Consul does."""
    name = entry["Name"]
    if not any("Permissions" in source for source in entry["Sources"]):
        return
    protocol = protocol_of(name)
    if protocol not in L7_PROTOCOLS:
        raise _refused(
            f"service {_quoted(name)} has protocol {_quoted(protocol)}, "
            "which is incompatible with L7 intentions permissions"
        )


def _source_with_defaults(source: Entry) -> Entry:
    source = {"Type": "consul", **source}
    for permission in source.get("Permissions", []):
        http = permission.get("HTTP", {})
        if "Methods" in http:
            http["Methods"] = [method.upper() for method in http["Methods"]]
    for key in ("Namespace", "Partition"):
        if source.get(key) == DEFAULT:
            del source[key]
    return source


def _precedence(source: str, destination: str) -> int:
    return Intention(source_name=source, destination_name=destination).precedence


def _source(source: Entry, wild_destination: bool, place: str) -> None:
    if "Name" not in source:
        raise _refused(f"{place}.Name is required")
    _open_edition(source, f"{place}.")
    _no_partial_wildcard(source["Name"], f"{place}.")
    _source_details(source, place)
    permissions = source.get("Permissions", [])
    if not permissions:
        _action(source, place)
    elif "Action" in source:
        raise _refused(f"{place}.Action must be omitted if Permissions are specified")
    elif wild_destination:
        raise _refused(
            f"{place}.Permissions cannot be specified on intentions with wildcarded destinations"
        )
    if source["Type"] != "consul":
        raise _refused(f"{place}.Type must be set to 'consul'")
    for number, permission in enumerate(permissions):
        _permission(permission, f"{place}.Permissions[{number}]")


def _source_details(source: Entry, place: str) -> None:
    if WILDCARD in source.get("Peer", ""):
        raise _refused(f"{place}.Peer: cannot use wildcard '*' in peer")
    if len(source.get("Description", "").encode()) > _MAX_TEXT:
        raise _refused(f"{place}.Description exceeds maximum length {_MAX_TEXT}")
    for field in ("LegacyMeta", "LegacyCreateTime", "LegacyUpdateTime", "LegacyID"):
        if field in source:
            raise _refused(f"{place}.{field} must be omitted")


def _permission(permission: Entry, place: str) -> None:
    _action(permission, place)
    if "HTTP" not in permission:
        # An HTTP block without content reads as absent; Consul tells the two apart, we need not.
        raise _refused(f"{place}.HTTP is required, and should not be empty")
    http = permission["HTTP"]
    for field in ("PathExact", "PathPrefix"):
        if field in http and not http[field].startswith("/"):
            raise _refused(f"{place}.HTTP.{field} doesn't start with '/': {_quoted(http[field])}")
    if sum(field in http for field in ("PathExact", "PathPrefix", "PathRegex")) > 1:
        raise _refused(
            f"{place}.HTTP should only contain at most one of PathExact, PathPrefix, or PathRegex"
        )
    for number, header in enumerate(http.get("Header", [])):
        _header(header, f"{place}.HTTP.Header[{number}]")
    for method, first in _with_first(http.get("Methods", [])):
        if method not in METHODS:
            raise _refused(f"{place}.HTTP.Methods contains an invalid method {_quoted(method)}")
        if not first:
            raise _refused(f"{place}.HTTP.Methods contains {_quoted(method)} more than once")


def _header(header: Entry, place: str) -> None:
    if "Name" not in header:
        raise _refused(f"{place} missing required Name field")
    if sum(field in header for field in ("Present", *_VALUES)) != 1:
        raise _refused(
            f"{place} should only contain one of Present, Exact, Prefix, Suffix, Contains, or Regex"
        )
    if "IgnoreCase" in header and ("Present" in header or "Regex" in header):
        raise _refused(
            f"{place} should set one of Exact, Prefix, Suffix, or Contains when using IgnoreCase"
        )


def _action(holder: Entry, place: str) -> None:
    if holder.get("Action") not in (Action.ALLOW.value, Action.DENY.value):
        raise _refused(f"{place}.Action must be set to 'allow' or 'deny'")


def _no_partial_wildcard(name: str, place: str) -> None:
    if WILDCARD in name and name != WILDCARD:
        raise _refused(f"{place}Name: wildcard character '*' cannot be used with partial values")


def _open_edition(holder: Entry, place: str) -> None:
    for field, what in (
        ("Namespace", "Namespaces"),
        ("Partition", "Partitions"),
        ("SamenessGroup", "Sameness groups"),
    ):
        if holder.get(field, DEFAULT) != DEFAULT:
            raise _refused(
                f"{place}{field} {_quoted(holder[field])}: {what} is a Consul Enterprise feature"
            )


def _meta(meta: Entry) -> None:
    if len(meta) > _MAX_META:
        raise _refused(f"Meta exceeds maximum element count {_MAX_META}")
    for key, value in meta.items():
        if not isinstance(value, str):
            raise RefusedError(400, f"Request decode failed: Meta[{_quoted(key)}] is not a string")
        if len(key.encode()) > _MAX_META_KEY:
            raise _refused(f"Meta key {_quoted(key)} exceeds maximum length {_MAX_META_KEY}")
        if len(value.encode()) > _MAX_TEXT:
            raise _refused(f"Meta value for key {_quoted(key)} exceeds maximum length {_MAX_TEXT}")


def _with_first(values: list[str]) -> Iterator[tuple[str, bool]]:
    for position, value in enumerate(values):
        yield value, value not in values[:position]


def _quoted(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def _refused(text: str) -> RefusedError:
    return RefusedError(500, text)
