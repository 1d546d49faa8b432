"""The ``mesh`` config entry: how the mesh has requests normalised before rules see them.

It is one of the parts that must be known before anything is decided: it may say that requests are
to be refused (escaped slashes, header names with ``_``). There may be none, or an agent that has
never heard of it (before Consul 1.10); either gives the defaults.

Source: Consul, /v1/config/mesh, ``HTTP.Incoming.RequestNormalization``; readable without a token.
"""

from __future__ import annotations

from typing import Any, Final

from mesh_middleware.consul.answer import Answer
from mesh_middleware.consul.client import ConsulClient
from mesh_middleware.consul.decode import decode_normalization
from mesh_middleware.consul.fields import kind_of
from mesh_middleware.errors import ConsulError, DecodeError
from mesh_middleware.policy.request import Normalization

KIND: Final = "mesh"

PART: Final = "mesh entry"
"""The entry as a part of the state, in the words of messages."""

ABSENT_SECONDS: Final = 60.0
"""How often an agent that does not know the kind is asked again: it may be another one by then."""

_UNKNOWN_KIND: Final = "invalid config entry kind"
_ABSENT: Final = Answer(200, b"[]", None, {})


class MeshEntry:
    """Asks the agent behind `client` for the entry; `wait` in seconds."""

    def __init__(self, client: ConsulClient, wait: float) -> None:
        self._client = client
        self._wait = wait
        self._known = False

    async def fetch(self, index: int) -> Answer:
        """The list of ``mesh`` entries; an empty one, without index or headers, where the agent
        does not know the kind.

        Until it was read once, the agent's own copy will do (newer agents keep one): it starts a
        service while the servers are away. An agent that knew the kind and does not any more is
        one that fails.
        """
        try:
            answer = await self._client.config_entries(
                KIND, index, self._wait, cached=not self._known
            )
        except ConsulError as error:
            if self._known or not _is_unknown(error):
                raise
            return _ABSENT
        self._known = True
        return answer


def _is_unknown(error: ConsulError) -> bool:
    # 1.8.7 says 500, as for a server that is away: only the words tell them apart.
    return error.status == 404 or _UNKNOWN_KIND in error.body.lower()


def decode_mesh_entries(document: Any) -> Normalization:
    """What the list says; the defaults for an empty one. DecodeError where it cannot be read."""
    if document is not None and not isinstance(document, list):
        raise DecodeError(f"expected a list, got {kind_of(document)}")
    entries = document or [None]
    if len(entries) > 1:
        raise DecodeError(f"expected one entry, got {len(entries)}")
    return decode_normalization(entries[0])
