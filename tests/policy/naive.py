"""A second opinion: intentions evaluated the slow, obvious way, on Consul's JSON itself.

Nothing of `mesh_middleware.policy` is used or imitated here: rows are the match API's objects, the
first one that fits is searched from the top, what cannot be evaluated is tried *both ways* and the
request is allowed only if both ways allow it. Regexes go through Python's `re`, so callers keep to
patterns that RE2 and `re` read alike.

Sources: Consul's intention model and precedence, Envoy's matchers and path normalisation, and this
package's stricter rules (docs/reference/decisions.md).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

YES, NO, MAYBE = "yes", "no", "maybe"

INTENTION_FIELDS = (
    "ID Description SourceNS SourceName DestinationNS DestinationName SourcePartition "
    "DestinationPartition SourcePeer SourceSamenessGroup SourceType Action Permissions JWT "
    "DefaultAddr DefaultPort Meta Precedence CreatedAt UpdatedAt Hash CreateIndex ModifyIndex"
).split()
CRITERIA = ("Present", "Exact", "Prefix", "Suffix", "Contains", "Regex")


class Refuse(Exception):  # noqa: N818 - it is an answer, not a failure
    """The request is refused before or beside the rules."""


@dataclass
class World:
    """Everything a decision depends on besides the request. `rows`: the match API's objects."""

    rows: Sequence[Mapping[str, Any]]
    default_allow: bool
    trust_domain: str
    normalize: Mapping[str, Any] = field(default_factory=dict)
    providers: Mapping[str, str] = field(default_factory=dict)  # name -> issuer
    peers: Sequence[Mapping[str, str]] = ()  # PeerName, TrustDomain, ExportedPartition


@dataclass
class Ask:
    """One request as on the wire, and who sends it."""

    source: str
    method: str = "GET"
    target: bytes = b"/"
    headers: Sequence[tuple[bytes, bytes]] = ()
    scheme: str = "https"
    decoded_path: str | None = None
    claims: Mapping[str, Any] = field(default_factory=dict)


@dataclass
class Caller:
    peer: str
    partition: str
    namespace: str
    service: str


def allows(world: World, ask: Ask) -> bool:
    """Whether `ask` passes."""
    try:
        return all(
            row_allows(world, ask, caller, path, query)
            for caller in [identify(world, ask)]
            for path, query in paths(world, ask)
        )
    except Refuse:
        return False


def allows_connection(world: World, source: str) -> bool:
    """Whether a connection of `source` passes where nobody looks at requests."""
    try:
        row = select(world, connection_caller(world, source))
    except Refuse:
        return False
    if row is None:
        return world.default_allow
    # Nobody presents a token on a bare connection, and L7 cannot be judged there.
    if row.get("Permissions") or row.get("JWT") is not None or strange_row(row):
        return False
    return row.get("Action") == "allow"


# -- who --------------------------------------------------------------------------------------


def go_escaped(text: str) -> str:
    keep = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_.~$&+,:;=@"
    return "".join(c if c in keep else "".join(f"%{b:02X}" for b in c.encode()) for c in text)


def segment(text: str) -> str:
    raw = bytearray()
    rest = text
    while rest:
        if rest[0] == "%":
            if not re.fullmatch("[0-9A-Fa-f]{2}", rest[1:3]):
                raise Refuse("bad escape in identity")
            raw.append(int(rest[1:3], 16))
            rest = rest[3:]
        else:
            raw += rest[0].encode("utf-8", "surrogatepass")
            rest = rest[1:]
    try:
        clear = raw.decode()
    except UnicodeDecodeError:
        raise Refuse("identity is not UTF-8") from None
    if go_escaped(clear) != text or clear in (".", "..") or "/" in clear or "\0" in clear:
        raise Refuse("identity is not written as Consul writes it")
    return clear


def service_of(text: str) -> tuple[str, Caller]:
    """Trust domain and caller; the peer is still empty."""
    if len(text.encode("utf-8", "surrogatepass")) > 2048:
        raise Refuse("too long")
    parts = text.split("/")
    if len(parts) < 4 or parts[0] != "spiffe:" or parts[1] != "":
        raise Refuse("not SPIFFE")
    domain, path = parts[2], parts[3:]
    if not re.fullmatch(r"[a-z0-9._-]{1,255}", domain):
        raise Refuse("trust domain")
    partition = "default"
    if path[0] == "ap" and len(path) == 8:
        partition, path = segment(path[1]).lower(), path[2:]
    if len(path) != 6 or path[0::2] != ["ns", "dc", "svc"] or "" in path:
        raise Refuse("not a service")
    namespace, _, service = (segment(part) for part in path[1::2])
    return domain, Caller("", partition, namespace, service)


