"""What both middlewares ask: may this request go on, and what may its application see.

An `Enforcer` knows no server and no way to answer. It is asked about a scope and one snapshot of
the mesh state, in this order:

1. An exempt path passes (HTTP, GET or HEAD, exactly the configured path).
2. A state that cannot decide refuses with 503: a fault, or no policy yet.
3. No proven caller (`middleware.peer`): 403.
4. The policy decides: 403, or 400 for what is malformed.

It is asked again about what is still open when the state changes (`middleware.live`, `live_wsgi`).
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable
from dataclasses import replace
from typing import Any, Final

from mesh_middleware._types import Environ, Scope
from mesh_middleware.errors import ConfigError
from mesh_middleware.middleware.audit import Audit, AuditRule
from mesh_middleware.middleware.headers import visible_headers
from mesh_middleware.middleware.live import Ending, Question
from mesh_middleware.middleware.peer import (
    ENFORCED,
    EXTENSION,
    Caller,
    ChainVerifier,
    Enforcement,
    client_chain,
    handshake_caller,
)
from mesh_middleware.middleware.proxies import IdentitySource, Sources
from mesh_middleware.middleware.refusal import Refusal, refuse, request_id_of
from mesh_middleware.middleware.target import (
    PLAIN_METHODS,
    has_sound_method,
    routed_requests,
    server_root,
    wire_request,
)
from mesh_middleware.observe.counts import counts
from mesh_middleware.observe.decisions import allowed, decision_log, log_fields, logger
from mesh_middleware.policy.decision import Decision, Reason
from mesh_middleware.policy.engine import NO_CLAIMS, Policy
from mesh_middleware.policy.request import PLAIN_TARGET, Headers, HTTPRequest, Underscores
from mesh_middleware.state import MeshState, StateSource
from mesh_middleware.tls.contexts import VerifiedPeer
from mesh_middleware.tls.tokens import RequestClaims

_OF_CONNECTION: Final = frozenset(
    {Reason.CERTIFICATE_EXPIRED, Reason.ROOT_NOT_TRUSTED, Reason.FOREIGN_TRUST_DOMAIN}
)
"""What a caller can only mend by connecting anew."""

_NO_ROOTS: Final = frozenset({""})

_UNROOTED: Final[dict[str, Scope]] = {
    "http": {"type": "http", "path": ""},
    "websocket": {"type": "websocket", "path": ""},
}
"""All that deciding again needs of a scope without a root path."""

_NO_POLICY: Final = Decision(
    allowed=False,
    reason=Reason.NO_POLICY,
    detail="nothing was learnt from the Consul agent yet; in tests, mesh_for gives the rules",
)
_NOBODY: Final = (
    "the connection shows no certificate of the mesh; serve with mesh-middleware run, call with "
    "mesh-middleware call; in tests, as_service"
)
_EXEMPT: Final = Decision(allowed=True, reason=Reason.EXEMPT_PATH)


class Enforcer:
    """Decides the requests of one service; a `MeshMiddleware` says what the arguments mean.

    `app_root`: a root path that the application sets in scopes of its own. ConfigError for wrong
    arguments.
    """

    def __init__(
        self,
        *,
        service: str | None,
        mesh: StateSource | None,
        exempt_paths: Iterable[str],
        enforcement: str | None,
        audit: Iterable[AuditRule],
        identity_from: Iterable[IdentitySource],
        app_root: str = "",
    ) -> None:
        if (service is None) is (mesh is None):
            raise ConfigError("a middleware takes service='name' or mesh=manager, one of the two")
        if service == "":
            raise ConfigError("service must be the name of a Consul service, not empty")
        self._service = service or ""
        self._mesh = mesh
        self._exempt = exempt_targets(exempt_paths)
        self._audit = Audit.of(enforcement, audit)
        self._unsaid = True
        self._app_root = app_root
        self._chains = ChainVerifier()
        self._sources = Sources(identity_from)

    # -- inside of another middleware --------------------------------------------------------

    def covered(self, mark: Enforcement, scope: Scope) -> bool:
        """Whether what an outer middleware decided holds here.

        It does not know a root path that was set between it and this one. In audit it let the
        request pass on purpose.
        """
        return mark.roots >= self._roots(scope) or not mark.decision.allowed

    def mark(self, mark: object, scope: Scope, method: str) -> Enforcement | None:
        """What an outer middleware decided about this very request for this service."""
        if type(mark) is not Enforcement:
            return None
        service = self._service if self._mesh is None else self._mesh.state.service
        if mark.service != service:
            raise ConfigError(
                f"a MeshMiddleware for {service!r} stands inside of one for {mark.service!r}: "
                "one application is one service"
            )
        same = mark.path == scope["path"] and mark.request.method == method
        return mark if same else None

    # -- enforcing --------------------------------------------------------------------------

    def enforce(  # noqa: C901 - in one frame: each call costs every request
        self,
        scope: Scope,
        method: str,
        extensions: dict[str, Any],
        ours: dict[str, Any],
        state: MeshState,
        *,
        before: Enforcement | None = None,
        environ: Environ | None = None,
    ) -> Refusal | Question | None:
        """Decide, then make `scope` what the application may see; or say how to refuse.

        What was decided about, or None for an exempt path, which nothing can end. `ours`: what our
        own servers and middlewares say in `extensions`. `before`: what a middleware around this one
        decided, who has made the scope such already. `environ`: what `scope` was made of, if it is
        of WSGI.
        """
        if self._unsaid:
            self.say_audit(state)
        if self._sources:
            extensions = self._told(scope, extensions, ours, state, environ)
        tokens = state.tokens
        request = before.request if before else wire_request(scope, method, ours.get("target"))
        claims = None if tokens is None or before else tokens.claims(request)
        known = before.claims if before else NO_CLAIMS if claims is None else claims
        asked = Question(scope, request, extensions, ours, known)
        caller: Caller | None = None
        kind = scope["type"]
        if self._exempt and kind == "http" and self._is_exempt(scope, request):
            decision = _EXEMPT
        else:
            caller, decision = self._decide(asked, state)
            asked.caller = caller
        if not decision.allowed:
            refusal = self._refused(asked, decision, state)
            if refusal is not None:
                return refusal
        elif before is None:
            if counts.on:
                counts.decided("allowed", decision, caller)
            if logger.isEnabledFor(logging.DEBUG):
                allowed(self._fields(asked, decision, state))
        if before is None:
            scope["headers"] = _visible(scope, state, claims)
        roots = self._roots(scope)
        mark = Enforcement(
            self._service or state.service,
            decision,
            caller,
            request=request,
            claims=known,
            path=scope["path"],
            roots=roots,
        )
        # New dicts: a server may share its own between the requests of a connection.
        scope["extensions"] = {**extensions, EXTENSION: {**ours, ENFORCED: mark}}
        if decision is _EXEMPT:
            return None
        asked.scope = _UNROOTED[kind] if roots is _NO_ROOTS else dict(scope)
        return asked

    def _refused(self, asked: Question, decision: Decision, state: MeshState) -> Refusal | None:
        """Tell of a decision that is not to allow. None when the request goes on all the same."""
        request_id = request_id_of(asked.scope["headers"])
        fields = self._fields(asked, decision, state)
        audited = self._passes(asked, asked.caller, decision, state)
        decision_log.refused({**fields, "mesh_request_id": request_id}, enforced=not audited)
        if counts.on:
            outcome = "audited" if audited else "refused"
            counts.decided(outcome, decision, asked.caller)
            counts.remember(outcome, fields)
        if audited:
            return None
        status = 503 if state.fault is not None else None
        ours = isinstance(asked.ours.get("peer"), VerifiedPeer)
        last = ours and decision.reason in _OF_CONNECTION
        return refuse(decision.reason, request_id, status=status, last=last)

    # -- deciding again: `live.Judge` ---------------------------------------------------------

    def judge_again(self, asked: Question, state: MeshState) -> Ending | None:
        """Why what is open must end under `state`; None while it may go on."""
        caller, decision = self._decide(asked, state)
        if decision.allowed or self._passes(asked, caller, decision, state):
            return None
        request_id = request_id_of(asked.request.headers)
        status = 503 if state.fault is not None else None
        return Ending(decision, refuse(decision.reason, request_id, status=status))

    def judged_until(self, asked: Question) -> float:
        """Unix seconds until which the proof of the caller holds by itself."""
        peer = asked.ours.get("peer")
        if isinstance(peer, VerifiedPeer):
            return peer.certificate.not_after
        return self._chains.until(asked.extensions.get("tls"), time.time())

    def ended(self, asked: Question, decision: Decision, state: MeshState) -> None:
        """Tell the log that it was cut."""
        fields = self._fields(asked, decision, state)
        decision_log.refused(fields, verb="ended")
        if counts.on:
            counts.decided("ended", decision, asked.caller)
            counts.remember("ended", fields)

    # -- who tells of the caller -------------------------------------------------------------

    def _told(
        self,
        scope: Scope,
        extensions: dict[str, Any],
        ours: dict[str, Any],
        state: MeshState,
        environ: Environ | None,
    ) -> dict[str, Any]:
        """`extensions` with whom a source tells, where the connection itself proves nobody."""
        tls = self._sources.tls(scope, state, environ)
        if tls is None or isinstance(ours.get("peer"), VerifiedPeer):
            return extensions
        return extensions if client_chain(extensions.get("tls")) else {**extensions, "tls": tls}

    # -- what is not enforced -----------------------------------------------------------------

    def _passes(
        self, asked: Question, caller: Caller | None, decision: Decision, state: MeshState
    ) -> bool:
        """Whether a refused request goes on all the same, because it is in audit."""
        audit = self._audit.under(state.enforcement)
        if not audit:
            return False
        roots = self._roots(asked.scope)
        requests = (asked.request, *routed_requests(asked.scope, asked.request, roots))
        return audit.passes(decision, caller, state.fault, requests)

    def say_audit(self, state: MeshState) -> None:
        """Warn, once, that not everything is enforced, if so.

        When it is used first: at construction nobody may have set logging up yet.
        """
        if not self._unsaid:
            return
        self._unsaid = False
        audit, service = self._audit.under(state.enforcement), self._service or state.service
        if audit:
            logger.warning("%s: %s", service, audit, extra={"mesh_service": service})

    def _fields(self, asked: Question, decision: Decision, state: MeshState) -> dict[str, Any]:
        return log_fields(
            decision,
            service=self._service or state.service,
            source=asked.caller,
            method=asked.request.method,
            target=asked.request.target,
            protocol=asked.scope["type"],
        )

    # -- deciding ---------------------------------------------------------------------------

    def _decide(self, asked: Question, state: MeshState) -> tuple[Caller | None, Decision]:
        policy, request = state.policy, asked.request
        if state.fault is not None:
            return None, Decision(allowed=False, reason=state.fault)
        if policy is None:
            return None, _NO_POLICY
        peer = asked.ours.get("peer")
        source: Caller | Reason
        if isinstance(peer, VerifiedPeer):
            source = handshake_caller(peer, state, time.time())
        else:
            source = self._chains.caller(asked.extensions.get("tls"), state, time.time())
        if isinstance(source, Reason):
            detail = _NOBODY if source is Reason.NO_IDENTITY else ""
            return None, Decision(allowed=False, reason=source, detail=detail)
        if request.method not in PLAIN_METHODS and not has_sound_method(request):
            return source, Decision(allowed=False, reason=Reason.MALFORMED_TARGET)
        decision = policy.decide(source, request, asked.claims)
        if decision.allowed and self._roots(asked.scope) is not _NO_ROOTS:
            decision = self._decide_routed(asked, source, policy, decision)
        # The connection may be a gateway's: who calls is then whom it speaks for.
        return policy.caller_of(source, request) if policy.peered else source, decision

    def _decide_routed(
        self, asked: Question, source: Caller, policy: Policy, decision: Decision
    ) -> Decision:
        """`decision`, unless a rule denies the path that is left when a root path is taken off."""
        roots = self._roots(asked.scope)
        for routed in routed_requests(asked.scope, asked.request, roots):
            other = policy.decide(source, routed, asked.claims)
            if not other.allowed and other.reason is not Reason.DEFAULT_DENY:
                return replace(other, detail="so decided for the path without the root path")
        return decision

    def _is_exempt(self, scope: Scope, request: HTTPRequest) -> bool:
        return (
            request.target in self._exempt
            and request.method in ("GET", "HEAD")
            and request.decoded_path == self._exempt[request.target]
            and not any(routed_requests(scope, request, self._roots(scope)))
        )

    def _roots(self, scope: Scope) -> frozenset[str]:
        """The root paths that a router below may take off the path."""
        if not (scope.get("root_path") or self._app_root):
            return _NO_ROOTS
        return frozenset((server_root(scope), self._app_root))


def _visible(scope: Scope, state: MeshState, claims: RequestClaims | None) -> Headers:
    """The headers that the application may see.

    Always a list of our own: uvicorn's httptools protocol adds trailers to its list later, when
    rules and this have seen it.
    """
    policy, tokens = state.policy, state.tokens
    drop = policy is not None and policy.normalization.underscores is Underscores.DROP_HEADER
    headers = visible_headers(scope["headers"], drop_underscores=drop)
    return headers if tokens is None else tokens.scrub(headers, claims)


def exempt_targets(paths: Iterable[str]) -> dict[bytes, str]:
    """Targets that pass undecided, and their paths. ConfigError for a path with two readings."""
    if isinstance(paths, str):
        raise ConfigError("exempt_paths takes a list of paths, such as ['/health/live']")
    targets = {}
    for path in paths:
        target = path.encode("utf-8", "surrogateescape")
        plain = PLAIN_TARGET.fullmatch(target)
        if plain is None or plain[1] != target:
            raise ConfigError(
                f"exempt path {path!r} must be one plain path such as '/health/live': "
                "without '?', '%', '//', '.' segments or wildcards that would need escaping"
            )
        targets[target] = path
    return targets
