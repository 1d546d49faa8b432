"""The board: what the parent knows of its workers."""

from __future__ import annotations

import multiprocessing

import pytest

from mesh_middleware.server.heartbeat import STALE_SECONDS, Board, Health, Phase
from tests.support import wait_for


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def test_nobody_is_ready_before_a_worker_serves(clock: Clock) -> None:
    board = Board(1, clock=clock)
    assert board.health() == Health(True, False, "starting")
    board.beat(0, Phase.STARTING)
    assert board.health() == Health(True, False, "starting")
    board.beat(0, Phase.SERVING)
    assert board.health() == Health(True, True)
    board.beat(0, Phase.STOPPING)
    assert board.health() == Health(True, False, "stopping")


def test_a_worker_without_a_leaf_is_not_ready(clock: Clock) -> None:
    board = Board(1, clock=clock)
    board.beat(0, Phase.SERVING, ("leaf", "default action"))
    assert board.health() == Health(True, False, "missing: leaf, default action")


def test_a_loop_that_hangs_is_neither_ready_nor_alive(clock: Clock) -> None:
    board = Board(1, clock=clock)
    board.beat(0, Phase.SERVING)
    clock.now += STALE_SECONDS
    assert board.health() == Health(True, True)
    clock.now += 0.1
    why = "the event loop has not answered for 10 s"
    assert board.health() == Health(False, False, why)


def test_one_worker_that_serves_is_enough(clock: Clock) -> None:
    board = Board(2, clock=clock)
    board.beat(0, Phase.SERVING)
    clock.now += STALE_SECONDS + 1
    board.beat(1, Phase.SERVING)
    assert board.health() == Health(True, True)
    board.clear(1)
    assert board.health().ready is False
    assert board.phases() == [Phase.SERVING, Phase.ABSENT]


def write(board: Board) -> None:
    board.beat(1, Phase.SERVING)


def test_spawned_processes_write_the_same_board() -> None:
    board = Board(2)
    process = multiprocessing.get_context("spawn").Process(target=write, args=(board,))
    process.start()
    wait_for(lambda: board.health().ready, 20)
    process.join(10)
    assert board.phases() == [Phase.ABSENT, Phase.SERVING]


def test_a_row_to_spare_says_nothing(clock: Clock) -> None:
    board = Board(2, clock=clock)
    assert board.health() == Health(True, False, "starting")
    board.beat(0, Phase.SERVING, ("leaf",))
    assert board.health() == Health(True, False, "missing: leaf")


def test_a_worker_is_ready_when_it_serves_and_can_decide_and_answers(clock: Clock) -> None:
    board = Board(1, clock=clock)
    assert not board.ready(0)
    for phase, missing, ready in (
        (Phase.STARTING, (), False),
        (Phase.SERVING, ("leaf",), False),
        (Phase.SERVING, (), True),
        (Phase.STOPPING, (), False),
    ):
        board.beat(0, phase, missing)
        assert board.ready(0) is ready
    board.beat(0, Phase.SERVING)
    clock.now += STALE_SECONDS + 0.1
    assert not board.ready(0)
