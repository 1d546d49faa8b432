"""The file that names the peers: read when a manager starts, or said to be wrong then."""

from __future__ import annotations

from pathlib import Path

import pytest

from mesh_middleware import ConfigError, MeshConfig, MeshManager
from mesh_middleware.consul.peers import peers_of
from mesh_middleware.policy.peering import PeerBundle
from mesh_middleware.policy.spiffe import TrustDomain

EAST = PeerBundle("east", TrustDomain("east.consul"))
WEST = PeerBundle("west", TrustDomain("west.consul"), "team")


def config(file: Path) -> MeshConfig:
    return MeshConfig.from_env("web", {"MESH_PEERS_FILE": str(file)})


def test_without_a_file_there_are_none() -> None:
    assert peers_of(MeshConfig("web")) == ()


@pytest.mark.parametrize(
    ("name", "text"),
    [
        (
            "peers.yaml",
            "- {PeerName: east, TrustDomain: east.consul}\n"
            "- PeerName: west\n  TrustDomain: west.consul\n  ExportedPartition: team\n",
        ),
        (
            "peers.json",
            '[{"PeerName": "east", "TrustDomain": "east.consul", "ExportedPartition": ""},'
            ' {"PeerName": "west", "TrustDomain": "west.consul", "ExportedPartition": "team"}]',
        ),
    ],
)
def test_a_file_is_a_list(tmp_path: Path, name: str, text: str) -> None:
    file = tmp_path / name
    file.write_text(text)
    assert peers_of(config(file)) == (EAST, WEST)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "expected one list"),
        ("PeerName: east", "expected one list"),
        ("- {PeerName: east}", r"\[0\].TrustDomain"),
        ("- {TrustDomain: east.consul}", r"\[0\].PeerName"),
        ("- {PeerName: '', TrustDomain: east.consul}", "PeerName"),
        ("- {PeerName: east, TrustDomain: 'spiffe://east'}", "TrustDomain"),
        ("- {PeerName: east, TrustDomain: a.consul, ExportedPartition: 1}", "ExportedPartition"),
        ("[", "not YAML"),
        (
            "- {PeerName: east, TrustDomain: a.consul}\n"
            "- {PeerName: west, TrustDomain: a.consul, ExportedPartition: Default}",
            "write each once",
        ),
    ],
)
def test_what_is_wrong_is_said_when_the_manager_starts(
    tmp_path: Path, text: str, says: str
) -> None:
    file = tmp_path / "peers.yaml"
    file.write_text(text)
    manager = MeshManager(config(file))
    with pytest.raises(ConfigError, match=f"MESH_PEERS_FILE.*{says}"):
        manager.start()


def test_a_file_that_is_not_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read: No such file"):
        MeshManager(config(tmp_path / "none")).start()
