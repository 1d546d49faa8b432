"""Rules that surprise people, found in a list of intentions: each with why and what to write.

Nothing here changes a decision. A finding is about the text of a row: what it does is often right,
but not what most people meant. `CHECKS` is the table; the docs list the same names.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

from mesh_middleware.policy.intentions import (
    WILDCARD,
    Action,
    HTTPMatch,
    Intention,
    JWTRequirement,
    Permission,
    in_precedence_order,
)
from mesh_middleware.policy.match import compile_http
from mesh_middleware.policy.patterns import shape_of


class Severity(StrEnum):
    """How bad a finding is: a request may pass that should not, or a rule may do nothing."""

    WARNING = "warning"
    NOTE = "note"


@dataclass(frozen=True, slots=True)
class Finding:
    """One surprise. `permission` counts from 0, None for the row as a whole."""

    check: str
    severity: Severity
    intention: str
    permission: int | None
    why: str
    instead: str

    def __str__(self) -> str:
        where = "" if self.permission is None else f", permission {self.permission}"
        return f"{self.severity}: {self.check}: {self.intention}{where}: {self.why}. {self.instead}"


Said = tuple[Severity, str, str]
"""Severity, why, and what to write instead."""


def lint(
    intentions: Iterable[Intention], *, default_action: Action = Action.DENY
) -> tuple[Finding, ...]:
    """Every finding for the rows of one destination, by precedence and then by permission."""
    rows = in_precedence_order(list(intentions))
    found: list[Finding] = []
    for row in rows:
        for check, look_at_row in ROW_CHECKS.items():
            found += [
                Finding(check, severity, str(row), None, why, instead)
                for severity, why, instead in look_at_row(row, rows, default_action)
            ]
        for index, permission in enumerate(row.permissions):
            for check, look_at_permission in PERMISSION_CHECKS.items():
                found += [
                    Finding(check, severity, str(row), index, why, instead)
                    for severity, why, instead in look_at_permission(
                        permission, row.permissions[:index], row.permissions[index + 1 :]
                    )
                ]
    return tuple(found)


# -- one permission ---------------------------------------------------------------------------


def _prefix_without_slash(permission: Permission, *_: Sequence[Permission]) -> Iterator[Said]:
    prefix = permission.http and permission.http.path_prefix
    if prefix and not prefix.endswith("/"):
        yield (
            Severity.WARNING if permission.action is Action.ALLOW else Severity.NOTE,
            f"PathPrefix {prefix!r} is a prefix of text, so it covers {prefix + 'istrator'!r} too",
            f"Write PathExact {prefix!r} and PathPrefix {prefix + '/'!r} as two permissions",
        )


def _exact_without_slash(permission: Permission, *_: Sequence[Permission]) -> Iterator[Said]:
    exact = permission.http and permission.http.path_exact
    if permission.action is Action.DENY and exact and not exact.endswith("/"):
        yield (
            Severity.WARNING,
            f"PathExact {exact!r} does not cover {exact + '/'!r}, which routers often treat alike",
            f"Add a permission with PathPrefix {exact + '/'!r}",
        )


def _case_sensitive_deny(permission: Permission, *_: Sequence[Permission]) -> Iterator[Said]:
    if permission.action is not Action.DENY or permission.http is None:
        return
    for criterion, missed, caseless in _paths_without_case(permission.http):
        yield (
            Severity.NOTE,
            f"{criterion} is compared with case, so {missed} is not denied: another path to most "
            "routers, the same to a file system that ignores case",
            f"Write PathRegex {caseless!r}, or allow the good paths instead",
        )
    for header in permission.http.headers:
        value = header.exact or header.prefix or header.suffix or header.contains
        if header.ignore_case or header.invert:
            continue
        if value and _has_case(value):
            yield (
                Severity.WARNING,
                f"header {header.name!r} is compared with {value!r} case by case, so "
                f"{value.swapcase()!r} is not denied",
                "Add IgnoreCase (Consul 1.20.1), or allow the good values instead",
            )
        if header.regex and _tells_case(header.regex):
            yield (
                Severity.WARNING,
                f"header {header.name!r} is compared with Regex {header.regex!r} case by case, so "
                "a value in other letters is not denied",
                f"Write {'(?i)' + header.regex!r}, or allow the good values instead",
            )


def _paths_without_case(http: HTTPMatch) -> Iterator[tuple[str, str, str]]:
    """Each path criterion that tells case: itself, what it misses, and a regex that does not."""
    exact, prefix, regex = http.path_exact, http.path_prefix, http.path_regex
    if exact is not None and _has_case(exact):
        yield f"PathExact {exact!r}", f"{_in_other_case(exact)!r}", f"(?i){re.escape(exact)}"
    if prefix is not None and _has_case(prefix):
        below = ".*" if prefix.endswith("/") else "(/.*)?"
        pattern = f"(?i){re.escape(prefix)}{below}"
        yield f"PathPrefix {prefix!r}", f"{_in_other_case(prefix)!r}", pattern
    if regex is not None and _tells_case(regex):
        yield f"PathRegex {regex!r}", "the same path in other letters", f"(?i){regex}"


def _in_other_case(text: str) -> str:
    return text.lower() if text.upper() == text else text.upper()


def _has_case(text: str) -> bool:
    return text.lower() != text.upper()


def _tells_case(pattern: str) -> bool:
    shape = shape_of(pattern)
    return shape is not None and shape.tells_case


def _exact_header_deny(permission: Permission, *_: Sequence[Permission]) -> Iterator[Said]:
    if permission.action is not Action.DENY or permission.http is None:
        return
    for header in permission.http.headers:
        if header.exact is not None and not header.invert:
            yield (
                Severity.NOTE,
                f"header {header.name!r} equal to {header.exact!r} is denied, but one line that "
                f"holds {header.exact + ',x'!r} is not",
                "Use Contains (Consul 1.20.1), or allow the good values instead",
            )


def _invert_on_absence(permission: Permission, *_: Sequence[Permission]) -> Iterator[Said]:
    for header in () if permission.http is None else permission.http.headers:
        if header.invert and not header.present:
            effect = "is not denied" if permission.action is Action.DENY else "is not matched"
            yield (
                Severity.WARNING if permission.action is Action.DENY else Severity.NOTE,
                f"Invert says nothing of a request without header {header.name!r}: it {effect}",
                f"Add a permission with Name {header.name!r}, Present and Invert",
            )


def _methods(permission: Permission, *_: Sequence[Permission]) -> Iterator[Said]:
    methods = set() if permission.http is None else set(permission.http.methods)
    if "GET" not in methods or "HEAD" in methods:
        return
    if permission.action is Action.DENY:
        yield (
            Severity.WARNING,
            "GET is denied but HEAD is not, and most frameworks answer HEAD by running GET",
            "Add HEAD to Methods",
        )
    else:
        yield Severity.NOTE, "GET is allowed but HEAD is not", "Add HEAD to Methods"


_PREFLIGHTED = frozenset({"POST", "PUT", "PATCH", "DELETE"})


def _preflight(
    permission: Permission, earlier: Sequence[Permission], later: Sequence[Permission]
) -> Iterator[Said]:
    """What browsers ask first (CORS) has neither the token nor the headers of what follows."""
    http = permission.http
    if permission.action is not Action.ALLOW or http is None or "OPTIONS" in http.methods:
        return
    asked = replace(http, methods=("OPTIONS",), headers=())
    if _PREFLIGHTED.intersection(http.methods) and not any(
        other.action is Action.ALLOW and _surely_covers(other, asked)
        for other in (*earlier, *later)
    ):
        yield (
            Severity.NOTE,
            f"{', '.join(http.methods)} is allowed but OPTIONS is not, so the preflight (CORS) "
            "that browsers send first is refused",
            "Where browsers call, allow OPTIONS in a permission of its own, without Header and "
            "JWT, which a preflight does not have; else leave it",
        )


def _never_matches(permission: Permission, *_: Sequence[Permission]) -> Iterator[Said]:
    http = permission.http
    for kind, value in () if http is None else _literal_paths(http):
        if not value.startswith("/"):
            why = f"{kind} {value!r} does not start with '/', so it matches nothing"
        elif found := re.search(r"[?#]|[^!-~]|[\"<>^`{|}\\]", value):
            why = f"{kind} {value!r} holds {found[0]!r}, which no plain path holds unescaped"
        else:
            continue
        yield Severity.WARNING, why, "Write the path as clients send it, without the query"


def _ignore_case_with_regex(permission: Permission, *_: Sequence[Permission]) -> Iterator[Said]:
    for header in () if permission.http is None else permission.http.headers:
        if header.ignore_case and header.regex is not None:
            yield (
                Severity.WARNING,
                f"IgnoreCase does not reach the Regex {header.regex!r} of header {header.name!r}",
                f"Write {'(?i)' + header.regex!r}; Consul does not store the two together",
            )


def _regex(permission: Permission, *_: Sequence[Permission]) -> Iterator[Said]:
    http = permission.http
    patterns = [] if http is None else [http.path_regex, *(h.regex for h in http.headers)]
    for pattern in filter(None, patterns):
        if compile_http(HTTPMatch(path_regex=pattern)).problems:
            yield (
                Severity.WARNING,
                f"{pattern!r} does not compile in RE2, so it is never satisfied by an allow and "
                "always by a deny",
                "RE2 has no look-around and no back-references: write it without",
            )
        elif (shape := shape_of(pattern)) and shape.ambiguous:
            yield (
                Severity.NOTE,
                f"{pattern!r} repeats what can match one text in several ways: harmless in RE2, "
                "exponential in engines that backtrack",
                "Repeat once, with one way to match each character, so that the pattern is safe "
                "wherever it is copied to",
            )


def _unreachable(
    permission: Permission, earlier: Sequence[Permission], _: Sequence[Permission]
) -> Iterator[Said]:
    for index, other in enumerate(earlier):
        if permission.http is not None and _surely_covers(other, permission.http):
            harm = other.action is Action.ALLOW and permission.action is Action.DENY
            yield (
                Severity.WARNING if harm else Severity.NOTE,
                f"permission {index} ({other.action}) matches everything that this "
                f"{permission.action} does, and it comes first",
                "Put the narrower permission before the broader one",
            )
            return


def _surely_covers(broad: Permission, narrow: HTTPMatch) -> bool:
    """True when `broad` is asked nothing beyond its HTTP block, and that covers `narrow`."""
    if broad.http is None or broad.jwt is not None or broad.unknown:
        return False
    return _covers(broad.http, narrow)


def _covers(broad: HTTPMatch, narrow: HTTPMatch) -> bool:
    """True when everything that `narrow` matches, `broad` surely matches too."""
    if broad == HTTPMatch() or broad.unknown or any(header.unknown for header in broad.headers):
        return False
    if broad.methods and not (narrow.methods and set(narrow.methods) <= set(broad.methods)):
        return False
    if not set(broad.headers) <= set(narrow.headers):
        return False
    paths = dict(_literal_paths(narrow))
    if broad.path_regex is not None:
        return broad.path_regex == narrow.path_regex
    if broad.path_exact is not None:
        return paths.get("PathExact") == broad.path_exact
    if broad.path_prefix is None or broad.path_prefix == "/":
        return True
    return any(value.startswith(broad.path_prefix) for value in paths.values())


def _literal_paths(http: HTTPMatch) -> Iterator[tuple[str, str]]:
    if http.path_exact is not None:
        yield "PathExact", http.path_exact
    if http.path_prefix is not None:
        yield "PathPrefix", http.path_prefix


# -- one row ----------------------------------------------------------------------------------


def _nothing_allowed(
    row: Intention, _: Sequence[Intention], default_action: Action
) -> Iterator[Said]:
    actions = {permission.action for permission in row.permissions}
    if default_action is Action.DENY and actions == {Action.DENY}:
        yield (
            Severity.WARNING,
            "every permission denies and the default is deny, so this caller can do nothing",
            "Add an allow after the denies, such as PathPrefix '/'",
        )


def _sidecar_disagrees(
    row: Intention, rows: Sequence[Intention], default_action: Action
) -> Iterator[Said]:
    """A named source of lower precedence escapes a wildcard source in Consul's sidecars."""
    if row.source_name == WILDCARD:
        return
    for other in rows[: rows.index(row)]:
        covers = other.source_name == WILDCARD and _same_source_scope(other, row)
        if covers and (_says(other) != _says(row) or row.permissions or other.permissions):
            yield (
                Severity.WARNING,
                f"{other} comes first and decides for this caller; a Consul sidecar lets this row "
                f"speak as well under default {default_action}",
                "Name the caller in an intention for this very destination",
            )
            return


