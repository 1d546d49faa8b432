"""The fault table: what can be wrong with an agent, and what this project does about it.

`docs/design/faults.md` shows these rows, and `tests/faults/test_faults.py` runs each of them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from types import MappingProxyType
from typing import Any

from tests.faults import behaviours as bad
from tests.faults.proxy import Behaviour, well
from tests.faults.scene import NAMES, Scene


class Decides(StrEnum):
    """How requests are decided while the fault lasts."""

    LAST = "the last state"
    NEWEST = "the newest state"
    UNDECODABLE = "refused: `policy_undecodable`"
    STALE = "refused: `stale_policy`"


UNREACHABLE = "unreachable"
ACL = "acl"
OTHER = "other"
EXPIRED = "`state.missing()`: leaf; one error in the log"
REJECTED = "leaf (rejected)"
NOTHING = "nothing is wrong with the state"
CHANGED = "one error in the log"


@dataclass(frozen=True)
class Fault:
    """A row. `shown`: the kind in ``last_errors``, a part of it, or what else tells.

    `recovers`: within which time after the agent is well. `own_agent`: it breaks the agent itself.
    """

    name: str
    what: str
    begin: Callable[[Scene], None]
    end: Callable[[Scene], None]
    shown: str
    decides: Decides = Decides.LAST
    recovers: str = "2 s"
    own_agent: bool = False
    settings: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))

    def cells(self) -> tuple[str, ...]:
        """As the document's table shows it."""
        shown = f"`last_errors`: {self.shown}" if self.shown in _ERRORS else self.shown
        return (self.name, self.what, str(self.decides), shown, self.recovers)


_ERRORS = {UNREACHABLE, ACL, OTHER, REJECTED}


def behaves(behaviour: Behaviour) -> Callable[[Scene], None]:
    return lambda scene: scene.proxy.set(behaviour)


def refuse(scene: Scene) -> None:
    scene.proxy.refuse()


def accept(scene: Scene) -> None:
    scene.proxy.accept()


def lose_name(scene: Scene) -> None:
    NAMES[scene.name] = None
    scene.proxy.refuse()  # open connections need no name
    scene.proxy.accept()


def find_name(scene: Scene) -> None:
    NAMES[scene.name] = "127.0.0.1"


def revoke(scene: Scene) -> None:
    scene.proxy.set(bad.tokens({"new-token-9f3"}))


def replace_token(scene: Scene) -> None:
    scene.token_file.write_text("new-token-9f3")


def restart(scene: Scene) -> None:
    scene.dev.stop()


def start(scene: Scene) -> None:
    scene.dev.start()


def start_anew(scene: Scene) -> None:
    """As a development agent that lost everything: a new CA, a new trust domain, index 1."""
    scene.dev.restart(lose_state=True)


def clock_back(scene: Scene) -> None:
    """Two hours, while a new leaf comes."""
    scene.skew = -7200.0
    scene.dev.rotate_ca()


def clock_ahead(scene: Scene) -> None:
    """A year: past the end of our leaf."""
    scene.skew = 365 * 86400.0


def clock_right(scene: Scene) -> None:
    scene.skew = 0.0


def away_past_the_leaf(scene: Scene) -> None:
    """The agent goes; then our certificate ends."""
    scene.proxy.refuse()
    svid = scene.manager.state.svid
    assert svid is not None
    scene.skew = svid.not_after - time.time() + 60


def back_with_a_leaf(scene: Scene) -> None:
    scene.skew = 0.0
    scene.proxy.accept()


WAIT = "its `wait`"


def _bodies(name: str, what: str, behaviour: Behaviour) -> Fault:
    return Fault(name, what, behaves(behaviour), behaves(well), OTHER, Decides.UNDECODABLE)


def _errors(
    name: str, what: str, behaviour: Behaviour, shown: str = OTHER, recovers: str = "2 s"
) -> Fault:
    return Fault(name, what, behaves(behaviour), behaves(well), shown, recovers=recovers)


def _odd_index(name: str, what: str, behaviour: Behaviour, recovers: str = "2 s") -> Fault:
    return Fault(
        name, what, behaves(behaviour), behaves(well), NOTHING, Decides.NEWEST, recovers=recovers
    )


