"""Wrong use of the commands: exit 2, the option's name, and a right value."""

from __future__ import annotations

from typing import ClassVar

import click
import pytest
import uvicorn.main
from click.testing import CliRunner

from mesh_middleware.cli import COMMANDS, main
from mesh_middleware.errors import ConfigError
from mesh_middleware.middleware.asgi import MeshMiddleware
from mesh_middleware.middleware.audit import AuditRule
from mesh_middleware.server.exits import ExitCode
from mesh_middleware.server.inner import inner_arguments
from mesh_middleware.server.launcher import serve
from mesh_middleware.server.options import REFUSED, SINCE, config_options, uvicorn_params
from mesh_middleware.server.protocols import MeshHTTP2
from mesh_middleware.server.worker import Settings
from tests.server.apps import hello


def said(*arguments: str, code: int = 2) -> str:
    """What the command says before it exits with `code`."""
    done = CliRunner().invoke(main, arguments, env={"CONSUL_HTTP_ADDR": "http://127.0.0.1:1"})
    assert done.exit_code == code, done.output
    return " ".join(done.output.split())


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--ssl-certfile", "leaf.pem"), "--ssl-certfile: certificate, key, roots"),
        (("--proxy-headers",), "--proxy-headers: the caller is whoever"),
        (("--forwarded-allow-ips", "*"), "--forwarded-allow-ips: the caller is whoever"),
        (("--http", "my:Protocol"), "--http my:Protocol"),
        (("--http2",), "--http2 needs --http zttp"),
        (("--wait", "soon"), "write seconds such as 30, 0, or forever"),
        (("--wait", "-1"), "write seconds such as 30, 0, or forever"),
        (("--meta", "version"), "write KEY=VALUE, such as version=3"),
        (("--dev-intentions", __file__), "--dev-intentions needs --dev"),
        (("--uds", "/tmp/x.sock"), "add --no-register"),
        (("--header", "novalue"), "write --header 'Name: value'"),
        (("--ops-port", "70000"), "--ops-port"),
        (("--no-such-option",), "No such option"),
    ],
)
def test_run_names_the_wrong_option(arguments: tuple[str, ...], words: str) -> None:
    assert words in said("run", "app:app", "--service", "web", *arguments)


def test_run_needs_a_service() -> None:
    assert "--service" in said("run", "app:app")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("http://127.0.0.1:1/",), "the mesh speaks https"),
        (("https://[::1/",), "is no URL"),
        (("--connect-to", "here", "https://api/"), "write HOST:PORT"),
        (("-H", "novalue", "https://api/"), "write 'Name: value'"),
        (("-d", "@/no/such/file", "https://api/"), "No such file"),
    ],
)
def test_call_names_the_wrong_option(arguments: tuple[str, ...], words: str) -> None:
    assert words in said("call", "--as", "web", *arguments)


def test_dev_agent_listens_on_loopback_only() -> None:
    assert "loopback" in said("dev-agent", "--host", "0.0.0.0", "--port", "0")


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_explains_itself(name: str) -> None:
    assert "Usage: " in said(name, "--help", code=0)


def test_an_unknown_command_is_named() -> None:
    assert "No such command 'runn'" in said("runn")


