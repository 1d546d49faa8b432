"""Intentions from a file that changes while the agent runs."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest

from mesh_middleware.devagent import DevAgent
from mesh_middleware.errors import ConfigError
from tests.support import wait_for

ROW = {"SourceName": "web", "DestinationName": "api", "Action": "allow"}
ENTRY = {
    "Kind": "service-intentions",
    "Name": "api",
    "Sources": [{"Name": "web", "Action": "allow"}],
}
YAML_ROW = "SourceName: web\nDestinationName: api\nAction: allow\n"
YAML_ENTRY = "kind: service-intentions\nname: api\nsources: [{name: web, action: allow}]\n"


def sources(agent: DevAgent, service: str = "api") -> list[str]:
    return [row["SourceName"] for row in agent.intentions(service)]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.json", json.dumps(ROW)),
        ("a.json", json.dumps([ROW])),
        ("a.json", json.dumps(ENTRY)),
        ("a.json", json.dumps({"intentions": [ROW]})),
        ("a.json", json.dumps({"Intentions": [ENTRY]})),
        ("a.yaml", YAML_ROW),
        ("a.yml", YAML_ENTRY),
        ("a.yaml", "intentions:\n- {SourceName: web, DestinationName: api, Action: allow}\n"),
        ("a.yaml", f"---\n{YAML_ENTRY}---\nSourceName: x\nDestinationName: y\nAction: deny\n"),
    ],
)
def test_every_form_of_file_is_read(tmp_path, name, text):
    path = tmp_path / name
    path.write_text(text)
    assert sources(DevAgent(intentions=path)) == ["web"]
    assert sources(DevAgent(intentions=str(path))) == ["web"]


def test_an_empty_file_means_no_intentions(tmp_path):
    path = tmp_path / "a.yaml"
    path.write_text("")
    assert sources(DevAgent(intentions=path)) == []


@pytest.mark.parametrize(
    ("text", "cause"),
    [
        (json.dumps([ROW, {**ROW, "Action": "maybe"}]), "intention 1: Action must be set to"),
        ("[", "line"),
        ("3", "cannot unmarshal"),
        (json.dumps([{**ENTRY, "Colour": 1}]), 'invalid config key "Colour"'),
        (
            json.dumps({**ROW, "Action": "", "Permissions": [{"Action": "allow", "HTTP": {}}]}),
            "intention 0: Permissions[0].HTTP is required",
        ),
    ],
)
def test_a_bad_file_at_the_start_is_a_config_error(tmp_path, text, cause):
    path = tmp_path / "a.json"
    path.write_text(text)
    with pytest.raises(ConfigError) as error:
        DevAgent(intentions=path)
    assert str(path) in str(error.value)
    assert cause in str(error.value)


def test_a_missing_file_at_the_start_is_a_config_error(tmp_path):
    with pytest.raises(ConfigError, match="No such file") as error:
        DevAgent(intentions=tmp_path / "none.yaml")
    assert error.value.__cause__ is None, "an OSError as the cause means that the port is taken"


def test_a_file_that_is_much_too_large_is_not_read(tmp_path):
    path = tmp_path / "a.json"
    with path.open("wb") as file:
        file.truncate(16 * 1024 * 1024 + 1)
    with pytest.raises(ConfigError, match="more than 16777216 bytes"):
        DevAgent(intentions=path)


def test_trouble_in_the_watch_is_logged_and_the_watch_goes_on(tmp_path, caplog, monkeypatch):
    path = tmp_path / "a.json"
    path.write_text(json.dumps([ROW]))
    with DevAgent(intentions=path) as agent:
        with monkeypatch.context() as patch:
            patch.setattr(agent._store, "tick", None)
            wait_for(lambda: "could not look after its state" in caplog.text)
        replace(path, "[]")
        wait_for(lambda: sources(agent) == [])


def replace(path: Path, text: str) -> None:
    """As an editor writes: a new file under the old name."""
    new = path.with_suffix(".new")
    new.write_text(text)
    new.replace(path)


def test_a_change_of_the_file_is_a_change_of_the_intentions(tmp_path):
    path = tmp_path / "a.json"
    path.write_text(json.dumps([ROW, {**ROW, "DestinationName": "gone"}]))
    with DevAgent(intentions=path) as agent:
        agent.put_intentions({**ROW, "DestinationName": "other"})
        index = agent._store.index
        replace(path, json.dumps([{**ROW, "SourceName": "cron"}]))
        wait_for(lambda: sources(agent) == ["cron"])
        assert sources(agent, "gone") == []
        assert sources(agent, "other") == ["web"], "what others wrote stays"
        assert agent._store.index > index
        path.write_text(json.dumps([{**ROW, "SourceName": "batch"}]))
        wait_for(lambda: sources(agent) == ["batch"])
        path.write_text(json.dumps([{**ROW, "SourceName": "BATCH"}]))
        wait_for(lambda: sources(agent) == ["BATCH"], message="as long as before, and yet another")


def test_a_broken_file_keeps_the_last_good_content_and_says_so_once(tmp_path, caplog):
    path = tmp_path / "a.json"
    path.write_text(json.dumps([ROW]))
    with (
        caplog.at_level(logging.INFO, "mesh_middleware.devagent"),
        DevAgent(intentions=path) as agent,
    ):
        assert [record.getMessage() for record in caplog.records] == [f"in force from {path}: api"]
        caplog.clear()
        replace(path, json.dumps([ROW, {**ROW, "Action": "x"}]))
        (record,) = wait_for(lambda: list(caplog.records))
        said = record.getMessage()
        assert record.levelno == logging.ERROR
        assert str(path) in said
        assert "intention 1: Action must be set to 'allow' or 'deny'" in said
        assert "stay in force" in said
        assert sources(agent) == ["web"]
        replace(path, json.dumps([ROW, {**ROW, "Action": "x"}, ROW]))
        seen = agent._files._seen
        wait_for(lambda: agent._files._seen != seen or agent._files._stamp() == agent._files._seen)
        assert len(caplog.records) == 1, "the same trouble is said once"
        path.unlink()
        wait_for(lambda: len(caplog.records) == 2)
        assert "No such file" in caplog.records[1].getMessage()
        assert sources(agent) == ["web"]
        path.write_text(json.dumps([{**ROW, "SourceName": "cron"}]))
        wait_for(lambda: sources(agent) == ["cron"])
        wait_for(lambda: len(caplog.records) == 3)
        assert "in force from" in caplog.records[2].getMessage()
        path.write_text("[]")
        wait_for(lambda: len(caplog.records) == 4)
        assert "nothing: the file is empty" in caplog.records[3].getMessage()


def test_a_file_that_clashes_with_what_others_wrote_changes_nothing(tmp_path, caplog):
    path = tmp_path / "a.json"
    path.write_text(json.dumps([ROW]))
    l7 = {**ROW, "Action": "", "Permissions": [{"Action": "allow", "HTTP": {"PathPrefix": "/"}}]}
    with DevAgent(intentions=path) as agent:
        agent.put_intentions({"Kind": "service-defaults", "Name": "api", "Protocol": "tcp"})
        replace(path, json.dumps([l7]))
        wait_for(lambda: "incompatible with L7" in caplog.text)
        assert agent.intentions("api")[0]["Action"] == "allow"


def test_each_service_may_have_a_file_of_its_own(tmp_path):
    api, billing = tmp_path / "api.yaml", tmp_path / "billing.json"
    api.write_text(YAML_ENTRY)
    billing.write_text(json.dumps({**ROW, "DestinationName": "billing"}))
    with DevAgent(intentions=[api, str(billing)]) as agent:
        assert (sources(agent), sources(agent, "billing")) == (["web"], ["web"])
        replace(billing, "[]")
        wait_for(lambda: sources(agent, "billing") == [])
        assert sources(agent) == ["web"]


def test_one_service_in_two_files_is_refused(tmp_path):
    one, two = tmp_path / "one.yaml", tmp_path / "two.yaml"
    one.write_text(YAML_ENTRY)
    two.write_text(YAML_ROW)
    with pytest.raises(ConfigError, match=r"two\.yaml: .* 'api' is in .*one\.yaml, too"):
        DevAgent(intentions=[one, two])


def test_files_and_entries_are_not_mixed(tmp_path):
    path = tmp_path / "a.json"
    path.write_text(json.dumps([ROW]))
    with pytest.raises(ConfigError, match="intention 0"):
        DevAgent(intentions=[str(path), ROW])


def test_a_restart_without_state_reads_the_file_again(tmp_path):
    path = tmp_path / "a.json"
    path.write_text(json.dumps([ROW]))
    with DevAgent(intentions=path) as agent:
        agent.restart(lose_state=True)
        assert sources(agent) == ["web"]
        replace(path, "[]")
        wait_for(lambda: sources(agent) == [])
