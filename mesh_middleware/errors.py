"""Every exception this package raises on purpose.

One class for each thing a caller would do differently; details are attributes, not only text.
"""

from __future__ import annotations


class MeshError(Exception):
    """Base of all errors of this package."""


class ConfigError(MeshError, ValueError):
    """A setting or argument is wrong. The caller mends it; retrying does not help."""


class SpiffeIDError(MeshError, ValueError):
    """Text is not a SPIFFE ID of the wanted form.

    Source: SPIFFE-ID standard, section 2; the stricter rules are listed in `policy.spiffe`.
    """


class DecodeError(MeshError, ValueError):
    """An answer, a row or a certificate does not have the documented shape.

    `field` is the path to the value that is wrong, such as ``web[3].Precedence``;
    an empty string means the whole document.
    """

    def __init__(self, message: str, *, field: str = "") -> None:
        super().__init__(f"{field}: {message}" if field else message)
        self.field = field


class ConsulError(MeshError):
    """The agent could not be asked, or did not answer with success.

    `status` is the HTTP status, or None when there was no complete answer. `body` holds at most
    the first 500 characters of what the agent said.
    """

    def __init__(self, message: str, *, status: int | None = None, body: str = "") -> None:
        super().__init__(message)
        self.status = status
        self.body = body[:500]


class NotReadyError(MeshError):
    """The mesh state is not complete yet.

    `missing` names the parts that are still unknown: ``roots``, ``leaf``, ``intentions``,
    ``default action``, ``mesh entry``, ``jwt providers``.
    """

    def __init__(self, message: str, *, missing: tuple[str, ...] = ()) -> None:
        super().__init__(message)
        self.missing = missing


class PeerIdentityError(MeshError):
    """A peer certificate cannot stand for a caller.

    `reason` is the value of a `policy.decision.Reason`.
    """

    def __init__(self, message: str, *, reason: str) -> None:
        super().__init__(message)
        self.reason = reason
