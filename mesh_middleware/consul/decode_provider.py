"""``jwt-provider`` config entries turned into `TokenProvider` values, totally.

A provider says what a token must be, so whatever is not understood in it could be a condition:
an object, list or setting that is not known makes the whole provider unusable, and rules that name
it refuse. Scalars beside the known keys of the entry itself are bookkeeping.

Keys are read as the API writes them (``JSONWebKeySet``), and as HCL users do
(``json_web_key_set``): without case and underscores, as Consul reads them.
"""

from __future__ import annotations

import binascii
import re
from base64 import b64decode
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final, TypeVar
from urllib.parse import urlsplit

import httpx

from mesh_middleware.config import host_of, is_loopback
from mesh_middleware.consul.fields import (
    flag_at,
    integer_at,
    kind_of,
    list_at,
    name_at,
    text_at,
    texts_at,
)
from mesh_middleware.errors import ConfigError, DecodeError
from mesh_middleware.tls.locations import (
    DEFAULT_LOCATIONS,
    CookieLocation,
    HeaderLocation,
    Location,
    QueryLocation,
)
from mesh_middleware.tls.providers import (
    CACHE_SECONDS,
    CLOCK_SKEW_SECONDS,
    FETCH_SECONDS,
    Forwarding,
    HiddenHeaders,
    LocalJWKS,
    RemoteJWKS,
    RetryPolicy,
    TokenProvider,
    TrustedCA,
)

KIND: Final = "jwt-provider"

T = TypeVar("T")

_ENTRY = """Kind Name Issuer Audiences Locations Forwarding JSONWebKeySet ClockSkewSeconds
    CacheConfig Meta""".split()
_REMOTE = """URI RequestTimeoutMs CacheDuration FetchAsynchronously RetryPolicy
    JWKSCluster""".split()

_MAX_SECONDS = 366 * 86400.0
_UNITS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
_PART = re.compile(r"([0-9]{1,12}(?:\.[0-9]{0,12})?)(ns|us|µs|ms|s|m|h)")


@dataclass(frozen=True, slots=True)
class Providers:
    """The providers of a datacenter, by name; `problems`: why others cannot be used, by name.

    `hidden`: what applications must not see, as far as it can be read, for those of `problems`.
    """

    usable: Mapping[str, TokenProvider]
    problems: Mapping[str, str]
    hidden: Mapping[str, HiddenHeaders]


def decode_providers(document: Any, *, allow_http: bool = False) -> Providers:
    """The answer of ``GET /v1/config/jwt-provider``. DecodeError when it is not a list of entries.

    An entry that cannot be used is left out, with its reason. `allow_http`: see `decode_provider`.
    """
    if not isinstance(document, list):
        raise DecodeError(f"expected a list, got {kind_of(document)}")
    usable: dict[str, TokenProvider] = {}
    problems: dict[str, str] = {}
    hidden: dict[str, HiddenHeaders] = {}
    for n, entry in enumerate(document):
        name = _entry_name(entry, f"[{n}]")
        try:
            usable[name] = decode_provider(entry, allow_http=allow_http)
        except DecodeError as error:
            problems[name] = str(error)
            hidden[name] = hidden.get(name, HiddenHeaders()) | hidden_by(entry)
    for name in usable.keys() & problems.keys():
        hidden[name] |= usable.pop(name).hidden
    return Providers(usable, problems, hidden)


