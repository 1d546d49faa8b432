"""An agent in a process of its own, whose list of intentions changes whenever it was read.

``python -m tests.benchmarks.agent COUNT FOLDER`` puts certificates into the folder and prints the
agent's address. When its standard input ends it prints how often the list was read. With COUNT 0
the list has one row and stays as it is.
"""

from __future__ import annotations

import select
import subprocess
import sys
from itertools import count, cycle
from pathlib import Path
from typing import Self

from tests.benchmarks.servers import Certificates
from tests.consul.fake_agent import FakeAgent, Reply


def lists(rows: int) -> list[Reply]:
    """Two lists of so many rows that differ in the last one; each lets web call api."""
    same = {"DestinationName": "api", "Action": "allow", "Precedence": 9}
    names = ["web", *(f"other{number}" for number in range(2, rows))]
    rest = [{"SourceName": name, **same} for name in names]
    return [
        Reply.json({"api": [*rest, {"SourceName": "last", **same, "Action": action}]})
        for action in ("allow", "deny")
    ]


def main(argv: list[str]) -> int:
    """Serve until standard input ends."""
    rows, indexes, turn = int(argv[0]), count(6), cycle(lists(int(argv[0])))
    with FakeAgent("api", match=next(turn)) as agent:
        Certificates(Path(argv[1]), agent)
        print(agent.address, flush=True)
        read = 0
        while not select.select([sys.stdin], [], [], 0.005)[0]:
            if rows and agent.count("match") > read:
                read = agent.count("match")
                reply = next(turn)
                reply.index = next(indexes)
                agent.set(match=reply)
        print(read)
    return 0


class ChangingAgent:
    """Such an agent as a context manager.

    `client`: certificate, key and roots of web. `read`: how often the list was read, at the end.
    """

    def __init__(self, rows: int, folder: str) -> None:
        self._command = [sys.executable, "-m", "tests.benchmarks.agent", str(rows), folder]
        self.client = [f"{folder}/{name}" for name in ("web.pem", "web.key", "roots.pem")]
        self.address = ""
        self.read = 0

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(
            self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert self._process.stdout
        self.address = self._process.stdout.readline().strip()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.read = int(self._process.communicate("", timeout=20)[0] or 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
