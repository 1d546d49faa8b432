"""The clusters that are peered with ours, from the file that `MeshConfig.peers_file` names.

No agent endpoint tells trust domain and exported partition of a peer, so the operator writes them
down. The file is a list in JSON or YAML, as `peers` of a ``check`` document:

    - PeerName: east
      TrustDomain: 22222222-aaaa-4bbb-8ccc-dddddddddddd.consul
      ExportedPartition: default

It is read when a manager starts.
"""

from __future__ import annotations

from pathlib import Path

from mesh_middleware._documents import load_documents
from mesh_middleware.config import MeshConfig
from mesh_middleware.consul.decode import decode_peer
from mesh_middleware.errors import ConfigError, DecodeError
from mesh_middleware.policy.peering import PeerBundle, index_peers


def peers_of(config: MeshConfig) -> tuple[PeerBundle, ...]:
    """The peers that `config` names; none without a file. ConfigError says what is wrong with it.

    Wrong too: two peers that a certificate could not tell apart.
    """
    if config.peers_file is None:
        return ()
    name = f"peers_file (MESH_PEERS_FILE): {config.peers_file}"
    try:
        peers = _read(Path(config.peers_file))
    except OSError as error:
        raise ConfigError(f"{name}: cannot be read: {error.strerror}") from error
    except DecodeError as error:
        raise ConfigError(f"{name}: {error}") from error
    if len(index_peers(peers)) < len(peers):
        raise ConfigError(
            f"{name}: two peers have the same trust domain and partition, so that nobody can tell "
            "their services apart; write each once"
        )
    return peers


def _read(file: Path) -> tuple[PeerBundle, ...]:
    documents = load_documents(file.read_bytes(), file.name)
    if len(documents) != 1 or not isinstance(documents[0], list):
        raise DecodeError("expected one list of {PeerName, TrustDomain, ExportedPartition}")
    return tuple(decode_peer(entry, f"[{n}]") for n, entry in enumerate(documents[0]))
