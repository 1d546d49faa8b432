"""What happens to what the rules refuse: it is refused, or in audit said, counted and passed on."""

from __future__ import annotations

from enum import StrEnum
from typing import Final

from mesh_middleware.policy.decision import Reason

AUDITED: Final = frozenset(
    {
        Reason.INTENTION_DENY,
        Reason.PERMISSION_DENY,
        Reason.DEFAULT_DENY,
        Reason.L7_OVER_TCP,
        Reason.UNEVALUABLE,
        Reason.AMBIGUOUS_PATH,
        Reason.JWT_MISSING,
        Reason.JWT_INVALID,
        Reason.JWT_CLAIMS,
        Reason.JWT_PROVIDER_UNKNOWN,
    }
)
"""The reasons that audit passes on: those that a rule gives. Every other reason refuses always."""


class EnforcementMode(StrEnum):
    """What happens to a request or connection that the rules refuse."""

    ENFORCE = "enforce"
    AUDIT = "audit"