def decode_provider(entry: Any, field: str = "", *, allow_http: bool = False) -> TokenProvider:
    """One ``jwt-provider`` entry; DecodeError names the field that cannot be used.

    Keys may be fetched by plain HTTP from this machine; from elsewhere only with `allow_http`,
    because whoever is in between could put in keys of their own.
    """
    at = f"{field}." if field else ""
    fields = _known_object(entry, field, _ENTRY, bookkeeping=True)
    if (kind := text_at(fields, "Kind", at, default=KIND)) != KIND:
        raise DecodeError(f"expected {KIND!r}, got {kind!r}", field=f"{at}Kind")
    _known_object(fields.get("CacheConfig"), f"{at}CacheConfig", ["Size"])
    skew = integer_at(fields, "ClockSkewSeconds", at)
    if not 0 <= skew <= _MAX_SECONDS:
        raise DecodeError(f"{skew} is no number of seconds", field=f"{at}ClockSkewSeconds")
    return TokenProvider(
        name=name_at(fields, "Name", at),
        issuer=text_at(fields, "Issuer", at, default=""),
        keys=_keys(fields.get("JSONWebKeySet"), f"{at}JSONWebKeySet", allow_http),
        audiences=frozenset(texts_at(fields, "Audiences", at)),
        locations=_locations(list_at(fields, "Locations", at), f"{at}Locations"),
        forwarding=_forwarding(fields.get("Forwarding"), f"{at}Forwarding"),
        clock_skew_seconds=float(skew) or CLOCK_SKEW_SECONDS,
    )


def hidden_by(entry: Mapping[str, Any]) -> HiddenHeaders:
    """What an entry hides, whether or not the rest of it can be used; what is odd hides nothing."""
    forwarding = [
        _readable(_forwarding, _known(value, HeaderName=str), "")
        for value in _values(entry, "Forwarding")
    ]
    lists = [value for value in _values(entry, "Locations") if isinstance(value, list) and value]
    locations: list[Location] = [] if lists else list(DEFAULT_LOCATIONS)
    for item in (item for items in lists for item in items):
        for header in _values(item, "Header"):
            found = _readable(_header, _known(header, Name=str, ValuePrefix=str, Forward=bool), "")
            locations += [] if found is None else [found]
    hidden = HiddenHeaders.of(locations, None)
    for each in forwarding:
        hidden |= HiddenHeaders.of((), each)
    return hidden


def _values(value: Any, name: str) -> list[Any]:
    """Each value of a field, under all of its spellings; none where there is no object."""
    if not isinstance(value, Mapping):
        return []
    return [item for key, item in value.items() if _fold(key) == _fold(name)]


def _known(value: Any, **kinds: type) -> dict[str, Any]:
    """The fields of an object that are what they should be."""
    return {
        name: item
        for name, kind in kinds.items()
        for item in _values(value, name)
        if isinstance(item, kind)
    }


def _readable(read: Callable[[Any, str], T], value: Any, at: str) -> T | None:
    try:
        return read(value, at)
    except DecodeError:
        return None


def _entry_name(entry: Any, field: str) -> str:
    """The name of an entry whose other fields may be anything."""
    if not isinstance(entry, Mapping):
        raise DecodeError(f"expected an object, got {kind_of(entry)}", field=field)
    names = [value for key, value in entry.items() if _fold(key) == "name"]
    return name_at({"Name": names[0] if names else None}, "Name", f"{field}.")


# -- where tokens are ---------------------------------------------------------------------------


def _locations(items: Iterable[Any], field: str) -> tuple[Location, ...]:
    found = tuple(_location(item, f"{field}[{n}]") for n, item in enumerate(items))
    return found or DEFAULT_LOCATIONS


def _location(item: Any, field: str) -> Location:
    kind, value = _one_of(item, field, ["Header", "QueryParam", "Cookie"])
    where = f"{field}.{kind}"
    if kind == "Header":
        header = _known_object(value, where, ["Name", "ValuePrefix", "Forward"])
        return _header(header, f"{where}.")
    name = name_at(_known_object(value, where, ["Name"]), "Name", f"{where}.")
    return QueryLocation(name) if kind == "QueryParam" else CookieLocation(name)


def _header(fields: Mapping[str, Any], at: str) -> HeaderLocation:
    try:
        return HeaderLocation(
            name_at(fields, "Name", at),
            text_at(fields, "ValuePrefix", at, default=""),
            flag_at(fields, "Forward", at),
        )
    except ConfigError as error:
        raise DecodeError(str(error), field=f"{at}Name") from error


