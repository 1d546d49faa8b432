"""Settings: every form that is right, and a useful word about each that is not."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh_middleware.config import VARIABLES, MeshConfig, host_of, is_loopback, parse_address
from mesh_middleware.errors import ConfigError
from mesh_middleware.policy.intentions import Action
from tests.fuzzing import fuzz


def env(overrides: dict[str, Any] | None = None, /, **variables: str) -> MeshConfig:
    return MeshConfig.from_env("web", variables, **overrides or {})


ADDRESSES = [
    ({}, "http://127.0.0.1:8500"),
    ({"CONSUL_HTTP_ADDR": ""}, "http://127.0.0.1:8500"),
    ({"CONSUL_HTTP_ADDR": "127.0.0.1:8501"}, "http://127.0.0.1:8501"),
    ({"CONSUL_HTTP_ADDR": " localhost:8501 "}, "http://localhost:8501"),
    ({"CONSUL_HTTP_ADDR": "http://127.0.0.1:8500/"}, "http://127.0.0.1:8500"),
    ({"CONSUL_HTTP_ADDR": "http://[::1]:8500"}, "http://[::1]:8500"),
    ({"CONSUL_HTTP_ADDR": "[::1]:8500"}, "http://[::1]:8500"),
    ({"CONSUL_HTTP_ADDR": "https://consul.example"}, "https://consul.example"),
    ({"CONSUL_HTTP_ADDR": "https://consul.example:8501/api"}, "https://consul.example:8501/api"),
    ({"CONSUL_HTTP_ADDR": "unix:///run/consul.sock"}, "unix:///run/consul.sock"),
    ({"CONSUL_HTTP_ADDR": "10.0.0.1:8501", "CONSUL_HTTP_SSL": "true"}, "https://10.0.0.1:8501"),
    ({"CONSUL_HTTP_SSL": "1"}, "https://127.0.0.1:8501"),
    ({"CONSUL_HTTP_ADDR": "unix:///run/c.sock", "CONSUL_HTTP_SSL": "1"}, "unix:///run/c.sock"),
    ({"CONSUL_HTTP_ADDR": "10.0.0.1:8500", "MESH_ALLOW_PLAINTEXT_AGENT": "yes"},
     "http://10.0.0.1:8500"),
]  # fmt: skip


@pytest.mark.parametrize(("variables", "address"), ADDRESSES)
def test_address(variables: dict[str, str], address: str) -> None:
    config = env(**variables)
    assert config.address == address
    assert config.socket_path == (address[7:] if address.startswith("unix") else None)


WRONG = [
    ({"CONSUL_HTTP_ADDR": "ftp://127.0.0.1:1"}, "CONSUL_HTTP_ADDR", "http://127.0.0.1:8500"),
    ({"CONSUL_HTTP_ADDR": "127.0.0.1"}, "CONSUL_HTTP_ADDR", "no port"),
    ({"CONSUL_HTTP_ADDR": "127.0.0.1:99999"}, "CONSUL_HTTP_ADDR", "write 127.0.0.1:8500"),
    ({"CONSUL_HTTP_ADDR": "127.0.0.1:x"}, "CONSUL_HTTP_ADDR", "write 127.0.0.1:8500"),
    ({"CONSUL_HTTP_ADDR": "127.0.0.1:0"}, "CONSUL_HTTP_ADDR", "no port"),
    ({"CONSUL_HTTP_ADDR": ":8500"}, "CONSUL_HTTP_ADDR", "write 127.0.0.1:8500"),
    ({"CONSUL_HTTP_ADDR": "http://[::1:8500"}, "CONSUL_HTTP_ADDR", "write 127.0.0.1:8500"),
    ({"CONSUL_HTTP_ADDR": "http://a:b@127.0.0.1:1"}, "CONSUL_HTTP_ADDR", "not the address"),
    ({"CONSUL_HTTP_ADDR": "http://127.0.0.1:1?x=1"}, "CONSUL_HTTP_ADDR", "not the address"),
    ({"CONSUL_HTTP_ADDR": "127.0.0.1 :1"}, "CONSUL_HTTP_ADDR", "not the address"),
    ({"CONSUL_HTTP_ADDR": "http://b\u00fccher.example:1"}, "CONSUL_HTTP_ADDR", "not the address"),
    ({"CONSUL_HTTP_ADDR": "http://127.0.0.256:1"}, "CONSUL_HTTP_ADDR", "not the address"),
    ({"CONSUL_HTTP_ADDR": "http://x:[::1]"}, "CONSUL_HTTP_ADDR", "not the address"),
    ({"CONSUL_HTTP_ADDR": "http://[v1.x]:1"}, "CONSUL_HTTP_ADDR", "not the address"),
    ({"CONSUL_HTTP_ADDR": "http://a%41:1"}, "CONSUL_HTTP_ADDR", "not the address"),
    ({"CONSUL_HTTP_ADDR": "unix://run/consul.sock"}, "CONSUL_HTTP_ADDR", "unix:///path"),
    ({"CONSUL_HTTP_ADDR": "unix:///run\0/consul.sock"}, "CONSUL_HTTP_ADDR", "unix:///path"),
    ({"CONSUL_HTTP_ADDR": "10.0.0.1:8500"}, "CONSUL_HTTP_ADDR", "MESH_ALLOW_PLAINTEXT_AGENT"),
    ({"CONSUL_HTTP_ADDR": "http://consul.local:8500"}, "CONSUL_HTTP_ADDR", "CONSUL_CACERT"),
    ({"CONSUL_HTTP_SSL": "maybe"}, "CONSUL_HTTP_SSL", "true"),
    ({"CONSUL_HTTP_SSL": "1", "CONSUL_HTTP_SSL_VERIFY": "false"}, "SSL_VERIFY", "CONSUL_CACERT"),
    ({"CONSUL_HTTP_TOKEN": "two words"}, "CONSUL_HTTP_TOKEN", "SecretID"),
    ({"CONSUL_HTTP_TOKEN": "a\nb"}, "CONSUL_HTTP_TOKEN", "SecretID"),
    ({"CONSUL_CLIENT_CERT": "/a.pem"}, "CONSUL_CLIENT_KEY", "both"),
    ({"CONSUL_CLIENT_KEY": "/a.pem"}, "CONSUL_CLIENT_CERT", "both"),
    ({"MESH_DEFAULT_ACTION": "maybe"}, "MESH_DEFAULT_ACTION", "allow or deny"),
    ({"MESH_TRUST_DOMAIN": "spiffe://x"}, "MESH_TRUST_DOMAIN", "without spiffe://"),
    ({"MESH_WAIT_SECONDS": "1m"}, "MESH_WAIT_SECONDS", "60"),
    ({"MESH_WAIT_SECONDS": "nan"}, "MESH_WAIT_SECONDS", "60"),
    ({"MESH_WAIT_SECONDS": "601"}, "wait_seconds", "60"),
    ({"MESH_WAIT_SECONDS": "0"}, "wait_seconds", "60"),
    ({"MESH_MAX_STALENESS_SECONDS": "0"}, "max_staleness_seconds", "259200"),
    ({"MESH_MAX_STALENESS_SECONDS": "x"}, "MESH_MAX_STALENESS_SECONDS", "60"),
    ({"MESH_ALLOW_PLAINTEXT_AGENT": "2"}, "MESH_ALLOW_PLAINTEXT_AGENT", "true"),
]


@pytest.mark.parametrize(("variables", "name", "hint"), WRONG)
def test_a_wrong_value_is_named_with_a_right_one(
    variables: dict[str, str], name: str, hint: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        env(**variables)
    assert name in str(caught.value)
    assert hint in str(caught.value)


def test_every_variable_fills_its_field() -> None:
    config = env(
        CONSUL_HTTP_ADDR="https://h:1", CONSUL_HTTP_TOKEN="t", CONSUL_HTTP_TOKEN_FILE="/t",
        CONSUL_CACERT="/ca", CONSUL_CLIENT_CERT="/c", CONSUL_CLIENT_KEY="/k",
        CONSUL_TLS_SERVER_NAME="n", CONSUL_NAMESPACE="ns", CONSUL_PARTITION="p",
        MESH_DEFAULT_ACTION="allow", MESH_TRUST_DOMAIN="a.consul", MESH_WAIT_SECONDS="5",
        MESH_MAX_STALENESS_SECONDS="inf", MESH_ALLOW_PLAINTEXT_AGENT="true",
    )  # fmt: skip
    assert config == MeshConfig(
        "web", "https://h:1", token="t", token_file="/t", ca_cert="/ca", client_cert="/c",
        client_key="/k", tls_server_name="n", namespace="ns", partition="p",
        default_action=Action.ALLOW, trust_domain="a.consul", wait_seconds=5.0,
        max_staleness_seconds=float("inf"), allow_plaintext_agent=True,
    )  # fmt: skip


def test_the_process_environment_is_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CONSUL_HTTP_ADDR", "127.0.0.1:9999")
    assert MeshConfig.from_env("web").address == "http://127.0.0.1:9999"


def test_arguments_win_over_the_environment() -> None:
    given = {"address": "127.0.0.1:1", "default_action": "deny", "trust_domain": None}
    config = env(
        given, CONSUL_HTTP_ADDR="nonsense", MESH_DEFAULT_ACTION="allow", MESH_TRUST_DOMAIN="a.b"
    )
    assert config.address == "http://127.0.0.1:1"
    assert config.default_action is Action.DENY
    assert config.trust_domain == "a.b"


def test_a_token_given_wins_over_a_token_file_of_the_environment() -> None:
    config = env({"token": "mine"}, CONSUL_HTTP_TOKEN_FILE="/t", CONSUL_HTTP_TOKEN="theirs")
    assert (config.token, config.token_file) == ("mine", None)


def test_an_unknown_override_is_a_mistake() -> None:
    with pytest.raises(ConfigError, match="adress"):
        env({"adress": "127.0.0.1:1"})


def test_tokens_do_not_show() -> None:
    assert "s3cret" not in repr(MeshConfig("web", token="s3cret"))
    with pytest.raises(ConfigError) as caught:
        MeshConfig("web", token="s3cret with words")
    assert "s3cret" not in str(caught.value)


@pytest.mark.parametrize("service", ["", "a/b", "*", "a\nb"])
def test_service_names(service: str) -> None:
    with pytest.raises(ConfigError, match="service"):
        MeshConfig(service)


def test_it_is_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        MeshConfig("web").service = "x"  # type: ignore[misc]


def test_nothing_in_the_environment_turns_enforcement_off() -> None:
    names = ("MESH_ENFORCEMENT", "MESH_AUDIT", "CONSUL_ENFORCEMENT", "ENFORCEMENT")
    assert MeshConfig.from_env("web", dict.fromkeys(names, "audit")).enforcement == "enforce"
    assert "enforcement" not in {name for name, _ in VARIABLES.values()}
    assert MeshConfig.from_env("web", {}, enforcement="audit").enforcement == "audit"


def test_a_mode_of_enforcement_is_checked() -> None:
    with pytest.raises(ConfigError, match="enforcement: 'off' is not a mode; write enforce or"):
        MeshConfig("web", enforcement="off")  # type: ignore[arg-type]


def test_default_action_may_be_text() -> None:
    action: Any = "allow"
    assert MeshConfig("web", default_action=action).default_action is Action.ALLOW
    with pytest.raises(ConfigError, match="allow or deny"):
        MeshConfig("web", default_action="perhaps")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("host", "loopback"),
    [
        ("127.0.0.1", True), ("127.9.9.9", True), ("::1", True), ("localhost", True),
        ("LOCALHOST.", True), ("10.0.0.1", False), ("localhost.evil.example", False),
        ("0.0.0.0", False), ("", False),
    ],
)  # fmt: skip
def test_loopback(host: str, loopback: bool) -> None:
    assert is_loopback(host) is loopback


@pytest.mark.parametrize(
    "address",
    [
        "http://user:s3cret@h:99999",
        "user:s3cret@h:99999",
        "http://user:s3/cret@h:1",
        "ftp://user:s3cret@h:1",
        "user:s3cret@h",
        "http://u:s3cret@[h",
        "http://h:0?token=s3cret",
        "unix://user:s3cret@h/x",
        "http://127.0.0.1:1/user:s3cret@h",
        "http://10.0.0.1:1/user:s3cret@h",
        "https://user:1/s3cret@h:8501",
    ],
)
def test_an_address_is_never_repeated_with_credentials(address: str) -> None:
    with pytest.raises(ConfigError) as caught:
        MeshConfig("web", address=address)
    assert "s3" not in str(caught.value)


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("https://u:p@h:1/k?q", "https://h:1"),
        ("https://h?q", "https://h"),
        ("h:1", "h:1"),
        ("u:p@h", "h"),
        ("http://u:p/w@h:1", "http://…"),
        ("http://u:p\\w@h:1", "http://…"),
        ("http://a://b/c", "http://a:"),
        ("u:p://w@h", "…"),
    ],
)
def test_of_a_url_messages_show_only_where_it_leads(url: str, shown: str) -> None:
    assert host_of(url) == shown


# -- any text as an address -------------------------------------------------------------------

PIECES = r"""http:// https:// unix:// unix: HTTP:// ftp:// :// 127.0.0.1 10.0.0.1 [::1] ::1 [ ]
    localhost h_1 x xn--x :8500 :0 :99999 :x : / // /v1 ? # @ %2F %40 % .. . \ ä""".split()
