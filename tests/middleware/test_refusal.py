"""What a refused peer is told, and what it must not be told."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from mesh_middleware.middleware import MeshMiddleware
from mesh_middleware.middleware.refusal import STATUSES, refuse, request_id_of
from mesh_middleware.policy.decision import Reason
from mesh_middleware.policy.intentions import Action
from mesh_middleware.testing import static_mesh
from tests.middleware.calls import Recorder, call, http_scope, rule, verified, web_permissions


def refused(**scope: Any) -> Any:
    return call(MeshMiddleware(Recorder(), mesh=static_mesh("api")), http_scope(**scope))


@pytest.mark.parametrize("reason", Reason)
def test_every_reason_has_an_answer(reason: Reason) -> None:
    answer = refuse(reason, "id-1")
    body = json.loads(answer.body)
    assert body["status"] == answer.status == STATUSES.get(reason, 403)
    assert body["reason"] == reason.value
    assert body["type"].endswith(reason.value)
    assert set(body) == {"type", "title", "status", "reason", "request_id"}
    headers = dict(answer.headers)
    assert headers[b"content-type"] == b"application/problem+json"
    assert headers[b"content-length"] == str(len(answer.body)).encode()
    assert headers[b"cache-control"] == b"no-store"
    assert headers[b"x-mesh-refused"] == reason.value.encode()
    assert headers[b"x-request-id"] == b"id-1"
    assert (b"retry-after" in headers) is (answer.status == 503)


def test_the_statuses() -> None:
    by_status = {403: Reason.DEFAULT_DENY, 400: Reason.MALFORMED_TARGET, 503: Reason.NO_POLICY}
    for status, reason in by_status.items():
        assert refuse(reason, "x").status == status


def test_the_rule_is_not_told() -> None:
    secret = web_permissions(
        rule(Action.DENY, path_prefix="/"), rule(Action.ALLOW, path_exact="/hidden-path")
    )
    mesh = static_mesh("api", secret)
    app = MeshMiddleware(Recorder(), mesh=mesh)
    for service in ("web", "batch"):
        answer = call(app, http_scope("/asked", peer=verified(service)))
        told = answer.body + repr(answer.sent[0]["headers"]).encode()
        assert mesh.state.policy is not None
        for word in (b"hidden-path", b"web", b"precedence", b"/asked"):
            assert word not in told
        assert mesh.state.policy.revision.encode() not in told


@pytest.mark.parametrize("given", [b"a", b"A-z_0.9", b"x" * 128], ids=len)
def test_a_sound_request_id_is_kept(given: bytes) -> None:
    answer = refused(headers=[(b"X-Request-ID", given)])
    assert answer.problem["request_id"] == given.decode()
    assert answer.header(b"x-request-id") == given


@pytest.mark.parametrize(
    "given",
    [
        [],
        [b""],
        [b"x" * 129],
        [b"a b"],
        [b"a\n"],
        [b"a\r\nset-cookie: x"],
        [b"\xe4"],
        [b"<script>"],
        [b"a", b"b"],
    ],
    ids=str,
)
def test_any_other_request_id_is_replaced(given: list[bytes]) -> None:
    request_id = request_id_of([(b"x-request-id", value) for value in given])
    assert re.fullmatch("[0-9a-f]{32}", request_id)
    assert request_id != request_id_of([])


def test_a_head_request_is_answered_without_a_body() -> None:
    answer = refused(method="HEAD")
    assert (answer.status, answer.body) == (403, b"")


@pytest.mark.parametrize(
    ("headers", "version", "connection"),
    [
        ([(b"expect", b"100-continue")], "1.1", b"close"),
        ([(b"Expect", b"100-Continue")], "1.0", b"close"),
        ([(b"expect", b"100-continue")], "2", None),
        ([(b"content-length", b"5")], "1.1", None),
    ],
)
def test_a_client_that_waits_to_send_its_body_gets_a_new_connection(
    headers: list[tuple[bytes, bytes]], version: str, connection: bytes | None
) -> None:
    answer = refused(method="POST", headers=headers, http_version=version)
    assert answer.header(b"connection") == connection
