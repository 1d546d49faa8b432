"""The ACL token, from a setting or from a file that may change at any time."""

from __future__ import annotations

import logging
from pathlib import Path

from mesh_middleware.config import MeshConfig, check_token
from mesh_middleware.errors import ConfigError

logger = logging.getLogger("mesh_middleware.consul")

_Signature = tuple[int, int, int] | None


class TokenSource:
    """What to send as ``X-Consul-Token``. Its repr never shows the token.

    A token file is read again when its time, size or inode changes. While it cannot be read or is
    empty (somebody is just writing it), the last good token stays. `version` counts new ones.
    """

    def __init__(self, config: MeshConfig) -> None:
        self._path = None if config.token_file is None else Path(config.token_file)
        self._token = None if self._path else config.token
        self._seen: _Signature = None
        self._faulty = False
        self.version = 0
        if self._path is not None:
            self._seen = self._signature()
            self._token = _read(self._path)

    def __repr__(self) -> str:
        return f"<TokenSource {'file ' + str(self._path) if self._path else 'setting'}>"

    def get(self) -> str | None:
        """The token to send now, or None for none."""
        if self._path is not None and self.changed():
            self._seen = self._signature()
            self._reload(self._path)
        return self._token

    def changed(self) -> bool:
        """Whether there is a file that changed since it was last read."""
        return self._path is not None and self._signature() != self._seen

    def _reload(self, path: Path) -> None:
        try:
            self._token = _read(path)
        except ConfigError as error:
            if not self._faulty:
                logger.warning("%s; going on with the token read before", error)
            self._faulty = True
        else:
            self._faulty = False
            self.version += 1
            logger.info("read a new ACL token from %s", path)

    def _signature(self) -> _Signature:
        try:
            found = self._path.stat() if self._path is not None else None
        except OSError:
            return None
        if found is None:
            return None
        return (found.st_mtime_ns, found.st_size, found.st_ino)


def _read(path: Path) -> str:
    name = "token_file (CONSUL_HTTP_TOKEN_FILE)"
    try:
        text = path.read_text(encoding="ascii", errors="replace").strip()
    except OSError as error:
        raise ConfigError(
            f"{name}: cannot read {path}: {error.strerror}; name a file that holds the token"
        ) from error
    return check_token(text, f"{name} {path}")
