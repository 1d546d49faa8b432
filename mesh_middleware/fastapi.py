"""The caller as a FastAPI dependency, and the ``mutualTLS`` scheme in the OpenAPI document.

    from mesh_middleware.fastapi import Caller

    @app.get("/orders")
    async def orders(caller: Caller) -> str:
        return f"hello {caller.service}"

`Caller` is a `ServiceIdentity`. It decides nothing: the middleware did that before.
"""

# Annotations stay values here: FastAPI 0.121 does not resolve text in those of a `__call__`.
from enum import Enum
from typing import Annotated

from fastapi import HTTPException, Security
from fastapi.openapi.models import HTTPBase, SecuritySchemeType
from fastapi.security.base import SecurityBase
from starlette.requests import HTTPConnection

from mesh_middleware.errors import PeerIdentityError
from mesh_middleware.middleware.peer import peer_identity
from mesh_middleware.policy.spiffe import ServiceIdentity

DESCRIPTION = (
    "The caller shows the certificate of its mesh service; "
    "the service mesh's intentions say who may call what."
)


def _mutual_tls() -> Enum:
    """The OpenAPI security scheme ``{"type": "mutualTLS"}`` in a form that FastAPI takes.

    FastAPI (0.121 to 0.165) makes the document through models that know four scheme types, and
    ``mutualTLS``, which OpenAPI 3.1 has, is not one of them. A value of their own classes passes:
    an unregistered member of the type's enumeration, in a model built without validation; FastAPI
    takes an enumeration's value as it is. Nothing of FastAPI is changed, and a test holds the
    result.
    """
    kind = object.__new__(SecuritySchemeType)
    kind._name_ = kind._value_ = "mutualTLS"
    scheme = HTTPBase.model_construct(type_=kind, description=DESCRIPTION, scheme=None)
    return Enum("MutualTLSModel", {"SCHEME": scheme}).SCHEME  # type: ignore[attr-defined,no-any-return]


class MutualTLS(SecurityBase):
    """The dependency behind `Caller`: gives the proven caller of a request or WebSocket.

    Without one (no `MeshMiddleware` around the application, or an exempt path) it raises
    HTTPException 403.
    """

    def __init__(self) -> None:
        self.model = _mutual_tls()  # type: ignore[assignment]
        self.scheme_name = "mutualTLS"

    async def __call__(self, connection: HTTPConnection) -> ServiceIdentity:
        """The caller of `connection`."""
        try:
            return peer_identity(connection.scope)
        except PeerIdentityError as error:
            raise HTTPException(403, f"no mesh caller: {error.reason}") from error


Caller = Annotated[ServiceIdentity, Security(MutualTLS())]
"""Annotate a parameter with it to get the calling service."""
