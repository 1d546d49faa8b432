"""gunicorn on the mesh: certificates from the manager of each worker process, none from files.

The whole ``gunicorn.conf.py``, beside your own settings:

    from mesh_middleware.server.gunicorn import MeshConf

    mesh = MeshConf("stock")
    certfile, ssl_context = mesh.certfile, mesh.ssl_context
    post_worker_init = mesh.post_worker_init

The application needs its middleware as anywhere: ``MeshWSGIMiddleware`` (sync, gthread) or
``MeshMiddleware`` with `mesh_middleware.server.gunicorn_worker.MeshUvicornWorker`. What is not
encrypted, or not by these settings, has no caller and is refused there.

Each worker starts its manager after the fork, so that ``preload_app`` and reloads (HUP) are fine.
"""

from __future__ import annotations

import errno
import logging
import ssl
import time
from collections.abc import Callable
from typing import Any, Final

from mesh_middleware.consul.manager import MeshManager
from mesh_middleware.errors import ConfigError, NotReadyError
from mesh_middleware.runtime import manager_for
from mesh_middleware.tls.contexts import MeshContext, TLSContexts

logger = logging.getLogger("gunicorn.error")

WAIT_SECONDS: Final = 10.0
"""How long a worker waits for its first mesh state."""

_LOOK_SECONDS: Final = 0.2


class MeshConf:
    """Settings of gunicorn for the service `service`, which is what its name is in Consul.

    `wait`: seconds that a new worker waits for certificates and intentions. After that it serves
    all the same: connections are dropped until it has them, and the log says what is missing.
    The agent is found in the environment (`MeshConfig.from_env`), in each worker.
    """

    certfile: Final = "/dev/null"
    """Turns TLS on: gunicorn wants a file that exists and, with `ssl_context`, never reads it."""

    def __init__(self, service: str, *, wait: float = WAIT_SECONDS) -> None:
        if not service:
            raise ConfigError("service must be the name of a Consul service, not empty")
        self.service = service
        self._wait = wait
        self._contexts: dict[tuple[str, ...], MeshContext] = {}

    def ssl_context(
        self,
        conf: Any,
        default_ssl_context_factory: Callable[[], ssl.SSLContext],  # noqa: ARG002
    ) -> ssl.SSLContext:
        """gunicorn's hook: the context that gives each new connection the newest certificate.

        gunicorn calls it for every connection (sync, gthread), so that one context is kept for
        each set of protocols.
        """
        alpn = alpn_of(conf)
        found = self._contexts.get(alpn)
        if found is None:
            found = self._contexts[alpn] = MeshContext.for_server(self._current, alpn=alpn)
        return found

    def post_worker_init(self, worker: Any) -> None:
        """gunicorn's hook: start the worker's manager and wait for what it learns.

        It is called when the worker's own signal handlers are set up, so that it can be stopped
        while it waits. ConfigError, which ends gunicorn, where ``certfile`` was left out: it would
        serve without TLS, and every request would be refused.
        """
        if not worker.cfg.is_ssl:
            raise ConfigError("gunicorn.conf.py must also say: certfile = mesh.certfile")
        source = manager_for(self.service)
        if not isinstance(source, MeshManager):
            return
        deadline = time.monotonic() + self._wait
        logger.info("waiting for certificates and intentions of %s", self.service)
        while worker.alive:
            worker.notify()  # else gunicorn takes it for dead after its `timeout`
            try:
                source.wait_ready(_LOOK_SECONDS)
            except NotReadyError as error:
                if time.monotonic() < deadline:
                    continue
                logger.error("%s; connections are dropped until then", error)  # noqa: TRY400
            return

    def _current(self) -> TLSContexts:
        source = manager_for(self.service)
        contexts = source.state.contexts
        if contexts is None:
            # gunicorn closes the connection without a word; any other error gets a plain answer
            raise OSError(errno.ECONNRESET, f"no certificate for {self.service!r} yet")
        return contexts


def alpn_of(conf: Any) -> tuple[str, ...]:
    """``http_protocols``, where HTTP/2 is among them and the worker class speaks it (gthread)."""
    wanted = getattr(conf, "http_protocols", None) or ()
    if "h2" not in wanted or conf.worker_class_str != "gthread":
        return ()
    return tuple({"h1": "http/1.1"}.get(name, name) for name in wanted if name in ("h1", "h2"))
