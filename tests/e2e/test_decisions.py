"""Who gets through: real mTLS, real intentions, while the service runs."""

from __future__ import annotations

import re
import ssl
from contextlib import closing

import httpx
import pytest
from websockets.exceptions import InvalidStatus

from mesh_middleware.devagent import CertificateAuthority
from mesh_middleware.tls.certificates import X509SVID
from tests.e2e.conftest import Site
from tests.e2e.launch import Caller, health, refused
from tests.server.mesh import request
from tests.support import wait_for


def test_an_allowed_caller_reaches_the_application_by_name(site: Site) -> None:
    status, body = site.allow("allowed").get(site.port)
    assert status == 200
    assert body["caller"] == "allowed"


def test_a_query_is_not_logged(site: Site) -> None:
    """It may hold a token; ``access_token`` is where clients put one."""
    assert site.allow("allowed").get(site.port, "/whoami?access_token=eyJsecret")[0] == 200
    site.launched.says("GET /whoami?... HTTP/1.1")
    assert "eyJsecret" not in site.launched.log


def test_a_caller_without_intention_is_refused_by_the_default(site: Site) -> None:
    status, body = site.caller("stranger").get(site.port)
    assert status == 403
    assert body["reason"] == "default_deny"
    site.launched.says("refused GET /whoami from spiffe://")


def test_a_denied_caller_is_refused_with_the_reason(site: Site) -> None:
    site.agent.intend("denied", "web", "deny")
    caller = site.caller("denied")
    wait_for(lambda: caller.get(site.port)[1].get("reason") == "intention_deny")
    assert caller.get(site.port)[0] == 403


def test_an_intention_change_takes_effect_on_an_open_connection(site: Site) -> None:
    caller = site.allow("changing")
    with closing(caller.connect(site.port)) as connection:
        assert request(connection, "/whoami")[0] == 200
        site.agent.intend("changing", "web", "deny")
        wait_for(lambda: request(connection, "/whoami")[0] == 403)
        site.agent.intend("changing", "web", "allow")
        wait_for(lambda: request(connection, "/whoami")[0] == 200)


def test_websockets_are_decided_before_they_are_accepted(site: Site) -> None:
    with site.allow("talker").websocket(site.port) as connection:
        connection.send("hello")
        assert connection.recv(10) == "talker: hello"
    with pytest.raises(InvalidStatus) as raised, site.caller("stranger").websocket(site.port):
        pass
    assert raised.value.response.status_code == 403


def test_the_application_sees_the_tls_extension(site: Site) -> None:
    status, body = site.allow("prover").get(site.port, "/tls")
    assert status == 200
    assert body["version"] == 0x0304
    assert body["chain"][0].startswith("-----BEGIN CERTIFICATE-----")


def test_a_client_without_a_certificate_gets_no_connection(site: Site) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    with pytest.raises(httpx.TransportError), httpx.Client(verify=context) as client:
        client.get(f"https://127.0.0.1:{site.port}/whoami")


def test_a_client_of_another_authority_gets_no_connection(site: Site) -> None:
    ours = site.allow("twin")
    foreign = CertificateAuthority(str(ours.bundle.trust_domain)).issue("twin")
    caller = Caller(X509SVID.from_pem(foreign.cert_pem, foreign.key_pem), ours.bundle)
    assert refused(caller, site.port)
    assert ours.get(site.port)[0] == 200


def test_plain_http_is_no_way_in(site: Site) -> None:
    with pytest.raises(httpx.TransportError):
        httpx.get(f"http://127.0.0.1:{site.port}/whoami", trust_env=False)


def test_the_catalogue_lists_the_instance_as_given(site: Site) -> None:
    (row,) = health(site.agent.address, "web", passing=True)
    service = row["Service"]
    assert service["Address"] == "127.0.0.1"
    assert service["Port"] == site.port
    assert service["Tags"] == ["blue"]
    assert service["Meta"]["version"] == "3"
    assert service["Connect"]["Native"] is True
    assert re.fullmatch(rf"web-.+-{site.port}", service["ID"])


def test_the_operations_listener_says_that_it_is_ready(site: Site) -> None:
    found = re.search(r"operations listener on (http://127\.0\.0\.1:\d+)", site.launched.log)
    assert found
    for page, body in (("/health/live", {"alive": True}), ("/health/ready", {"ready": True})):
        answer = httpx.get(found[1] + page, trust_env=False)
        assert (answer.status_code, answer.json()) == (200, body)
        assert "default-src 'none'" in answer.headers["content-security-policy"]
    assert httpx.get(found[1] + "/whoami", trust_env=False).status_code == 404


def test_the_start_is_told_to_people(site: Site) -> None:
    log = site.launched.log
    assert f"web: mTLS on https://127.0.0.1:{site.port}, Consul agent {site.agent.address}" in log
    assert re.search(
        r"/svc/web is ready after \d+\.\d\d s: agent http://\S+, \d+ intentions?, default deny, "
        r"certificate until 20\d\d-\d\d-\d\d \d\d:\d\d UTC",
        log,
    )
