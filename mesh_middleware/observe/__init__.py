"""Tell: log records, metrics and traces, each made from one decision."""
