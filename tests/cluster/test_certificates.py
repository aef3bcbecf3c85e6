"""Who is let in: files for the owner alone, and no connection without them."""

from __future__ import annotations

import socket
import ssl
import threading
from pathlib import Path

import pytest

from trm_bench.cluster import certificates
from trm_bench.errors import UserError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "it's a cluster"


def mode(path: Path) -> int:
    return path.lstat().st_mode & 0o777


def test_they_are_made_once_for_their_owner_alone(folder: Path) -> None:
    made = certificates.make(folder)
    assert mode(folder) == mode(made.key.parent) == 0o700
    assert {mode(file) for file in (made.ca, made.cert, made.key)} == {0o600}
    content = made.key.read_bytes()
    assert certificates.make(folder) == made == certificates.Certificates.of(folder)
    assert made.key.read_bytes() == content
    assert [path.name for path in folder.iterdir()] == ["tls"]


def test_old_ones_are_made_anew(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = certificates.make(folder)
    before = {file: file.read_bytes() for file in (made.ca, made.cert, made.key)}
    monkeypatch.setattr(certificates, "LEFT", 2 * certificates.VALID)
    certificates.make(folder)
    assert all(file.read_bytes() != content for file, content in before.items())
    assert {path.name for path in folder.rglob("*")} == {"tls", *(f.name for f in before)}
    handshake(made, made)


@pytest.mark.parametrize("name", ["tls", "tls/key.pem", "tls/cert.pem", "tls/ca.pem"])
def test_a_link_is_not_followed(folder: Path, tmp_path: Path, name: str) -> None:
    certificates.make(folder)
    elsewhere = (folder / name).rename(tmp_path / "elsewhere")
    (folder / name).symlink_to(elsewhere)
    with pytest.raises(UserError, match="is a link"):
        certificates.make(folder)


@pytest.mark.parametrize(
    ("name", "bits", "said"),
    [
        (".", 0o770, "others can write there"),
        (".", 0o702, "others can write there"),
        ("tls", 0o750, "others can read it"),
        ("tls/key.pem", 0o640, "others can read it"),
        ("tls/key.pem", 0o604, "others can read it"),
    ],
)
def test_what_others_can_open_is_refused(folder: Path, name: str, bits: int, said: str) -> None:
    certificates.make(folder)
    (folder / name).chmod(bits)
    with pytest.raises(UserError, match=said):
        certificates.make(folder)


@pytest.mark.parametrize("content", [None, b"", b"-----BEGIN CERTIFICATE-----\nAAAA\n"])
def test_what_is_damaged_says_so(folder: Path, content: bytes | None) -> None:
    cert = certificates.make(folder).cert
    if content is None:
        cert.unlink()
    else:
        cert.write_bytes(content)
    with pytest.raises(UserError, match=r"remove .*tls"):
        certificates.make(folder)


def context(purpose: ssl.Purpose, ours: certificates.Certificates, show: bool) -> ssl.SSLContext:
    """As dask makes it, and as strict as Python 3.13 is."""
    made = ssl.create_default_context(purpose, cafile=str(ours.ca))
    made.check_hostname = False
    made.verify_mode = ssl.CERT_REQUIRED
    made.verify_flags |= ssl.VERIFY_X509_STRICT
    if show:
        made.load_cert_chain(ours.cert, ours.key)
    return made


def handshake(
    server: certificates.Certificates, client: certificates.Certificates, show: bool = True
) -> None:
    """A byte from a server to a client; the errors of either are raised."""
    errors: list[Exception] = []
    ends = socket.socketpair()

    def serve() -> None:
        try:
            with context(ssl.Purpose.CLIENT_AUTH, server, True).wrap_socket(ends[0], True) as there:
                there.send(b"!")
        except OSError as error:
            errors.append(error)

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        with context(ssl.Purpose.SERVER_AUTH, client, show).wrap_socket(ends[1]) as here:
            assert here.recv(1) == b"!"
    finally:
        ends[1].close()
        thread.join()
    if errors:
        raise errors[0]


def test_who_has_them_is_let_in_and_nobody_else(folder: Path, tmp_path: Path) -> None:
    ours, others = certificates.make(folder), certificates.make(tmp_path / "other")
    handshake(ours, ours)
    for client, show in ((ours, False), (others, True)):
        with pytest.raises((ssl.SSLError, ConnectionError, AssertionError)):
            handshake(ours, client, show)
    with pytest.raises((ssl.SSLError, ConnectionError, AssertionError)):
        handshake(others, ours)
