"""Who may do what: intentions compiled into a `Policy` that decides without asking anybody.

How a request is decided:

1. *Who.* Only service identities of our own trust domain are looked up (and peered callers, see
   `policy.callers`). Every other identity is refused, whatever the default.
2. *What.* A malformed target is refused. A path with several readings is judged in each of them
   and all must be allowed (see `policy.request`).
3. *Which row.* The row with the highest precedence whose source matches the caller decides alone.
   No row: the default action.
4. *Inside the row.* With permissions, the first whose HTTP part matches decides; none: the default
   action. Without permissions, the row's action.
5. *Tokens.* An allow holds only if the JWT requirements of the row and of the permission are met,
   under either default. A deny is a deny whatever the token.

What cannot be evaluated counts against the caller: an unknown allow does not match, an unknown
deny matches, a row with an unknown condition of its own refuses.

Source: Consul, "Service intentions" (precedence, evaluation); where Envoy's translation differs,
docs/reference/decisions.md says so.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from itertools import islice

from mesh_middleware.policy.callers import Callers, Source, Stranger
from mesh_middleware.policy.decision import Decision, NearMiss, Reason
from mesh_middleware.policy.explain import Explanation, explain
from mesh_middleware.policy.intentions import (
    WILDCARD,
    Action,
    Intention,
    in_precedence_order,
    name_of,
)
from mesh_middleware.policy.jwt import NO_CLAIMS, Claims, Issuers, JWTProvider, unmet
from mesh_middleware.policy.peering import PeerBundle
from mesh_middleware.policy.request import (
    DEFAULT_NORMALIZATION,
    PLAIN_TARGET,
    HTTPRequest,
    MalformedRequestError,
    Normalization,
    Underscores,
    read_path,
    split_target,
)
from mesh_middleware.policy.rules import Rule, compile_rule, row_digest
from mesh_middleware.policy.spiffe import ServiceIdentity, SourceKey, SpiffeID, TrustDomain

REVISION_DIGITS = 12
_REMEMBERED_CALLERS = 4096
_NEAREST = 4
_PACE_ROWS = 100  # two or three milliseconds of compiling

_plain_target = PLAIN_TARGET.fullmatch


class Policy:
    """Compiled intentions of one service. Immutable; safe from any thread. See `compile_policy`.

    `fingerprint` (SHA-256) covers everything that decides: equal fingerprints decide alike.
    `revision` is its first twelve digits, for people: somebody can make two that are equal.
    `problems` says, once each, what could not be evaluated. `peered`: whether callers of other
    clusters are known, who come through a mesh gateway.
    """

    __slots__ = (
        "_allowed",
        "_by_name",
        "_by_source",
        "_callers",
        "_found",
        "_issuers",
        "_refuse_underscores",
        "_rules",
        "_trust_domain",
        "default_action",
        "fingerprint",
        "intentions",
        "needs_tokens",
        "normalization",
        "peered",
        "problems",
        "revision",
        "service",
        "trust_domain",
    )

    def __init__(
        self,
        rules: Mapping[Intention, Rule],
        *,
        fingerprint: str,
        default_action: Action,
        callers: Callers,
        service: str,
        normalization: Normalization,
        issuers: Issuers,
        problems: tuple[str, ...],
    ) -> None:
        self.fingerprint = fingerprint
        self.revision = revision = fingerprint[:REVISION_DIGITS]
        self.service = service
        self.trust_domain = callers.trust_domain
        self.peered = bool(callers.peers)
        self.default_action = default_action
        self.normalization = normalization
        self.intentions = tuple(rules)
        self.problems = problems
        self.needs_tokens = any(rule.needs_tokens for rule in rules.values())
        self._trust_domain = callers.trust_domain.name
        self._refuse_underscores = normalization.underscores is Underscores.REJECT_REQUEST
        self._callers = callers
        self._issuers = issuers
        self._rules = rules
        self._allowed = Decision(allowed=True, reason=Reason.DEFAULT_ALLOW, revision=revision)
        self._by_source: dict[SourceKey, list[Rule]] = {}
        self._by_name: dict[str, list[Rule]] = {}
        for rule in rules.values():
            self._by_source.setdefault(rule.intention.source_key, []).append(rule)
            self._by_name.setdefault(rule.intention.source_name, []).append(rule)
        self._found: dict[SourceKey, Rule | None] = {}

    # -- deciding ---------------------------------------------------------------------------

    def decide(self, source: Source, request: HTTPRequest, claims: Claims = NO_CLAIMS) -> Decision:
        """Whether `source`, the peer of a verified TLS connection, may make `request`.

        Pure and synchronous: no I/O, nothing raised for any input.
        """
        if type(source) is ServiceIdentity and source.trust_domain.name == self._trust_domain:
            key = source.key
        else:
            caller = self._callers.of_request(source, request)
            if isinstance(caller, Stranger):
                return self._refused(caller.reason, caller.detail)
            key = caller
        try:
            rule = self._found[key]
        except KeyError:
            rule = self._find(key)
        plain = _plain_target(request.target)
        if plain is None or request.method == "CONNECT" or not self._headers_are_sound(request):
            return self._decide_closely(rule, key, request, claims)
        path = plain[1]
        if request.decoded_path is not None and request.decoded_path != path.decode("ascii"):
            return self._decide_closely(rule, key, request, claims)
        if rule is None:
            return self._default(key)
        if rule.static is not None:
            return rule.static
        return self._judge(rule, request, path, request.target[len(path) :], claims)

    def caller_of(
        self, source: ServiceIdentity | SpiffeID, request: HTTPRequest
    ) -> ServiceIdentity | SpiffeID:
        """Who makes `request`: `source`, or the peered service for which that gateway speaks.

        Only what `decide` allowed is proven.
        """
        if isinstance(source, ServiceIdentity) or source.trust_domain != self.trust_domain:
            return source
        return self._callers.forwarded(source, request) or source

    def decide_connection(self, source: Source) -> Decision:
        """Whether `source` may open a connection that is not HTTP.

        Rows with permissions refuse, under either default, and so do rows that require a token:
        a connection has neither a path nor a token. A peered caller shows its own certificate.
        """
        caller = self._callers.of_connection(source)
        if isinstance(caller, Stranger):
            return self._refused(caller.reason, caller.detail)
        rule = self._find(caller)
        if rule is None:
            return self._default(caller)
        if rule.static is not None:
            return rule.static
        if rule.permissions:
            return rule.refused(Reason.L7_OVER_TCP, "permissions cannot be judged for a connection")
        return rule.refused(Reason.JWT_MISSING, "a connection carries no token")

    def explain(
        self, source: Source, request: HTTPRequest | None = None, claims: Claims = NO_CLAIMS
    ) -> Explanation:
        """Why: the decision, every row that covers the caller in order, every reading.

        Without `request`, the decision is that for a connection.
        """
        if request is None:
            caller = self._callers.of_connection(source)
            decision = self.decide_connection(source)
            readings = []
        else:
            caller = self._callers.of_request(source, request)
            decision = self.decide(source, request, claims)
            readings = self._judged_readings(caller, request, claims)
        rows = [] if isinstance(caller, Stranger) else self._candidates(caller)
        return explain(
            decision,
            str(source),
            self.default_action,
            rows=rows,
            request=request,
            readings=readings,
            claims=claims,
            issuers=self._issuers,
        )

    # -- which row --------------------------------------------------------------------------

    def _find(self, key: SourceKey) -> Rule | None:
        """The row that decides for a caller, remembered: the highest that covers it."""
        rows = self._candidates(key)
        if len(self._found) >= _REMEMBERED_CALLERS:
            self._found.clear()
        rule = self._found[key] = rows[0] if rows else None
        return rule

    def _candidates(self, key: SourceKey) -> list[Rule]:
        """Every row that covers a caller, highest precedence first."""
        peer, partition, namespace, name = key
        covering = {
            (peer, partition, ns, n) for ns in (namespace, WILDCARD) for n in (name, WILDCARD)
        }
        rows = [rule for source in covering for rule in self._by_source.get(source, ())]
        return sorted(rows, key=lambda rule: rule.order)

    # -- what the request says --------------------------------------------------------------

    def _headers_are_sound(self, request: HTTPRequest) -> bool:
        hosts = 0
        for name, _ in request.headers:
            if len(name) == 4 and name.lower() == b"host":
                hosts += 1
        if self._refuse_underscores and any(b"_" in name for name, _ in request.headers):
            return False
        return hosts < 2

    def _decide_closely(
        self, rule: Rule | None, key: SourceKey, request: HTTPRequest, claims: Claims
    ) -> Decision:
        """The slow way, for paths with several readings and for malformed requests."""
        if not self._headers_are_sound(request):
            return self._refused(
                Reason.MALFORMED_HEADERS, "more than one Host, or a header name the mesh refuses"
            )
        try:
            path, tail, authority = split_target(request)
            readings = read_path(path, self.normalization, request.decoded_path)
        except MalformedRequestError as error:
            return self._refused(Reason.MALFORMED_TARGET, str(error))
        if authority is not None and any(
            host.lower() != authority.lower() for host in request.values(b"host")
        ):
            return self._refused(
                Reason.MALFORMED_HEADERS, "Host differs from the authority in the request target"
            )
        if rule is None:
            return self._default(key)
        if rule.static is not None:
            return rule.static
        return _combine(
            [(name, self._judge(rule, request, read, tail, claims)) for name, read in readings]
        )

    def _judged_readings(
        self, caller: SourceKey | Stranger, request: HTTPRequest, claims: Claims
    ) -> list[tuple[str, bytes, bytes, Decision | None]]:
        try:
            path, tail, _ = split_target(request)
            readings = read_path(path, self.normalization, request.decoded_path)
        except MalformedRequestError:
            return []
        rule = None if isinstance(caller, Stranger) else self._find(caller)
        if rule is None or rule.static is not None:
            return [(name, read, tail, None) for name, read in readings]
        return [
            (name, read, tail, self._judge(rule, request, read, tail, claims))
            for name, read in readings
        ]

    # -- inside the row ---------------------------------------------------------------------

    def _judge(
        self, rule: Rule, request: HTTPRequest, path: bytes, tail: bytes, claims: Claims
    ) -> Decision:
        """What one row says of one reading. `rule.static` is None here."""
        for permission in rule.permissions:
            answer = permission.matches(request, path, tail)
            if answer is False:
                continue
            if not permission.allow:
                return permission.decision if answer else permission.unevaluable
            # Asked even where the match is unknown: else a later permission could let it pass.
            if permission.jwt is not None or rule.jwt is not None:
                why = unmet(rule.jwt, claims, self._issuers) or unmet(
                    permission.jwt, claims, self._issuers
                )
                if why is not None:
                    return permission.refused(why)
            if answer:
                return permission.decision
        why = unmet(rule.jwt, claims, self._issuers)
        if not rule.permissions:
            return rule.allowed if why is None else rule.refused(why)
        if self.default_action is Action.ALLOW:
            return rule.default_allowed if why is None else rule.refused(why)
        return self._unmatched(rule, request, path, tail)

    # -- refusing ---------------------------------------------------------------------------

    def _refused(self, reason: Reason, detail: str) -> Decision:
        return Decision(allowed=False, reason=reason, revision=self.revision, detail=detail)

    def _default(self, key: SourceKey) -> Decision:
        """No row is about the caller."""
        if self.default_action is Action.ALLOW:
            return self._allowed
        return Decision(
            allowed=False,
            reason=Reason.DEFAULT_DENY,
            revision=self.revision,
            nearest=self._nearest_rows(key),
        )

    def _nearest_rows(self, key: SourceKey) -> tuple[NearMiss, ...]:
        """Rows that name the caller elsewhere, else the first few rows."""
        if not self._rules:
            about = f"{WILDCARD} => {self.service or WILDCARD}"
            return (NearMiss(about, None, "there is no intention for this destination"),)
        peer, partition, namespace, name = key
        caller = name_of(partition, namespace, name) + (f" (peer {peer})" if peer else "")
        rows = self._by_name.get(name) or self._rules.values()
        return tuple(
            NearMiss(str(rule.ref), None, f"source is not {caller}")
            for rule in islice(rows, _NEAREST)
        )

    def _unmatched(self, rule: Rule, request: HTTPRequest, path: bytes, tail: bytes) -> Decision:
        """A row is about the caller, but none of its permissions is about the request."""
        return replace(
            rule.default_denied,
            nearest=tuple(
                NearMiss(
                    str(rule.ref),
                    permission.index,
                    permission.matcher.first_failure(request, path, tail),
                )
                for permission in rule.permissions[:_NEAREST]
            ),
        )

    def __repr__(self) -> str:
        return (
            f"<Policy {self.revision} for {self.service or 'any service'}: "
            f"{len(self.intentions)} intentions, default {self.default_action}>"
        )


def _combine(judged: list[tuple[str, Decision]]) -> Decision:
    """All readings allowed: allowed. All refused: as the first says. Mixed: ambiguous."""
    name, first = judged[0]
    if len(judged) == 1:
        return first
    refused = [(reading, decision) for reading, decision in judged if not decision.allowed]
    if len(refused) in {0, len(judged)}:
        return replace(first, reading=name)
    reading, decision = refused[0]
    return replace(
        decision,
        reason=Reason.AMBIGUOUS_PATH,
        reading=reading,
        detail=f"another reading is allowed, but {reading!r} is refused: {decision.reason}",
    )


def compile_policy(
    intentions: Iterable[Intention],
    *,
    default_action: Action = Action.DENY,
    trust_domain: TrustDomain | str,
    service: str = "",
    normalization: Normalization = DEFAULT_NORMALIZATION,
    jwt_providers: Iterable[JWTProvider] = (),
    peers: Iterable[PeerBundle] = (),
    previous: Policy | None = None,
    pause: Callable[[], object] | None = None,
) -> Policy:
    """Compile the rows of one destination into a `Policy`.

    `intentions` may come in any order. With `service`, rows of other destinations are left out
    (said in `problems`). `trust_domain` is our own. `previous` is a policy whose compiled rows are
    reused where a row is unchanged, which makes a change of one row among thousands cheap. `pause`
    is called now and then: thousands of rows take a while, in which others may have to run.
    Nothing about a row can make this fail; SpiffeIDError for a bad `trust_domain`.
    """
    domain = TrustDomain(trust_domain) if isinstance(trust_domain, str) else trust_domain
    callers = Callers.of(domain, peers)
    issuers = {provider.name: provider.issuer for provider in jwt_providers}
    known = _reusable(previous, normalization)
    problems: list[str] = []
    known_peers = set(callers.peers.values())
    rows = [
        row
        for row in dict.fromkeys(in_precedence_order(list(intentions)))
        if _applies(row, service, known_peers, problems)
    ]
    digest = hashlib.sha256(
        repr(
            (
                default_action,
                domain,
                normalization,
                sorted(issuers.items()),
                sorted(callers.peers.items()),
            )
        ).encode("utf-8", "surrogateescape")
    )
    for row in _paced(rows, pause):
        digest.update(known[row].digest if row in known else row_digest(row))
    fingerprint = digest.hexdigest()
    revision = fingerprint[:REVISION_DIGITS]
    rules = {
        row: compile_rule(row, order, revision, normalization, known.get(row))
        for order, row in enumerate(_paced(rows, pause))
    }
    for rule in rules.values():
        problems += rule.problems
    return Policy(
        rules,
        fingerprint=fingerprint,
        default_action=default_action,
        callers=callers,
        service=service,
        normalization=normalization,
        issuers=issuers,
        problems=tuple(dict.fromkeys(problems)),
    )


def _paced(rows: Iterable[Intention], pause: Callable[[], object] | None) -> Iterator[Intention]:
    """`rows`, with a pause now and then."""
    for number, row in enumerate(rows, 1):
        yield row
        if pause is not None and number % _PACE_ROWS == 0:
            pause()


def _reusable(previous: Policy | None, normalization: Normalization) -> Mapping[Intention, Rule]:
    if previous is None or previous.normalization != normalization:
        return {}
    return previous._rules


def _applies(row: Intention, service: str, peers: set[str], problems: list[str]) -> bool:
    if service and row.destination_name.lower() not in {service.lower(), WILDCARD}:
        problems.append(f"{row}: left out, it is about another destination than {service!r}")
        return False
    if row.source_sameness_group:
        problems.append(f"{row}: never matches, its sameness group was not expanded by the server")
        return False
    if row.source_peer and row.source_peer not in peers:
        problems.append(
            f"{row}: never matches, no trust bundle is configured for peer {row.source_peer!r}"
        )
        return False
    return True


__all__ = ["NO_CLAIMS", "Claims", "JWTProvider", "PeerBundle", "Policy", "compile_policy"]
