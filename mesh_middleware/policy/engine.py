"""Who may do what: intentions compiled into a `Policy` that decides without asking anybody.

How a request is decided:

1. *Who.* Only service identities of our own trust domain are looked up (and peered callers, see
   `policy.peering`). Every other identity is refused, whatever the default.
2. *What.* A malformed target is refused. A path with several readings is judged in each of them
   and all must be allowed.
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
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from itertools import islice
from types import MappingProxyType
from typing import Any, Final

from mesh_middleware.errors import SpiffeIDError
from mesh_middleware.policy.decision import Decision, NearMiss, Reason
from mesh_middleware.policy.explain import Candidate, Explanation, JudgedReading, TriedPermission
from mesh_middleware.policy.intentions import (
    WILDCARD,
    Action,
    Intention,
    JWTRequirement,
    in_precedence_order,
)
from mesh_middleware.policy.match import claim_matches
from mesh_middleware.policy.peering import (
    XFCC,
    PeerBundle,
    forwarded_identity,
    index_peers,
    peered_key,
)
from mesh_middleware.policy.request import (
    DEFAULT_NORMALIZATION,
    HTTPRequest,
    MalformedRequestError,
    Normalization,
    Underscores,
    plain_path,
    read_path,
    split_target,
)
from mesh_middleware.policy.rules import CompiledPermission, Rule, compile_rule, row_digest
from mesh_middleware.policy.spiffe import (
    Kind,
    ServiceIdentity,
    SourceKey,
    SpiffeID,
    TrustDomain,
)

Claims = Mapping[str, Any]
"""Provider name -> payload of a token that passed verification for that provider.

A value may also be a `Reason`: why there is no payload. A missing provider means no token.
"""

NO_CLAIMS: Final[Claims] = MappingProxyType({})

_REMEMBERED_CALLERS = 4096
_NEAREST = 4


@dataclass(frozen=True, slots=True)
class JWTProvider:
    """What deciding needs of a ``jwt-provider``: `issuer` must equal the payload's ``iss``."""

    name: str
    issuer: str


