"""We never allow what a real Envoy denies, and for plain requests the two decide alike.

Envoy gets the RBAC rules that Consul would give it for the same intentions (`tests.envoy.rbac`).
The one corner where Consul's rules leave the documented precedence is left out.
``MESH_FUZZ_EXAMPLES`` says how many sets of intentions to try, 1000 when it is not set.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from mesh_middleware.policy.decision import Decision
from mesh_middleware.policy.engine import Policy, compile_policy
from mesh_middleware.policy.intentions import Action, HTTPMatch, Intention, Permission
from mesh_middleware.policy.request import (
    PLAIN_TARGET,
    EscapedSlashes,
    HTTPRequest,
    Normalization,
    Underscores,
)
from tests.envoy.proxy import Client, Listener, running
from tests.envoy.rbac import rbac
from tests.envoy.worlds import TRUST_DOMAIN, Ask, Dice, World
from tests.fuzzing import EXAMPLES, examples, first_seed

WORLDS = examples(1000)
BATCH = 500
REQUESTS = 16

SETTINGS = [
    Normalization(),
    Normalization(path=False),
    Normalization(merge_slashes=True),
    Normalization(escaped_slashes=EscapedSlashes.REJECT_REQUEST),
    Normalization(escaped_slashes=EscapedSlashes.UNESCAPE_AND_REDIRECT),
    Normalization(escaped_slashes=EscapedSlashes.UNESCAPE_AND_FORWARD),
    Normalization(escaped_slashes=EscapedSlashes.UNESCAPE_AND_FORWARD, merge_slashes=True),
    Normalization(path=False, merge_slashes=True),
    Normalization(underscores=Underscores.REJECT_REQUEST),
    Normalization(underscores=Underscores.DROP_HEADER),
]


def verdict(status: int) -> str:
    """What Envoy did: 200 is the route's own answer, 403 is RBAC's."""
    return {200: "allow", 403: "deny"}.get(status, f"reject {status}")


def policy_of(world: World, normalization: Normalization) -> Policy:
    return compile_policy(
        world.rows,
        default_action=world.default,
        trust_domain=TRUST_DOMAIN,
        service="api",
        normalization=normalization,
    )


def decide(policy: Policy, ask: Ask, host: str) -> Decision:
    request = HTTPRequest(ask.method, ask.target, ask.fields(host), scheme="http")
    return policy.decide(ask.identity(), request)


def is_plain(ask: Ask) -> bool:
    """Whether nothing of the request can be read in two ways.

    A regular expression on a value that is not ASCII may be unknown to us, and then counts against
    the caller.
    """
    plain = PLAIN_TARGET.fullmatch(ask.target) is not None
    return plain and all(value.isascii() for _, value in ask.headers)


def problem(kind: str, envoy: str, decision: Decision) -> str:
    """What is wrong with our decision beside Envoy's; empty: nothing."""
    if decision.allowed and envoy == "deny":
        return "we allow what Envoy denies"
    if kind == "plain" and decision.allowed is not (envoy == "allow"):
        return "a plain request is decided differently"
    return ""


def compare(
    setting: Normalization, seeds: range, sly: int, folder: Path, met: Counter[str]
) -> None:
    """One Envoy, many worlds, a few requests to each."""
    dices = [Dice(seed) for seed in seeds]
    worlds = [dice.world() for dice in dices]
    rules = [rbac(world.rows, world.default, TRUST_DOMAIN) for world in worlds]
    with running([Listener(setting, rules)], folder) as (port,), Client(port) as client:
        for number, (dice, world) in enumerate(zip(dices, worlds, strict=True)):
            policy, host = policy_of(world, setting), f"{number}.test"
            for _ in range(REQUESTS):
                ask = dice.ask(sly)
                envoy, decision = verdict(client.ask(ask.wire(host))), decide(policy, ask, host)
                kind = "plain" if is_plain(ask) else "odd"
                if world.corner(ask.caller):
                    kind = "corner"
                met[f"{kind}: {envoy}, we {'allow' if decision.allowed else 'refuse'}"] += 1
                if kind != "corner":
                    wrong = problem(kind, envoy, decision)
                    assert not wrong, (wrong, envoy, seeds[number], decision, ask, world, setting)


@pytest.mark.timeout(36000 if EXAMPLES else 120)
def test_requests_are_decided_as_a_real_envoy_decides_them(tmp_path: Path) -> None:
    met: Counter[str] = Counter()
    first = first_seed()
    for start in range(first, first + WORLDS, BATCH):
        count = min(BATCH, first + WORLDS - start)
        compare(SETTINGS[0], range(start, start + count), 50, tmp_path, met)
    print(dict(met))
    for kind in ("plain: allow, we allow", "plain: deny, we refuse", "odd: deny, we refuse"):
        assert met[kind] > WORLDS, met


@pytest.mark.timeout(36000 if EXAMPLES else 120)
@pytest.mark.parametrize("number", range(1, len(SETTINGS)))
def test_with_the_settings_of_a_mesh_we_allow_nothing_that_envoy_denies(
    tmp_path: Path, number: int
) -> None:
    met: Counter[str] = Counter()
    first = first_seed() + number * 1_000_000
    worlds = max(WORLDS // 8, 30)
    compare(SETTINGS[number], range(first, first + worlds), 80, tmp_path, met)
    print(SETTINGS[number], dict(met))
    assert sum(count for kind, count in met.items() if "deny, we refuse" in kind) > worlds


@pytest.mark.parametrize("target", [b"//", b"///", b"//.;x/", b"/x/..//"])
def test_where_slashes_are_merged_a_path_of_slashes_has_two(tmp_path: Path, target: bytes) -> None:
    permission = Permission(Action.DENY, HTTPMatch(path_exact="//"))
    world = World([Intention("web", "api", permissions=(permission,))], Action.ALLOW)
    setting, ask = Normalization(merge_slashes=True), Ask("web", "GET", target, ())
    rules = [rbac(world.rows, world.default, TRUST_DOMAIN)]
    with running([Listener(setting, rules)], tmp_path) as (port,), Client(port) as client:
        assert verdict(client.ask(ask.wire("0.test"))) == "deny"
    assert not decide(policy_of(world, setting), ask, "0.test").allowed
