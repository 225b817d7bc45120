"""The certificate and the private key that pictures are signed with: read, checked, explained.

C2PA says of most of what is wrong with them "the certificate is invalid". Whoever renews one at
night needs to know which file, why, and what to do. The package `cryptography` is imported only
when files are read.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from bootpig_rt.errors import (
    BackendUnavailable,
    CredentialsError,
    describe_os_error,
    one_line,
)

_FITS = (
    "C2PA takes an end-entity certificate for digital signatures with the extended key usage "
    "emailProtection or that of C2PA, issued by another certificate"
)


@dataclass(frozen=True)
class SigningFiles:
    """A certificate chain and its key.

    Attributes:
        path: Of the certificates, for messages.
        algorithm: As C2PA names it: `es256`, `es384`, `es512`, `ps256` or `ed25519`.
        certificates: PEM, the signer's first.
        key: PEM, PKCS#8.
        begins: When the signer's certificate begins to hold.
        ends: When it ends.
    """

    path: str
    algorithm: str
    certificates: bytes = field(repr=False)
    key: bytes = field(repr=False)
    begins: datetime
    ends: datetime

    def check_time(self, now: datetime) -> None:
        """Refuse to sign outside of the certificate's time.

        Raises:
            CredentialsError: Not yet, or no longer.
        """
        if now > self.ends:
            raise CredentialsError(
                f"the certificate {self.path!r} expired on {_day(self.ends)}; renew it, and start "
                "again"
            )
        if now < self.begins:
            raise CredentialsError(
                f"the certificate {self.path!r} is not valid before {_day(self.begins)}; check "
                "the clock of this machine, or use another certificate"
            )

    def refused(self, reason: str) -> CredentialsError:
        """The error for what C2PA itself refuses."""
        return CredentialsError(
            f"c2pa cannot sign with the certificate {self.path!r} "
            f"({one_line(reason, 200)}); {_FITS}"
        )


def read_signing_files(
    certificate_file: str | os.PathLike[str], key_file: str | os.PathLike[str]
) -> SigningFiles:
    """Read both files and check that they belong together.

    Args:
        certificate_file: PEM: the signer's certificate, then those that lead to its root.
        key_file: PEM, without a passphrase: P-256, P-384, P-521, RSA or Ed25519.

    Raises:
        BackendUnavailable: The package cryptography is not installed.
        CredentialsError: A file cannot be read or is something else, or the key is another's.
    """
    _, serialization = _modules()
    shown = os.fspath(certificate_file)
    chain = _chain(certificate_file)
    key = _load_key(key_file, serialization)
    spki = (serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    if chain[0].public_key().public_bytes(*spki) != key.public_key().public_bytes(*spki):
        raise CredentialsError(
            f"the key {os.fspath(key_file)!r} is not that of the first certificate in {shown!r}; "
            "give the key that the certificate was made for"
        )
    return SigningFiles(
        path=shown,
        algorithm=_algorithm(key, key_file),
        certificates=_pem(chain, serialization),
        # C2PA takes this form alone; OpenSSL writes others as well.
        key=key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        ),
        begins=chain[0].not_valid_before_utc,
        ends=chain[0].not_valid_after_utc,
    )


def read_certificates(file: str | os.PathLike[str]) -> bytes:
    """The certificates of a PEM file, and nothing else that is in it.

    Raises:
        BackendUnavailable: The package cryptography is not installed.
        CredentialsError: The file cannot be read, or holds none.
    """
    return _pem(_chain(file), _modules()[1])


def _chain(file: str | os.PathLike[str]) -> list[Any]:
    x509, _ = _modules()
    try:
        chain: list[Any] = x509.load_pem_x509_certificates(_read(file, "certificate"))
    except ValueError as error:
        raise CredentialsError(
            f"{os.fspath(file)!r} holds no certificate in PEM form; give a file with lines "
            "-----BEGIN CERTIFICATE-----, a signer's first and its root's last"
        ) from error
    return chain


def _pem(chain: list[Any], serialization: Any) -> bytes:
    return b"".join(one.public_bytes(serialization.Encoding.PEM) for one in chain)


def _modules() -> tuple[Any, Any]:
    try:
        from cryptography import x509
        from cryptography.hazmat.primitives import serialization
    except ModuleNotFoundError as error:
        raise BackendUnavailable(
            "content credentials need the package cryptography, which is not installed; "
            "pip install 'bootpig-rt[provenance]'"
        ) from error
    return x509, serialization


def _read(path: str | os.PathLike[str], what: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        reason = describe_os_error(OSError(error.errno, error.strerror or str(error)))
        raise CredentialsError(f"cannot read the {what} {os.fspath(path)!r}: {reason}") from error


def _load_key(path: str | os.PathLike[str], serialization: Any) -> Any:
    pem = _read(path, "key")
    try:
        return serialization.load_pem_private_key(pem, password=None)
    # A key of another form raises ValueError, one with a passphrase TypeError, one of an unknown
    # algorithm the package's own.
    except Exception as error:
        raise CredentialsError(
            f"{os.fspath(path)!r} is no private key in PEM form without a passphrase "
            f"({type(error).__name__}); take the passphrase off with: openssl pkey -in KEY -out NEW"
        ) from error


def _algorithm(key: Any, path: str | os.PathLike[str]) -> str:
    from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

    if isinstance(key, ed25519.Ed25519PrivateKey):
        return "ed25519"
    if isinstance(key, rsa.RSAPrivateKey):
        return "ps256"
    curves = {"secp256r1": "es256", "secp384r1": "es384", "secp521r1": "es512"}
    name = key.curve.name if isinstance(key, ec.EllipticCurvePrivateKey) else type(key).__name__
    if name not in curves:
        raise CredentialsError(
            f"the key {os.fspath(path)!r} is of kind {name}, expected P-256, P-384, P-521, RSA or "
            "Ed25519; make a key and a certificate of one of these"
        )
    return curves[name]


def _day(time: datetime) -> str:
    return time.strftime("%Y-%m-%d %H:%M UTC")