class Policy:
    """Compiled intentions of one service. Immutable; safe from any thread. See `compile_policy`.

    `revision` is a hash of everything that was compiled: equal revisions decide alike.
    `problems` says, once each, what could not be evaluated.
    """

    __slots__ = (
        "_allowed",
        "_by_name",
        "_by_source",
        "_callers",
        "_peers",
        "_providers",
        "_rules",
        "_trust_domain",
        "default_action",
        "intentions",
        "needs_tokens",
        "normalization",
        "problems",
        "revision",
        "service",
        "trust_domain",
    )

    def __init__(
        self,
        rules: Mapping[Intention, Rule],
        *,
        default_action: Action,
        trust_domain: TrustDomain,
        service: str,
        normalization: Normalization,
        providers: Mapping[str, str],
        peers: tuple[PeerBundle, ...],
        problems: tuple[str, ...],
        revision: str,
    ) -> None:
        self.revision = revision
        self.service = service
        self.trust_domain = trust_domain
        self.default_action = default_action
        self.normalization = normalization
        self.intentions = tuple(rules)
        self.problems = problems
        self.needs_tokens = any(rule.needs_tokens for rule in rules.values())
        self._trust_domain = trust_domain.name
        self._providers = providers
        self._peers = index_peers(peers)
        self._rules = rules
        self._allowed = Decision(allowed=True, reason=Reason.DEFAULT_ALLOW, revision=revision)
        self._by_source: dict[SourceKey, list[Rule]] = {}
        self._by_name: dict[str, list[Rule]] = {}
        for rule in rules.values():
            self._by_source.setdefault(rule.intention.source_key, []).append(rule)
            self._by_name.setdefault(rule.intention.source_name, []).append(rule)
        self._callers: dict[SourceKey, Rule | None] = {}

    # -- deciding ---------------------------------------------------------------------------

    def decide(
        self,
        source: ServiceIdentity | SpiffeID | str,
        request: HTTPRequest,
        claims: Claims = NO_CLAIMS,
    ) -> Decision:
        """Whether `source` may make `request`.

        `source` is the peer of the verified TLS connection; text is parsed as a SPIFFE ID.
        Pure and synchronous: no I/O, nothing raised for any input.
        """
        if type(source) is ServiceIdentity and source.trust_domain.name == self._trust_domain:
            key = source.key
        else:
            found = self._caller(source, request)
            if isinstance(found, Decision):
                return found
            key = found
        try:
            rule = self._callers[key]
        except KeyError:
            rule = self._find(key)
        path = plain_path(request.target)
        if (
            path is None
            or request.method == "CONNECT"
            or (
                request.decoded_path is not None
                and request.decoded_path.encode("utf-8", "surrogateescape") != path
            )
            or not self._headers_are_sound(request)
        ):
            return self._decide_closely(rule, key, request, claims)
        if rule is None:
            return self._default(key)
        if rule.static is not None:
            return rule.static
        return self._judge(rule, request, path, request.target[len(path) :], claims)

    def decide_connection(self, source: ServiceIdentity | SpiffeID | str) -> Decision:
        """Whether `source` may open a connection that is not HTTP.

        Rows with permissions refuse, under either default, and so do rows that require a token:
        a connection has neither a path nor a token. A peered caller shows its own certificate.
        """
        identity = self._identity(source)
        if isinstance(identity, Decision):
            return identity
        if not isinstance(identity, ServiceIdentity):
            return self._refused(Reason.NOT_A_SERVICE, f"{identity} is a {identity.kind}")
        key: SourceKey | None = identity.key
        if identity.trust_domain.name != self._trust_domain:
            key = peered_key(identity, self._peers)
        if key is None:
            return self._foreign(identity)
        rule = self._find(key)
        if rule is None:
            return self._default(key)
        if rule.static is not None:
            return rule.static
        if rule.permissions:
            return rule.refused(Reason.L7_OVER_TCP, "permissions cannot be judged for a connection")
        return rule.refused(Reason.JWT_MISSING, "a connection carries no token")

    # -- who --------------------------------------------------------------------------------

    def _identity(
        self, source: ServiceIdentity | SpiffeID | str
    ) -> ServiceIdentity | SpiffeID | Decision:
        if isinstance(source, ServiceIdentity):
            return source
        try:
            parsed = SpiffeID.from_string(source) if isinstance(source, str) else source
            if parsed.kind is Kind.SERVICE:
                return ServiceIdentity.from_spiffe_id(parsed)
        except SpiffeIDError as error:
            return self._refused(Reason.INVALID_IDENTITY, str(error))
        return parsed

    def _caller(
        self, source: ServiceIdentity | SpiffeID | str, request: HTTPRequest
    ) -> SourceKey | Decision:
        identity = self._identity(source)
        if isinstance(identity, Decision):
            return identity
        if identity.trust_domain.name != self._trust_domain:
            return self._foreign(identity)
        if isinstance(identity, ServiceIdentity):
            return identity.key
        if identity.kind is Kind.MESH_GATEWAY and self._peers:
            caller = forwarded_identity(request.values(XFCC))
            key = None if caller is None else peered_key(caller, self._peers)
            if key is not None:
                return key
        return self._refused(Reason.NOT_A_SERVICE, f"{identity} is a {identity.kind}")

    def _foreign(self, identity: ServiceIdentity | SpiffeID) -> Decision:
        return self._refused(
            Reason.FOREIGN_TRUST_DOMAIN,
            f"{identity} is not of trust domain {self._trust_domain}",
        )

    def _find(self, key: SourceKey) -> Rule | None:
        """The row that decides for a caller, remembered: the highest that names or covers it."""
        peer, partition, namespace, _ = key
        best: Rule | None = None
        for candidate in (
            key,
            (peer, partition, namespace, WILDCARD),
            (peer, partition, WILDCARD, WILDCARD),
            (peer, partition, WILDCARD, key[3]),
        ):
            for rule in self._by_source.get(candidate, ())[:1]:
                if best is None or rule.order < best.order:
                    best = rule
        if len(self._callers) >= _REMEMBERED_CALLERS:
            self._callers.clear()
        self._callers[key] = best
        return best

    # -- what -------------------------------------------------------------------------------

    def _headers_are_sound(self, request: HTTPRequest) -> bool:
        hosts = 0
        for name, _ in request.headers:
            if len(name) == 4 and name.lower() == b"host":
                hosts += 1
        if self.normalization.underscores is Underscores.REJECT_REQUEST:
            return hosts < 2 and not any(b"_" in name for name, _ in request.headers)
        return hosts < 2

    def _decide_closely(
        self, rule: Rule | None, key: SourceKey, request: HTTPRequest, claims: Claims
    ) -> Decision:
        """The slow way, for targets with several readings and for malformed requests."""
        if not self._headers_are_sound(request):
            return self._refused(
                Reason.MALFORMED_HEADERS, "more than one Host, or a header name the mesh refuses"
            )
        try:
            path, tail, authority = split_target(request)
            readings = read_path(path, self.normalization, request.decoded_path)
        except MalformedRequestError as error:
            return self._refused(Reason.MALFORMED_TARGET, str(error))
        if authority is not None and not _same_authority(authority, request.values(b"host")):
            return self._refused(
                Reason.MALFORMED_HEADERS, "Host differs from the authority in the request target"
            )
        if rule is None:
            return self._default(key)
        if rule.static is not None:
            return rule.static
        judged = [(name, self._judge(rule, request, read, tail, claims)) for name, read in readings]
        return _combine(judged)

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
            if permission.jwt is not None or rule.jwt is not None:
                unmet = self._unmet(rule.jwt, claims) or self._unmet(permission.jwt, claims)
                if unmet is not None:
                    return permission.refused(unmet)
            if answer:
                return permission.decision
        if rule.jwt is not None and (unmet := self._unmet(rule.jwt, claims)) is not None:
            if self.default_action is Action.ALLOW or not rule.permissions:
                return rule.refused(unmet)
        elif not rule.permissions:
            return rule.allowed
        return self._default_of(rule, request, path, tail)

    # -- tokens -----------------------------------------------------------------------------

    def _unmet(self, requirement: JWTRequirement | None, claims: Claims) -> Reason | None:
        """Why `requirement` is not met, or None when it is. One provider is enough."""
        if requirement is None:
            return None
        if requirement.unknown or not requirement.providers:
            return Reason.UNEVALUABLE
        if any(wanted.name not in self._providers for wanted in requirement.providers):
            return Reason.JWT_PROVIDER_UNKNOWN
        reasons = []
        for wanted in requirement.providers:
            payload = claims.get(wanted.name)
            if not isinstance(payload, Mapping):
                reasons.append(payload if isinstance(payload, Reason) else Reason.JWT_MISSING)
                continue
            issuer = self._providers[wanted.name]
            if not issuer or payload.get("iss") != issuer:
                reasons.append(Reason.JWT_INVALID)
            elif all(claim_matches(payload, claim) for claim in wanted.claims):
                return None
            else:
                reasons.append(Reason.JWT_CLAIMS)
        return max(reasons, key=_JWT_PROGRESS.index)

    # -- the default ------------------------------------------------------------------------

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

    def _default_of(self, rule: Rule, request: HTTPRequest, path: bytes, tail: bytes) -> Decision:
        """A row is about the caller, but none of its permissions is about the request."""
        if self.default_action is Action.ALLOW:
            return rule.default_allowed
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

    def _nearest_rows(self, key: SourceKey) -> tuple[NearMiss, ...]:
        """Rows that do not cover the caller but name it elsewhere, else the first few rows."""
        if not self._rules:
            about = f"{WILDCARD} => {self.service or WILDCARD}"
            return (NearMiss(about, None, "there is no intention for this destination"),)
        peer, partition, namespace, name = key
        caller = "/".join((partition, namespace, name)) + (f" (peer {peer})" if peer else "")
        rows = self._by_name.get(name) or self._rules.values()
        return tuple(
            NearMiss(str(rule.ref), None, f"source is not {caller}")
            for rule in islice(rows, _NEAREST)
        )

    # -- explaining -------------------------------------------------------------------------

    def explain(
        self,
        source: ServiceIdentity | SpiffeID | str,
        request: HTTPRequest | None = None,
        claims: Claims = NO_CLAIMS,
    ) -> Explanation:
        """Why: the decision, every row that covers the caller in order, every reading.

        Without `request`, the decision is that for a connection.
        """
        if request is None:
            decision = self.decide_connection(source)
            key = self._connection_key(source)
        else:
            decision = self.decide(source, request, claims)
            found = self._caller(source, request)
            key = None if isinstance(found, Decision) else found
        deciding = None if key is None else self._find(key)
        readings = () if request is None else self._explain_readings(deciding, request, claims)
        candidates = () if key is None else self._candidates(key)
        return Explanation(
            decision=decision,
            source=str(source),
            default_action=self.default_action,
            candidates=tuple(
                Candidate(
                    rule.ref,
                    decides=rule is deciding,
                    permissions=self._tried(rule, request, readings) if rule is deciding else (),
                )
                for rule in candidates
            ),
            readings=readings,
        )

    def _connection_key(self, source: ServiceIdentity | SpiffeID | str) -> SourceKey | None:
        identity = self._identity(source)
        if not isinstance(identity, ServiceIdentity):
            return None
        if identity.trust_domain.name == self._trust_domain:
            return identity.key
        return peered_key(identity, self._peers)

    def _candidates(self, key: SourceKey) -> list[Rule]:
        peer, partition, namespace, name = key
        covering = {
            (peer, partition, ns, n) for ns in (namespace, WILDCARD) for n in (name, WILDCARD)
        }
        rows = [rule for source in covering for rule in self._by_source.get(source, ())]
        return sorted(rows, key=lambda rule: rule.order)

    def _explain_readings(
        self, rule: Rule | None, request: HTTPRequest, claims: Claims
    ) -> tuple[JudgedReading, ...]:
        try:
            path, tail, _ = split_target(request)
            readings = read_path(path, self.normalization, request.decoded_path)
        except MalformedRequestError:
            return ()
        return tuple(
            JudgedReading(
                name,
                read,
                tail,
                None
                if rule is None or rule.static is not None
                else self._judge(rule, request, read, tail, claims),
            )
            for name, read in readings
        )

    def _tried(
        self, rule: Rule, request: HTTPRequest | None, readings: tuple[JudgedReading, ...]
    ) -> tuple[TriedPermission, ...]:
        if request is None:
            return ()
        return tuple(
            _try_permission(permission, request, reading)
            for reading in readings
            for permission in rule.permissions
            if not _decided_before(permission, reading)
        )

    def __repr__(self) -> str:
        return (
            f"<Policy {self.revision} for {self.service or 'any service'}: "
            f"{len(self.intentions)} intentions, default {self.default_action}>"
        )


