"""Intentions in their two forms, rows of the match API and service-intentions entries.

The agent stores entries, one for each destination, as Consul has done since 1.9; rows are derived
from them, ordered as the match API orders them. `from_documents` reads what a user wrote, in
either form, and gives entries.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from mesh_middleware.devagent import schema, validate
from mesh_middleware.devagent.schema import Entry, RefusedError
from mesh_middleware.policy.intentions import WILDCARD
from mesh_middleware.policy.spiffe import DEFAULT

KIND = "service-intentions"


def rows(entry: Entry) -> list[Entry]:
    """The match API's rows of one stored entry, in the entry's order."""
    return [_row(entry, source) for source in entry["Sources"]]


def in_order(rows: Iterable[Entry]) -> list[Entry]:
    """Precedence falling; ties by peer, source, destination rising. Source: consul.md's 5.3."""
    return sorted(
        rows,
        key=lambda row: (
            -row["Precedence"],
            row.get("SourcePeer", ""),
            row["SourceName"],
            row["DestinationName"],
        ),
    )


def matches(row: Entry, source: str, *, namespace: str = DEFAULT, peer: str = "") -> bool:
    """Whether the row speaks about a caller of that name; it has to be local for a local row."""
    return (
        row["SourceName"] in (source, WILDCARD)
        and row["SourceNS"] == namespace
        and row.get("SourcePeer", "") == peer
    )


def without_source(entry: Entry, source: str) -> Entry | None:
    """The entry with one local source taken out; None when nothing would be left."""
    left = [each for each in entry["Sources"] if each["Name"] != source or "Peer" in each]
    return {**entry, "Sources": left} if left else None


def from_documents(documents: Iterable[Any]) -> list[Entry]:
    """Stored forms of config entries and rows, in any mixture; RefusedError names the one.

    A document with ``Kind`` or ``Sources`` is a config entry (of any kind); any other object is a
    row. Rows of one destination become one entry; a destination that has both is refused.
    """
    entries: dict[tuple[str, str], Entry] = {}
    grouped: dict[str, Entry] = {}
    for number, document in enumerate(documents):
        try:
            if _is_entry(document):
                entry = decode_entry(document)
                _add(entries, entry)
            else:
                _group(grouped, schema.read(document, schema.INTENTION))
        except RefusedError as error:
            raise RefusedError(error.status, f"intention {number}: {error.text}") from None
    for entry in grouped.values():
        _add(entries, validate.service_intentions(entry))
    return list(entries.values())


def decode_entry(document: Any) -> Entry:
    """A config entry as it will be stored, of any kind that Consul has.

    Only service-intentions and service-defaults are understood; the others are kept as they are.
    """
    folded = {str(k).lower(): v for k, v in document.items()} if isinstance(document, dict) else {}
    kind = folded.get("kind", KIND if "sources" in folded else None)
    if kind not in KINDS:
        raise RefusedError(400, f"Request decoding failed: invalid config entry kind: {kind}")
    if kind == KIND:
        fields = schema.read(document, schema.SERVICE_INTENTIONS, config_entry=True)
        return validate.service_intentions(fields)
    if kind == "service-defaults":
        entry = schema.read(document, schema.SERVICE_DEFAULTS, config_entry=True)
    else:
        entry = {k: v for k, v in document.items() if str(k).lower() not in ("kind", "name")}
        entry = {"Kind": kind, "Name": folded.get("name"), **entry}
    name = entry.get("Name") or _SINGLETONS.get(kind)
    if not isinstance(name, str):
        raise RefusedError(500, "Name is required")
    if kind in _SINGLETONS and name != _SINGLETONS[kind]:
        raise RefusedError(500, f'invalid name ("{name}"), only "{_SINGLETONS[kind]}" is supported')
    return {**entry, "Kind": kind, "Name": name}


_SINGLETONS = {"proxy-defaults": "global", "mesh": "mesh"}

KINDS = frozenset(
    {
        *(KIND, "service-defaults", "proxy-defaults", "jwt-provider", "mesh"),
        *("service-router", "service-splitter", "service-resolver", "exported-services"),
        *("ingress-gateway", "terminating-gateway", "api-gateway", "http-route", "tcp-route"),
        *("inline-certificate", "file-system-certificate", "control-plane-request-limit"),
        "sameness-group",
    }
)
"""Kinds of config entries that Consul has; those we don't use are stored without a look."""


def _is_entry(document: Any) -> bool:
    return isinstance(document, dict) and any(
        str(key).lower() in ("kind", "sources") for key in document
    )


def _add(entries: dict[tuple[str, str], Entry], entry: Entry) -> None:
    key = (entry["Kind"], entry["Name"])
    if key in entries:
        raise RefusedError(500, f'{key[0]} "{key[1]}" is defined more than once')
    entries[key] = entry


def _group(grouped: dict[str, Entry], row: Entry) -> None:
    """Put a row into its destination's entry, after looking at it alone."""
    one = entry_from_row(row)
    try:
        validate.service_intentions(one)
    except RefusedError as error:
        raise RefusedError(error.status, error.text.replace("Sources[0].", "")) from None
    entry = grouped.setdefault(one["Name"], {**one, "Sources": []})
    if entry.get("JWT") != one.get("JWT"):
        raise RefusedError(500, f'intentions for "{one["Name"]}" have different JWT requirements')
    if any(_same_source(each, one["Sources"][0]) for each in entry["Sources"]):
        raise RefusedError(
            500, f'"{row["SourceName"]}" => "{one["Name"]}" is defined more than once'
        )
    entry["Sources"].append(one["Sources"][0])


def _same_source(one: Entry, other: Entry) -> bool:
    return (one["Name"], one.get("Peer")) == (other["Name"], other.get("Peer"))


def entry_from_row(row: Entry) -> Entry:
    """A service-intentions entry, not yet validated, with this row as its only source."""
    for field in ("SourceName", "DestinationName"):
        if field not in row:
            raise RefusedError(500, f"{field} must be set")
    for field in ("DestinationNS", "DestinationPartition"):
        if row.get(field, DEFAULT) != DEFAULT:
            raise RefusedError(500, f"{field}: Namespaces is a Consul Enterprise feature")
    source = {ours: row[theirs] for theirs, ours in _SOURCE_FIELDS.items() if theirs in row}
    entry: Entry = {"Kind": KIND, "Name": row["DestinationName"], "Sources": [source]}
    for field in ("JWT", "Meta"):
        if field in row:
            entry[field] = row[field]
    return entry


_SOURCE_FIELDS = {
    "SourceName": "Name",
    "SourcePeer": "Peer",
    "SourceNS": "Namespace",
    "SourcePartition": "Partition",
    "SourceSamenessGroup": "SamenessGroup",
    "SourceType": "Type",
    "Action": "Action",
    "Permissions": "Permissions",
    "Description": "Description",
}


def _row(entry: Entry, source: Entry) -> Entry:
    row: Entry = {}
    if "Description" in source:
        row["Description"] = source["Description"]
    row |= {"SourceNS": DEFAULT, "SourceName": source["Name"]}
    if "Peer" in source:
        row["SourcePeer"] = source["Peer"]
    row |= {"DestinationNS": DEFAULT, "DestinationName": entry["Name"], "SourceType": "consul"}
    holders = ((source, "Action"), (source, "Permissions"), (entry, "JWT"), (entry, "Meta"))
    row |= {field: holder[field] for holder, field in holders if field in holder}
    row["Precedence"] = source["Precedence"]
    return row | {key: entry[key] for key in ("CreateIndex", "ModifyIndex")}
