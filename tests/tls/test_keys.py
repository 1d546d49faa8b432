"""A private key never lies on a disk in clear."""

from __future__ import annotations

import os
import ssl
import stat
from pathlib import Path

import pytest

from mesh_middleware.errors import DecodeError
from mesh_middleware.tls import X509SVID, keys
from mesh_middleware.tls.keys import load_svid
from tests.tls.mesh import Wire, contexts_of, svid_of


class Watched(ssl.SSLContext):
    """Remembers what it was given to load."""

    def load_cert_chain(self, certfile, keyfile=None, password=None):
        path = Path(certfile)
        self.name, self.text = str(path), path.read_text()
        self.mode = stat.S_IMODE(path.stat().st_mode)
        super().load_cert_chain(certfile, keyfile, password)


@pytest.fixture
def context() -> Watched:
    return Watched(ssl.PROTOCOL_TLS_SERVER)


def serves(context: ssl.SSLContext, ca) -> bool:
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_verify_locations(cadata=ca.roots()[0]["RootCert"])
    api = svid_of(ca.issue("api")).identity
    wire = Wire.between(contexts_of(ca, "web").client(api), context)
    wire.handshake()
    return True


def test_on_linux_the_key_is_in_a_memory_file(ca, context):
    load_svid(context, svid_of(ca.issue("api")))
    assert context.name.startswith("/proc/self/fd/")
    names = [os.path.realpath(each) for each in Path("/proc/self/fd").iterdir()]
    assert not any("mesh-svid" in name for name in names)
    assert serves(context, ca)


def _no_memory_files(monkeypatch):
    monkeypatch.delattr(os, "memfd_create")


def _no_memory_files_allowed(monkeypatch):
    def refuse(*args):
        raise PermissionError("no memory files here")

    monkeypatch.setattr(os, "memfd_create", refuse)


def _no_proc(monkeypatch):
    monkeypatch.setattr(keys, "_OPEN_FILES", Path("/nowhere/fd"))


@pytest.mark.parametrize("lack", [_no_memory_files, _no_memory_files_allowed, _no_proc])
def test_elsewhere_the_key_is_in_a_private_file_encrypted_and_gone_afterwards(
    ca, context, lack, monkeypatch, tmp_path
):
    lack(monkeypatch)
    monkeypatch.setattr(keys.tempfile, "tempdir", str(tmp_path))
    load_svid(context, svid_of(ca.issue("api")))
    assert context.name.startswith(str(tmp_path))
    assert context.mode == 0o600
    assert "BEGIN ENCRYPTED PRIVATE KEY" in context.text
    assert "BEGIN PRIVATE KEY" not in context.text
    assert list(tmp_path.iterdir()) == []
    assert serves(context, ca)


@pytest.mark.parametrize("memory", [True, False])
def test_what_openssl_refuses_is_a_decode_error_and_leaves_nothing(
    ca, context, memory, monkeypatch, tmp_path
):
    if not memory:
        _no_proc(monkeypatch)
    monkeypatch.setattr(keys.tempfile, "tempdir", str(tmp_path))
    one, two = svid_of(ca.issue("api")), svid_of(ca.issue("api"))
    mixed = X509SVID(one.certificates, two.private_key, one.identity, one.not_before, one.not_after)
    with pytest.raises(DecodeError, match="OpenSSL refuses it"):
        load_svid(context, mixed)
    assert list(tmp_path.iterdir()) == []


def test_intermediates_are_presented_too(ca, context):
    ca.rotate()
    load_svid(context, svid_of(ca.issue("api")))
    assert context.text.count("BEGIN CERTIFICATE") == 2
    assert serves(context, ca)  # whose client trusts the old root too: either way will do