_JWT_PROGRESS = (Reason.JWT_MISSING, Reason.JWT_INVALID, Reason.JWT_CLAIMS)


def _same_authority(authority: bytes, hosts: Iterable[bytes]) -> bool:
    return all(host.lower() == authority.lower() for host in hosts)


def _decided_before(permission: CompiledPermission, reading: JudgedReading) -> bool:
    decided = None if reading.decision is None else reading.decision.permission
    return decided is not None and permission.index > decided


def _try_permission(
    permission: CompiledPermission, request: HTTPRequest, reading: JudgedReading
) -> TriedPermission:
    answer = permission.matches(request, reading.path, reading.tail)
    failed = "" if answer else permission.matcher.first_failure(request, reading.path, reading.tail)
    action = Action.ALLOW if permission.allow else Action.DENY
    return TriedPermission(reading.name, permission.index, action, answer, failed)


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
) -> Policy:
    """Compile the rows of one destination into a `Policy`.

    `intentions` may come in any order. With `service`, rows of other destinations are left out
    (said in `problems`). `trust_domain` is our own. `previous` is a policy whose compiled rows are
    reused where a row is unchanged, which makes a change of one row among thousands cheap.
    Nothing about a row can make this fail; SpiffeIDError for a bad `trust_domain`.
    """
    domain = TrustDomain(trust_domain) if isinstance(trust_domain, str) else trust_domain
    bundles = tuple(peers)
    providers = {provider.name: provider.issuer for provider in jwt_providers}
    known = _reusable(previous, normalization)
    problems: list[str] = []
    known_peers = set(index_peers(bundles).values())
    rows = [
        row
        for row in in_precedence_order(list(intentions))
        if _applies(row, service, known_peers, problems)
    ]
    revision = _revision(
        rows, known, default_action, domain, normalization, sorted(providers.items()), bundles
    )
    rules: dict[Intention, Rule] = {}
    for order, row in enumerate(rows):
        rules.setdefault(row, compile_rule(row, order, revision, normalization, known.get(row)))
    for rule in rules.values():
        problems += rule.problems
    return Policy(
        rules,
        default_action=default_action,
        trust_domain=domain,
        service=service,
        normalization=normalization,
        providers=providers,
        peers=bundles,
        problems=tuple(dict.fromkeys(problems)),
        revision=revision,
    )


def _reusable(previous: Policy | None, normalization: Normalization) -> Mapping[Intention, Rule]:
    if previous is None or previous.normalization != normalization:
        return {}
    return previous._rules


def _applies(row: Intention, service: str, peers: set[str], problems: list[str]) -> bool:
    if service and row.destination_name not in {service, WILDCARD}:
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


def _revision(rows: list[Intention], known: Mapping[Intention, Rule], *rest: object) -> str:
    """Twelve hex digits over all that decides."""
    digest = hashlib.sha256(repr(rest).encode("utf-8", "surrogateescape"))
    for row in rows:
        rule = known.get(row)
        digest.update(rule.digest if rule is not None else row_digest(row))
    return digest.hexdigest()[:12]


__all__ = [
    "NO_CLAIMS",
    "Claims",
    "JWTProvider",
    "PeerBundle",
    "Policy",
    "compile_policy",
]
