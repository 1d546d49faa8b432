"""Whatever bytes and JSON come in: a value or the documented error, and never an undue allow.

`MESH_FUZZ_EXAMPLES` sets how many inputs each test takes; without it the same few every time.
Each test prints how many it ran, and how many that is a minute.
"""

from __future__ import annotations

import copy
import json
import random
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mesh_middleware.consul.decode import (
    decode_authorize,
    decode_config_entry,
    decode_intention,
    decode_jwt_provider,
    decode_leaf,
    decode_normalization,
    decode_peer,
    decode_roots,
)
from mesh_middleware.devagent.ca import CertificateAuthority
from mesh_middleware.errors import DecodeError, SpiffeIDError
from mesh_middleware.policy.engine import compile_policy
from mesh_middleware.policy.intentions import Action
from mesh_middleware.policy.peering import forwarded_identity
from mesh_middleware.policy.request import (
    PLAIN_TARGET,
    HTTPRequest,
    MalformedRequestError,
    read_path,
    split_target,
)
from mesh_middleware.policy.spiffe import ServiceIdentity, SpiffeID
from tests.fuzzing import examples, first_seed
from tests.policy.dice import SLY, Dice
from tests.policy.naive import Refuse, allows, service_of
from tests.policy.worlds import GATEWAY, PEERED, TRUST_DOMAIN, compiled, request, xfcc

VECTORS = Path(__file__).parent.parent / "data" / "conformance" / "rules.json"


def runs(name: str, few: int) -> Iterator[random.Random]:
    """A random source for each run; says at the end how many there were and how fast."""
    count, began, first = examples(few), time.monotonic(), first_seed()
    for seed in range(first, first + count):
        yield random.Random(seed)
    rate = count / (time.monotonic() - began) * 60
    print(f"{name}: {count} executions, {rate:,.0f} a minute")


WORDS = [
    *"""allow deny api web * default consul okta service-intentions spiffe:// /admin 9 %00 (
    IMPLEMENTATION_SPECIFIC_DEFAULT Matched""".split(),
    *["", "\x00", "\ud800", "a" * 3000],
]
KEYS = """SourceName DestinationName SourceNS SourcePeer SourcePartition SourceType Action JWT HTTP
    Permissions Precedence Header Name Providers VerifyClaims Path Value Methods PathExact PathRegex
    Present Invert Novel Kind Sources TrustDomain Roots RootCert CertPEM PrivateKeyPEM Authorized
    Reason Issuer PeerName Incoming RequestNormalization api path_exact sources name""".split()


def junk(dice: random.Random, depth: int = 4) -> Any:
    """JSON of any shape, with our own keys and words in it."""
    kind = dice.randrange(9 if depth else 6)
    if kind == 0:
        return dice.choice([None, True, False])
    if kind == 1:
        return dice.choice([0, 1, 9, -1, 10**30, 1.5, float("nan"), 2**63])
    if kind < 6:
        return dice.choice(WORDS)
    if kind == 6:
        return [junk(dice, depth - 1) for _ in range(dice.randrange(4))]
    return {dice.choice(KEYS): junk(dice, depth - 1) for _ in range(dice.randrange(5))}


def mutated(dice: random.Random, value: Any) -> Any:
    """`value` with one to three of its parts replaced, removed, doubled or renamed."""
    value = copy.deepcopy(value)
    for _ in range(dice.randint(1, 3)):
        places: list[tuple[Any, Any]] = []
        walk(value, places)
        if not places:
            return junk(dice)
        holder, key = dice.choice(places)
        how = dice.randrange(4)
        if how == 0:
            holder[key] = junk(dice, 2)
        elif how == 1:
            del holder[key]
        elif isinstance(holder, list):
            holder.insert(key, copy.deepcopy(holder[key]))
        else:
            holder[dice.choice(KEYS)] = copy.deepcopy(holder[key])
    return value


