"""What happens to requests that no intention matches: the mesh's default action, found out.

Two things tell it, and each can be wrong alone. The header ``X-Consul-Default-Acl-Policy`` is the
agent's ACL default, which ``default_intention_policy`` overrides silently. The *probe* asks the
agent to authorize a caller in a namespace that cannot exist: on Consul's open edition no intention
matches it, so the answer is the default.

====================  ==========================  ============================================
setting               probe and header            default action
====================  ==========================  ============================================
given                 any                         the setting
none                  all that answered: allow    allow
none                  one of them: deny           deny
none                  probe failed, no deny       unknown, or what it was before
none                  refused after an answer     what it was before
none                  nobody can answer           deny
====================  ==========================  ============================================

Source: Consul, /v1/agent/connect/authorize, ``default_intention_policy``.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from mesh_middleware.consul.client import Answer
from mesh_middleware.consul.decode import decode_authorize
from mesh_middleware.errors import ConsulError
from mesh_middleware.policy.intentions import Action
from mesh_middleware.policy.spiffe import TrustDomain

HEADER = "x-consul-default-acl-policy"

PROBE_SECONDS = 60.0
"""How often the probe is repeated while nothing suggests a change."""


class Silence(Enum):
    """Why the probe gave no action."""

    NOT_ASKED = "not asked yet"
    CANNOT = "no answer"
    """It was refused, or an intention matched: asking again will not help soon."""


Probe = Action | Silence


@dataclass(frozen=True, slots=True)
class DefaultAction:
    """What is known of the default action; `resolve` applies the table above."""

    setting: Action | None = None
    probe: Probe = Silence.NOT_ASKED
    header: Action | None = None

    def resolve(self) -> Action | None:
        """The default action; None while it is unknown."""
        if self.setting is not None:
            return self.setting
        if Action.DENY in (self.probe, self.header):
            return Action.DENY
        if self.probe is Silence.NOT_ASKED:
            return None
        return Action.ALLOW if Action.ALLOW in (self.probe, self.header) else Action.DENY

    def __str__(self) -> str:
        if self.setting is not None:
            return f"{self.setting} (by setting)"
        probe = self.probe if isinstance(self.probe, Action) else self.probe.value
        found = f"probe: {probe}, header: {self.header or 'none'}"
        if self.probe is Silence.CANNOT and self.header is None:
            found += "; set MESH_DEFAULT_ACTION to say it yourself"
        return f"{self.resolve() or 'unknown'} ({found})"


def header_action(answer: Answer) -> Action | None:
    """What an answer's header says; None when there is no header. Unknown words are deny."""
    text = answer.headers.get(HEADER)
    if text is None:
        return None
    return Action.ALLOW if text.strip().lower() == "allow" else Action.DENY


def probe_uri(trust_domain: TrustDomain) -> str:
    """A caller that no intention of the open edition matches."""
    return f"spiffe://{trust_domain}/ns/zz-probe/dc/x/svc/x"


def probe_result(answer: Answer) -> Probe:
    """What an answer to the probe says. DecodeError when it cannot be read."""
    action = decode_authorize(answer.json)
    return Silence.CANNOT if action is None else action


def is_final(error: Exception) -> bool:
    """Whether this agent will not answer the probe: refused, unknown endpoint or identity."""
    return isinstance(error, ConsulError) and error.status in {400, 401, 403, 404, 405}
