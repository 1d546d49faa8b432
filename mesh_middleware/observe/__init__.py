"""Tell: logs made from decisions."""

from mesh_middleware.observe.decisions import DecisionLog, decision_log, log_fields

__all__ = ["DecisionLog", "decision_log", "log_fields"]
