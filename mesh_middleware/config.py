"""Settings of one mesh service, frozen and checked, and how they are read from the environment.

Consul's own names are read as Consul's tools read them (``CONSUL_HTTP_ADDR`` and friends, Consul
"Commands: environment variables"); ours start with ``MESH_``. The table `VARIABLES` says which
variable fills which field.
"""

from __future__ import annotations

import ipaddress
import math
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Literal
from urllib.parse import quote, unquote, urlsplit

from mesh_middleware.errors import ConfigError, SpiffeIDError
from mesh_middleware.policy.enforcement import EnforcementMode
from mesh_middleware.policy.intentions import WILDCARD, Action
from mesh_middleware.policy.spiffe import TrustDomain

DEFAULT_ADDRESS = "http://127.0.0.1:8500"
"""Where an agent listens unless told otherwise (Consul "ports")."""

_AUTHORITY = re.compile(
    r"(?:(?P<v4>[0-9.]+)|\[(?P<v6>[^\[\]]+)\]|(?P<name>[A-Za-z0-9._-]+))(?::[0-9]*)?"
)
_TRUE = frozenset({"1", "t", "true", "yes", "on"})
_FALSE = frozenset({"0", "f", "false", "no", "off", ""})


@dataclass(frozen=True, slots=True)
class MeshConfig:
    """How to reach the Consul agent, and for which service.

    `service`: the name in the mesh, without slash. `address`: ``host:port``, ``http://…``,
    ``https://…`` or ``unix:///path``; kept with its scheme. `token_file` wins over `token` and is
    read again when it changes. `ca_cert`, `client_cert`, `client_key`: PEM files for an https
    agent; `tls_server_name`: the name its certificate must have. `default_action`: None asks the
    agent. `trust_domain`: None adopts the agent's. `wait_seconds`: how long one blocking query may
    wait, 0.05 to 600 (Consul cuts at 10 minutes). `max_staleness_seconds`: how old the intentions
    may grow while the agent does not answer, before everything is refused; off by default.
    `allow_plaintext_agent`: let keys and tokens travel over plain HTTP to an address that is not
    loopback. `allow_plaintext_jwks`: fetch the keys of ``jwt-provider`` entries over plain HTTP
    from elsewhere too; who is on the way can then sign tokens. `peers_file`: JSON or YAML that
    names the clusters peered with ours, whose services may call through our mesh gateways.
    `enforcement`: ``"audit"`` logs and counts what the intentions refuse and passes it on, wherever
    a middleware does not say otherwise; there is no variable of the environment for it, because who
    turns enforcement off must have written it down.

    ConfigError names the setting that is wrong and a right value.
    """

    service: str
    address: str = DEFAULT_ADDRESS
    token: str | None = field(default=None, repr=False)
    token_file: str | None = None
    ca_cert: str | None = None
    client_cert: str | None = None
    client_key: str | None = None
    tls_server_name: str | None = None
    datacenter: str | None = None
    namespace: str | None = None
    partition: str | None = None
    default_action: Action | None = None
    trust_domain: str | None = None
    wait_seconds: float = 60.0
    max_staleness_seconds: float = math.inf
    peers_file: str | None = None
    allow_plaintext_agent: bool = False
    allow_plaintext_jwks: bool = False
    enforcement: Literal["enforce", "audit"] = "enforce"

    def __post_init__(self) -> None:
        _check_service(self.service)
        object.__setattr__(self, "address", parse_address(self.address))
        if self.token is not None:
            check_token(self.token, "token")
        if self.default_action is not None:
            object.__setattr__(
                self, "default_action", _action("default_action")(self.default_action)
            )
        object.__setattr__(self, "enforcement", _enforcement(self.enforcement))
        if self.trust_domain is not None:
            _trust_domain(self.trust_domain)
        if not 0.05 <= self.wait_seconds <= 600:
            raise ConfigError(
                f"wait_seconds: {self.wait_seconds} is not within 0.05 to 600, such as 60"
            )
        if not self.max_staleness_seconds > 0:
            raise ConfigError(
                f"max_staleness_seconds: {self.max_staleness_seconds} is not positive; "
                "write 259200 for three days"
            )
        if (self.client_cert is None) != (self.client_key is None):
            raise ConfigError(
                "client_cert and client_key (CONSUL_CLIENT_CERT, CONSUL_CLIENT_KEY) go together: "
                "give both, or neither"
            )
        self._check_plaintext()

    def _check_plaintext(self) -> None:
        host = urlsplit(self.address).hostname or ""
        if self.address.startswith("http://") and not (
            is_loopback(host) or self.allow_plaintext_agent
        ):
            raise ConfigError(
                f"address (CONSUL_HTTP_ADDR): {self.address} would send private keys and tokens in "
                f"the clear; write https://{host}:8501 with CONSUL_CACERT, use the local agent "
                f"({DEFAULT_ADDRESS}), or set MESH_ALLOW_PLAINTEXT_AGENT=true if the network is "
                "protected otherwise"
            )

    @property
    def socket_path(self) -> str | None:
        """The unix socket to connect to, or None for a TCP address."""
        return self.address[len("unix://") :] if self.address.startswith("unix://") else None

    @classmethod
    def from_env(
        cls, service: str, environ: Mapping[str, str] | None = None, **overrides: Any
    ) -> MeshConfig:
        """The settings for `service` from `environ` (default: the process's environment).

        `overrides` are fields; those that are not None win over the environment. An override of
        `token` also wins over a token file of the environment. Empty variables are not set.
        ConfigError names the variable.
        """
        environ = os.environ if environ is None else environ
        known = {item.name for item in fields(cls)} - {"service"}
        if wrong := overrides.keys() - known:
            raise ConfigError(f"unknown settings: {', '.join(sorted(wrong))}")
        given = {name: value for name, value in overrides.items() if value is not None}
        settings: dict[str, Any] = {}
        for variable, (name, read) in VARIABLES.items():
            text = environ.get(variable, "").strip()
            if text and name not in given:
                settings[name] = read(text)
        if "token" in given:
            settings.pop("token_file", None)
        if "address" in settings:
            settings["address"] = _with_scheme(settings["address"], environ)
            settings["address"] = parse_address(settings["address"], "CONSUL_HTTP_ADDR")
        elif "address" not in given and _flag("CONSUL_HTTP_SSL")(
            environ.get("CONSUL_HTTP_SSL", "")
        ):
            settings["address"] = "https://127.0.0.1:8501"
        config = cls(service, **settings | given)
        verify = environ.get("CONSUL_HTTP_SSL_VERIFY", "true")
        if config.address.startswith("https://") and not _flag("CONSUL_HTTP_SSL_VERIFY")(verify):
            raise ConfigError(
                "CONSUL_HTTP_SSL_VERIFY: certificates of the agent are always verified; "
                "unset it and set CONSUL_CACERT to the file of its CA"
            )
        return config