def test_an_option_that_only_newer_versions_of_uvicorn_have(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Such as ``--http2``: the error says which version has it, in both ways to give it."""
    monkeypatch.setattr(uvicorn, "__version__", "0.50.0")
    older = [param for param in uvicorn.main.params if param.name != "http2"]
    monkeypatch.setattr(uvicorn.main, "params", older)
    command = click.Command("run", params=uvicorn_params())
    done = CliRunner().invoke(command, ["--http2"])
    assert done.exit_code == 2
    assert "--http2: needs uvicorn 0.53 or newer, and this is 0.50.0" in done.output
    assert "--http2" not in CliRunner().invoke(command, ["--help"]).output

    monkeypatch.setattr(uvicorn, "Config", lambda app, *, http: None)
    with pytest.raises(ConfigError, match=r"http2: needs uvicorn 0\.53 or newer"):
        config_options({"http2": True})
    assert "http2" not in config_options({"http": "h11"})


def test_every_option_of_uvicorn_is_passed_on_or_refused() -> None:
    """A new option of uvicorn is there by itself; one that we refuse still exists there."""
    theirs = {param.name for param in uvicorn.main.params} - {"app", "version"}
    params = uvicorn_params()
    assert {param.name for param in params} == theirs | SINCE.keys()
    refused = {param.name for param in params if not param.expose_value}
    assert refused == (REFUSED.keys() & theirs) | (SINCE.keys() - theirs)
    assert all(
        isinstance(param, click.Option) and param.hidden
        for param in params
        if param.name in refused
    )


def test_options_of_uvicorn_keep_their_variables() -> None:
    port = next(param for param in uvicorn_params() if param.name == "port")
    assert port.envvar == "UVICORN_PORT"


def test_proxy_headers_are_never_believed() -> None:
    assert config_options({})["proxy_headers"] is False


def test_http2_is_done_by_our_class_of_it() -> None:
    config = config_options({"http": "zttp", "http2": True})
    assert (config["http"], config["http2"]) == (MeshHTTP2, False)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"ssl_keyfile": "k"}, "ssl_keyfile: certificate"),
        ({"proxy_headers": True}, "proxy_headers: the caller"),
        ({"prot": 1}, "has no option 'prot'"),
        ({"http": MeshHTTP2}, "give a name"),
    ],
)
def test_serve_refuses_the_same_from_python(options: dict[str, object], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        serve(hello, service="web", register=False, **options)


def test_workers_need_an_application_by_name() -> None:
    with pytest.raises(ConfigError, match="'module:attribute'"):
        serve(hello, service="web", workers=2)


class Launches:
    """In the place of a `Launcher`: what one would be made of."""

    made: ClassVar[list[Settings]] = []

    def __init__(self, settings: Settings, _placement: object) -> None:
        self.made.append(settings)

    def run(self) -> ExitCode:
        return ExitCode.OK


@pytest.mark.parametrize(
    ("options", "middleware"),
    [
        ((), {}),
        (("--revoked-drain", "0"), {"drain_seconds": 0.0}),
        (("--revoked-drain", "30"), {"drain_seconds": 30.0}),
        (("--enforcement", "enforce"), {"enforcement": "enforce"}),
        (("--debug-headers",), {"debug_headers": True}),
    ],
)
def test_what_is_not_said_is_left_to_the_application(
    options: tuple[str, ...], middleware: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Zero is something that is said: it overrides what the application's middleware says."""
    monkeypatch.setattr("mesh_middleware.server.launcher.Launcher", Launches)
    said("run", "app:app", "--service", "web", *options, code=0)
    assert Launches.made[-1].middleware == middleware


def test_no_variable_of_the_environment_turns_enforcement_off(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Somebody has to write it where it is read: on a command line or in code."""
    monkeypatch.setattr("mesh_middleware.server.launcher.Launcher", Launches)
    prefixes = ("", "MESH_", "MESH_MIDDLEWARE_", "MESH_MIDDLEWARE_RUN_", "UVICORN_", "CONSUL_")
    for prefix in prefixes:
        for name in ("ENFORCEMENT", "AUDIT", "MODE"):
            monkeypatch.setenv(prefix + name, "audit")
        for name in ("REVOKED_DRAIN", "DRAIN_SECONDS", "DEBUG_HEADERS"):
            monkeypatch.setenv(prefix + name, "1")
    said("run", "app:app", "--service", "web", code=0)
    assert Launches.made[-1].middleware == {}


def test_the_same_from_code(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mesh_middleware.server.launcher.Launcher", Launches)
    nothing = {"audit": (), "debug_headers": False, "drain_seconds": 0}
    serve(hello, service="web", **nothing)  # type: ignore[arg-type]
    assert Launches.made[-1].middleware == nothing
    app = MeshMiddleware(
        hello, service="web", audit=[AuditRule(paths=("/x",))], drain_seconds=30, debug_headers=True
    )
    said_inside = inner_arguments(app, "web") | dict(Launches.made[-1].middleware)
    assert nothing.items() <= said_inside.items()


@pytest.mark.parametrize("seconds", [0, -1, float("inf"), float("nan")])
def test_a_handshake_has_a_number_of_seconds(seconds: float) -> None:
    with pytest.raises(ConfigError, match="timeout_handshake"):
        serve(hello, service="web", timeout_handshake=seconds)
