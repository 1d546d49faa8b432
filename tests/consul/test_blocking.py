"""Rows of the blocking query's table, its backoff and its rate."""

from __future__ import annotations

import pytest

from mesh_middleware.consul.blocking import BACKOFF_MAX, BURST, RATE, BlockingQuery, Pace

ROWS = [
    # name, index sent, index got, next index, polling
    ("the first answer sets the index", 0, 7, 7, False),
    ("a larger index is taken", 7, 9, 9, False),
    ("the same index is kept after a timeout", 7, 7, 7, False),
    ("a smaller index starts anew", 56, 10, 0, False),
    ("no index polls", 7, None, 0, True),
    ("the largest index is an index", 7, 2**64 - 1, 2**64 - 1, False),
]


@pytest.mark.parametrize(("sent", "got", "index", "polling"), [r[1:] for r in ROWS])
def test_next_index(sent: int, got: int | None, index: int, polling: bool) -> None:
    query = BlockingQuery()
    query.answered(sent, got)
    assert (query.next(0.0).index, query.polling) == (index, polling)


@pytest.mark.parametrize("denied", [False, True])
def test_a_failure_forgets_the_index(denied: bool) -> None:
    query = BlockingQuery()
    query.answered(0, 7)
    query.failed(denied=denied)
    assert query.next(0.0).index == 0


def test_an_index_ends_polling() -> None:
    query = BlockingQuery()
    query.answered(0, None)
    query.answered(0, 4)
    assert (query.polling, query.index) == (False, 4)


def test_backoff_doubles_to_its_maximum() -> None:
    pace, delays, now = Pace(jitter=lambda: 1.0), [], 0.0
    for _ in range(7):
        pace.failed()
        delays.append(pace.delay(now))
        now += 100.0
    assert delays == [0.1, 0.2, 0.4, 0.8, 1.5, 1.5, 1.5]


def test_backoff_is_jittered_to_nothing() -> None:
    pace = Pace(jitter=lambda: 0.0)
    pace.failed()
    assert pace.delay(0.0) == 0.0


def test_backoff_of_very_many_failures_is_a_number() -> None:
    pace = Pace(jitter=lambda: 1.0)
    pace.failures = 10**6
    assert pace.delay(0.0) == BACKOFF_MAX


def test_a_denial_backs_off_to_the_maximum_at_once() -> None:
    pace = Pace(jitter=lambda: 1.0)
    pace.failed(denied=True)
    assert pace.delay(0.0) == BACKOFF_MAX


def test_success_forgets_failures_and_denial() -> None:
    pace = Pace(jitter=lambda: 1.0)
    pace.failed(denied=True)
    pace.failed(denied=True)
    pace.succeeded()
    assert pace.delay(0.0) == 0.0
    pace.failed()
    assert pace.delay(0.0) == pytest.approx(0.1)


def test_rate_is_limited_after_a_burst() -> None:
    """An agent that answers at once, always, is asked no more than twice a second."""
    pace, now, times = Pace(), 0.0, []
    for _ in range(100):
        now += pace.delay(now)
        times.append(now)
    burst = [moment for moment in times if moment == 0.0]
    assert len(burst) == BURST
    assert times[-1] == pytest.approx((100 - BURST) / RATE)


def test_quiet_time_refills_no_more_than_the_burst() -> None:
    pace = Pace()
    assert pace.delay(0.0) == 0.0
    delays = [pace.delay(1000.0) for _ in range(int(BURST) + 1)]
    assert delays[: int(BURST)] == [0.0] * int(BURST)
    assert delays[-1] == pytest.approx(1 / RATE)


def test_a_clock_that_goes_back_does_not_break_the_rate() -> None:
    pace = Pace()
    pace.delay(1000.0)
    assert [pace.delay(10.0) for _ in range(int(BURST) - 1)] == [0.0] * (int(BURST) - 1)
    assert pace.delay(10.0) > 0


def test_repr_says_how_it_is() -> None:
    query = BlockingQuery()
    assert repr(query) == "<BlockingQuery index=0 failures=0>"
    query.answered(0, None)
    assert "polling" in repr(query)
