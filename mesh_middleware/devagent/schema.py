"""Shapes of the documents that are written to the agent, and one strict reader for them.

A schema is a mapping from field name to `str`, `bool`, `int`, `dict` (any object), `[schema]` (a
list) or another mapping. As Consul does, names are accepted in any case and, in config entries,
with underscores; an unknown name or a value of another type is refused with 400. Fields that hold
their type's zero value are left out of the result, as Go's ``omitempty`` does.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

Entry = dict[str, Any]


class RefusedError(Exception):
    """A request that Consul would not carry out: HTTP `status` and the plain text of the answer."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status
        self.text = text


_HEADER = {
    **dict.fromkeys(("Name", "Exact", "Prefix", "Suffix", "Contains", "Regex"), str),
    **dict.fromkeys(("Present", "Invert", "IgnoreCase"), bool),
}
_HTTP = {
    **dict.fromkeys(("PathExact", "PathPrefix", "PathRegex"), str),
    "Header": [_HEADER],
    "Methods": [str],
}
_JWT = {"Providers": [{"Name": str, "VerifyClaims": [{"Path": [str], "Value": str}]}]}
_PERMISSION = {"Action": str, "HTTP": _HTTP, "JWT": _JWT}
_SOURCE: dict[str, Any] = {
    **dict.fromkeys(("Name", "Peer", "Namespace", "Partition", "SamenessGroup"), str),
    "Action": str,
    "Permissions": [_PERMISSION],
    "Precedence": int,
    "Type": str,
    "Description": str,
    **dict.fromkeys(("LegacyID", "LegacyCreateTime", "LegacyUpdateTime"), str),
    "LegacyMeta": dict,
}
_ENTRY = {
    **dict.fromkeys(("Kind", "Name", "Namespace", "Partition"), str),
    "Meta": dict,
    **dict.fromkeys(("CreateIndex", "ModifyIndex", "Hash"), int),
}

SERVICE_INTENTIONS: Mapping[str, Any] = {**_ENTRY, "Sources": [_SOURCE], "JWT": _JWT}
"""A config entry of kind service-intentions: all sources of one destination."""

SERVICE_DEFAULTS: Mapping[str, Any] = {
    **_ENTRY,
    **dict.fromkeys(("Protocol", "Mode", "BalanceInboundConnections", "ExternalSNI"), str),
    "MutualTLSMode": str,
    **dict.fromkeys(("MaxInboundConnections", "LocalConnectTimeoutMs"), int),
    "LocalRequestTimeoutMs": int,
    **dict.fromkeys(("TransparentProxy", "UpstreamConfig", "MeshGateway", "Expose"), dict),
    **dict.fromkeys(("Destination", "RateLimits"), dict),
    "EnvoyExtensions": [dict],
}
"""Only `Protocol` means anything to the development agent."""

INTENTION: Mapping[str, Any] = {
    **dict.fromkeys(("ID", "Description", "SourceType", "Action", "DefaultAddr", "Hash"), str),
    **dict.fromkeys(("SourceNS", "SourceName", "SourcePartition", "SourcePeer"), str),
    **dict.fromkeys(("SourceSamenessGroup", "DestinationNS", "DestinationName"), str),
    **dict.fromkeys(("DestinationPartition", "CreatedAt", "UpdatedAt"), str),
    **dict.fromkeys(("DefaultPort", "Precedence", "CreateIndex", "ModifyIndex"), int),
    "Permissions": [_PERMISSION],
    "JWT": _JWT,
    "Meta": dict,
}
"""One row of the match API."""

