"""What is counted, reported, exposed and shown: bounded, and nothing secret."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import threading
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from mesh_middleware.middleware import AuditRule, MeshMiddleware
from mesh_middleware.observe import counts as counts_module
from mesh_middleware.observe.counts import KEPT, MAX_KEYS, OTHER, Counts, source_label
from mesh_middleware.observe.metrics import exposition, register
from mesh_middleware.observe.report import Report, Reporter
from mesh_middleware.observe.status import status_document, status_page, when
from mesh_middleware.policy.decision import Decision, Reason
from mesh_middleware.server.reports import ROW_BYTES, SharedReports
from mesh_middleware.state import MeshState
from mesh_middleware.testing import static_mesh
from mesh_middleware.tls.certificates import X509SVID
from mesh_middleware.tls.handshake import RefusalLog
from tests.middleware.calls import WEB_MAY, Recorder, call, http_scope, identity, verified
from tests.server.mesh import Mesh

DENIED = Decision(allowed=False, reason=Reason.DEFAULT_DENY)


def sample(text: bytes, name: str, **labels: str) -> float | None:
    """The value of one sample; None when it is not there."""
    for family in text_string_to_metric_families(text.decode()):
        for found in family.samples:
            if found.name == name and labels.items() <= found.labels.items():
                return found.value
    return None


@pytest.fixture
def counting(monkeypatch: pytest.MonkeyPatch) -> Counts:
    fresh = Counts(clock=lambda: 1700000000.0)
    fresh.start()
    monkeypatch.setattr("mesh_middleware.middleware.enforcer.counts", fresh)
    return fresh


# -- counting ----------------------------------------------------------------------------------


def test_each_request_is_counted_once(counting: Counts) -> None:
    mesh = MeshMiddleware(
        Recorder(), mesh=static_mesh("api", WEB_MAY), audit=[AuditRule(paths=("/new",))]
    )
    call(mesh, http_scope(peer=verified()))
    call(mesh, http_scope(peer=verified()))
    call(mesh, http_scope("/secret?token=1", peer=verified("batch")))
    call(mesh, http_scope("/new", peer=verified("batch")))
    call(mesh, http_scope())
    assert counting.decisions() == {
        ("allowed", "intention_allow", "web"): 2,
        ("refused", "default_deny", "batch"): 1,
        ("audited", "default_deny", "batch"): 1,
        ("refused", "no_identity", ""): 1,
    }
    newest, audited, refused = counting.recent()
    assert newest["source"] is None
    assert audited["outcome"] == "audited"
    assert refused == {
        "at": 1700000000.0,
        "outcome": "refused",
        "reason": "default_deny",
        "source": str(identity("batch")),
        "method": "GET",
        "path": "/secret",
    }


def test_nothing_is_counted_until_somebody_wants_it(monkeypatch: pytest.MonkeyPatch) -> None:
    off = Counts()
    monkeypatch.setattr("mesh_middleware.middleware.enforcer.counts", off)
    mesh = MeshMiddleware(Recorder(), mesh=static_mesh("api", WEB_MAY))
    call(mesh, http_scope(peer=verified()))
    call(mesh, http_scope(peer=verified("batch")))
    assert (off.decisions(), off.recent()) == ({}, [])


def test_callers_are_bounded() -> None:
    counts = Counts()
    for number in range(MAX_KEYS + 50):
        counts.decided("refused", DENIED, identity(f"s{number}"))
    counts.decided("refused", DENIED, identity("s0"))
    decisions = counts.decisions()
    assert len(decisions) == MAX_KEYS + 1
    assert decisions["refused", "default_deny", OTHER] == 50
    assert decisions["refused", "default_deny", "s0"] == 2


def test_refusals_are_kept_within_bounds() -> None:
    counts = Counts()
    for number in range(KEPT + 5):
        counts.remember("refused", {"mesh_path": f"/{number}"})
    recent = counts.recent()
    assert len(recent) == KEPT
    assert recent[0]["path"] == f"/{KEPT + 4}"


def test_no_count_is_lost_between_threads() -> None:
    counts = Counts()

    def count() -> None:
        for _ in range(2000):
            counts.decided("refused", DENIED, None)

    threads = [threading.Thread(target=count) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert counts.decisions() == {("refused", "default_deny", ""): 8000}


@pytest.mark.parametrize(
    ("caller", "label"),
    [
        (identity(), "web"),
        (replace(identity(), namespace="ns"), "default/ns/web"),
        (replace(identity(), partition="p"), "p/default/web"),
        (replace(identity(), peer="east"), "east:web"),
        (replace(identity(), peer="east", namespace="ns"), "east:default/ns/web"),
        (identity().spiffe_id, OTHER),
        (None, ""),
    ],
)
def test_labels_of_callers(caller: object, label: str) -> None:
    assert source_label(caller) == label


def test_refused_handshakes_are_counted_whether_they_are_logged_or_not() -> None:
    log = RefusalLog(burst=1, per_second=0)
    for _ in range(3):
        log.log("client", Reason.NO_IDENTITY, "")
    assert log.counts() == {("client", "no_identity"): 3}


# -- reports -----------------------------------------------------------------------------------


class Source:
    """A manager's state and failures, which tests set."""

    def __init__(self) -> None:
        self.mesh = Mesh.new()
        state = static_mesh("api", WEB_MAY, trust_domain=self.mesh.ca.trust_domain).state
        self.state: MeshState = replace(
            state,
            generation=7,
            svid=self.svid(),
            bundle=self.mesh.bundle,
            contexts=self.mesh.contexts("api"),
            updated=MappingProxyType({"roots": 1700000000.0}),
        )
        self.last_errors = {"leaf": ValueError("<b>403</b>")}

    def svid(self) -> X509SVID:
        return X509SVID.from_pem(*self.mesh.leaf("api"))

    def rotate(self) -> None:
        self.state = replace(self.state, svid=self.svid())


