"""SRV questions to one DNS server, each over by its deadline.

By TCP, where the server takes connections: by plain UDP Consul gives three instances of a service,
and does not say that there are more. Where it takes none, by UDP, with as many as fit.

Source: RFC 2782 (SRV), RFC 6891 (EDNS); Consul, ``dns_config.udp_answer_limit``.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

try:
    import dns.exception
    import dns.inet
    import dns.message
    import dns.query
    import dns.rcode
    import dns.rdatatype
except ImportError as error:  # another message than "No module named 'dns'"
    raise ImportError("DNSResolver needs dnspython: pip install mesh-middleware[dns]") from error

from mesh_middleware.errors import ConfigError
from mesh_middleware.upstream.resolver import ResolutionError, host_port

_PAYLOAD = 1232  # what passes unfragmented (DNS flag day 2020)
_RESEND_SECONDS = 1.0  # UDP loses packets

_TCP_SECONDS = 1.0
_TCP_AGAIN_SECONDS = 60.0
"""How long to wait for TCP, and how long to leave it alone when that was in vain."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where an SRV record leads. `priority`: lower ones come first."""

    host: str
    port: int
    priority: int
    weight: int


class DNSClient:
    """Asks the DNS at `server` (``127.0.0.1:8600``). Safe from any thread.

    ConfigError for a `server` that is not an IP address with a port.
    """

    def __init__(self, server: str) -> None:
        self._host, self._port = host_port(server)
        if not dns.inet.is_address(self._host):
            raise ConfigError(
                f"{server!r}: a DNS server is given by its IP address, such as 127.0.0.1:8600"
            )
        self._server = server
        self._tcp_from = 0.0

    def places(self, name: str, deadline: float) -> list[Place]:
        """Where the SRV records of `name` lead; empty for a name that does not exist.

        Targets without any address are left out. `deadline`: monotonic seconds. TimeoutError when
        that came first, ResolutionError for an answer that is none.
        """
        try:
            answer = self._asked(name, "SRV", deadline)
            return [
                Place(host, record.port, record.priority, record.weight)
                for record in _records(answer)
                for host in self._addresses(str(record.target), answer, deadline)
            ]
        except TimeoutError as error:
            raise TimeoutError(f"the DNS at {self._server} did not answer in time") from error
        except (OSError, dns.exception.DNSException) as error:
            raise ResolutionError(f"the DNS at {self._server}: {error}") from error

    def _addresses(
        self, target: str, answer: dns.message.QueryMessage, deadline: float
    ) -> list[str]:
        """The addresses of a target: Consul puts them into the same answer."""
        kinds = (dns.rdatatype.A, dns.rdatatype.AAAA)
        found = [
            record.address
            for records in answer.additional
            if str(records.name) == target and records.rdtype in kinds
            for record in records
        ]
        for kind in ("A", "AAAA"):
            if found:
                break
            found = [record.address for record in _records(self._asked(target, kind, deadline))]
        return found

    def _asked(self, name: str, kind: str, deadline: float) -> dns.message.QueryMessage:
        query = dns.message.make_query(name, kind, use_edns=0, payload=_PAYLOAD)
        answer: Any = self._by_tcp(query, deadline) or self._by_udp(query, deadline)
        if answer.rcode() not in (dns.rcode.NOERROR, dns.rcode.NXDOMAIN):
            raise ResolutionError(
                f"the DNS at {self._server}: {dns.rcode.to_text(answer.rcode())} for {name} {kind}"
            )
        return answer  # type: ignore[no-any-return] # of a query

    def _by_tcp(
        self, query: dns.message.QueryMessage, deadline: float
    ) -> dns.message.Message | None:
        """None when there is no answer in this way, and time for another."""
        now = time.monotonic()
        if now < self._tcp_from:
            return None
        limit = min(_TCP_SECONDS, max(0.0, deadline - now) / 2)
        try:
            return dns.query.tcp(query, self._host, limit, self._port)
        except dns.exception.Timeout:  # something drops the packets; refusing would be quick
            self._tcp_from = now + _TCP_AGAIN_SECONDS
        except (OSError, EOFError, dns.exception.DNSException):
            pass
        return None

    def _by_udp(self, query: dns.message.QueryMessage, deadline: float) -> dns.message.Message:
        while (left := deadline - time.monotonic()) > 0:
            with contextlib.suppress(dns.exception.Timeout):
                return dns.query.udp(
                    query,
                    self._host,
                    min(left, _RESEND_SECONDS),
                    self._port,
                    ignore_unexpected=True,
                    ignore_errors=True,  # somebody else's packets must not end the waiting
                )
        self._tcp_from = 0.0  # it is not only TCP that is silent
        raise TimeoutError


def _records(answer: dns.message.QueryMessage) -> Iterable[Any]:
    """The records that were asked for, at the end of the chain of names."""
    return answer.resolve_chaining().answer or ()