def peered(world: World, domain: str, caller: Caller) -> Caller:
    for bundle in world.peers:
        exported = (bundle.get("ExportedPartition") or "default").lower()
        if bundle["TrustDomain"] == domain and exported == caller.partition:
            return Caller(bundle["PeerName"], "default", caller.namespace, caller.service)
    raise Refuse("a foreign trust domain")


def identify(world: World, ask: Ask) -> Caller:
    local = re.escape(world.trust_domain)
    if re.fullmatch(f"spiffe://{local}/gateway/mesh/dc/[A-Za-z0-9._-]+", ask.source):
        lines = [v for n, v in ask.headers if n.lower() == b"x-forwarded-client-cert"]
        if len(lines) != 1:
            raise Refuse("a gateway without exactly one statement about its client")
        line = lines[0].decode("latin-1").strip(" \t")
        found = re.fullmatch(r"[^,]+;URI=([^,;\"]+)(?:,.*)?", line)
        if not found or line.split(",")[0].count("URI=") > 1:
            raise Refuse("a gateway that does not say who its client is")
        return peered(world, *service_of(found[1]))
    domain, caller = service_of(ask.source)
    if domain != world.trust_domain:
        raise Refuse("foreign trust domain")
    return caller


def connection_caller(world: World, source: str) -> Caller:
    domain, caller = service_of(source)
    return caller if domain == world.trust_domain else peered(world, domain, caller)


# -- which row --------------------------------------------------------------------------------


def rank(row: Mapping[str, Any]) -> int:
    if row.get("Precedence"):
        return int(row["Precedence"])
    value = 9
    for side, cost in (("Destination", 3), ("Source", 1)):
        if row.get(f"{side}NS") == "*":
            value -= 2 * cost
        elif row[f"{side}Name"] == "*":
            value -= cost
    return value


def source_fits(row: Mapping[str, Any], caller: Caller) -> bool:
    if row.get("SourceSamenessGroup"):
        return False
    if (row.get("SourcePeer") or "") != caller.peer:
        return False
    if not caller.peer and (row.get("SourcePartition") or "default").lower() != caller.partition:
        return False
    namespace = row.get("SourceNS") or "default"
    return namespace in ("*", caller.namespace) and row["SourceName"] in ("*", caller.service)


def select(world: World, caller: Caller) -> Mapping[str, Any] | None:
    for wanted in range(9, 0, -1):
        fitting = [r for r in world.rows if rank(r) == wanted and source_fits(r, caller)]
        if fitting:
            # Rows of one rank never name one source in a real mesh; Consul sorts them by name.
            return min(fitting, key=tie)
    return None


def tie(row: Mapping[str, Any]) -> list[str]:
    plain = {"SourceNS": "default", "SourcePartition": "default"}
    plain |= {"DestinationNS": "default", "DestinationPartition": "default"}
    order = "SourcePeer SourcePartition SourceNS SourceName DestinationPartition DestinationNS"
    return [row.get(key) or plain.get(key, "") for key in [*order.split(), "DestinationName"]]


# -- what the row says ------------------------------------------------------------------------


def strange(block: Mapping[str, Any], known: Sequence[str]) -> bool:
    return any(isinstance(v, dict | list) and v for k, v in block.items() if k not in known)


def strange_row(row: Mapping[str, Any]) -> bool:
    return strange(row, INTENTION_FIELDS) or (row.get("SourceType") or "consul") != "consul"


def row_allows(world: World, ask: Ask, caller: Caller, path: bytes, query: bytes) -> bool:
    row = select(world, caller)
    if row is None:
        return world.default_allow
    if strange_row(row) or not token_fits(world, ask, row.get("JWT")):
        return False
    permissions = row.get("Permissions") or []
    if not permissions:
        return row.get("Action") == "allow"
    outcomes = set(worlds(world, ask, permissions, path, query))
    return outcomes == {True}


def worlds(
    world: World, ask: Ask, permissions: Sequence[Mapping[str, Any]], path: bytes, query: bytes
) -> Iterator[bool]:
    """The outcomes that are possible, whatever the parts that nobody can evaluate mean."""
    for permission in permissions:
        fits = permission_fits(world, ask, permission, path, query)
        if fits is NO:
            continue
        yield permission.get("Action") == "allow" and token_fits(world, ask, permission.get("JWT"))
        if fits is YES:
            return
    yield world.default_allow


def both(verdicts: Sequence[str]) -> str:
    if NO in verdicts:
        return NO
    return MAYBE if MAYBE in verdicts or not verdicts else YES