def _forwarding(value: Any, field: str) -> Forwarding | None:
    fields = _known_object(value, field, ["HeaderName", "PadForwardPayloadHeader"])
    if not fields:
        return None
    name = name_at(fields, "HeaderName", f"{field}.")
    try:
        return Forwarding(name, flag_at(fields, "PadForwardPayloadHeader", f"{field}."))
    except ConfigError as error:
        raise DecodeError(str(error), field=f"{field}.HeaderName") from error


# -- where keys are -----------------------------------------------------------------------------


def _keys(value: Any, field: str, allow_http: bool) -> LocalJWKS | RemoteJWKS:
    kind, found = _one_of(value, field, ["Local", "Remote"])
    if kind == "Remote":
        return _remote(
            _known_object(found, f"{field}.Remote", _REMOTE), f"{field}.Remote.", allow_http
        )
    kind, text = _one_of(found, f"{field}.Local", ["JWKS", "Filename"])
    where = f"{field}.Local.{kind}"
    if not isinstance(text, str):
        raise DecodeError(f"expected text, got {kind_of(text)}", field=where)
    return LocalJWKS(document=_base64(text, where)) if kind == "JWKS" else LocalJWKS(filename=text)


def _remote(fields: Mapping[str, Any], at: str, allow_http: bool) -> RemoteJWKS:
    milliseconds = integer_at(fields, "RequestTimeoutMs", at)
    if not 0 <= milliseconds <= _MAX_SECONDS * 1000:
        raise DecodeError(f"{milliseconds} is no duration", field=f"{at}RequestTimeoutMs")
    flag_at(fields, "FetchAsynchronously", at)
    cluster = _known_object(
        fields.get("JWKSCluster"),
        f"{at}JWKSCluster",
        ["DiscoveryType", "TLSCertificates", "ConnectTimeout"],
    )
    text_at(cluster, "DiscoveryType", f"{at}JWKSCluster.", default="")
    _seconds(cluster, "ConnectTimeout", f"{at}JWKSCluster.", 0.0)
    return RemoteJWKS(
        uri=_uri(name_at(fields, "URI", at), f"{at}URI", allow_http),
        timeout_seconds=milliseconds / 1000 or FETCH_SECONDS,
        cache_seconds=_seconds(fields, "CacheDuration", at, CACHE_SECONDS),
        retry=_retry(fields.get("RetryPolicy"), f"{at}RetryPolicy"),
        ca=_ca(cluster.get("TLSCertificates"), f"{at}JWKSCluster.TLSCertificates"),
    )


def _uri(uri: str, field: str, allow_http: bool) -> str:
    try:
        parts = urlsplit(uri)
        host, _ = parts.hostname, parts.port
        asked = httpx.URL(uri).host  # what fetches must be able to read it too
    except (ValueError, httpx.InvalidURL) as error:
        raise DecodeError("is no URI", field=field) from error
    if parts.scheme not in {"http", "https"} or not (host and asked) or not uri.isprintable():
        raise DecodeError(f"{host_of(uri)!r} begins no https URI", field=field)
    if parts.scheme == "http" and not (allow_http or is_loopback(host)):
        raise DecodeError(
            f"whoever is on the way could answer for {host_of(uri)!r}; use https "
            "(or set MESH_ALLOW_PLAINTEXT_JWKS)",
            field=field,
        )
    return uri


def _retry(value: Any, field: str) -> RetryPolicy:
    fields = _known_object(value, field, ["NumRetries", "RetryPolicyBackOff"])
    where = f"{field}.RetryPolicyBackOff"
    backoff = _known_object(
        fields.get("RetryPolicyBackOff"), where, ["BaseInterval", "MaxInterval"]
    )
    retries = integer_at(fields, "NumRetries", f"{field}.")
    if not 0 <= retries <= 1000:
        raise DecodeError(f"{retries} is not within 0 to 1000", field=f"{field}.NumRetries")
    base = _seconds(backoff, "BaseInterval", f"{where}.", RetryPolicy().base_seconds)
    longest = _seconds(backoff, "MaxInterval", f"{where}.", 10 * base)
    return RetryPolicy(retries, base, max(base, longest))


