"""One watch with a scripted agent, and sleeps that take no time."""

from __future__ import annotations

import asyncio

from mesh_middleware.consul.blocking import BlockingQuery
from mesh_middleware.consul.client import Answer
from mesh_middleware.consul.watcher import POLL_SECONDS, Watcher
from mesh_middleware.errors import ConsulError, DecodeError

Step = int | None | Exception


class Script:
    """Answers with the indexes (or errors) given, then ends the watch."""

    def __init__(self, *steps: Step, wake: tuple[Step, ...] | None = None, hurry: bool = False):
        self.steps, self.wakes = list(steps), list(wake or ())
        self.log: list[tuple[str, float]] = []
        self.delivered: list[int | None] = []
        self.failures: list[Exception] = []
        self.now = 0.0
        self.watcher = Watcher(
            fetch=lambda index: self.give("fetch", index, self.steps),
            deliver=self.deliver,
            failed=self.failures.append,
            wake=None if wake is None else lambda index: self.give("wake", index, self.wakes),
            hurry=lambda: hurry,
            sleep=self.sleep,
            clock=lambda: self.now,
            query=BlockingQuery(jitter=lambda: 1.0),
        )

    def run(self) -> Script:
        try:
            asyncio.run(self.watcher.run())
        except IndexError:
            return self
        raise AssertionError

    async def give(self, name: str, index: int, steps: list[Step]) -> Answer:
        self.log.append((name, index))
        step = steps.pop(0)
        if isinstance(step, Exception):
            raise step
        return Answer(200, b"{}", step, {})

    async def deliver(self, answer: Answer) -> None:
        self.delivered.append(answer.index)

    async def sleep(self, seconds: float) -> None:
        self.log.append(("sleep", round(seconds, 3)))
        self.now += seconds

    def only(self, name: str) -> list[float]:
        return [value for key, value in self.log if key == name]


def test_indexes_follow_each_other() -> None:
    script = Script(5, 9, 9, 3, 4).run()
    assert script.only("fetch") == [0, 5, 9, 9, 0, 4]
    assert script.delivered == [5, 9, 9, 3, 4]
    assert script.only("sleep") == []


def test_a_failure_backs_off_and_starts_anew() -> None:
    refused, broken = ConsulError("x", status=500), DecodeError("y")
    script = Script(5, refused, broken, 7).run()
    assert script.only("fetch") == [0, 5, 0, 0, 7]
    assert script.failures == [refused, broken]
    assert script.only("sleep") == [0.1, 0.2]


def test_a_denial_waits_longest() -> None:
    assert sum(Script(ConsulError("x", status=403)).run().only("sleep")) == 1.5


def test_a_pause_ends_early_when_there_is_a_new_token() -> None:
    assert Script(ConsulError("x", status=403), hurry=True).run().only("sleep") == []


def test_an_agent_without_index_is_polled() -> None:
    script = Script(None, None).run()
    assert script.only("fetch") == [0, 0, 0]
    assert script.only("sleep") == [POLL_SECONDS] * 2


def test_after_a_failure_the_query_that_wakes_starts_anew_too() -> None:
    """The agent may have restarted: an index from before would wait past its first changes."""
    script = Script(None, ConsulError("gone"), None, wake=(40, 1)).run()
    assert script.only("wake") == [0, 0]


def test_another_query_wakes_what_cannot_block() -> None:
    """The first wake answers at once, so that no change between the two is lost."""
    script = Script(None, None, None, wake=(40, 41)).run()
    assert [name for name, _ in script.log][:5] == ["fetch", "wake", "fetch", "wake", "fetch"]
    assert script.only("wake") == [0, 40, 41]
    assert script.only("sleep") == []


def test_polling_goes_on_when_the_waking_query_fails() -> None:
    script = Script(None, None, None, wake=(ConsulError("x", status=403), None)).run()
    assert script.only("fetch") == [0, 0, 0]
    assert script.only("sleep").count(POLL_SECONDS) == 2


def test_an_agent_that_answers_at_once_is_not_asked_without_limit() -> None:
    """After an agent's graceful stop a waiting query returns early with the old index."""
    script = Script(*[5] * 50).run()
    assert script.now >= (50 - 10) / 2
