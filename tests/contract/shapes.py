"""The documents of the API, field by field, and one comparer.

A specification is a type, a tuple of types, a list with one specification, or a mapping of field
names. Marks on a field: `Optional` (left out when empty), `Legacy` (only before 1.9).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tests.contract.agents import RECORDED, Agent


@dataclass(frozen=True)
class Optional:
    spec: Any


@dataclass(frozen=True)
class Legacy:
    spec: Any


NoneType = type(None)

ROOT = {
    "ID": str,
    "Name": str,
    "SerialNumber": int,
    "SigningKeyID": str,
    "ExternalTrustDomain": str,
    "NotBefore": str,
    "NotAfter": str,
    "RootCert": str,
    "IntermediateCerts": (list, NoneType),
    "Active": bool,
    "PrivateKeyType": str,
    "PrivateKeyBits": int,
    "CreateIndex": int,
    "ModifyIndex": int,
}
ROOTS = {"ActiveRootID": str, "TrustDomain": str, "Roots": [ROOT]}
LEAF = {
    "SerialNumber": str,
    "CertPEM": str,
    "PrivateKeyPEM": str,
    "Service": str,
    "ServiceURI": str,
    "ValidAfter": str,
    "ValidBefore": str,
    "CreateIndex": int,
    "ModifyIndex": int,
}
ROW = {
    "ID": Legacy(str),
    "Description": Optional(str),
    "SourceNS": str,
    "SourceName": str,
    "DestinationNS": str,
    "DestinationName": str,
    "SourceType": str,
    "Action": Optional(str),
    "Permissions": Optional(list),
    "DefaultAddr": Legacy(str),
    "DefaultPort": Legacy(int),
    "Meta": Optional(dict),
    "Precedence": int,
    "CreatedAt": Legacy(str),
    "UpdatedAt": Legacy(str),
    "Hash": Legacy(str),
    "CreateIndex": int,
    "ModifyIndex": int,
}
AUTHORIZED = {"Authorized": bool, "Reason": str}
ADDRESS = {"Address": str, "Port": int}
SERVICE = {
    "ID": str,
    "Service": str,
    "Tags": [str],
    "Meta": (dict, NoneType),
    "Port": int,
    "Address": str,
    "TaggedAddresses": Optional({"lan_ipv4": ADDRESS, "wan_ipv4": ADDRESS}),
    "Weights": {"Passing": int, "Warning": int},
    "EnableTagOverride": bool,
    "Connect": Optional({"Native": bool}),
}
AGENT_SERVICE = {**SERVICE, "ContentHash": str}
CHECK = {
    "Node": str,
    "CheckID": str,
    "Name": str,
    "Status": str,
    "Notes": str,
    "Output": str,
    "ServiceID": str,
    "ServiceName": str,
    "ServiceTags": [str],
    "Type": str,
    "Definition": dict,
    "CreateIndex": int,
    "ModifyIndex": int,
}
NODE = {
    "ID": str,
    "Node": str,
    "Address": str,
    "Datacenter": str,
    "TaggedAddresses": dict,
    "Meta": dict,
    "CreateIndex": int,
    "ModifyIndex": int,
}
HEALTH = [
    {
        "Node": NODE,
        "Service": {
            **SERVICE,
            "Proxy": dict,
            "Connect": dict,
            "CreateIndex": int,
            "ModifyIndex": int,
        },
        "Checks": [CHECK],
    }
]
CA_CONFIGURATION = {
    "Provider": str,
    "Config": dict,
    "State": (dict, NoneType),
    "ForceWithoutCrossSigning": bool,
    "CreateIndex": int,
    "ModifyIndex": int,
}
SERVICE_INTENTIONS = {
    "Kind": str,
    "Name": str,
    "Sources": [
        {
            "Name": str,
            "Action": Optional(str),
            "Permissions": Optional(list),
            "Precedence": int,
            "Type": str,
            "Description": Optional(str),
        }
    ],
    "Meta": Optional(dict),
    "CreateIndex": int,
    "ModifyIndex": int,
}


def same_shape(agent: Agent, value: Any, spec: Any, path: str = "") -> None:
    """AssertionError names the first field that is missing, too much, or of another type."""
    if isinstance(spec, list):
        assert type(value) is list, f"{path} is {value!r}"
        for number, each in enumerate(value):
            same_shape(agent, each, spec[0], f"{path}[{number}]")
    elif isinstance(spec, dict):
        assert type(value) is dict, f"{path} is {value!r}"
        _same_fields(agent, value, spec, path)
    else:
        types = spec if isinstance(spec, tuple) else (spec,)
        assert type(value) in types, f"{path} is {value!r}"


def _same_fields(agent: Agent, value: dict[str, Any], spec: dict[str, Any], path: str) -> None:
    for name, field in spec.items():
        if isinstance(field, Legacy):
            if agent.has("intentions without IDs"):
                assert name not in value, f"{path}.{name} is there"
                continue
        elif isinstance(field, Optional) and name not in value:
            continue
        assert name in value, f"{path}.{name} is missing"
        inner = field.spec if isinstance(field, (Legacy, Optional)) else field
        same_shape(agent, value[name], inner, f"{path}.{name}")
    if agent.version in RECORDED:
        assert value.keys() <= spec.keys(), f"{path} has {value.keys() - spec.keys()} too"
