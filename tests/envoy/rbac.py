"""Intentions as Consul gives them to Envoy: an RBAC object for one destination, as JSON.

Written from the steps that Consul's own builder takes, for named and wildcard sources of the
default namespace, without tokens and peers. It shares nothing with the engine. The caller is told
by the header ``x-caller``, where a sidecar looks into the certificate.
"""

from __future__ import annotations

from typing import Any

from mesh_middleware.policy.intentions import Action, HTTPMatch, Intention, Permission

Rule = dict[str, Any]


def rbac(rows: list[Intention], default: Action, trust_domain: str) -> Rule:
    """``rules`` of Envoy's RBAC filter."""
    first: dict[str, Intention] = {}
    for row in sorted(rows, key=lambda row: (-row.precedence, row.source_name)):
        first.setdefault(row.source_name, row)
    ordered = list(first.values())
    policies: dict[str, Any] = {}
    for number, row in enumerate(ordered):
        principal = of_source(row.source_name, trust_domain)
        if row.source_name == "*":
            # The more exact sources before it are taken out of the wildcard.
            named = [other.source_name for other in ordered[:number] if other.source_name != "*"]
            taken = [{"not_id": of_source(name, trust_domain)} for name in named]
            principal = {"and_ids": {"ids": [principal, *taken]}} if taken else principal
        permissions = of_row(row, default)
        if permissions:
            policies[f"row-{number:03}"] = {"principals": [principal], "permissions": permissions}
    action = "ALLOW" if default is Action.DENY else "DENY"
    return {"action": action, "policies": policies}


def of_source(name: str, trust_domain: str) -> Rule:
    """The principal: a regular expression over the SPIFFE ID, any datacenter."""
    service = "[^/]+" if name == "*" else name
    regex = f"spiffe://{trust_domain.replace('.', r'[.]')}/ns/default/dc/[^/]+/svc/{service}"
    matcher = {"safe_regex": {"regex": regex}}
    return {"header": {"name": "x-caller", "string_match": matcher}}


def of_row(row: Intention, default: Action) -> list[Rule]:
    """What a row opens (or closes, under default allow); nothing where it says the default."""
    if not row.permissions:
        return [] if row.action is default else [{"any": True}]
    found = []
    before: list[Rule] = []
    for permission in row.permissions:
        rule = of_permission(permission)
        if permission.action is not default:
            found.append(all_of([rule, *({"not_rule": earlier} for earlier in before)]))
        before.append(rule)
    return found


def all_of(rules: list[Rule]) -> Rule:
    """Their conjunction."""
    return rules[0] if len(rules) == 1 else {"and_rules": {"rules": rules}}


def of_permission(permission: Permission) -> Rule:
    """The conditions of a permission."""
    http = permission.http
    assert http is not None
    rules = [*of_path(http), *(of_header(header) for header in http.headers)]
    if http.methods:
        matcher = {"safe_regex": {"regex": "|".join(http.methods)}}
        rules.append({"header": {"name": ":method", "string_match": matcher}})
    return all_of(rules)


def of_path(http: HTTPMatch) -> list[Rule]:
    """The path's condition, if any."""
    if http.path_exact is not None:
        return [{"url_path": {"path": {"exact": http.path_exact}}}]
    if http.path_prefix is not None:
        return [{"url_path": {"path": {"prefix": http.path_prefix}}}]
    if http.path_regex is not None:
        return [{"url_path": {"path": {"safe_regex": {"regex": http.path_regex}}}}]
    return []


def of_header(header: Any) -> Rule:
    """The condition on one header."""
    rule: Rule = {"name": header.name, "invert_match": header.invert}
    if header.present:
        return {"header": {**rule, "present_match": True}}
    if header.regex is not None:
        return {"header": {**rule, "string_match": {"safe_regex": {"regex": header.regex}}}}
    for kind in ("exact", "prefix", "suffix", "contains"):
        if (value := getattr(header, kind)) is not None:
            rule["string_match"] = {kind: value, "ignore_case": header.ignore_case}
    return {"header": rule}