TOKEN = {"token_file": True}

FAULTS: tuple[Fault, ...] = (
    # nobody answers
    Fault("refused", "connections are refused", refuse, accept, UNREACHABLE),
    Fault("refused-ipv6", "the same, at `::1`", refuse, accept, UNREACHABLE,
          settings={"host": "::1"}),
    Fault("refused-unix", "the unix socket is gone", refuse, accept, UNREACHABLE,
          settings={"unix": True}),
    Fault("dns", "the agent's name is not found", lose_name, find_name, UNREACHABLE,
          settings={"named": True}),
    _errors("hang", "requests are taken and never answered", bad.hang, UNREACHABLE, WAIT),
    _errors("drip", "a byte now and then, without end", bad.drip, UNREACHABLE, WAIT),
    _errors("reset", "the connection is reset in the middle of a body", bad.reset, UNREACHABLE),
    _errors("close", "the connection is closed without an answer", bad.close, UNREACHABLE),
    _errors("not-http", "something else listens there", bad.not_http, UNREACHABLE),
    _errors("endless-headers", "headers without end", bad.endless_headers, UNREACHABLE),
    # it says no
    Fault("token-revoked", "403: the token is not known any more; then it is again", revoke,
          behaves(well), ACL, settings=TOKEN),
    Fault("token-replaced", "403, until the token file has a new one", revoke, replace_token, ACL,
          settings=TOKEN),
    _errors("too-many", "429 for everything", bad.status(429)),
    _errors("storm", "500, 502, 503 in turn, each time in other words",
            bad.status(500, 502, 503, text="rpc error")),
    _errors("redirect", "302 to somewhere else", bad.status(302)),
    _errors("not-found", "404 for everything", bad.status(404)),
    # it says nonsense with status 200
    _bodies("html", "a sign-in page", bad.HTML),
    _bodies("wrong", "JSON of another shape", bad.WRONG),
    _bodies("truncated", "half of the JSON, its length as announced", bad.TRUNCATED),
    _bodies("gzip-bomb", "64 KiB that unpack to 64 MiB", bad.GZIP_BOMB),
    _bodies("gzip-twice", "the same, packed twice", bad.TWICE_PACKED),
    _bodies("gzip-broken", "compression that ends too early", bad.BROKEN_GZIP),
    _bodies("endless-body", "a body without end", bad.endless_body),
    # its index
    _odd_index("index-back", "the index falls with each answer", bad.backwards()),
    _odd_index("index-zero", "the index is 0", bad.index(lambda _: "0")),
    _odd_index("index-huge", "the index is 2^64-1", bad.index(lambda _: str(2**64 - 1)), WAIT),
    _odd_index("index-none", "there is no index", bad.index(lambda _: None)),
    _odd_index("index-word", "the index is no number", bad.index(lambda _: "soon")),
    # the agent and its machine
    Fault("restart", "the agent stops, and starts with its state", restart, start, UNREACHABLE,
          own_agent=True),
    Fault("restart-empty", "it starts with another CA and trust domain, without any state",
          start_anew, lambda _: None, CHANGED, Decides.NEWEST, own_agent=True),
    Fault("clock-back", "our clock is two hours behind, and the CA rotates", clock_back,
          clock_right, REJECTED, Decides.NEWEST, own_agent=True),
    Fault("clock-ahead", "our clock is a year ahead", clock_ahead, clock_right, EXPIRED,
          Decides.NEWEST, own_agent=True),
    Fault("leaf-expired", "the agent is away until our certificate has ended",
          away_past_the_leaf, back_with_a_leaf, EXPIRED, own_agent=True),
    Fault("too-stale", "refused connections, and `max_staleness_seconds` is set", refuse, accept,
          UNREACHABLE, Decides.STALE, settings={"max_staleness_seconds": 1.0}),
)  # fmt: skip

HEADER = ("name", "what is wrong", "requests are decided by", "it shows as", "well again within")


def markdown() -> str:
    """The table of docs/design/faults.md."""
    rows = [HEADER, ("---",) * len(HEADER), *(fault.cells() for fault in FAULTS)]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows).replace("| --- ", "|---") + "\n"
