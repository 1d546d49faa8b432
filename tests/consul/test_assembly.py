"""Which parts make a state together, and which wait: pure, with certificates of a real CA."""

from __future__ import annotations

import time
from typing import Any

import pytest

from mesh_middleware.config import MeshConfig
from mesh_middleware.consul.assembly import Assembly, root_of
from mesh_middleware.devagent.ca import CertificateAuthority
from mesh_middleware.errors import DecodeError
from mesh_middleware.policy.decision import Reason
from mesh_middleware.policy.intentions import Action, Intention
from mesh_middleware.policy.request import DEFAULT_NORMALIZATION
from mesh_middleware.state import MeshState
from mesh_middleware.tls.certificates import X509SVID, TrustBundle

NOW = time.time() + 3600  # later than any root that the tests make is valid from


class Bench:
    """An assembly and the state that it made last."""

    def __init__(self, **settings: Any) -> None:
        self.assembly = Assembly(MeshConfig("web", **settings))
        self.state = MeshState("web")

    def next(self, now: float = NOW) -> MeshState:
        self.state = self.assembly.next(self.state, now)
        return self.state

    def ready(self, ca: CertificateAuthority) -> MeshState:
        self.assembly.take_roots(bundle(ca), NOW)
        self.assembly.take_leaf(svid(ca), NOW)
        self.assembly.take_intentions([], NOW)
        self.assembly.take_default(Action.DENY, NOW)
        self.assembly.take_normalization(DEFAULT_NORMALIZATION, NOW)
        return self.next()


def bundle(ca: CertificateAuthority) -> TrustBundle:
    return TrustBundle.from_pem(ca.trust_domain, [root["RootCert"] for root in ca.roots()])


def svid(ca: CertificateAuthority, service: str = "web", **options: Any) -> X509SVID:
    leaf = ca.issue(service, **options)
    return X509SVID.from_pem(leaf.cert_pem, leaf.key_pem)


def test_a_state_grows_part_by_part() -> None:
    ca, bench = CertificateAuthority(), Bench()
    policy = ("intentions", "default action", "mesh entry")
    assert bench.next().missing(now=NOW) == ("roots", "leaf", *policy)
    assert bench.state.generation == 0
    bench.assembly.take_roots(bundle(ca), NOW)
    assert bench.next().missing(now=NOW) == ("leaf", *policy)
    bench.assembly.take_leaf(svid(ca), NOW)
    assert bench.next().missing(now=NOW) == policy
    bench.assembly.take_intentions([], NOW)
    assert bench.next().missing(now=NOW) == ("default action", "mesh entry")
    bench.assembly.take_default(Action.DENY, NOW)
    assert bench.next().missing(now=NOW) == ("mesh entry",)
    assert bench.state.policy is None
    bench.assembly.take_normalization(DEFAULT_NORMALIZATION, NOW)
    assert bench.next().missing(now=NOW) == ()
    assert bench.state.policy is not None
    assert bench.state.policy.default_action is Action.DENY
    assert bench.state.policy.trust_domain.name == ca.trust_domain


def test_nothing_new_is_the_same_state() -> None:
    ca, bench = CertificateAuthority(), Bench()
    before = bench.ready(ca)
    assert bench.next() is before


def test_the_same_parts_again_keep_generation_contexts_and_policy() -> None:
    ca, bench = CertificateAuthority(), Bench()
    leaf = svid(ca)
    before = bench.ready(ca)
    bench.assembly.take_leaf(leaf, NOW)
    before = bench.next()
    bench.assembly.take_roots(bundle(ca), NOW + 5)
    bench.assembly.take_leaf(
        X509SVID(
            leaf.certificates, leaf.private_key, leaf.identity, leaf.not_before, leaf.not_after
        ),
        NOW + 5,
    )
    bench.assembly.take_intentions([], NOW + 5)
    after = bench.next()
    assert after.generation == before.generation
    assert after.contexts is before.contexts
    assert after.policy is before.policy
    assert after.updated["roots"] == NOW + 5


def test_a_change_of_policy_keeps_the_contexts() -> None:
    """Clients that pool connections by context would drop them all otherwise."""
    ca, bench = CertificateAuthority(), Bench()
    before = bench.ready(ca)
    bench.assembly.take_intentions([Intention("a", "web", Action.ALLOW)], NOW)
    after = bench.next()
    assert after.generation == before.generation + 1
    assert after.contexts is before.contexts
    assert after.policy is not before.policy