def _same_source_scope(wild: Intention, named: Intention) -> bool:
    return (
        wild.source_peer == named.source_peer
        and wild.source_key[1] == named.source_key[1]
        and wild.source_namespace in {WILDCARD, named.source_namespace}
    )


def _says(row: Intention) -> Action | None:
    return None if row.permissions else row.action


def _jwt_under_allow(
    row: Intention, _: Sequence[Intention], default_action: Action
) -> Iterator[Said]:
    requirements: list[JWTRequirement | None] = [row.jwt, *(p.jwt for p in row.permissions)]
    if default_action is Action.ALLOW and any(requirements):
        yield (
            Severity.WARNING,
            "a JWT requirement under default allow holds here, but a Consul sidecar drops it",
            "Make the default deny before you rely on tokens",
        )


def _not_evaluable(row: Intention, _: Sequence[Intention], __: Action) -> Iterator[Said]:
    if row.unknown:
        yield (
            Severity.WARNING,
            f"{', '.join(row.unknown)} is not known, so the row refuses every request",
            "Upgrade mesh-middleware, or leave the condition out",
        )
    for index, permission in enumerate(row.permissions):
        for problem in compile_http(permission.http, unknown=permission.unknown).problems:
            if "does not compile" not in problem:
                yield (
                    Severity.WARNING,
                    f"permission {index} {problem}; an allow then matches nothing and a deny "
                    "everything",
                    "Give exactly one known criterion for each path and header",
                )


