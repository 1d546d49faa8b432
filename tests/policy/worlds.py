"""Hypothesis strategies: rows of the match API, callers and requests that are out to be let in."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

from mesh_middleware.consul.decode import (
    decode_jwt_provider,
    decode_matches,
    decode_normalization,
    decode_peer,
)
from mesh_middleware.policy.engine import Policy, compile_policy
from mesh_middleware.policy.intentions import Action
from mesh_middleware.policy.request import HTTPRequest
from tests.policy.naive import Ask, World

TRUST_DOMAIN = "11111111-2222-3333-4444-555555555555.consul"
PEER_DOMAIN = "99999999-2222-3333-4444-555555555555.consul"
OTHER_DOMAIN = "aaaaaaaa-2222-3333-4444-555555555555.consul"
GATEWAY = f"spiffe://{TRUST_DOMAIN}/gateway/mesh/dc/dc1"

NAMES = ("web", "cron")
NAMESPACES = ("default", "team")
PATHS = ("/", "/a", "/a/", "/a/b", "/admin", "/a b", "/a!b", "//a", "/b%", "/%61", "/a?b", "/ä")
REGEXES = ("/a.*", "(?i)/ADMIN", "/[ab]/?", "[^/]*", "/(a|admin)(/.*)?", "", "(", "a**")
VALUES = ("1", "12", "one", "ONE", "1,2", " 1", "", "ä")
VALUE_REGEXES = ("1.*", "(?i)one", "[a-z]+", "(", ".*")
HEADERS = ("x-a", "X-A", "x_a", ":method", ":path", ":authority", "host", ":scheme", ":x", "")
METHODS = ("GET", "POST", "get", "OPTIONS", "CONNECT")
HOSTS = ("api", "admin.test")


def maybe(strategy: st.SearchStrategy[Any], none: Any = None) -> st.SearchStrategy[Any]:
    return st.one_of(st.just(none), strategy)


def block(**parts: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    """An object each of whose parts may be missing."""
    return st.fixed_dictionaries({}, optional=parts)


odd = st.sampled_from([None, False, 0, "", "x", 7, True, [], {}, ["x"], {"k": 1}])

header_rules = st.one_of(
    st.tuples(
        st.sampled_from(HEADERS),
        st.sampled_from(["Exact", "Prefix", "Suffix", "Contains", "Regex", "Present"]),
        st.sampled_from(VALUES),
        st.sampled_from(VALUE_REGEXES),
        block(Invert=st.booleans(), IgnoreCase=st.booleans()),
    ).map(
        lambda drawn: {
            "Name": drawn[0],
            drawn[1]: {"Present": True, "Regex": drawn[3]}.get(drawn[1], drawn[2]),
            **drawn[4],
        }
    ),
    block(
        Name=st.sampled_from(HEADERS),
        Present=st.booleans(),
        Exact=st.sampled_from(VALUES),
        Suffix=st.sampled_from(VALUES),
        Invert=st.booleans(),
        Novel=odd,
    ),
)

http_rules = st.one_of(
    st.sampled_from(PATHS).map(lambda path: {"PathPrefix": path}),
    st.sampled_from(PATHS).map(lambda path: {"PathExact": path}),
    st.sampled_from(REGEXES).map(lambda path: {"PathRegex": path}),
    st.lists(header_rules, min_size=1, max_size=2).map(lambda rules: {"Header": rules}),
    block(
        PathExact=st.sampled_from(PATHS),
        PathPrefix=st.sampled_from(PATHS),
        PathRegex=st.sampled_from(REGEXES),
        Methods=st.lists(st.sampled_from(METHODS), max_size=2),
        Header=st.lists(header_rules, max_size=2),
        Novel=odd,
    ),
)

claim_rules = block(
    Path=st.lists(st.sampled_from(["role", "iss", "perms"]), max_size=2),
    Value=st.sampled_from(["admin", "okta", ""]),
)

jwt_rules = st.one_of(
    st.none(),
    st.sampled_from(["okta", "auth0"]).map(lambda name: {"Providers": [{"Name": name}]}),
    block(
        Providers=st.lists(
            st.fixed_dictionaries(
                {"Name": st.sampled_from(["okta", "auth0", "void", "nobody"])},
                optional={"VerifyClaims": st.lists(claim_rules, max_size=2), "Novel": odd},
            ),
            max_size=2,
        ),
        Novel=odd,
    ),
)

actions = st.sampled_from(["allow", "allow", "deny", "Allow", "audit"])

permission_rules = st.one_of(
    st.tuples(actions, http_rules).map(lambda drawn: {"Action": drawn[0], "HTTP": drawn[1]}),
    block(Action=actions, HTTP=maybe(http_rules), JWT=jwt_rules, Novel=odd),
)

rows = st.fixed_dictionaries(
    {
        "SourceName": st.sampled_from([*NAMES, "*"]),
        "DestinationName": st.sampled_from(["api", "api", "*"]),
    },
    optional={
        "SourceNS": st.sampled_from(["default", "default", "team", "*"]),
        "DestinationNS": st.sampled_from(["default", "default", "*"]),
        "SourcePartition": st.sampled_from(["default", "foo", "FOO", ""]),
        "SourcePeer": st.sampled_from(["", "", "east", "unknown"]),
        "SourceSamenessGroup": st.sampled_from(["", "", "", "group"]),
        "Action": actions,
        "Permissions": st.lists(permission_rules, max_size=4),
        "JWT": jwt_rules,
    },
)

strange_rows = st.tuples(rows, odd, st.sampled_from(["", "consul", "other"])).map(
    lambda drawn: {**drawn[0], "Novel": drawn[1], "SourceType": drawn[2]}
)

segments = st.sampled_from(
    [
        *"""a b admin %61 %61dmin ADMIN . .. ... %2e %2E%2e .%2e ..; .;x ..;x=1 ..%3b %2e; a;x a%3bx
    %2f %2F.. ..%2fadmin x%5c.. %5c a\\b ..\\admin \\ %00 %zz %  a%20b a!b a%21b %7Ea %c3%a4 %C3%A4
    %ff \u00ff { %7b + %2b [ %25 %2561 %252e%252e a?b a? # ?b a%3Fb ' a%09b""".split(),
        *["", "", " ", "\t", "\n", "\x00", "\x7f"],
    ]
)

