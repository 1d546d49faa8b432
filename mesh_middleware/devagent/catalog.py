"""The instances that are registered with the agent, which is its catalog too.

Source: Consul /v1/agent/service, /v1/agent/check, /v1/health.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mesh_middleware.devagent.registration import STATUSES, Check, Service, expire, set_status
from mesh_middleware.devagent.schema import RefusedError

if TYPE_CHECKING:
    from mesh_middleware.devagent.store import Store


class Catalog:
    """Part of a `Store`, guarded by its lock. `services`: instances by ID, replaced as a whole."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self.services: dict[str, Service] = {}

    def checks(self) -> list[tuple[Service, Check]]:
        """Every check, with its instance."""
        return [(s, check) for s in self.services.values() for check in s.checks.values()]

    def tick(self, now: float) -> None:
        """Expire checks, and remove instances that were critical for too long."""
        for service in list(self.services.values()):
            self._tick(service, now)

    def _tick(self, service: Service, now: float) -> None:
        expired = [check for check in service.checks.values() if expire(check, now)]
        if expired:
            self._touch(service)
        for check in service.checks.values():
            critical = check.status == "critical" and check.reap_after
            if critical and now >= check.critical_since + check.reap_after:
                self.deregister(service.id)
                return

    def register(self, service: Service, *, replace_checks: bool = False) -> None:
        """Put an instance into the catalog, in the place of the one with its ID."""
        with self._store.lock:
            old = self.services.get(service.id)
            if old is not None:
                # A check that is defined again keeps its status, as on a real agent.
                kept = {} if replace_checks else dict(old.checks)
                for check in service.checks.values():
                    if before := old.checks.get(check.id):
                        check.status, check.output = before.status, before.output
                        check.seen_output = before.seen_output
                        check.critical_since = before.critical_since
                service.checks = {**kept, **service.checks}
                service.create_index = old.create_index
                if old.name != service.name:
                    self._store.write(f"service:{old.name}", f"service:{old.upstream_of}")
            self.services = {**self.services, service.id: service}
            self._touch(service)
            service.create_index = service.create_index or service.modify_index

    def deregister(self, service_id: str) -> None:
        """Take an instance out; RefusedError (404) when there is none."""
        with self._store.lock:
            service = self.get(service_id)
            self.services = {k: v for k, v in self.services.items() if k != service_id}
            self._touch(service)

    def get(self, service_id: str) -> Service:
        """The instance with that ID; RefusedError (404) when there is none."""
        try:
            return self.services[service_id]
        except KeyError:
            raise RefusedError(404, f"unknown service ID: {service_id}") from None

    def update_check(self, check_id: str, status: str, output: str) -> None:
        """Write a TTL check's result; RefusedError for an unknown check or status."""
        if status not in STATUSES:
            raise RefusedError(400, f"Invalid check status: '{status}'")
        with self._store.lock:
            for service in self.services.values():
                check = service.checks.get(check_id)
                if check is not None and check.kind == "ttl":
                    if set_status(check, status, output, self._store.clock()):
                        self._touch(service)
                    return
        raise RefusedError(
            404,
            f'Unknown check ID "{check_id}". '
            "Ensure that the check ID is passed, not the check name.",
        )

    def maintenance(self, service_id: str, *, enable: bool, reason: str) -> None:
        """Put the check that takes an instance out of discovery, or remove it."""
        with self._store.lock:
            service = self.get(service_id)
            check_id = f"_service_maintenance:{service_id}"
            service.checks.pop(check_id, None)
            if enable:
                service.checks[check_id] = Check(
                    check_id,
                    "Service Maintenance Mode",
                    0,
                    "critical",
                    notes=reason
                    or "Maintenance mode is enabled for this service, but no reason was provided. "
                    "This is a default message.",
                    kind="maintenance",
                )
            self._touch(service)

    def _touch(self, service: Service) -> None:
        tables = {f"service:{service.name}", f"service:{service.upstream_of}"}
        service.modify_index = self._store.write("services", *tables)
