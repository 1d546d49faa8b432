"""A sidecar's certificates as an xDS server gives them, by files that its Envoy watches."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from mesh_middleware.devagent.ca import CertificateAuthority, Leaf

_SECRET = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret"


class Secrets:
    """The leaf of `service` and the roots, in two files of `folder`.

    Envoy uses what is new for its next connections; those that are open stay.
    """

    def __init__(self, ca: CertificateAuthority, service: str, folder: Path) -> None:
        self.folder = folder
        self._ca, self._service = ca, service
        self.renew()

    def renew(self) -> Leaf:
        """Give Envoy the roots of now, then a new leaf; the leaf."""
        self.renew_roots()
        leaf = self._ca.issue(self._service)
        certificate = {
            "certificate_chain": {"inline_string": leaf.cert_pem},
            "private_key": {"inline_string": leaf.key_pem},
        }
        self._write("tls_certificate", certificate)
        return leaf

    def renew_roots(self) -> None:
        """Give Envoy the roots of now, and leave it the leaf that it has."""
        roots = "".join(root["RootCert"] for root in self._ca.roots())
        self._write("validation_context", {"trusted_ca": {"inline_string": roots}})

    def common_tls(self, sans: list[dict[str, Any]]) -> dict[str, Any]:
        """``common_tls_context``; `sans`: what the peer's certificate must have."""
        return {
            "tls_certificate_sds_secret_configs": [self._source("tls_certificate")],
            "combined_validation_context": {
                "default_validation_context": {"match_typed_subject_alt_names": sans},
                "validation_context_sds_secret_config": self._source("validation_context"),
            },
        }

    def _source(self, kind: str) -> dict[str, Any]:
        source = {
            "path": str(self.folder / f"{kind}.json"),
            "watched_directory": {"path": str(self.folder)},
        }
        config = {"path_config_source": source, "resource_api_version": "V3"}
        return {"name": kind, "sds_config": config}

    def _write(self, kind: str, secret: dict[str, Any]) -> None:
        document = {"resources": [{"@type": _SECRET, "name": kind, kind: secret}]}
        made = self.folder / f"{kind}.new"
        made.write_text(json.dumps(document))
        made.replace(self.folder / f"{kind}.json")  # which is what Envoy watches for
