"""``python -m tests.faults [SECONDS]``: play the table and print what was measured, as Markdown."""

from __future__ import annotations

import sys

from tests.consul_agent import ConsulUnavailableError, running_consul
from tests.contract.agents import Agent, Real
from tests.faults.play import Seen
from tests.faults.table import FAULTS
from tests.faults.test_faults import played

_PAUSE = "| {} | {} | {} | {} |"


def main(argv: list[str]) -> int:
    """Each fault lasts SECONDS (20)."""
    window = float(argv[0]) if argv else 20.0
    on_dev = played(list(FAULTS), None, window)
    on_real: dict[str, Seen | BaseException] = {}
    try:
        with running_consul() as consul:
            shared: Agent = Real(consul)
            rows = [fault for fault in FAULTS if not fault.own_agent]
            on_real = played(rows, shared, window)
    except ConsulUnavailableError as error:
        print(f"no real Consul: {error}", file=sys.stderr)
    print("| name | recovery, s | recovery with a real Consul, s | requests per minute |")
    print("|---|---|---|---|")
    failed = 0
    for fault in FAULTS:
        dev, real = on_dev[fault.name], on_real.get(fault.name)
        if not isinstance(dev, Seen) or isinstance(real, BaseException):
            failed += 1
            print(_PAUSE.format(fault.name, repr(dev)[:200], repr(real)[:200], ""))
            continue
        after = "" if real is None else f"{real.recovery:.2f}"
        print(_PAUSE.format(fault.name, f"{dev.recovery:.2f}", after, round(dev.per_minute)))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