def permission_fits(
    world: World, ask: Ask, permission: Mapping[str, Any], path: bytes, query: bytes
) -> str:
    http = permission.get("HTTP")
    verdicts = []
    if strange(permission, ("Action", "HTTP", "JWT")):
        verdicts.append(MAYBE)
    if http is None:
        return both([*verdicts, MAYBE])
    known = ("PathExact", "PathPrefix", "PathRegex", "Methods", "Header")
    part = [MAYBE for key in http if key not in known and http[key]]
    ways = [key for key in ("PathExact", "PathPrefix", "PathRegex") if http.get(key)]
    if len(ways) > 1:
        part.append(MAYBE)
    elif ways:
        part.append(value_fits(ways[0][4:], http[ways[0]], path, ignore_case=False))
    if http.get("Methods"):
        part.append(YES if ask.method in http["Methods"] else NO)
    part += [header_fits(world, ask, entry, path, query) for entry in http.get("Header") or []]
    return both([*verdicts, both(part)])


def value_fits(how: str, wanted: str, value: bytes, *, ignore_case: bool) -> str:
    if how == "Regex":
        try:
            chars = bool(re.fullmatch(wanted, value.decode()))
            octets = re.fullmatch(wanted.encode().decode("latin-1"), value.decode("latin-1"))
            return (YES if chars else NO) if chars is bool(octets) else MAYBE
        except (UnicodeDecodeError, re.error):
            return MAYBE
    want = wanted.encode("utf-8", "surrogatepass")
    if ignore_case:
        want, value = want.lower(), value.lower()
    if how == "Exact":
        hit = value == want
    elif how == "Prefix":
        hit = value[: len(want)] == want
    elif how == "Suffix":
        hit = len(value) >= len(want) and value[len(value) - len(want) :] == want
    else:
        hit = want in value
    return YES if hit else NO


def header_fits(world: World, ask: Ask, entry: Mapping[str, Any], path: bytes, query: bytes) -> str:
    criteria = [key for key in CRITERIA if entry.get(key)]
    odd = [key for key in entry if entry[key] and key not in (*CRITERIA, *EXTRA)]
    if len(criteria) != 1 or odd or not entry.get("Name"):
        return MAYBE
    how, invert = criteria[0], bool(entry.get("Invert"))
    values = named_values(
        world, ask, entry["Name"].encode("utf-8", "surrogatepass").lower(), path, query
    )
    if how == "Present":
        return YES if bool(values) is not invert else NO
    if not values:
        return MAYBE if how == "Regex" and not compiles(entry["Regex"]) else NO
    verdicts = [
        value_fits(how, entry[how], v, ignore_case=bool(entry.get("IgnoreCase"))) for v in values
    ]
    found = YES if YES in verdicts else MAYBE if MAYBE in verdicts else NO
    return {YES: NO, NO: YES, MAYBE: MAYBE}[found] if invert else found


EXTRA = ("Name", "Invert", "IgnoreCase")


def compiles(pattern: str) -> bool:
    try:
        re.compile(pattern)
    except re.error:
        return False
    return True


def named_values(world: World, ask: Ask, name: bytes, path: bytes, query: bytes) -> Sequence[bytes]:
    if name == b":method":
        return [ask.method.encode("utf-8", "surrogatepass")]
    if name == b":path":
        return [path + query]
    if name == b":scheme":
        return [ask.scheme.encode()]
    if name in (b"host", b":authority"):
        absolute = re.match(rb"(?i)https?://([^/?#]*)", ask.target)
        if absolute:
            return [absolute[1]]
        name = b"host"
    if name.startswith(b":"):
        return []
    dropping = world.normalize.get("underscores") == "DROP_HEADER"
    return [
        value.strip(b" \t")
        for key, value in ask.headers
        if key.lower() == name and not (dropping and b"_" in key)
    ]


def token_fits(world: World, ask: Ask, block: Any) -> bool:
    """Whether one provider that `block` names is satisfied; no block asks for nothing."""
    if block is None:
        return True
    wanted = block.get("Providers") or []
    if any(block[key] for key in block if key != "Providers"):
        return False
    if any(e[key] for e in wanted for key in e if key not in ("Name", "VerifyClaims")):
        return False
    if any(entry["Name"] not in world.providers for entry in wanted):
        return False  # Consul builds no listener for such an intention
    return any(provider_fits(world, ask, entry) for entry in wanted)


def provider_fits(world: World, ask: Ask, entry: Mapping[str, Any]) -> bool:
    payload, issuer = ask.claims.get(entry["Name"]), world.providers[entry["Name"]]
    if not isinstance(payload, dict) or issuer == "" or payload.get("iss") != issuer:
        return False
    for claim in entry.get("VerifyClaims") or []:
        found: Any = payload
        for key in claim.get("Path") or []:
            found = found.get(key) if isinstance(found, dict) else None
        items = found if isinstance(found, list) else [found]
        if claim.get("Value", "") not in [item for item in items if isinstance(item, str)]:
            return False
    return True