def reporter(source: Any) -> Reporter:
    log = RefusalLog()
    log.log("client", Reason.ROOT_NOT_TRUSTED, "")
    counts = Counts()
    counts.decided("refused", DENIED, identity("batch"))
    counts.remember(
        "refused", {"mesh_path": "/<script>", "mesh_reason": "default_deny", "mesh_method": "GET"}
    )
    return Reporter(source, counts=counts, handshakes=log)


def test_a_report_says_what_is_so() -> None:
    source = Source()
    report = reporter(source).report()
    assert report.service == "api"
    assert report.generation == 7
    assert report.revision == source.state.policy.revision  # type: ignore[union-attr]
    assert (report.default_action, report.intentions, report.missing) == ("deny", 1, ())
    assert report.leaf_expires == source.state.svid.not_after  # type: ignore[union-attr]
    assert len(report.roots) == 1
    assert report.errors == {"leaf": "<b>403</b>"}
    assert report.decisions == (("refused", "default_deny", "batch", 1),)
    assert report.handshakes == (("client", "root_not_trusted", 1),)


def test_a_report_survives_json() -> None:
    report = reporter(Source()).report()
    assert Report.from_document(json.loads(json.dumps(report.document()))) == report


def test_a_report_of_a_state_that_knows_nothing() -> None:
    class Empty:
        state = MeshState("api", fault=Reason.POLICY_UNDECODABLE)

    report = reporter(Empty()).report()
    assert report.leaf_expires is None
    assert (report.revision, report.default_action, report.roots) == ("", "", ())
    assert report.missing
    assert report.fault == "policy_undecodable"
    assert "not known" in status_page([("0", report)])
    assert sample(exposition(lambda: [("0", report)]), "mesh_ready") == 0


def test_rotations_are_counted_from_the_second_certificate_on() -> None:
    source = Source()
    reports = reporter(source)
    assert reports.report().rotations == 0
    assert reports.report().rotations == 0
    source.rotate()
    assert reports.report().rotations == 1
    source.state = MeshState("api")
    assert reports.report().rotations == 1


def test_making_a_reporter_starts_the_counting() -> None:
    counts = Counts()
    Reporter(static_mesh("api"), counts=counts)
    assert counts.on


# -- Prometheus --------------------------------------------------------------------------------


def test_every_metric_is_there() -> None:
    report = reporter(Source()).report()
    text = exposition(lambda: [("0", report), ("1", replace(report, generation=9))])
    decided = {"service": "api", "decision": "refused", "reason": "default_deny", "source": "batch"}
    assert sample(text, "mesh_decisions_total", **decided) == 2
    assert sample(text, "mesh_handshake_refusals_total", reason="root_not_trusted") == 2
    assert sample(text, "mesh_rotations_total", service="api") == 0
    assert sample(text, "mesh_generation", worker="0") == 7
    assert sample(text, "mesh_generation", worker="1") == 9
    assert sample(text, "mesh_ready", worker="0") == 1
    assert sample(text, "mesh_intentions", worker="0") == 1
    assert sample(text, "mesh_leaf_expiry_timestamp_seconds") == pytest.approx(report.leaf_expires)
    assert sample(text, "mesh_agent_answer_timestamp_seconds", part="roots") == 1700000000
    assert sample(text, "mesh_agent_failing", part="leaf") == 1
    assert b"script" not in text  # never a path


