"""Which rights each part needs, asked of a real Consul that denies what no token allows."""

from __future__ import annotations

from collections.abc import Coroutine
from pathlib import Path

import pytest

from mesh_middleware.config import MeshConfig
from mesh_middleware.consul.failures import _RULE, FailureKind
from mesh_middleware.consul.manager import MeshManager
from mesh_middleware.consul.registration import Registrar, ServiceRegistration
from mesh_middleware.errors import ConsulError
from tests.consul_acl import AclConsul
from tests.support import wait_for

pytestmark = pytest.mark.consul

SERVICE = "clinic"
WRITE = f'service "{SERVICE}" {{ policy = "write" }}'
NO_INTENTIONS = f'service "{SERVICE}" {{ policy = "write" intentions = "deny" }}'


def manager_for(consul: AclConsul, rules: str) -> MeshManager:
    token = consul.ruled(rules).secret
    return MeshManager(MeshConfig(SERVICE, address=consul.address, token=token))


def test_the_rule_that_messages_give_is_enough(acl_consul: AclConsul) -> None:
    assert _RULE.format(service=SERVICE).startswith(WRITE)
    registration = ServiceRegistration(SERVICE, 8443)
    with manager_for(acl_consul, WRITE) as manager:
        state = manager.wait_ready(20)
        assert state.policy is not None
        assert state.policy.default_action == "deny"
        registrar = Registrar(manager.client, registration)
        for step in (registrar.register(), registrar.update(lambda: None)):
            manager.run_coroutine(step).result(10)
        wait_for(lambda: acl_consul.instances(SERVICE, passing=True))
        manager.run_coroutine(registrar.deregister()).result(10)
        assert manager.last_errors == {}


@pytest.mark.parametrize(
    ("rules", "refused"),
    [
        (f'service "{SERVICE}" {{ policy = "read" }}', {"leaf"}),
        (NO_INTENTIONS, {"intentions"}),
        ('service "another" { policy = "write" }', {"leaf", "intentions"}),
    ],
)
def test_less_is_refused_and_the_rule_is_said(
    acl_consul: AclConsul, rules: str, refused: set[str]
) -> None:
    with manager_for(acl_consul, rules) as manager:
        wait_for(lambda: manager.last_errors.keys() == refused and manager.state.bundle)
        assert not manager.ready
        for failure in manager.last_errors.values():
            assert failure.kind is FailureKind.ACL
            assert _RULE.format(service=SERVICE) in failure


def test_a_new_token_speaks_for_the_instance_too(acl_consul: AclConsul, tmp_path: Path) -> None:
    """The agent tells the catalogue of an instance by the token that it was registered with."""
    first, file = acl_consul.identity(SERVICE), tmp_path / "token"
    file.write_text(first.secret)
    config = MeshConfig(SERVICE, address=acl_consul.address, token_file=str(file))
    with MeshManager(config) as manager:
        registrar = Registrar(manager.client, ServiceRegistration(SERVICE, 8443))

        def run(step: Coroutine[None, None, None]) -> None:
            manager.run_coroutine(step).result(10)

        run(registrar.register())
        run(registrar.update(lambda: None))
        wait_for(lambda: acl_consul.instances(SERVICE, passing=True))
        renewed = tmp_path / "renewed"
        renewed.write_text(acl_consul.identity(SERVICE).secret)
        renewed.replace(file)
        acl_consul.revoke(first)
        run(registrar.update(lambda: "no policy"))
        wait_for(lambda: not acl_consul.instances(SERVICE, passing=True))
        run(registrar.update(lambda: None))
        wait_for(lambda: acl_consul.instances(SERVICE, passing=True))
        run(registrar.critical("stopping"))
        run(registrar.deregister())
        wait_for(lambda: not acl_consul.instances(SERVICE))


def test_registering_needs_the_same_right(acl_consul: AclConsul) -> None:
    with manager_for(acl_consul, f'service "{SERVICE}" {{ policy = "read" }}') as manager:
        registrar = Registrar(manager.client, ServiceRegistration(SERVICE, 8443))
        with pytest.raises(ConsulError, match="403: Permission denied"):
            manager.run_coroutine(registrar.register()).result(10)
