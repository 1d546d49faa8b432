"""``python -m tests.benchmarks [--short] [NAME…]``: measure and print Markdown tables."""

from __future__ import annotations

import platform
import ssl
import sys

from tests.benchmarks import decisions, middleware, rotation, servers, sockets, stall, upstream

ALL = {
    "decisions": decisions,
    "middleware": middleware,
    "stall": stall,
    "servers": servers,
    "rotation": rotation,
    "upstream": upstream,
    "sockets": sockets,
}


def main(argv: list[str]) -> int:
    """Run the benchmarks named, or all."""
    short = "--short" in argv
    names = [name for name in argv if not name.startswith("-")] or list(ALL)
    print(f"Python {platform.python_version()}, {ssl.OPENSSL_VERSION}, {platform.machine()}\n")
    for name in names:
        print(ALL[name].report(short=short), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