PIECES += [" ", "\t", "\n", "\x00", "\ud800", "\u212a", "\u00bd", "\uff0f"]
texts = st.one_of(
    st.lists(st.sampled_from(PIECES), max_size=8).map("".join),
    st.text(max_size=30),
    st.text(max_size=8).map("https://{}:1".format),
    st.text(max_size=8).map("{}:1/x".format),
)
with_credentials = st.lists(st.sampled_from([*PIECES, *["user:s3cret@"] * 4]), max_size=9)


@fuzz(300)
@given(texts)
def test_any_text_is_an_address_or_a_config_error(text: str) -> None:
    """And what is an address stays one, which an HTTP client takes."""
    try:
        found = parse_address(text)
        env(CONSUL_HTTP_ADDR=text, MESH_ALLOW_PLAINTEXT_AGENT="1")
    except ConfigError:
        return
    assert parse_address(found) == found
    assert found.startswith(("http://", "https://", "unix:///"))
    assert found.startswith("unix:///") or httpx.URL(found).raw_host


def refusal(make: Callable[[str], object], text: str) -> str:
    try:
        make(text)
    except ConfigError as error:
        return str(error)
    return ""


@fuzz(300)
@given(with_credentials.map("".join))
def test_no_message_about_any_address_repeats_credentials(text: str) -> None:
    assert "s3cret" not in refusal(parse_address, text)
    assert "s3cret" not in refusal(lambda each: MeshConfig("web", address=each), text)


@fuzz(100, cost=10)
@given(
    st.sampled_from(["", "http://", "https://"]),
    st.sampled_from(["127.0.0.1", "[::1]", "consul", "consul.example", "a_b-c.9"]),
    st.integers(1, 65535),
    st.sampled_from(["", "/", "/v1", "/a/b/", "/a%2Fb"]),
)
def test_a_good_address_is_taken_as_it_stands(scheme: str, host: str, port: int, path: str) -> None:
    kept = path.rstrip("/").replace("%2F", "/")
    expected = f"{scheme or 'http://'}{host}:{port}{kept}"
    assert parse_address(f"{scheme}{host}:{port}{path}") == expected


@fuzz(100, cost=10)
@given(st.text(st.characters(exclude_characters="\0"), max_size=20))
def test_the_path_of_a_socket_is_taken_as_it_is(path: str) -> None:
    config = MeshConfig("web", address=f"unix:///{path}")
    assert config.socket_path == f"/{path}"
