"""The main job in half a minute: real mTLS, intentions, a live change and a CA rotation.

Everything runs here: a development agent, the FastAPI services of app.py and billing.py under the
launcher, and services that call them. Exit code 0 when all that is shown really happened, 1 when
not, with what both services logged.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import click
import yaml
from stage import HERE, Service, call, issuer

from mesh_middleware.devagent import DevAgent
from mesh_middleware.upstream.oneshot import Reply

ORDER = b'{"item": "milk"}'
INVOICE = b'{"order": 9, "customer": "me"}'
DEADLINE_SECONDS = 15.0
SHOWN = 76

_pause = threading.Event().wait


class Demo:
    """The story, step by step; `failures` counts what did not happen."""

    def __init__(self, agent: DevAgent, orders: Service, billing: Service) -> None:
        self.agent = agent
        self.orders = orders
        self.billing = billing
        self.failures = 0

    # -- telling ----------------------------------------------------------------------------------

    def say(self, happened: bool, text: str) -> None:
        """Print one line with a tick, or with a cross that makes the demo fail."""
        self.failures += not happened
        mark = (
            click.style("ok  ", fg="green")
            if happened
            else click.style("FAIL", fg="red", bold=True)
        )
        click.echo(f"  {mark} {text}")

    def wait(self, text: str, happened: Callable[[], bool]) -> None:
        """Print `text` and how long it took until `happened`, with a deadline."""
        start = time.monotonic()
        while not (done := happened()) and time.monotonic() - start < DEADLINE_SECONDS:
            if self.orders.ended or self.billing.ended:
                break
            _pause(0.02)
        self.say(done, f"{text} (after {(time.monotonic() - start) * 1000:.0f} ms)")

    def show(self, wanted: int, line: str, body: bytes | None = None, *, why: str = "") -> None:
        """Make the call that `line` says, and print what came of it; `why` is for who watches.

        `line`: caller, called service, method and path.
        """
        reply = self.ask(line, body)
        told = "no answer" if reply is None else f"{reply.status} {said(reply)}"
        caller, service, method, path = line.split()
        text = f"{caller:8} -> {service:7} {method:6} {path:9} {told}"
        happened = reply is not None and reply.status == wanted
        self.say(happened, f"{text} ({why})" if why else text)

    def ask(self, line: str, body: bytes | None = None) -> Reply | None:
        """What the call of `line` gives."""
        caller, service, method, path = line.split()
        return call(self.agent, caller, method, f"https://{service}{path}", body)

    def gives(self, status: int, line: str, body: bytes | None = None) -> bool:
        """Whether the call of `line` is answered with `status` now."""
        reply = self.ask(line, body)
        return reply is not None and reply.status == status

    # -- the story --------------------------------------------------------------------------------

    def tell(self) -> None:
        """All of it."""
        step("A development agent, and two services under mesh-middleware run (no Consul needed)")
        self.wait("orders and billing registered, checks passing", self.both_pass)
        if self.failures:
            return
        self.rules_decide()
        self.one_service_calls_the_other()
        self.an_intention_changes()
        self.the_ca_rotates()
        self.they_stop()

    def both_pass(self) -> bool:
        """Whether the agent says so."""
        return list(self.agent.statuses.values()) == ["passing", "passing"]

    def rules_decide(self) -> None:
        """Path and method, per caller."""
        step("Services call orders over mTLS; intentions.yaml says who may do what")
        self.show(200, "shop orders GET /orders")
        self.show(403, "shop orders DELETE /orders/1", why="a permission denies DELETE")
        self.show(200, "reports orders GET /orders")
        self.show(403, "reports orders POST /orders", ORDER, why="reports may only read")
        self.show(403, "reports orders GET //orders", why="some routers read it as /orders")
        self.show(403, "stranger orders GET /orders", why="nobody said that it may")

    def one_service_calls_the_other(self) -> None:
        """The chain, and what billing takes from nobody else."""
        step("To take an order, orders calls billing: AsyncMeshTransport in app.py")
        self.show(201, "shop orders POST /orders", ORDER)
        self.show(403, "shop billing POST /invoices", INVOICE, why="only orders may")
        self.show(403, "orders billing GET /invoices", why="it may write, not read")
        self.show(200, "reports billing GET /invoices", why="here is what orders wrote")

    def an_intention_changes(self) -> None:
        """From allow to deny and back, while everything runs."""
        step("The intention orders -> billing changes to deny, while everything runs")
        order = "shop orders POST /orders"
        self.agent.put_intentions(with_orders_denied())
        self.wait("the next order cannot be taken", lambda: self.gives(502, order, ORDER))
        self.show(502, order, ORDER, why="what shop gets instead of a stack trace")
        self.show(200, "shop orders GET /orders", why="what needs no billing goes on")
        self.agent.put_intentions(intentions())
        self.wait("put back, orders are taken", lambda: self.gives(201, order, ORDER))

    def the_ca_rotates(self) -> None:
        """A new root, then the old one is distrusted; both services and the calls between them."""
        step("The certificate authority rotates, then the old root is distrusted")
        calls = ("shop orders GET /orders", "reports billing GET /invoices")
        before = issuer(self.ask(calls[0]))
        self.agent.rotate_ca()
        for line in calls:
            self.wait(
                f"{line.split()[1]} shows a certificate of the new root",
                lambda line=line: issuer(self.ask(line)) not in ("", before),
            )
        self.agent.remove_inactive_roots()
        order = "shop orders POST /orders"
        self.wait("without the old root, too, orders calls", lambda: self.gives(201, order, ORDER))

    def they_stop(self) -> None:
        """First the called service, then the other."""
        step("SIGTERM, to billing first")
        self.say(self.billing.stop() == 0, "billing stopped with exit code 0")
        self.show(502, "shop orders POST /orders", ORDER)
        self.say(self.orders.stop() == 0, "orders stopped with exit code 0")
        self.say(not self.agent.services, "neither is registered any longer")


def step(title: str) -> None:
    """A headline."""
    click.echo(f"\n{click.style(title, bold=True)}")


def said(reply: Reply) -> str:
    """The answer, or in one word why the mesh refused."""
    reason = dict(reply.headers).get("x-mesh-refused")
    body = reply.body.decode()
    return f"refused: {reason}" if reason else body if len(body) <= SHOWN else f"{body[:SHOWN]}..."


def intentions() -> list[dict[str, Any]]:
    """The entries in intentions.yaml."""
    return list(yaml.safe_load_all((HERE / "intentions.yaml").read_text()))


def with_orders_denied() -> dict[str, Any]:
    """The entry for billing with orders denied altogether."""
    entry = next(entry for entry in intentions() if entry["Name"] == "billing")
    others = [source for source in entry["Sources"] if source["Name"] != "orders"]
    return {**entry, "Sources": [*others, {"Name": "orders", "Action": "deny"}]}


def main() -> int:
    """Run the story; 0 when all of it happened."""
    with (
        DevAgent(intentions=intentions()) as agent,
        Service("orders", "app:app", agent) as orders,
        Service("billing", "billing:app", agent) as billing,
    ):
        demo = Demo(agent, orders, billing)
        demo.tell()
        if demo.failures:
            click.echo(f"\n{demo.failures} of these did not happen. What the services logged:")
            for service in (orders, billing):
                click.echo(f"\n--- {service.name}\n{service.log}")
            return 1
    click.echo("\nAll of it happened. Next: the README, or mesh-middleware --help")
    return 0


if __name__ == "__main__":
    sys.exit(main())