def walk(value: Any, places: list[tuple[Any, Any]]) -> None:
    if isinstance(value, dict | list):
        for key in list(value) if isinstance(value, dict) else range(len(value)):
            places.append((value, key))
            walk(value[key], places)


CA = CertificateAuthority(TRUST_DOMAIN)
LEAF = CA.issue("web")
VECTOR_ROWS = [
    row for vector in json.loads(VECTORS.read_text())["vectors"] for row in vector["intentions"]
]
NORMALIZED = {"HTTP": {"Incoming": {"RequestNormalization": {"MergeSlashes": True}}}}

# decoder, something that it reads
DECODERS: list[tuple[Callable[[Any], Any], Any]] = [
    (decode_roots, {"TrustDomain": TRUST_DOMAIN, "Roots": CA.roots()}),
    (decode_leaf, {"CertPEM": LEAF.cert_pem, "PrivateKeyPEM": LEAF.key_pem}),
    (decode_authorize, {"Authorized": True, "Reason": "Default"}),
    (decode_normalization, NORMALIZED),
    (decode_jwt_provider, {"Name": "okta", "Issuer": "i"}),
    (decode_peer, {"PeerName": "east", "TrustDomain": TRUST_DOMAIN}),
    (decode_intention, VECTOR_ROWS[0]),
    (
        decode_config_entry,
        {
            "Kind": "service-intentions",
            "Name": "api",
            "Sources": [{"Name": "web", "Permissions": VECTOR_ROWS[-1].get("Permissions", [])}],
        },
    ),
]


@pytest.mark.parametrize(("decode", "good"), DECODERS, ids=[row[0].__name__ for row in DECODERS])
def test_decoders_give_a_value_or_a_decode_error(decode: Callable[[Any], Any], good: Any) -> None:
    outcomes: Counter[bool] = Counter()
    for dice in runs(decode.__name__, 800):
        document = junk(dice) if dice.random() < 0.3 else mutated(dice, good)
        try:
            decode(document)
            outcomes[True] += 1
        except DecodeError:
            outcomes[False] += 1
    assert len(outcomes) == 2, outcomes


def test_mutated_rows_never_allow_what_the_naive_evaluator_denies() -> None:
    """And the other way round: both read the same JSON, however odd, and must agree."""
    outcomes: Counter[str] = Counter()
    for dice in runs("mutated rows", 2500):
        roller = Dice(dice.randrange(2**32))
        world = roller.world()
        rows = [mutated(dice, dice.choice(VECTOR_ROWS)) for _ in range(dice.randrange(3))]
        changed = [mutated(dice, row) for row in world.rows]
        world = replace(world, rows=[row for row in rows + changed if isinstance(row, dict)])
        try:
            policy = compiled(world)
        except DecodeError:
            outcomes["undecodable"] += 1
            continue
        for _ in range(4):
            ask = roller.ask()
            decision = policy.decide(ask.source, request(ask), ask.claims)
            # Other destinations' rows are left out by the engine; the agent does not send them.
            mine = [row for row in world.rows if row["DestinationName"] in ("api", "*")]
            assert decision.allowed is allows(replace(world, rows=mine), ask), (mine, ask, decision)
            outcomes[decision.reason] += 1
    assert outcomes["undecodable"] > 50
    assert len(outcomes) > 12, outcomes


def spliced(dice: random.Random, texts: list[str], pieces: list[str]) -> str:
    text = dice.choice(texts)
    for _ in range(dice.randrange(4)):
        at = dice.randrange(len(text) + 1)
        cut = dice.randrange(3) if dice.random() < 0.5 else 0
        text = text[:at] + dice.choice(pieces) + text[at + cut :]
    return text


IDENTITIES = [GATEWAY, *PEERED, f"spiffe://{TRUST_DOMAIN}/ap/p/ns/n/dc/d/svc/a%20b"]
PIECES = ["/", "//", "%2F", "%65", "%", "..", ".", ":", "@", "?", "#", "A", "\x00", "\n", "ä", " "]
PIECES += ["\ud800", "/ap/x", "/svc/", "spiffe://", "%C3%A4", "%ff", "", ";", "=", ",", "URI="]