PermissionCheck = Callable[[Permission, Sequence[Permission], Sequence[Permission]], Iterator[Said]]
"""Takes a permission, those before it in its row, and those behind it."""

PERMISSION_CHECKS: dict[str, PermissionCheck] = {
    "prefix-without-slash": _prefix_without_slash,
    "exact-without-slash": _exact_without_slash,
    "case-sensitive-deny": _case_sensitive_deny,
    "exact-header-deny": _exact_header_deny,
    "ignore-case-with-regex": _ignore_case_with_regex,
    "invert-on-absence": _invert_on_absence,
    "methods-without-head": _methods,
    "methods-without-options": _preflight,
    "never-matches": _never_matches,
    "regex": _regex,
    "unreachable-permission": _unreachable,
}

ROW_CHECKS: dict[str, Callable[[Intention, Sequence[Intention], Action], Iterator[Said]]] = {
    "nothing-allowed": _nothing_allowed,
    "sidecar-precedence": _sidecar_disagrees,
    "jwt-under-default-allow": _jwt_under_allow,
    "not-evaluable": _not_evaluable,
}

CHECKS = (*PERMISSION_CHECKS, *ROW_CHECKS)
"""The names of all checks, as findings carry them."""

__all__ = ["CHECKS", "Finding", "Severity", "lint"]