def parse_address(address: str, name: str = "address (CONSUL_HTTP_ADDR)") -> str:
    """`address` with its scheme, checked; ConfigError, with `name` in it, says what would do."""
    hint = "write 127.0.0.1:8500, http://127.0.0.1:8500, https://host:8501 or unix:///path"
    shown = host_of(address)
    if address.startswith("unix://"):
        if not address[len("unix://") :].startswith("/") or "\0" in address:
            raise ConfigError(f"{name}: {shown!r} has no absolute socket path; {hint}")
        return address
    bare = "://" not in address
    text = f"http://{address}" if bare else address
    try:
        parts = urlsplit(text)
        port = parts.port
    except ValueError:
        raise ConfigError(f"{name}: {shown!r} is not an address; {hint}") from None
    if parts.scheme not in {"http", "https"}:
        raise ConfigError(f"{name}: {shown!r} has the scheme {parts.scheme!r}; {hint}")
    # Wherever it stands: a slash in a password makes the rest of it look like a path.
    surplus = "@" in address or parts.query or parts.fragment
    odd = any(c.isspace() or not c.isprintable() for c in address)
    if not _is_authority(parts.netloc) or surplus or odd:
        raise ConfigError(f"{name}: not the address of an agent; {hint}")
    if port == 0 or (bare and port is None):
        raise ConfigError(f"{name}: {shown!r} has no port; {hint}")
    path = quote(unquote(parts.path), safe="/").rstrip("/")
    return f"{parts.scheme}://{parts.netloc}{path}"


def _is_authority(text: str) -> bool:
    """Whether `text` is a name in ASCII or an IP address, maybe with a port.

    `urlsplit` takes more than that, of which an HTTP client makes no URL.
    """
    found = _AUTHORITY.fullmatch(text)
    if found is None or found["name"]:
        return found is not None
    try:
        ipaddress.ip_address(found["v4"] or found["v6"])
    except ValueError:
        return False
    return True