def _ca(value: Any, field: str) -> TrustedCA:
    if not _known_object(value, field, ["CaCertificateProviderInstance", "TrustedCA"]):
        return TrustedCA()
    kind, found = _one_of(value, field, ["CaCertificateProviderInstance", "TrustedCA"])
    if kind != "TrustedCA":
        raise DecodeError("names a part of Envoy's configuration", field=f"{field}.{kind}")
    field = f"{field}.TrustedCA"
    kind, text = _one_of(
        found, field, ["Filename", "EnvironmentVariable", "InlineString", "InlineBytes"]
    )
    if not isinstance(text, str):
        raise DecodeError(f"expected text, got {kind_of(text)}", field=f"{field}.{kind}")
    if kind == "Filename":
        return TrustedCA(filename=text)
    if kind == "EnvironmentVariable":
        return TrustedCA(variable=text)
    if kind == "InlineBytes":
        text = _base64(text, f"{field}.{kind}").decode("ascii", "replace")
    if not text.isascii():
        raise DecodeError("is not PEM, which is ASCII", field=f"{field}.{kind}")
    return TrustedCA(pem=text)


# -- fields -------------------------------------------------------------------------------------


def _fold(key: Any) -> str:
    return str(key).replace("_", "").lower()


def _known_object(
    value: Any, field: str, known: Iterable[str], *, bookkeeping: bool = False
) -> dict[str, Any]:
    """The fields of an object that are set, under their `known` names; null has none."""
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise DecodeError(f"expected an object, got {kind_of(value)}", field=field)
    names = {_fold(name): name for name in known}
    found: dict[str, Any] = {}
    for key, item in value.items():
        name = names.get(_fold(key))
        if not item:  # null, false, 0 and what is empty is not set, as Go means it
            continue
        if name is None and not (bookkeeping and not isinstance(item, Mapping | list)):
            raise DecodeError(f"{str(key)[:60]!r} is not known", field=field)
        if name in found:
            raise DecodeError(f"{name} is given twice, in two spellings", field=field)
        if name is not None:
            found[name] = item
    return found


def _one_of(value: Any, field: str, known: list[str]) -> tuple[str, Any]:
    """Name and value of the only field that is set; DecodeError for none and for several."""
    fields = _known_object(value, field, known)
    if len(fields) != 1:
        raise DecodeError(f"needs exactly one of {', '.join(known)}", field=field)
    return fields.popitem()


def _base64(text: str, field: str) -> bytes:
    try:
        return b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise DecodeError("is not base64 of the standard alphabet", field=field) from error


def _seconds(fields: Mapping[str, Any], key: str, at: str, default: float) -> float:
    """A duration: text as Go writes it, or nanoseconds. Nothing, and zero, is the default."""
    value = fields.get(key) or 0
    if isinstance(value, str):
        if value not in {"0", "0s"} and not re.fullmatch(f"(?:{_PART.pattern})+", value):
            raise DecodeError(f"{value[:40]!r} is no duration such as '5m'", field=f"{at}{key}")
        seconds = sum(float(number) * _UNITS[unit] for number, unit in _PART.findall(value))
    elif isinstance(value, int) and not isinstance(value, bool):
        seconds = value / 1e9 if abs(value) < 2**63 else -1.0
    else:
        raise DecodeError(f"expected a duration, got {kind_of(value)}", field=f"{at}{key}")
    if not 0 <= seconds <= _MAX_SECONDS:
        raise DecodeError("is not within 0 and a year", field=f"{at}{key}")
    return seconds or default
