"""uvicorn's own command line options, as ours.

They are taken from uvicorn's click command, so a new option of uvicorn is there without a line
here. The ones that would take the mesh's place are refused, each with the reason.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import click
import uvicorn
import uvicorn.main

from mesh_middleware.errors import ConfigError
from mesh_middleware.server.protocols import protocol_class

_TLS = (
    "certificate, key, roots and verification come from the Consul agent and rotate while the "
    "service runs; leave it out"
)
_PROXY = (
    "the caller is whoever the TLS connection proves; addresses from headers are never believed; "
    "leave it out"
)

REFUSED: Mapping[str, str] = MappingProxyType(
    {
        "ssl_keyfile": _TLS,
        "ssl_certfile": _TLS,
        "ssl_keyfile_password": _TLS,
        "ssl_version": _TLS,
        "ssl_cert_reqs": _TLS,
        "ssl_ca_certs": _TLS,
        "ssl_ciphers": _TLS,
        "ssl_context_factory": _TLS,
        "proxy_headers": _PROXY,
        "forwarded_allow_ips": _PROXY,
    }
)
"""Options of uvicorn that the launcher does not take, by parameter name: why, and what to do."""

SINCE: Mapping[str, str] = MappingProxyType({"http2": "0.53"})
"""Options that not every uvicorn which we take has, by parameter name: the first one that does."""

_NOT_PASSED = frozenset({"app", "version"})
_NOT_CONFIG = frozenset({"app_dir"})  # of uvicorn.run(), not of uvicorn.Config


def uvicorn_params() -> list[click.Parameter]:
    """uvicorn's options for a click command: those passed on, and hidden ones that explain."""
    params: list[click.Parameter] = []
    # `uvicorn.main` is the click command: the package's attribute hides the module
    for original in uvicorn.main.params:
        name = original.name or ""
        if name in _NOT_PASSED:
            continue
        if name in REFUSED:
            params.append(_refusing(original, REFUSED[name]))
            continue
        param = copy.copy(original)
        param.envvar = param.envvar or f"UVICORN_{name.upper()}"  # as under uvicorn's own command
        params.append(param)
    missing = SINCE.keys() - {param.name for param in uvicorn.main.params}
    flags = [(name, click.Option([f"--{name}"], is_flag=True)) for name in missing]
    return params + [_refusing(flag, _too_old(name)) for name, flag in flags]


def _too_old(name: str) -> str:
    return f"needs uvicorn {SINCE[name]} or newer, and this is {uvicorn.__version__}"


def _refusing(original: click.Parameter, reason: str) -> click.Option:
    """An option that is parsed like `original` and then refused with `reason`."""

    def refuse(context: click.Context, param: click.Parameter, value: object) -> None:
        if value:
            raise click.UsageError(f"{param.opts[0]}: {reason}.", context)

    # a flag takes no value; everything else swallows one, so that the message is about the
    # option and not about a stray argument
    flag = bool(getattr(original, "is_flag", False))
    spelled = list(original.opts)
    if original.secondary_opts:
        spelled = [f"{spelled[0]}/{original.secondary_opts[0]}"]
    return click.Option(
        [original.name or "", *spelled],
        hidden=True,
        expose_value=False,
        callback=refuse,
        is_flag=flag,
        multiple=not flag,
    )


def config_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """`options` as keyword arguments of `uvicorn.Config`, after they were checked.

    Takes the names of `uvicorn.run`. ConfigError for one that uvicorn does not have, for one of
    `REFUSED`, and for an `http` that cannot carry the caller.
    """
    known = set(inspect.signature(uvicorn.Config).parameters) | _NOT_CONFIG
    for name in options:
        if name in REFUSED:
            raise ConfigError(f"{name}: {REFUSED[name]}")
        if name in SINCE and name not in known:
            raise ConfigError(f"{name}: {_too_old(name)}")
        if name not in known:
            raise ConfigError(f"uvicorn {uvicorn.__version__} has no option {name!r}")
    config = {name: value for name, value in options.items() if name not in _NOT_CONFIG}
    http, http2 = config.pop("http", "auto"), bool(config.pop("http2", False))
    if not isinstance(http, str):
        raise ConfigError("http: give a name (auto, h11, httptools, zttp), not a class")
    if "http2" in known:
        config["http2"] = False  # `MeshHTTP2` does it
    return {**config, "http": protocol_class(http, http2=http2), "proxy_headers": False}


def from_command_line(parsed: dict[str, Any]) -> dict[str, Any]:
    """What uvicorn's command does to its parsed options before it calls `uvicorn.run`."""
    options = dict(parsed)
    if "headers" in options:
        headers = list(options["headers"] or ())
        for header in headers:
            if ":" not in header:
                raise click.BadParameter(
                    f"{header!r} has no colon; write --header 'Name: value'", param_hint="--header"
                )
        options["headers"] = [tuple(header.split(":", 1)) for header in headers]
    for name in ("reload_dirs", "reload_includes", "reload_excludes"):
        if name in options:
            options[name] = list(options[name]) or None
    if options.get("log_config") is None:
        options.pop("log_config", None)
    return options