_CHECK = {
    **dict.fromkeys(("CheckID", "ID", "Name", "Notes", "Status", "TTL", "Output"), str),
    **dict.fromkeys(("HTTP", "TCP", "GRPC", "AliasNode", "AliasService", "Interval"), str),
    **dict.fromkeys(("Timeout", "DeregisterCriticalServiceAfter", "Method", "Body"), str),
    **dict.fromkeys(("TLSServerName", "UDP", "H2PING", "DockerContainerID", "Shell"), str),
    **dict.fromkeys(("TLSSkipVerify", "GRPCUseTLS", "H2PingUseTLS", "DisableRedirects"), bool),
    **dict.fromkeys(("SuccessBeforePassing", "FailuresBeforeCritical", "OutputMaxSize"), int),
    "FailuresBeforeWarning": int,
    "Header": dict,
    "ScriptArgs": [str],
    "Args": [str],
}
SERVICE: Mapping[str, Any] = {
    **dict.fromkeys(("ID", "Name", "Address", "SocketPath", "Kind", "Token"), str),
    **dict.fromkeys(("Namespace", "Partition"), str),
    "Tags": [str],
    **dict.fromkeys(("Meta", "TaggedAddresses", "Proxy", "Locality"), dict),
    "Port": int,
    "EnableTagOverride": bool,
    "Weights": {"Passing": int, "Warning": int},
    "Check": _CHECK,
    "Checks": [_CHECK],
    "Connect": {"Native": bool, "SidecarService": dict},
}
"""The body of ``/v1/agent/service/register``."""

CHECK_UPDATE: Mapping[str, Any] = {"Status": str, "Output": str}
AUTHORIZE: Mapping[str, Any] = {
    **dict.fromkeys(("Target", "ClientCertURI", "ClientCertSerial"), str),
    **dict.fromkeys(("Namespace", "Partition"), str),
}
CA_CONFIGURATION: Mapping[str, Any] = {
    "Provider": str,
    "Config": dict,
    "State": dict,
    "ForceWithoutCrossSigning": bool,
    "CreateIndex": int,
    "ModifyIndex": int,
}

_WORDS: Mapping[type, str] = {
    str: "string",
    bool: "bool",
    int: "number",
    float: "number",
    dict: "object",
    list: "array",
    type(None): "null",
}


def read(
    document: Any,
    schema: Mapping[str, Any],
    *,
    config_entry: bool = False,
    snake_case: bool = False,
) -> Entry:
    """`document` with the schema's spelling and without empty fields; RefusedError (400) if it
    does not fit. `snake_case`: names may have underscores. `config_entry`: so they may, and
    errors are worded as for config entries.
    """
    return _Reader(config_entry, snake_case or config_entry).mapping(document, schema, "")


class _Reader:
    def __init__(self, config_entry: bool, snake_case: bool) -> None:
        self._config_entry = config_entry
        self._snake_case = snake_case

    def mapping(self, value: Any, schema: Mapping[str, Any], path: str) -> Entry:
        if not isinstance(value, dict):
            raise self._mismatch(value, dict, path)
        names = {self._fold(name): name for name in schema}
        result: Entry = {}
        for key, each in value.items():
            name = names.get(self._fold(str(key)))
            inner = f"{path}.{name or key}".lstrip(".")
            if name is None:
                raise self._unknown(inner, str(key))
            if name in result:
                raise RefusedError(400, f"Request decode failed: field {inner!r} is given twice")
            result[name] = self._value(each, schema[name], inner)
        return {name: each for name, each in result.items() if each not in _EMPTY}

    def _value(self, value: Any, schema: Any, path: str) -> Any:
        if value is None:
            return None
        if isinstance(schema, Mapping):
            return self.mapping(value, schema, path)
        if isinstance(schema, list):
            if not isinstance(value, list):
                raise self._mismatch(value, list, path)
            return [self._value(v, schema[0], f"{path}[{i}]") for i, v in enumerate(value)]
        if type(value) is not schema:
            raise self._mismatch(value, schema, path)
        return value

    def _fold(self, name: str) -> str:
        return (name.replace("_", "") if self._snake_case else name).lower()

    def _unknown(self, path: str, key: str) -> RefusedError:
        if self._config_entry:
            return RefusedError(400, f'Request decoding failed: invalid config key "{path}"')
        return RefusedError(400, f'Request decode failed: json: unknown field "{key}"')

    def _mismatch(self, value: Any, wanted: type, path: str) -> RefusedError:
        return RefusedError(
            400,
            f"Request decode failed: json: cannot unmarshal {_WORDS.get(type(value), 'value')} "
            f"into Go struct field .{path} of type {_WORDS[wanted]}",
        )


_EMPTY: tuple[Any, ...] = (None, "", False, 0, [], {})