def test_spiffe_ids_are_read_as_the_naive_parser_reads_them() -> None:
    outcomes: Counter[bool] = Counter()
    for dice in runs("SPIFFE IDs", 6000):
        text = spliced(dice, IDENTITIES, PIECES)
        try:
            whole = SpiffeID.from_string(text)
            assert str(whole) == text
            identity = ServiceIdentity.from_string(text)
        except SpiffeIDError:
            with pytest.raises(Refuse):
                service_of(text)
            outcomes[False] += 1
            continue
        domain, caller = service_of(text)
        assert domain == identity.trust_domain.name
        assert identity.key == ("", caller.partition, caller.namespace, caller.service)
        outcomes[True] += 1
    assert min(outcomes.values()) > 100, outcomes


def test_xfcc_lines_name_a_service_or_nobody() -> None:
    outcomes: Counter[bool] = Counter()
    lines = [xfcc(uri) for uri in PEERED]
    for dice in runs("XFCC lines", 6000):
        sent = [spliced(dice, lines, PIECES).encode("utf-8", "surrogatepass")]
        if dice.random() < 0.1:
            sent *= dice.choice([0, 2])
        if dice.random() < 0.1:
            sent = [dice.randbytes(dice.randrange(40))]
        found = forwarded_identity(sent)
        outcomes[found is not None] += 1
        if found is not None:
            # What was found is what the element ends with, letter by letter.
            assert len(sent) == 1
            assert sent[0].split(b",")[0].endswith(f";URI={found}".encode())
    assert min(outcomes.values()) > 100, outcomes


def test_targets_are_read_or_malformed_and_plain_ones_have_one_reading() -> None:
    outcomes: Counter[str] = Counter()
    normalization = compile_policy([], trust_domain=TRUST_DOMAIN).normalization
    for dice in runs("targets", 8000):
        if dice.random() < 0.3:
            target = b"/" + dice.randbytes(dice.randrange(8))
        else:
            parts = [dice.choice([*SLY, "a", "b", "?"]) for _ in range(dice.randrange(5))]
            target = ("/" + "/".join(parts)).encode("latin-1")
        sent = HTTPRequest("GET", target)
        try:
            path, tail, _ = split_target(sent)
            readings = read_path(path, normalization)
        except MalformedRequestError:
            assert PLAIN_TARGET.fullmatch(target) is None
            outcomes["malformed"] += 1
            continue
        assert path + tail == target
        assert len({reading for _, reading in readings}) == len(readings) <= 3
        assert all(reading.startswith(b"/") for _, reading in readings)
        if PLAIN_TARGET.fullmatch(target):
            assert len(readings) == 1
            outcomes["plain"] += 1
        outcomes[str(len(readings))] += 1
    assert set(outcomes) == {"malformed", "plain", "1", "2", "3"}, outcomes


def test_raw_requests_are_decided_without_an_error() -> None:
    policy = compile_policy([], trust_domain=TRUST_DOMAIN, default_action=Action.ALLOW)
    source = ServiceIdentity.from_string(f"spiffe://{TRUST_DOMAIN}/ns/default/dc/dc1/svc/web")
    outcomes: Counter[bool] = Counter()
    for dice in runs("raw requests", 8000):
        lines = [(dice.randbytes(4), dice.randbytes(6)) for _ in range(dice.randrange(4))]
        start = b"/" if dice.random() < 0.8 else b""
        target = start + dice.randbytes(dice.randrange(4))
        decision = policy.decide(source, HTTPRequest("GET", target, lines))
        assert decision.allowed is (decision.reason == "default_allow")
        outcomes[decision.allowed] += 1
    assert min(outcomes.values()) > 100, outcomes
