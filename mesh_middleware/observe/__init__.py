"""Tell: logs made from decisions."""

from mesh_middleware.observe.decisions import DecisionLog, decisions, log_fields

__all__ = ["DecisionLog", "decisions", "log_fields"]
