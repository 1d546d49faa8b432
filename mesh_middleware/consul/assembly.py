"""From parts that arrive one by one to whole states: pure, no clock, no agent.

Roots and leaf are published together, and only if they fit: the leaf must be ours and lead to one
of the roots. A part that does not fit what we have waits for its counterpart (after a change of
trust domain the roots come first, the leaf up to 30 seconds later); until then the old state
stays. The tries, first hit wins:

1. newest roots, newest leaf
2. newest roots, leaf in use (a rotation whose new leaf is still to come)
3. roots in use, newest leaf
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from types import MappingProxyType

from mesh_middleware.config import MeshConfig
from mesh_middleware.errors import DecodeError
from mesh_middleware.policy.decision import Reason
from mesh_middleware.policy.engine import Policy, compile_policy
from mesh_middleware.policy.intentions import Action, Intention
from mesh_middleware.policy.jwt import JWTProvider
from mesh_middleware.policy.peering import PeerBundle
from mesh_middleware.policy.request import Normalization
from mesh_middleware.policy.spiffe import DEFAULT, TrustDomain
from mesh_middleware.state import MeshState
from mesh_middleware.tls.certificates import X509SVID, TrustBundle
from mesh_middleware.tls.contexts import TLSContexts
from mesh_middleware.tls.tokens import TokenVerifier


@dataclass(frozen=True, slots=True)
class Joined:
    """Roots and leaf that fit, and what is left over, with the reason."""

    bundle: TrustBundle | None
    svid: X509SVID | None
    problems: tuple[tuple[str, str], ...] = ()
    root: bytes | None = None
    """Which of the roots the leaf leads to."""


@dataclass(frozen=True, slots=True)
class _Inputs:
    """What a policy is compiled from."""

    intentions: tuple[Intention, ...]
    default_action: Action
    trust_domain: TrustDomain
    normalization: Normalization
    jwt_providers: tuple[JWTProvider, ...]


class Assembly:
    """Holds the newest of each part and makes the next `MeshState` of them.

    The `take_…` methods note a part and the time (unix seconds) of its answer; `next` gives the
    state that follows from all of them. `pause` is called while many rows are compiled.
    """

    def __init__(
        self,
        config: MeshConfig,
        peers: tuple[PeerBundle, ...] = (),
        *,
        pause: Callable[[], object] | None = None,
    ) -> None:
        self._config = config
        self._peers = peers
        self._pause = pause
        self._bundle: TrustBundle | None = None
        self._svid: X509SVID | None = None
        self._intentions: tuple[Intention, ...] | None = None
        self._default: Action | None = None
        self._normalization: Normalization | None = None
        self._tokens: TokenVerifier | None = None
        self._compiled: _Inputs | None = None
        self._undecodable: set[str] = set()
        self._updated: dict[str, float] = {}
        self.problems: dict[str, str] = {}

    @property
    def bundle(self) -> TrustBundle | None:
        """The newest roots, published or not."""
        return self._bundle

    @property
    def waiting(self) -> bool:
        """Whether a part does not fit yet."""
        return bool(self.problems)

    @property
    def has_intentions(self) -> bool:
        """Whether intentions were ever read."""
        return self._intentions is not None

    def touch(self, part: str, now: float) -> None:
        """The agent gave a good answer for `part`, whether or not it said something new."""
        self._updated[part] = now
        self._undecodable.discard(part)

    def take_roots(self, bundle: TrustBundle, now: float) -> None:
        """The newest roots. DecodeError when they are not of the pinned trust domain."""
        pinned = self._config.trust_domain
        if pinned is not None and bundle.trust_domain.name != pinned:
            raise DecodeError(
                f"the agent's trust domain {bundle.trust_domain} is not the pinned {pinned} "
                "(MESH_TRUST_DOMAIN)",
                field="TrustDomain",
            )
        self._bundle = bundle
        self.touch("roots", now)

    def take_leaf(self, svid: X509SVID, now: float) -> None:
        """The newest leaf. DecodeError when it is not ours."""
        identity, config = svid.identity, self._config
        wanted = (
            config.service,
            config.namespace or identity.namespace,
            (config.partition or identity.partition).lower(),
        )
        if (identity.service, identity.namespace, identity.partition.lower()) != wanted:
            raise DecodeError(f"the leaf is for {identity}, not for {_name(config)}", field="leaf")
        self._svid = svid
        self.touch("leaf", now)

    def take_intentions(self, intentions: list[Intention], now: float) -> None:
        """The newest list."""
        rows = tuple(intentions)
        if rows != self._intentions:
            self._intentions = rows
        self.touch("intentions", now)

    def take_normalization(self, normalization: Normalization, now: float) -> None:
        """What the newest mesh entry says, or its absence."""
        self._normalization = normalization
        self.touch("mesh entry", now)

    def take_undecodable(self, part: str) -> None:
        """An answer could not be read that says what is allowed: nobody knows that now."""
        self._undecodable.add(part)
        self._updated.pop(part, None)

    def take_default(self, action: Action, now: float) -> None:
        """The newest default action."""
        self._default = action
        self.touch("default action", now)

    def take_tokens(self, tokens: TokenVerifier | None) -> None:
        """The newest providers and keys of the tokens that rules ask for."""
        self._tokens = tokens

    def next(self, state: MeshState, now: float) -> MeshState:
        """The state that follows `state`: with the next generation when something changed.

        The same generation comes back, perhaps with newer `updated`, when nothing did.
        """
        changed = self._with_policy(self._with_tls(state, now), now)
        updated = MappingProxyType(dict(self._updated))
        if _same(changed, state):
            return state if state.updated == updated else replace(state, updated=updated)
        return replace(changed, generation=state.generation + 1, updated=updated)

    # -- roots and leaf -----------------------------------------------------------------------

    def _with_tls(self, state: MeshState, now: float) -> MeshState:
        joined = self._join(state, now)
        problems = dict(joined.problems)
        bundle, svid = joined.bundle, joined.svid
        if bundle is None or svid is None:
            self.problems = problems
            # Before the first leaf the roots alone are worth showing: callers can be judged.
            return state if state.contexts is not None else replace(state, bundle=self._bundle)
        contexts = state.contexts
        if contexts is None or not _same_tls(state, bundle, svid):
            try:
                contexts = TLSContexts(
                    svid,
                    bundle,
                    generation=state.generation + 1,
                    gateways=bool(self._peers),
                    root=joined.root,
                    like=state.contexts,
                )
            except DecodeError as error:
                self.problems = {**problems, "leaf": str(error)}
                return state
            state = replace(state, bundle=bundle, svid=svid, contexts=contexts)
        self.problems = problems
        return state

    def _join(self, state: MeshState, now: float) -> Joined:
        newest, leaf = self._bundle, self._svid
        used_bundle = state.bundle if state.contexts is not None else None
        if newest is None or leaf is None:
            return Joined(None, None)
        if root := root_of(newest, leaf, now):
            return Joined(newest, leaf, root=root)
        if state.svid is not None and (root := root_of(newest, state.svid, now)):
            return Joined(newest, state.svid, (("leaf", misfit(newest, leaf, now)),), root)
        if used_bundle is not None and (root := root_of(used_bundle, leaf, now)):
            text = f"{misfit(newest, leaf, now)}; the roots in use stay until a leaf fits"
            return Joined(used_bundle, leaf, (("roots", text),), root)
        return Joined(None, None, (("leaf", misfit(newest, leaf, now)),))

    # -- policy -------------------------------------------------------------------------------

    def _with_policy(self, state: MeshState, now: float) -> MeshState:
        policy, inputs = state.policy, self._inputs(state)
        if inputs is not None and (policy is None or inputs != self._compiled):
            policy = self._compile(inputs, policy)  # lists are compared row by row
            self._compiled = inputs
        return replace(state, policy=policy, tokens=self._tokens, fault=self._fault(now))

    def _inputs(self, state: MeshState) -> _Inputs | None:
        """All that a policy needs; None while a part of it is not known."""
        intentions, default, normalization = self._intentions, self._default, self._normalization
        if intentions is None or default is None or normalization is None or state.bundle is None:
            return None
        issuers = () if self._tokens is None else self._tokens.issuers
        return _Inputs(intentions, default, state.bundle.trust_domain, normalization, issuers)

    def _compile(self, inputs: _Inputs, previous: Policy | None) -> Policy:
        policy = compile_policy(
            inputs.intentions,
            default_action=inputs.default_action,
            trust_domain=inputs.trust_domain,
            service=self._config.service,
            normalization=inputs.normalization,
            jwt_providers=inputs.jwt_providers,
            peers=self._peers,
            previous=previous,
            pause=self._pause,
        )
        same = previous is not None and policy.fingerprint == previous.fingerprint
        return previous if same and previous is not None else policy

    def _fault(self, now: float) -> Reason | None:
        if self._undecodable:
            return Reason.POLICY_UNDECODABLE
        seen = self._updated.get("intentions")
        if seen is not None and now - seen > self._config.max_staleness_seconds:
            return Reason.STALE_POLICY
        return None


def root_of(bundle: TrustBundle, svid: X509SVID, now: float) -> bytes | None:
    """Which root of the bundle `svid` leads to at `now`; None when they do not fit.

    They must be of one trust domain. An expired leaf is judged at the last moment of its life: it
    is said to be expired elsewhere (`MeshState.missing`), and should not keep new roots out.
    """
    if svid.identity.trust_domain != bundle.trust_domain:
        return None
    return bundle.root_of(svid.certificates, min(now, svid.not_after))


def misfit(bundle: TrustBundle, svid: X509SVID, now: float) -> str:
    """Why the newest roots and the newest leaf cannot be used together."""
    ours, theirs = svid.identity.trust_domain, bundle.trust_domain
    if ours != theirs:
        return f"the leaf is of trust domain {ours}, the roots are of {theirs}"
    if now < svid.not_before:
        return (
            f"the leaf is not valid before {svid.not_before:.0f}, and it is {now:.0f} here; "
            "check this machine's clock"
        )
    return "the leaf does not lead to any of the agent's roots"


def _same(one: MeshState, other: MeshState) -> bool:
    return (
        one.bundle is other.bundle
        and one.svid is other.svid
        and one.contexts is other.contexts
        and one.policy is other.policy
        and one.tokens is other.tokens
        and one.fault is other.fault
    )


def _same_tls(state: MeshState, bundle: TrustBundle, svid: X509SVID) -> bool:
    return (
        state.bundle is not None
        and state.svid is not None
        and state.bundle.trust_domain == bundle.trust_domain
        and state.bundle.fingerprints == bundle.fingerprints
        and state.svid.certificates == svid.certificates
    )


def _name(config: MeshConfig) -> str:
    return f"{config.partition or DEFAULT}/{config.namespace or DEFAULT}/{config.service}"
