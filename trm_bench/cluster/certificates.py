"""The certificate by which the processes of one cluster know each other.

Whoever can talk to a scheduler or a worker of dask can run code there. So all talk is TLS, in which
both sides show the certificate in the folder `tls` of the cluster: who can read it is let in.
"""

from __future__ import annotations

import os
import secrets
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from inspect import signature
from pathlib import Path
from typing import TYPE_CHECKING

from trm_bench.errors import UserError

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey as PublicKey
    from cryptography.x509 import ExtensionType, Name

VALID = timedelta(days=365)
LEFT = timedelta(days=30)  # of a certificate that is not renewed: longer than a scheduler lives
SKEW = timedelta(days=1)  # by which a machine's clock may be behind


@dataclass(frozen=True)
class Certificates:
    """Files of one folder.

    Attributes:
        ca: The authority that signed the certificate; its key was never written.
        cert: The certificate, the same one for scheduler, workers and clients.
        key: Its private key.
    """

    ca: Path
    cert: Path
    key: Path

    @classmethod
    def of(cls, cluster: Path) -> Certificates:
        """Those of a cluster folder, whether they are there or not."""
        return cls(*(cluster / "tls" / f"{name}.pem" for name in ("ca", "cert", "key")))


def make(cluster: Path) -> Certificates:
    """The certificates of a cluster folder, made where there are none, or only old ones.

    Args:
        cluster: The folder, which is made, too; nobody else may be able to write there.

    Raises:
        UserError: Others can write to the folder or read the keys, or something is a link.
    """
    cluster.mkdir(mode=0o700, parents=True, exist_ok=True)
    _refuse_others(cluster.resolve(), 0o022)
    made = Certificates.of(cluster)
    tls = made.key.parent
    if tls.is_symlink() or tls.exists():
        _refuse_others(tls, 0o077)
        for file in (made.ca, made.cert, made.key):
            _refuse_others(file, 0o077)
        if _lasts(made.cert):
            return made
    with _beside(tls) as new:
        _write(Certificates(*(new / file.name for file in (made.ca, made.cert, made.key))))
        if tls.exists():  # a folder cannot take the place of another one in one step
            tls.rename(new / "old")
        new.rename(tls)
    shutil.rmtree(tls / "old", ignore_errors=True)
    return made


def _refuse_others(path: Path, forbidden: int) -> None:
    """Refuses a file or folder that is a link, another user's, or open to others."""
    try:
        status = path.lstat()
    except OSError as error:
        fix = f"remove {path.parent}: it is made anew"
        raise UserError(f"cannot be read: {error.strerror}", path, fix) from error
    if stat.S_ISLNK(status.st_mode):
        raise UserError("is a link", path, "remove it, or name another --folder")
    if status.st_uid != os.geteuid():
        raise UserError("is another user's", path, "name a --folder of your own")
    if status.st_mode & forbidden:
        what = "others can write there" if forbidden == 0o022 else "others can read it"
        fix = f"chmod go-rwx {path}, if you trust what is there, or name another --folder"
        raise UserError(f"{what}, and so could run code as you", path, fix)


def _lasts(cert: Path) -> bool:
    from cryptography import x509

    try:
        read = x509.load_pem_x509_certificate(cert.read_bytes())
    except ValueError as error:
        fix = f"remove {cert.parent}: it is made anew"
        raise UserError(f"is no certificate: {error}", cert, fix) from error
    return read.not_valid_after_utc - datetime.now(UTC) > LEFT


@contextmanager
def _beside(folder: Path) -> Iterator[Path]:
    """A folder for what is to take the place of another one; it is removed where it does not."""
    new = folder.with_name(f".{folder.name}-{secrets.token_hex(8)}")
    new.mkdir(mode=0o700)
    try:
        yield new
    finally:
        shutil.rmtree(new, ignore_errors=True)


def _write(files: Certificates) -> None:
    """A key, its certificate, and an authority that signs this one and is forgotten."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import NameOID

    authority, own = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
    issuer, subject = (
        x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"trm-bench {name}")])
        for name in ("authority", "cluster")
    )
    pem, now = serialization.Encoding.PEM, datetime.now(UTC)

    def signed(name: Name, key: PublicKey, *extensions: ExtensionType) -> bytes:
        builder = x509.CertificateBuilder(issuer, name, key, x509.random_serial_number())
        builder = builder.not_valid_before(now - SKEW).not_valid_after(now + VALID)
        for extension in extensions:
            critical = isinstance(extension, x509.BasicConstraints | x509.KeyUsage)
            builder = builder.add_extension(extension, critical)
        return builder.sign(authority, hashes.SHA256()).public_bytes(pem)

    # what OpenSSL asks for where it is strict, as it is from Python 3.13 on
    signs = dict.fromkeys(list(signature(x509.KeyUsage).parameters), False)
    signs["key_cert_sign"] = True
    root = authority.public_key()
    plain = serialization.NoEncryption()
    contents = {
        files.ca: signed(
            issuer,
            root,
            x509.BasicConstraints(ca=True, path_length=0),
            x509.KeyUsage(**signs),
            x509.SubjectKeyIdentifier.from_public_key(root),
        ),
        files.cert: signed(
            subject,
            own.public_key(),
            x509.BasicConstraints(ca=False, path_length=None),
            x509.AuthorityKeyIdentifier.from_issuer_public_key(root),
        ),
        files.key: own.private_bytes(pem, serialization.PrivateFormat.PKCS8, plain),
    }
    for path, content in contents.items():
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(content)