def test_a_policy_is_new_though_its_revision_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who can make two revisions equal must not keep a deny from taking effect."""
    monkeypatch.setattr("mesh_middleware.policy.engine.REVISION_DIGITS", 0)
    ca, bench = CertificateAuthority(), Bench()
    bench.ready(ca)
    for action in (Action.ALLOW, Action.DENY):
        bench.assembly.take_intentions([Intention("a", "web", action)], NOW)
        policy = bench.next().policy
        assert policy is not None
        assert policy.revision == ""
        assert policy.intentions[0].action is action


def test_a_new_leaf_makes_new_contexts_and_keeps_the_policy() -> None:
    ca, bench = CertificateAuthority(), Bench()
    before = bench.ready(ca)
    bench.assembly.take_leaf(svid(ca), NOW)
    after = bench.next()
    assert after.contexts is not before.contexts
    assert after.contexts is not None
    assert after.contexts.generation == after.generation == before.generation + 1
    assert after.policy is before.policy


def test_a_rotation_is_published_before_the_new_leaf_comes() -> None:
    ca, bench = CertificateAuthority(), Bench()
    before = bench.ready(ca)
    ca.rotate()
    bench.assembly.take_roots(bundle(ca), NOW)
    between = bench.next()
    assert between.bundle is not None
    assert len(between.bundle.roots) == 2
    assert between.svid is before.svid
    assert not bench.assembly.waiting
    bench.assembly.take_leaf(svid(ca), NOW)
    after = bench.next()
    assert after.svid is not before.svid
    assert after.generation == before.generation + 2
    old, still, new = (state.contexts.root for state in (before, between, after))  # type: ignore[union-attr]
    assert old == still != new
    assert {old, new} == after.bundle.fingerprints  # type: ignore[union-attr]


def test_a_new_leaf_that_is_cross_signed_may_come_first() -> None:
    ca, bench = CertificateAuthority(), Bench()
    before = bench.ready(ca)
    ca.rotate()
    bench.assembly.take_leaf(svid(ca), NOW)
    after = bench.next()
    assert after.svid is not before.svid
    assert after.bundle is before.bundle


def test_a_leaf_of_another_ca_is_rejected_and_the_old_state_stays() -> None:
    ca, bench = CertificateAuthority("mesh.consul"), Bench()
    before = bench.ready(ca)
    bench.assembly.take_leaf(svid(CertificateAuthority("mesh.consul")), NOW)
    after = bench.next()
    assert (after.svid, after.contexts, after.bundle, after.generation) == (
        before.svid, before.contexts, before.bundle, before.generation,
    )  # fmt: skip
    assert "does not lead to any" in bench.assembly.problems["leaf"]
    bench.assembly.take_leaf(svid(ca), NOW)
    assert bench.next().generation == before.generation + 1
    assert not bench.assembly.waiting


def test_roots_that_do_not_fit_any_leaf_wait_for_one() -> None:
    """A trust domain changes only with roots and leaf together."""
    old, new, bench = CertificateAuthority(), CertificateAuthority(), Bench()
    before = bench.ready(old)
    bench.assembly.take_roots(bundle(new), NOW)
    between = bench.next()
    assert (between.bundle, between.contexts) == (before.bundle, before.contexts)
    assert "is of trust domain" in bench.assembly.problems["roots"]
    bench.assembly.take_leaf(svid(new), NOW)
    after = bench.next()
    assert after.bundle is not None
    assert after.policy is not None
    assert after.bundle.trust_domain.name == new.trust_domain
    assert after.policy.trust_domain.name == new.trust_domain
    assert not bench.assembly.waiting


def test_a_leaf_of_the_new_trust_domain_waits_for_its_roots() -> None:
    old, new, bench = CertificateAuthority(), CertificateAuthority(), Bench()
    before = bench.ready(old)
    bench.assembly.take_leaf(svid(new), NOW)
    assert bench.next().svid is before.svid
    bench.assembly.take_roots(bundle(new), NOW)
    after = bench.next()
    assert after.svid is not before.svid
    assert after.generation == before.generation + 1


def test_a_removed_root_goes_at_once_though_a_bad_leaf_came_too() -> None:
    ca, bench = CertificateAuthority("mesh.consul"), Bench()
    bench.ready(ca)
    ca.rotate()
    good = svid(ca)
    bench.assembly.take_leaf(good, NOW)
    bench.next()
    ca.remove_inactive_roots()
    bench.assembly.take_leaf(svid(CertificateAuthority("mesh.consul")), NOW)
    bench.assembly.take_roots(bundle(ca), NOW)
    after = bench.next()
    assert after.bundle is not None
    assert after.bundle.fingerprints == bundle(ca).fingerprints
    assert after.svid is good
    assert "leaf" in bench.assembly.problems


def test_roots_of_another_trust_domain_do_not_fit_though_they_signed_the_leaf() -> None:
    ca = CertificateAuthority("a.consul")
    pems = [root["RootCert"] for root in ca.roots()]
    assert root_of(TrustBundle.from_pem("a.consul", pems), svid(ca), NOW)
    assert root_of(TrustBundle.from_pem("b.consul", pems), svid(ca), NOW) is None


def test_a_leaf_that_is_not_valid_yet_is_taken_when_it_is() -> None:
    """A new root's certificates start now, by the server's clock; ours may be behind."""
    ca, bench = CertificateAuthority(), Bench()
    bench.assembly.take_roots(bundle(ca), NOW)
    bench.assembly.take_leaf(svid(ca, not_before=NOW + 100, not_after=NOW + 1000), NOW)
    assert bench.next().contexts is None
    assert "clock" in bench.assembly.problems["leaf"]
    assert bench.next(NOW + 101).contexts is not None


def test_an_expired_leaf_does_not_keep_new_roots_out() -> None:
    ca, bench = CertificateAuthority(leaf_ttl_seconds=600), Bench()
    bench.ready(ca)
    ca.rotate()
    late = NOW + 3600
    bench.assembly.take_roots(bundle(ca), late)
    state = bench.next(late)
    assert state.bundle is not None
    assert len(state.bundle.roots) == 2
    assert "leaf" in state.missing(now=late)


@pytest.mark.parametrize(
    ("settings", "issued"),
    [
        ({}, {"service": "other"}),
        ({"namespace": "n1"}, {"service": "web"}),
        ({}, {"service": "WEB"}),
    ],
)
def test_a_leaf_for_somebody_else_is_refused(
    settings: dict[str, str], issued: dict[str, str]
) -> None:
    bench, leaf = Bench(**settings), svid(CertificateAuthority(), **issued)
    with pytest.raises(DecodeError, match="the leaf is for"):
        bench.assembly.take_leaf(leaf, NOW)


def test_a_leaf_in_our_namespace_is_ours() -> None:
    bench, leaf = Bench(namespace="n1"), svid(CertificateAuthority(), namespace="n1")
    bench.assembly.take_leaf(leaf, NOW)


def test_a_pinned_trust_domain_refuses_others() -> None:
    bench = Bench(trust_domain="pinned.consul")
    with pytest.raises(DecodeError, match="MESH_TRUST_DOMAIN"):
        bench.assembly.take_roots(bundle(CertificateAuthority("other.consul")), NOW)
    bench.assembly.take_roots(bundle(CertificateAuthority("pinned.consul")), NOW)
    assert bench.next().bundle is not None


def test_undecodable_intentions_are_a_fault_until_good_ones_come() -> None:
    ca, bench = CertificateAuthority(), Bench()
    before = bench.ready(ca)
    bench.assembly.take_undecodable("intentions")
    faulty = bench.next()
    assert faulty.fault is Reason.POLICY_UNDECODABLE
    assert faulty.generation == before.generation + 1
    assert "intentions" in faulty.missing(now=NOW)
    bench.assembly.take_intentions([], NOW)
    after = bench.next()
    assert after.fault is None
    assert after.policy is before.policy


def test_intentions_grow_stale_and_fresh_again() -> None:
    ca, bench = CertificateAuthority(), Bench(max_staleness_seconds=100)
    bench.ready(ca)
    assert bench.next(NOW + 100).fault is None
    bench.assembly.touch("roots", NOW + 101)  # the agent is there, but not its servers
    assert bench.next(NOW + 101).fault is Reason.STALE_POLICY
    bench.assembly.touch("intentions", NOW + 102)
    assert bench.next(NOW + 102).fault is None


def test_infinite_staleness_never_comes() -> None:
    ca, bench = CertificateAuthority(), Bench(max_staleness_seconds=float("inf"))
    bench.ready(ca)
    assert bench.next(NOW + 10**9).fault is None


def test_rows_are_compiled_only_when_something_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    ca, bench = CertificateAuthority(), Bench()
    before = bench.ready(ca)
    monkeypatch.setattr("mesh_middleware.consul.assembly.compile_policy", None)
    bench.assembly.take_intentions([], NOW + 1)
    bench.assembly.take_default(Action.DENY, NOW + 1)
    assert bench.next(NOW + 1).policy is before.policy


def test_a_policy_that_reads_otherwise_but_decides_alike_stays_the_same_object() -> None:
    ca, bench = CertificateAuthority(), Bench()
    bench.ready(ca)
    row = Intention("a", "web", Action.ALLOW)
    bench.assembly.take_intentions([row], NOW)
    before = bench.next()
    bench.assembly.take_intentions([row, Intention("a", "other", Action.ALLOW)], NOW)
    after = bench.next()
    assert (after.policy, after.generation) == (before.policy, before.generation)
