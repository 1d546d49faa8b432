"""Documents of ``mesh-middleware check``: intentions, requests, and what should come of them."""

from mesh_middleware.checkfile.reading import (
    DEFAULT_TRUST_DOMAIN,
    DOCUMENT_KEYS,
    REQUEST_KEYS,
    STDIN,
    read_document,
    read_files,
    read_request,
)
from mesh_middleware.checkfile.values import (
    CheckDocument,
    CheckRequest,
    Common,
    Destination,
    Encoding,
    Mode,
    Result,
    decide,
    decide_all,
)

__all__ = [
    "DEFAULT_TRUST_DOMAIN",
    "DOCUMENT_KEYS",
    "REQUEST_KEYS",
    "STDIN",
    "CheckDocument",
    "CheckRequest",
    "Common",
    "Destination",
    "Encoding",
    "Mode",
    "Result",
    "decide",
    "decide_all",
    "read_document",
    "read_files",
    "read_request",
]
