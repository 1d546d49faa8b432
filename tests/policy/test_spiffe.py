"""SPIFFE IDs: what is read, what is refused, and that two texts never mean the same service."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh_middleware.errors import SpiffeIDError
from mesh_middleware.policy.spiffe import Kind, ServiceIdentity, SpiffeID, TrustDomain
from tests.fuzzing import fuzz

TD = TrustDomain("td.consul")

# text, kind
READ = [
    ("spiffe://td.consul", Kind.SIGNING),
    ("spiffe://td.consul/ns/default/dc/dc1/svc/web", Kind.SERVICE),
    ("spiffe://td.consul/ap/p/ns/default/dc/dc1/svc/web", Kind.SERVICE),
    ("spiffe://td.consul/agent/client/dc/dc1/id/n", Kind.AGENT),
    ("spiffe://td.consul/ap/p/agent/client/dc/dc1/id/n", Kind.AGENT),
    ("spiffe://td.consul/agent/server/dc/dc1", Kind.SERVER),
    ("spiffe://td.consul/gateway/mesh/dc/dc1", Kind.MESH_GATEWAY),
    ("spiffe://td.consul/ap/p/gateway/mesh/dc/dc1", Kind.MESH_GATEWAY),
    ("spiffe://td.consul/ap/p/agent/server/dc/dc1", Kind.OTHER),
    ("spiffe://td.consul/ns/default/dc/dc1/svc/web/x", Kind.OTHER),
    ("spiffe://td.consul/x/ns/default/dc/dc1/svc/web", Kind.OTHER),
    ("spiffe://td.consul/x", Kind.OTHER),
]

# name, text
REFUSED = [
    ("empty", ""),
    ("another scheme", "https://td.consul/x"),
    ("upper-case scheme", "SPIFFE://td.consul/x"),
    ("empty host", "spiffe:///ns/default/dc/dc1/svc/web"),
    ("upper-case host", "spiffe://TD.consul/x"),
    ("port", "spiffe://td.consul:8443/x"),
    ("user", "spiffe://me@td.consul/x"),
    ("query", "spiffe://td.consul/x?a"),
    ("empty query", "spiffe://td.consul/x?"),
    ("fragment", "spiffe://td.consul/x#a"),
    ("trailing slash", "spiffe://td.consul/x/"),
    ("only a slash", "spiffe://td.consul/"),
    ("empty segment", "spiffe://td.consul/x//y"),
    ("dot segment", "spiffe://td.consul/x/./y"),
    ("dot-dot segment", "spiffe://td.consul/x/../y"),
    ("bad escape", "spiffe://td.consul/%zz"),
    ("cut escape", "spiffe://td.consul/%a"),
    ("space", "spiffe://td.consul/a b"),
    ("not ASCII", "spiffe://td.consul/ä"),
    ("line end", "spiffe://td.consul/x\n"),
    ("leading space", " spiffe://td.consul/x"),
    ("surrogate", "spiffe://td.consul/\ud800"),
    ("host of 256", f"spiffe://{'a' * 256}/x"),
    ("2049 bytes", "spiffe://td.consul/" + "a" * 2030),
    ("2049 bytes in fewer characters", "spiffe://td.consul/" + "é" * 1015),
]

# name, text: SPIFFE IDs that are no services, or not as Consul writes them
NO_SERVICE = [
    ("signing", "spiffe://td.consul"),
    ("gateway", "spiffe://td.consul/gateway/mesh/dc/dc1"),
    ("extra segment", "spiffe://td.consul/ns/default/dc/dc1/svc/a/b"),
    ("needless escape", "spiffe://td.consul/ns/default/dc/dc1/svc/w%65b"),
    ("lower-case escape", "spiffe://td.consul/ns/default/dc/dc1/svc/w%c3%a4"),
    ("a character that Consul escapes", "spiffe://td.consul/ns/default/dc/dc1/svc/w!b"),
    ("an escaped slash", "spiffe://td.consul/ns/default/dc/dc1/svc/a%2Fb"),
    ("an escaped NUL", "spiffe://td.consul/ns/default/dc/dc1/svc/a%00"),
    ("not UTF-8", "spiffe://td.consul/ns/default/dc/dc1/svc/%FF"),
    ("needless escape in the namespace", "spiffe://td.consul/ns/%64/dc/dc1/svc/web"),
    ("needless escape in the datacenter", "spiffe://td.consul/ns/d/dc/%64/svc/web"),
    ("needless escape in the partition", "spiffe://td.consul/ap/%64/ns/d/dc/d/svc/web"),
]


@pytest.mark.parametrize(("text", "kind"), READ)
def test_a_spiffe_id_has_a_kind_and_prints_as_it_was_read(text: str, kind: Kind) -> None:
    parsed = SpiffeID.from_string(text)
    assert (parsed.kind, str(parsed), parsed.trust_domain) == (kind, text, TD)


@pytest.mark.parametrize("text", [row[1] for row in REFUSED], ids=[row[0] for row in REFUSED])
def test_text_that_is_not_a_spiffe_id_is_refused(text: str) -> None:
    with pytest.raises(SpiffeIDError):
        SpiffeID.from_string(text)


def test_a_spiffe_id_may_be_2048_bytes_long() -> None:
    assert SpiffeID.from_string("spiffe://td.consul/" + "a" * 2029).path


@pytest.mark.parametrize("text", [row[1] for row in NO_SERVICE], ids=[r[0] for r in NO_SERVICE])
def test_a_spiffe_id_that_is_no_service_as_consul_writes_it_is_refused(text: str) -> None:
    SpiffeID.from_string(text)
    with pytest.raises(SpiffeIDError):
        ServiceIdentity.from_string(text)


def test_a_service_identity_reads_every_part() -> None:
    found = ServiceIdentity.from_string("spiffe://td.consul/ap/Foo/ns/team/dc/dc9/svc/a%20b")
    assert found == ServiceIdentity(TD, "a b", "team", "Foo", "dc9")
    assert found.key == ("", "foo", "team", "a b")
    assert str(found) == "spiffe://td.consul/ap/Foo/ns/team/dc/dc9/svc/a%20b"


def test_an_absent_partition_is_the_default_one_and_not_written() -> None:
    absent = ServiceIdentity.from_string("spiffe://td.consul/ns/default/dc/dc1/svc/web")
    written = ServiceIdentity.from_string("spiffe://td.consul/ap/default/ns/default/dc/dc1/svc/web")
    assert absent == written == ServiceIdentity(TD, "web")
    assert str(written) == str(absent)
    shouted = ServiceIdentity(TD, "web", partition="DEFAULT")
    assert (shouted.key, str(shouted)) == (absent.key, str(absent))


@pytest.mark.parametrize("value", ["", "a/b", "a\x00", ".", "..", "\ud800"])
@pytest.mark.parametrize("part", ["service", "namespace", "partition", "datacenter"])
def test_a_part_that_no_spiffe_id_can_hold_is_refused(part: str, value: str) -> None:
    with pytest.raises(SpiffeIDError, match=part):
        ServiceIdentity(TD, **{"service": "web", part: value})


@pytest.mark.parametrize("name", ["", "A", "a b", "a:1", "é", "a" * 256, "a\n"])
def test_a_trust_domain_has_few_characters(name: str) -> None:
    with pytest.raises(SpiffeIDError):
        TrustDomain(name)


names = st.text(min_size=1, max_size=8).filter(
    lambda text: not set(text) & {"/", "\x00"} and text not in {".", ".."} and text.isprintable()
)


@fuzz(200, cost=10)
@given(names, names, names, names)
def test_what_is_printed_is_read_again(
    service: str, namespace: str, partition: str, datacenter: str
) -> None:
    identity = ServiceIdentity(TD, service, namespace, partition, datacenter)
    read = ServiceIdentity.from_string(str(identity))
    assert read.key == identity.key
    assert str(read) == str(identity)
