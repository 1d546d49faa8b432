"""Request targets by which people have walked around rules about paths.

Each is a template: ``P`` stands for where the application is mounted (empty, ``/sub`` ...), below
which ``/admin`` is what rules protect and ``/public`` is what they open.
"""

from __future__ import annotations

# fmt: off
_DOTS = [
    b".", b"..", b"%2e", b"%2E", b"%2e%2e", b".%2e", b"%2e.", b"%252e%252e", b"%c0%ae%c0%ae",
    b"..;", b"..;x=1", b".;", b"%2e%2e;", b"..%3b", b"...", b"..%00", b"..%0a", b"..%20",
    b"%ef%bc%8e%ef%bc%8e", b"%u002e%u002e", b"..%01", b"%32%65%32%65",
]
_SLASHES = [
    b"/", b"//", b"///", b"\\", b"%5c", b"%5C", b"%2f", b"%2F", b"%2f%2f", b"/%2f", b"%252f",
    b"/./", b"/%2e/", b"/;/", b"/.;/", b"%c0%af", b"%e0%80%af", b"%ef%bc%8f", b"%u2215", b"/\\",
]
_ENDS = [
    b"/", b"//", b"/.", b"/..", b"/./", b"/%2e", b"%2f", b"%5c", b"\\", b";", b";x=1", b"%3b",
    b"?", b"?x=1", b"?/../public", b"%3f", b"%3Fx", b"#", b"#/public", b"%23", b"%00", b"\x00",
    b"%20", b"%09", b"%0a", b"%0d", b"%0d%0a", b"%0a/", b"%0b", b"%0c", b"%1f", b"%7f", b"%85",
    b"%c2%a0", b"%c2%85", b"%e2%80%a8", b"%e2%80%8b", b"%ff", b"\xff", b"\xc3\xa4", b"%", b"%2",
    b"%zz", b".", b"..", b"~", b"*", b"|", b"^", b"`", b'"', b"<", b"{", b"%61", b"=", b"&",
    b"+", b"/secret", b"/secret/", b"//secret", b"/%73ecret", b"%2fsecret", b"%5csecret",
    b"%0a/secret",
]
_NAMES = [
    b"/%61dmin", b"/%61%64%6d%69%6e", b"/%41dmin", b"/Admin", b"/ADMIN", b"/aDmIn",
    b"/%2561dmin", b"/ad%6din", b"/adm%69n", b"/admi%6e", b"/admi%6E", b"/ad%00min",
    b"/ad%0amin", b"/ad\tmin", b"/%ef%bd%81dmin", b"/adm%c4%b1n", b"/%20admin", b"/%09admin",
    b"/;admin", b"/.admin", b"/administrator", b"/admin2", b"/admi", b"/admin%e2%80%8b",
    b"/%e2%80%8badmin", b"/%0aadmin",
]
# fmt: on

TEMPLATES: tuple[bytes, ...] = tuple(
    dict.fromkeys(
        [
            b"P",
            b"P/",
            b"P/admin",
            b"P/admin/secret",
            b"P/public",
            b"P/public/",
            b"P/public/page",
            b"P/public/x%20y",
            b"P/public/a;b=c",
            b"P/files/a",
            # Down into /public and up again, with every way to write dots and slashes.
            *(b"P/public/" + dots + b"/admin" for dots in _DOTS),
            *(b"P/public/x/" + dots + b"/" + dots + b"/admin" for dots in _DOTS[:8]),
            *(b"P/" + dots + b"/admin" for dots in _DOTS),
            *(b"P/files/" + dots + b"/admin" for dots in _DOTS[:8]),
            *(b"P/public" + slash + b".." + slash + b"admin" for slash in _SLASHES),
            *(b"P/files" + slash + b".." + slash + b"admin" for slash in _SLASHES[:9]),
            *(b"P" + slash + b"admin" for slash in _SLASHES),
            *(b"P" + slash + b"admin" + slash + b"secret" for slash in _SLASHES),
            *(b"P/admin" + end for end in _ENDS),
            *(b"P/admin/secret" + end for end in _ENDS[:12]),
            *(b"P/public/page" + end for end in _ENDS[:10]),
            *(b"P" + name for name in _NAMES),
            *(b"P" + name + b"/secret" for name in _NAMES[:4]),
            *(slash + b"P/admin" for slash in _SLASHES),
            # The prefix itself.
            b"/x/..P/admin",
            b"/x/%2e%2eP/admin",
            b"/x%2f..P/admin",
            b"/publicP/admin",
            b"PP/admin",
            b"PP/public/page",
            b"P%2fadmin",
            b"Padmin",
            b"P;/admin",
            b"P?/admin",
            b"P/../P/admin",
            b"P/..P/public/../admin",
            # Not a path in itself.
            b"",
            b"*",
            b"admin",
            b"?",
            b"?/admin",
            b"#",
            b".",
            b"..P/admin",
            b"http://apiP/admin",
            b"http://apiP/public/../admin",
            b"http://apiP/public/page",
            b"HTTPS://APIP//admin",
            b"http://otherP/admin",
            b"http:///P/admin",
            b"http:P/admin",
            b"http://api",
            b"http://api?P/admin",
            b"http://api@otherP/admin",
            b"ws://apiP/admin",
            b"file://P/admin",
            b"//apiP/admin",
            b"\\\\apiP/admin",
            # Queries that look like paths, and fragments.
            b"P/public/page?next=/admin",
            b"P/public/page?/../../admin",
            b"P/public/../admin?x",
            b"P/public/?/../admin",
            b"P/public/page#/../../admin",
            b"P/admin?_method=GET",
            b"P/admin??",
            # Long ones.
            b"P/public/" + b"x/../" * 500 + b"../admin",
            b"P/public/" + b"./" * 2000 + b"../admin",
            b"P" + b"/" * 3000 + b"admin",
            b"P/admin?" + b"x" * 6000,
            b"P/admin/" + b"x" * 65536,
            b"P/" + b"%61" * 22000,
            b"P" + b"/.." * 300 + b"P/admin",
        ]
    )
)


def targets(prefix: str) -> tuple[bytes, ...]:
    """The targets for an application mounted at `prefix`."""
    written = prefix.encode("ascii")
    return tuple(dict.fromkeys(template.replace(b"P", written) for template in TEMPLATES))
