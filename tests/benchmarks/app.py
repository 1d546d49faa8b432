"""The application that both servers serve, and the bare server."""

from __future__ import annotations

import ssl
import sys
from typing import Any

import uvicorn
from fastapi import FastAPI

app = FastAPI()


@app.get("/hello")
async def hello() -> dict[str, str]:
    """A small answer."""
    return {"hello": "world"}


def bare(port: int, cert: str, key: str, roots: str) -> None:
    """uvicorn with mTLS as its own documentation has it: no middleware, no identity."""

    def context(*_: Any) -> ssl.SSLContext:
        made = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        made.load_cert_chain(cert, key)
        made.load_verify_locations(roots)
        made.verify_mode = ssl.CERT_REQUIRED
        return made

    uvicorn.run(app, port=port, ssl_context_factory=context, log_level="warning", access_log=False)


if __name__ == "__main__":
    bare(int(sys.argv[1]), *sys.argv[2:5])