def host_of(url: str) -> str:
    """Scheme, host and port of `url`, for messages: the rest of it may hold credentials.

    `url` need not be a good one; where nobody can tell the host from a password it is ``…``.
    """
    scheme = re.match(r"(?:[A-Za-z][A-Za-z0-9+.-]*://)?", url)
    start = scheme[0] if scheme else ""
    authority, *after = re.split(r"[/?#\\]", url[len(start) :], maxsplit=1)
    if "@" in "".join(after) and "@" not in authority:
        authority = "…"
    return f"{start}{authority.rpartition('@')[2]}"


def is_loopback(host: str) -> bool:
    """Whether `host` (a name or an IP address) is this machine."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower().rstrip(".") == "localhost"


def check_token(token: str, name: str) -> str:
    """`token` if it can be sent in a header; ConfigError, which never shows it, otherwise."""
    if not token or not token.isascii() or not token.isprintable() or " " in token:
        raise ConfigError(f"{name}: not a Consul token; expected the SecretID, such as a UUID")
    return token


def _check_service(service: str) -> None:
    if not service or "/" in service or service == WILDCARD or not service.isprintable():
        raise ConfigError(
            f"service: {service!r} cannot be a service name; write the name that the service has "
            "in Consul, such as web"
        )


def _with_scheme(address: str, environ: Mapping[str, str]) -> str:
    wants_tls = _flag("CONSUL_HTTP_SSL")(environ.get("CONSUL_HTTP_SSL", ""))
    return f"https://{address}" if wants_tls and "://" not in address else address


def _trust_domain(text: str, name: str = "trust_domain (MESH_TRUST_DOMAIN)") -> str:
    try:
        return TrustDomain(text).name
    except SpiffeIDError as error:
        raise ConfigError(f"{name}: {error}; write it without spiffe://") from None


def _action(name: str) -> Callable[[str], Action]:
    def read(text: str) -> Action:
        try:
            return Action(text)
        except ValueError:
            raise ConfigError(f"{name}: {text!r} is not an action; write allow or deny") from None

    return read


def _enforcement(text: str) -> EnforcementMode:
    try:
        return EnforcementMode(text)
    except ValueError:
        raise ConfigError(f"enforcement: {text!r} is not a mode; write enforce or audit") from None


def _flag(name: str) -> Callable[[str], bool]:
    def read(text: str) -> bool:
        word = text.strip().lower()
        if word in _TRUE or word in _FALSE:
            return word in _TRUE
        raise ConfigError(f"{name}: {text!r} is neither true nor false; write true")

    return read


def _seconds(name: str) -> Callable[[str], float]:
    def read(text: str) -> float:
        try:
            number = float(text)
        except ValueError:
            number = math.nan
        if math.isnan(number):
            raise ConfigError(f"{name}: {text!r} is not a number of seconds; write 60")
        return number

    return read


def _token(text: str) -> str:
    return check_token(text, "CONSUL_HTTP_TOKEN")


VARIABLES: Mapping[str, tuple[str, Callable[[str], Any]]] = {
    "CONSUL_HTTP_ADDR": ("address", str),
    "CONSUL_HTTP_TOKEN": ("token", _token),
    "CONSUL_HTTP_TOKEN_FILE": ("token_file", str),
    "CONSUL_CACERT": ("ca_cert", str),
    "CONSUL_CLIENT_CERT": ("client_cert", str),
    "CONSUL_CLIENT_KEY": ("client_key", str),
    "CONSUL_TLS_SERVER_NAME": ("tls_server_name", str),
    "CONSUL_NAMESPACE": ("namespace", str),
    "CONSUL_PARTITION": ("partition", str),
    "MESH_DEFAULT_ACTION": ("default_action", _action("MESH_DEFAULT_ACTION")),
    "MESH_TRUST_DOMAIN": (
        "trust_domain",
        lambda text: _trust_domain(text, "MESH_TRUST_DOMAIN"),
    ),
    "MESH_WAIT_SECONDS": ("wait_seconds", _seconds("MESH_WAIT_SECONDS")),
    "MESH_MAX_STALENESS_SECONDS": (
        "max_staleness_seconds",
        _seconds("MESH_MAX_STALENESS_SECONDS"),
    ),
    "MESH_PEERS_FILE": ("peers_file", str),
    "MESH_ALLOW_PLAINTEXT_AGENT": (
        "allow_plaintext_agent",
        _flag("MESH_ALLOW_PLAINTEXT_AGENT"),
    ),
    "MESH_ALLOW_PLAINTEXT_JWKS": (
        "allow_plaintext_jwks",
        _flag("MESH_ALLOW_PLAINTEXT_JWKS"),
    ),
}
"""Which variable fills which field, and how its text is read. ``CONSUL_HTTP_SSL`` adds a scheme."""
