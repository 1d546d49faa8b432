"""Callers from other clusters count only as a verified gateway and a bundle together say."""

from __future__ import annotations

import pytest

from mesh_middleware.policy.decision import Reason
from mesh_middleware.policy.engine import compile_policy
from mesh_middleware.policy.intentions import Action, Intention
from mesh_middleware.policy.peering import PeerBundle, forwarded_identity, index_peers, peered
from mesh_middleware.policy.request import HTTPRequest
from mesh_middleware.policy.spiffe import ServiceIdentity, SpiffeID, TrustDomain
from tests.policy.worlds import GATEWAY, OTHER_DOMAIN, PEER_DOMAIN, TRUST_DOMAIN, xfcc

PONG = f"spiffe://{PEER_DOMAIN}/ns/default/dc/dc9/svc/pong"
EAST = PeerBundle("east", TrustDomain(PEER_DOMAIN))
ELEMENT = xfcc(PONG)

# name, header lines, the service that is forwarded
LINES = [
    ("one element", [ELEMENT], "pong"),
    ("later elements are others'", [f"{ELEMENT},{xfcc(PONG + '2')}"], "pong"),
    ("no line", [], None),
    ("two lines, and nobody knows whose", [ELEMENT, ELEMENT], None),
    ("a lone URI has no proof beside it", [f"URI={PONG}"], None),
    ("an empty field before the URI", [f";URI={PONG}"], None),
    ("two URIs", [f"URI=spiffe://a;URI={PONG}"], None),
    ("a field after the URI could pass for its end", [f"{ELEMENT};Hash=00"], None),
    ("the first element only", [f"Hash=00,{ELEMENT}"], None),
    ("a comma in quotes ends the element", [f'Subject="a,b";URI={PONG}'], None),
    ("not ASCII", [f"{ELEMENT}é"], None),
    ("not a service", [xfcc(GATEWAY)], None),
    ("not SPIFFE", [xfcc("https://x")], None),
    ("empty", [""], None),
]


@pytest.mark.parametrize(
    ("lines", "service"), [row[1:] for row in LINES], ids=[r[0] for r in LINES]
)
def test_who_a_gateway_forwards_for(lines: list[str], service: str | None) -> None:
    found = forwarded_identity([line.encode() for line in lines])
    assert (found and found.service) == service


def test_a_field_after_the_uri_does_not_rename_a_peered_caller() -> None:
    """`pong;Hash=00` is a legal service name, and no deny on `pong` would cover it."""
    policy = compile_policy(
        [Intention("pong", "api", Action.DENY, source_peer="east")],
        default_action=Action.ALLOW,
        trust_domain=TRUST_DOMAIN,
        peers=[EAST],
    )

    def ask(line: str) -> Reason:
        headers = [(b"x-forwarded-client-cert", line.encode())]
        return policy.decide(GATEWAY, HTTPRequest("GET", b"/", headers)).reason

    assert ask(ELEMENT) is Reason.INTENTION_DENY
    assert ask(f"{ELEMENT};Hash=00") is Reason.NOT_A_SERVICE


def identity(text: str) -> ServiceIdentity:
    return ServiceIdentity.from_string(text)


def test_a_peer_is_known_by_trust_domain_and_exported_partition() -> None:
    peers = index_peers([EAST, PeerBundle("west", TrustDomain(PEER_DOMAIN), "Part1")])
    pong = peered(identity(PONG), peers)
    assert pong is not None
    assert (pong.peer, pong.key) == ("east", ("east", "default", "default", "pong"))
    assert str(pong) == PONG
    assert pong != identity(PONG)
    exported = f"spiffe://{PEER_DOMAIN}/ap/PART1/ns/team/dc/dc9/svc/pong"
    other = peered(identity(exported), peers)
    assert other is not None
    assert (other.peer, other.key) == ("west", ("west", "default", "team", "pong"))
    for stranger in (
        f"spiffe://{PEER_DOMAIN}/ap/part2/ns/default/dc/dc9/svc/pong",
        f"spiffe://{OTHER_DOMAIN}/ns/default/dc/dc9/svc/pong",
    ):
        assert peered(identity(stranger), peers) is None


def test_peers_that_show_the_same_are_both_unknown() -> None:
    """Else one peer's intentions would cover the other's services."""
    twins = [EAST, PeerBundle("twin", TrustDomain(PEER_DOMAIN), "")]
    assert index_peers(twins) == {}
    assert index_peers([EAST, EAST]) == index_peers([EAST])


def test_a_peer_without_a_name_names_nobody() -> None:
    """An empty peer is what local callers have."""
    peers = index_peers([PeerBundle("", TrustDomain(PEER_DOMAIN))])
    assert peered(identity(PONG), peers) is None


def test_only_a_gateway_of_ours_speaks_for_others() -> None:
    """Logs, too, must not name as the caller whom somebody else's gateway tells."""
    policy = compile_policy([], trust_domain=TRUST_DOMAIN, peers=[EAST])
    request = HTTPRequest("GET", b"/", [(b"x-forwarded-client-cert", ELEMENT.encode())])
    ours = SpiffeID.from_string(GATEWAY)
    theirs = SpiffeID(TrustDomain(OTHER_DOMAIN), ours.path)
    assert str(policy.caller_of(ours, request)) == PONG
    assert policy.caller_of(theirs, request) is theirs
    local = ServiceIdentity(TrustDomain(TRUST_DOMAIN), "web")
    assert policy.caller_of(local, request) is local