def test_the_reference_lists_every_metric_with_its_labels() -> None:
    page = (Path(__file__).parents[2] / "docs" / "reference" / "metrics.md").read_text()
    rows = re.findall(r"^\| `(mesh_\w+)` \| (\w+) \| (.*) \|$", page, re.MULTILINE)
    text = exposition(lambda: [("0", reporter(Source()).report())]).decode()
    found = {}
    for family in text_string_to_metric_families(text):
        for each in family.samples:
            if not each.name.endswith("_created"):
                found[each.name] = (family.type, sorted(each.labels))
    assert found == {
        name: (kind, sorted(re.findall(r"`(\w+)`", labels))) for name, kind, labels in rows
    }


def test_a_registry_of_ones_own() -> None:
    registry = CollectorRegistry()
    register(static_mesh("api"), registry)
    try:
        assert sample(generate_latest(registry), "mesh_generation", worker="0") == 1
    finally:
        counts_module.counts.on = False


def test_importing_registers_nothing_and_the_package_does_not_need_it() -> None:
    code = """
import sys, prometheus_client
import mesh_middleware.observe.metrics
assert b"mesh_" not in prometheus_client.generate_latest()
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=30)
    code = "import sys, mesh_middleware.server.ops; assert 'prometheus_client' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=30)


# -- status ------------------------------------------------------------------------------------


class Texts(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.texts: list[str] = []

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.tags.add(tag)

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def test_the_page_shows_the_report_and_nothing_that_runs() -> None:
    report = reporter(Source()).report()
    page = Texts()
    page.feed(status_page([("0", report)]))
    assert page.tags == {"html", "meta", "title", "h1", "h2", "h3", "table", "tr", "th", "td"}
    for text in ("api, worker 0", "default_deny", "/<script>", "<b>403</b>", report.revision):
        assert text in page.texts
    assert "No worker" in status_page([])


def test_the_document_has_the_same() -> None:
    report = reporter(Source()).report()
    document = json.loads(json.dumps(status_document([("0", report)])))
    assert document["workers"]["0"]["generation"] == 7
    assert document["workers"]["0"]["recent"][0]["path"] == "/<script>"


def test_nothing_secret_is_in_it() -> None:
    source = Source()
    text = json.dumps(status_document([("0", reporter(source).report())]))
    assert "PRIVATE" not in text
    assert "BEGIN" not in text


def test_times_are_words() -> None:
    assert when(0.0) == "1970-01-01 00:00:00 UTC"
    assert when(None) == "not known"


# -- shared between processes ------------------------------------------------------------------


def test_a_row_is_whole_or_not_there() -> None:
    shared = SharedReports(2)
    assert shared.all() == []
    report = reporter(Source()).report()
    shared.write(1, report)
    assert shared.all() == [("1", report)]
    shared._cells[ROW_BYTES + 20] ^= 1
    assert shared.all() == []


def test_what_an_ended_worker_counted_stays() -> None:
    shared = SharedReports(2)
    report = replace(reporter(Source()).report(), rotations=2)
    for _ in range(2):
        shared.write(0, report)
        shared.retire(0)
    shared.retire(0)
    assert shared.counted() == []
    shared.write(1, report)
    ((worker, sums),) = shared.counted()
    assert worker == "1"
    assert sums.decisions == (("refused", "default_deny", "batch", 3),)
    assert sums.handshakes == (("client", "root_not_trusted", 3),)
    assert sums.rotations == 6
    assert shared.all() == [("1", report)]


def test_a_report_that_is_too_long_goes_without_its_refusals_or_not_at_all() -> None:
    shared = SharedReports(1)
    report = reporter(Source()).report()
    shared.write(0, replace(report, recent=({"path": "x" * ROW_BYTES},)))
    assert shared.all() == [("0", replace(report, recent=(), errors={}))]
    shared.write(0, replace(report, service="x" * ROW_BYTES))
    assert shared.all() == [("0", replace(report, recent=(), errors={}))]


def test_the_longest_report_fits() -> None:
    counts = Counts()
    for number in range(MAX_KEYS + 1):
        counts.decided("refused", DENIED, identity(f"{number:03}" + "s" * 120))
    for _ in range(KEPT):
        counts.remember("refused", {f"mesh_{name}": "x" * 203 for name in ("path", "source")})
    shared, report = SharedReports(1), Reporter(Source(), counts=counts).report()
    shared.write(0, report)
    ((_, found),) = shared.all()
    assert len(found.recent) == KEPT
    assert len(found.decisions) == MAX_KEYS + 1