targets = st.one_of(
    st.sampled_from(PATHS).map(lambda path: path.encode("latin-1")),
    st.tuples(
        st.sampled_from(
            ["/"] * 8
            + ["", "//", "http://api/", "HTTPS://API/", "http://admin.test/", "http://api", "*"]
        ),
        st.lists(segments, max_size=4),
        st.sampled_from(["", "", "/", "?", "?a=1", "?x=/../admin", "?%"]),
    ).map(lambda drawn: (drawn[0] + "/".join(drawn[1]) + drawn[2]).encode("latin-1")),
    st.tuples(st.just(b"/"), st.binary(max_size=6)).map(b"".join),
)

decoded_paths = st.one_of(
    st.none(),
    st.none(),
    st.lists(
        st.sampled_from(["", "a", "admin", "..", ".", "b\\", "\u00e4", "\x00", "\udc80", "\ud800"]),
        max_size=4,
    ).map(lambda parts: "/" + "/".join(parts)),
    st.sampled_from(["", "admin", "a/b", "http://api/admin", "../admin"]),
)

header_lines = st.lists(
    st.one_of(
        st.tuples(
            st.sampled_from([b"x-a", b"X-a", b"x_a", b":path", b":method", b":x"]),
            st.sampled_from([v.encode() for v in VALUES] + [b"\xff", b"\t one \t", b"on\ne"]),
        ),
        st.tuples(
            st.sampled_from([b"host", b"Host", b"host", b":authority"]),
            st.sampled_from([h.encode() for h in (*HOSTS, "API")]),
        ),
    ),
    max_size=3,
)

identities = st.one_of(
    st.sampled_from(NAMES).map(
        lambda name: f"spiffe://{TRUST_DOMAIN}/ns/default/dc/dc1/svc/{name}"
    ),
    st.builds(
        "spiffe://{}{}/ns/{}/dc/dc2/svc/{}".format,
        st.sampled_from([TRUST_DOMAIN] * 5 + [PEER_DOMAIN, OTHER_DOMAIN, "EVIL", ""]),
        st.sampled_from(["", "", "", "/ap/foo", "/ap/FOO", "/ap/default", "/ap/%66oo"]),
        st.sampled_from([*NAMESPACES, "*", "%2A", "..", ""]),
        st.sampled_from([*NAMES, "other", "w%65b", "a%2Fb", "web/x", "web?", "%2A", "%ff", "w b"]),
    ),
    st.sampled_from(
        [
            GATEWAY,
            f"spiffe://{TRUST_DOMAIN}",
            f"spiffe://{TRUST_DOMAIN}/agent/client/dc/dc1/id/n",
            f"spiffe://{PEER_DOMAIN}/gateway/mesh/dc/dc1",
            f"https://{TRUST_DOMAIN}/ns/default/dc/dc1/svc/web",
            f"spiffe://{TRUST_DOMAIN}/ns/default/dc/dc1/svc/web\n",
            "",
            "\ud800",
        ]
    ),
)


