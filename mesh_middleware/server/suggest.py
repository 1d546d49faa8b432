"""For development: with a refusal, the intention that would have allowed it."""

from __future__ import annotations

import json
import logging
from typing import Any

from mesh_middleware.errors import SpiffeIDError
from mesh_middleware.observe.decisions import logger as decision_logger
from mesh_middleware.policy.decision import Reason
from mesh_middleware.policy.spiffe import ServiceIdentity

logger = logging.getLogger("mesh_middleware.server")

_BY_RULE = frozenset(
    {Reason.DEFAULT_DENY, Reason.INTENTION_DENY, Reason.PERMISSION_DENY, Reason.L7_OVER_TCP}
)


class SuggestionHandler(logging.Handler):
    """Follows the decision log; after a refusal by a rule it logs what to add to the intentions."""

    def emit(self, record: logging.LogRecord) -> None:
        """One record of the decision log."""
        entry = suggestion(vars(record))
        if entry is not None:
            logger.warning("this intention would allow it: %s", json.dumps(entry))

    @classmethod
    def install(cls) -> None:
        """Follow the process's decision log; nothing happens when it is followed already."""
        if not any(isinstance(handler, cls) for handler in decision_logger.handlers):
            decision_logger.addHandler(cls())


def suggestion(fields: dict[str, Any]) -> dict[str, Any] | None:
    """The config entry that allows the request of a decision record; None when none can.

    With path and method where the row that refused has permissions, else for the whole service.
    """
    reason, source = fields.get("mesh_reason"), fields.get("mesh_source")
    if fields.get("mesh_allowed") is not False or reason not in _BY_RULE or source is None:
        return None
    try:
        caller = ServiceIdentity.from_string(source)
    except SpiffeIDError:
        return None
    row: dict[str, Any] = {"Name": caller.service}
    if caller.namespace != "default":
        row["Namespace"] = caller.namespace
    if reason == Reason.PERMISSION_DENY or "permission" in (fields.get("mesh_detail") or ""):
        http = {"PathExact": fields["mesh_path"], "Methods": [fields["mesh_method"]]}
        row["Permissions"] = [{"Action": "allow", "HTTP": http}]
    else:
        row["Action"] = "allow"
    return {"Kind": "service-intentions", "Name": fields["mesh_service"], "Sources": [row]}