# -- which paths ------------------------------------------------------------------------------


def paths(world: World, ask: Ask) -> list[tuple[bytes, bytes]]:
    """Every reading of the target's path, and the query as sent (with its `?`)."""
    if ask.method == "CONNECT":
        raise Refuse("CONNECT")
    hosts = [value.strip(b" \t") for name, value in ask.headers if name.lower() == b"host"]
    if len(hosts) > 1:
        raise Refuse("several hosts")
    for name, _ in ask.headers:
        if b"_" in name and world.normalize.get("underscores") == "REJECT_REQUEST":
            raise Refuse("underscore")
    target = ask.target
    if any(byte < 0x21 or byte >= 0x7F or byte == ord("#") for byte in target):
        raise Refuse("raw bytes")
    absolute = re.match(rb"(?i)https?://([^/?#]*)", target)
    if absolute:
        if hosts and hosts[0].lower() != absolute[1].lower():
            raise Refuse("two hosts")
        target = target[absolute.end() :]
    path, mark, query = target.partition(b"?")
    if not path.startswith(b"/"):
        raise Refuse("no path")
    decoded = {percent_decoded(path)}
    readings = {canonical(world, path)}
    if ask.decoded_path is not None:
        try:
            decoded.add(ask.decoded_path.encode())
        except UnicodeEncodeError:
            raise Refuse("not text") from None
    for reading in decoded:
        if b"\0" in reading or b"\n" in reading:
            raise Refuse("NUL or line feed")
        readings |= {reading, resolved(reading)}
    return [(reading, mark + query) for reading in readings]


def percent_decoded(path: bytes) -> bytes:
    out = b""
    while path:
        if path[:1] != b"%":
            out, path = out + path[:1], path[1:]
            continue
        if not re.fullmatch(rb"[0-9A-Fa-f]{2}", path[1:3]):
            raise Refuse("bad escape")
        out, path = out + bytes([int(path[1:3], 16)]), path[3:]
    try:
        out.decode()
    except UnicodeDecodeError:
        raise Refuse("not UTF-8") from None
    return out


def resolved(path: bytes) -> bytes:
    parts = path.replace(b"\\", b"/").split(b"/")
    stack: list[bytes] = []
    # An empty segment is a doubled slash, and merged, before dots are looked at.
    meant = [part for part in parts[:-1] if part] + parts[-1:]
    for number, part in enumerate(meant):
        last = number == len(meant) - 1
        if part == b".." and stack:
            stack.pop()
        if part not in (b".", b".."):
            stack.append(part)
        elif last:
            stack.append(b"")
    return b"/" + b"/".join(stack)


def canonical(world: World, path: bytes) -> bytes:
    rules = world.normalize
    escaped = re.search(rb"(?i)%2f|%5c", path)
    if escaped and rules.get("escaped_slashes") in ("REJECT_REQUEST", "UNESCAPE_AND_REDIRECT"):
        raise Refuse("escaped slash")
    if rules.get("escaped_slashes") == "UNESCAPE_AND_FORWARD":
        path = re.sub(rb"(?i)%2f", b"/", path)
        path = re.sub(rb"(?i)%5c", rb"\\", path)
    if rules.get("path", True):
        path = tidy(path)
    if rules.get("merge_slashes"):
        # Envoy: a slash in front and one behind, where there are two; in between, what is between.
        between = [part for part in path.split(b"/") if part]
        path = b"/" + b"/".join(between) + (b"/" if len(path) > 1 and path.endswith(b"/") else b"")
    return path


def tidy(path: bytes) -> bytes:
    keep = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789!$&'()*+,-.:;=@[]_~"
    unreserved = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_~."
    stack: list[bytes] = []
    raw = path.replace(b"\\", b"/").split(b"/")[1:]
    for number, part in enumerate(raw):
        dots = re.sub(rb"(?i)%2e", b".", part)
        bare = re.fullmatch(rb"(\.\.?)(?:;.*)?", part, re.DOTALL)
        dot = bare[1] if bare else dots if dots in (b".", b"..") else b""
        if dot:
            if dot == b".." and stack:
                stack.pop()
            if number == len(raw) - 1:
                stack.append(b"")
            continue
        out, rest = b"", part
        while rest:
            byte, rest = rest[:1], rest[1:]
            if byte == b"%":
                code = int(rest[:2], 16)
                out += bytes([code]) if code in unreserved else b"%" + rest[:2]
                rest = rest[2:]
            else:
                out += byte if byte in keep else b"%%%02X" % byte[0]
        stack.append(out)
    return b"/" + b"/".join(stack)