def xfcc(uri: str, by: str = f'By={GATEWAY};Hash=00;Cert="x";Subject=""') -> str:
    return f"{by};URI={uri}"


PEERED = [
    f"spiffe://{domain}{partition}/ns/default/dc/dc9/svc/{name}"
    for domain in (PEER_DOMAIN, TRUST_DOMAIN, OTHER_DOMAIN)
    for partition in ("", "/ap/part1")
    for name in NAMES
]

xfcc_lines = st.one_of(
    st.sampled_from(PEERED).map(xfcc),
    st.tuples(st.sampled_from(PEERED), st.sampled_from(PEERED)).map(
        lambda two: f"{xfcc(two[0])},{xfcc(two[1])}"
    ),
    st.sampled_from(PEERED).map(lambda uri: f"URI={uri}"),
    st.sampled_from(PEERED).map(lambda uri: f"{xfcc(uri)};Hash=1"),
    st.text(alphabet='URI=;,:/spfe"', max_size=12),
).map(lambda line: (b"X-Forwarded-Client-Cert", line.encode()))

claims = st.dictionaries(
    st.sampled_from(["okta", "auth0", "void"]),
    st.one_of(
        st.fixed_dictionaries(
            {},
            optional={
                "iss": st.sampled_from(["https://okta", "https://auth0", "", 1]),
                "role": st.sampled_from(["admin", ["x", "admin"], ["x"], 1, True, {"iss": "okta"}]),
                "perms": st.sampled_from([{"role": "admin"}, {"role": {"role": "admin"}}, []]),
            },
        ),
        st.sampled_from([None, "admin", [], 3]),
    ),
    max_size=3,
)

normalizations = st.fixed_dictionaries(
    {},
    optional={
        "path": st.booleans(),
        "merge_slashes": st.booleans(),
        "escaped_slashes": st.sampled_from(
            [
                "",
                "KEEP_UNCHANGED",
                "REJECT_REQUEST",
                "UNESCAPE_AND_REDIRECT",
                "UNESCAPE_AND_FORWARD",
            ]
        ),
        "underscores": st.sampled_from(["", "ALLOW", "REJECT_REQUEST", "DROP_HEADER"]),
    },
)

PROVIDERS = {"okta": "https://okta", "auth0": "https://auth0", "void": ""}
PEERS = [
    {"PeerName": "east", "TrustDomain": PEER_DOMAIN, "ExportedPartition": "Part1"},
    {"PeerName": "west", "TrustDomain": PEER_DOMAIN},
]

worlds = st.builds(
    World,
    rows=st.lists(st.one_of(rows, rows, rows, strange_rows), max_size=5),
    default_allow=st.booleans(),
    trust_domain=st.just(TRUST_DOMAIN),
    normalize=normalizations,
    providers=st.just(PROVIDERS),
    peers=st.sampled_from([[], PEERS, PEERS[:1]]),
)

local_asks = st.builds(
    Ask,
    source=identities,
    method=st.sampled_from(METHODS),
    target=targets,
    headers=header_lines,
    scheme=st.sampled_from(["https", "http"]),
    decoded_path=decoded_paths,
    claims=claims,
)
peered_asks = st.builds(
    Ask,
    source=st.just(GATEWAY),
    target=targets,
    headers=st.lists(xfcc_lines, max_size=2),
    claims=claims,
)
asks = st.one_of(local_asks, local_asks, local_asks, local_asks, peered_asks)


def compiled(world: World, previous: Policy | None = None) -> Policy:
    """The world's policy, by way of the package's own decoders."""
    rules = world.normalize
    return compile_policy(
        decode_matches({"api": world.rows}, "api"),
        default_action=Action.ALLOW if world.default_allow else Action.DENY,
        trust_domain=world.trust_domain,
        service="api",
        normalization=decode_normalization(
            {
                "HTTP": {
                    "Incoming": {
                        "RequestNormalization": {
                            "InsecureDisablePathNormalization": not rules.get("path", True),
                            "MergeSlashes": rules.get("merge_slashes", False),
                            "PathWithEscapedSlashesAction": rules.get("escaped_slashes", ""),
                            "HeadersWithUnderscoresAction": rules.get("underscores", ""),
                        }
                    }
                }
            }
        ),
        jwt_providers=[
            decode_jwt_provider({"Name": name, "Issuer": issuer})
            for name, issuer in world.providers.items()
        ],
        peers=[decode_peer(peer) for peer in world.peers],
        previous=previous,
    )


def request(ask: Ask) -> HTTPRequest:
    return HTTPRequest(
        ask.method, ask.target, ask.headers, scheme=ask.scheme, decoded_path=ask.decoded_path
    )
