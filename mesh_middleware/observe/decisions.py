"""The decision log: one record per refusal, within bounds; allowed requests only at DEBUG.

What a peer sends goes into a log only where it cannot do harm: the path without its query, with
control characters escaped, cut at `MAX_TEXT` characters. Never a query, a token or a header.

Refusals of one caller for one reason come in bursts, so each (reason, source) has a token bucket,
and all of them share another. What was left out is counted and said with the next record, or
after `SUMMARY_SECONDS`.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from mesh_middleware._text import one_line
from mesh_middleware.policy.decision import Decision

logger = logging.getLogger("mesh_middleware.decisions")

MAX_TEXT: Final = 200
BURST: Final = 5
PER_SECOND: Final = 1.0
TOTAL_BURST: Final = 100
TOTAL_PER_SECOND: Final = 20.0
MAX_KEYS: Final = 1000
SUMMARY_SECONDS: Final = 10.0


def log_fields(
    decision: Decision,
    *,
    service: str,
    source: object = None,
    method: str = "",
    target: bytes = b"",
    request_id: str = "",
    protocol: str = "http",
) -> dict[str, Any]:
    """The fields of a log record about `decision`, ready for ``extra=``; the same for every use.

    `service` is the one that was called, `source` who called (None: nobody proved). `target` is
    as on the wire; its query is left out. Values are text, numbers, booleans or None.
    """
    return {
        "mesh_allowed": decision.allowed,
        "mesh_reason": str(decision.reason),
        "mesh_service": service,
        "mesh_source": None if source is None else printable(str(source)),
        "mesh_protocol": protocol,
        "mesh_method": printable(method),
        "mesh_path": printable(target.partition(b"?")[0].decode("latin-1")),
        "mesh_request_id": request_id or None,
        "mesh_revision": decision.revision or None,
        "mesh_intention": None if decision.intention is None else one_line(str(decision.intention)),
        "mesh_permission": decision.permission,
        "mesh_reading": decision.reading,
        "mesh_detail": printable(
            "; ".join((decision.detail, *map(str, decision.nearest))).strip("; ")
        )
        or None,
    }


def printable(text: str) -> str:
    """`text` for a log line: ASCII, control characters and ``\\`` escaped, at most `MAX_TEXT`."""
    cut = text[:MAX_TEXT] + ("..." if len(text) > MAX_TEXT else "")
    return cut.encode("unicode_escape").decode("ascii")


@dataclass(slots=True)
class _Bucket:
    tokens: float
    at: float
    left_out: int = 0

    def take(self, now: float, burst: float, per_second: float) -> bool:
        self.tokens = min(burst, self.tokens + max(0.0, now - self.at) * per_second)
        self.at = now
        if self.tokens < 1:
            return False
        self.tokens -= 1
        return True


class DecisionLog:
    """Writes records about refusals within bounds. Safe from any thread.

    `clock`: seconds that never go back.
    """

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._total = _Bucket(TOTAL_BURST, clock())
        self._buckets: dict[tuple[str, str | None], _Bucket] = {}
        self._summary_at = clock() + SUMMARY_SECONDS

    def refused(
        self, fields: dict[str, Any], *, enforced: bool = True, verb: str = "refused"
    ) -> None:
        """One refusal, as `log_fields` describes it: a WARNING, or one more that is left out.

        `enforced` False: the request was passed on, because it is in audit. `verb`: what was done,
        in a word (``ended``: it was allowed before).
        """
        now = self._clock()
        with self._lock:
            summary = self._summary(now)
            left_out = self._take((fields["mesh_reason"], fields["mesh_source"]), now)
        if summary:
            logger.warning(
                "%d more refusals were not logged",
                summary,
                extra={"mesh_left_out": summary},
            )
        if left_out is None:
            return
        logger.warning(
            "%s %s %s from %s: %s%s%s%s",
            verb if enforced else "audit: would refuse",
            fields["mesh_method"],
            fields["mesh_path"],
            fields["mesh_source"] or "nobody",
            fields["mesh_reason"],
            f" ({fields['mesh_detail']})" if fields["mesh_detail"] else "",
            f"; request {fields['mesh_request_id']}" if fields["mesh_request_id"] else "",
            f"; {left_out} more like it were not logged" if left_out else "",
            extra={**fields, "mesh_left_out": left_out, "mesh_enforced": enforced},
        )

    def _take(self, key: tuple[str, str | None], now: float) -> int | None:
        """How many were left out before this record, or None when it is left out too."""
        bucket = self._buckets.get(key)
        if bucket is None:
            if len(self._buckets) >= MAX_KEYS:
                self._total.left_out += self._buckets.pop(next(iter(self._buckets))).left_out
            bucket = self._buckets[key] = _Bucket(BURST, now)
        if bucket.take(now, BURST, PER_SECOND) and self._total.take(
            now, TOTAL_BURST, TOTAL_PER_SECOND
        ):
            left_out, bucket.left_out = bucket.left_out, 0
            return left_out
        bucket.left_out += 1
        return None

    def _summary(self, now: float) -> int:
        """What was left out for keys that have been quiet since, said every `SUMMARY_SECONDS`."""
        if now < self._summary_at:
            return 0
        self._summary_at = now + SUMMARY_SECONDS
        count, self._total.left_out = self._total.left_out, 0
        for key, bucket in list(self._buckets.items()):
            if now - bucket.at >= SUMMARY_SECONDS:
                count += self._buckets.pop(key).left_out
        return count


decision_log = DecisionLog()
"""The process's decision log."""


def allowed(fields: dict[str, Any]) -> None:
    """One allowed request, at DEBUG. Ask ``logger.isEnabledFor`` before building the fields."""
    logger.debug(
        "allowed %s %s from %s: %s",
        fields["mesh_method"],
        fields["mesh_path"],
        fields["mesh_source"] or "nobody",
        fields["mesh_reason"],
        extra=fields,
    )
