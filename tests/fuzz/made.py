"""What is made once for a run and kept in its folder: signed pictures, subjects of the service.

Signed pictures hold times and random ids, so that no two are the same.
"""

from __future__ import annotations

import os
from datetime import UTC, datetime, timedelta
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from PIL import Image

from bootpig_rt import Pipeline
from tests.fuzz.corpus import ASSETS

FORMATS = ("png", "jpeg", "webp")


def can_sign() -> bool:
    """Whether the packages are there."""
    return find_spec("c2pa") is not None and find_spec("cryptography") is not None


def make_all(folder: Path) -> None:
    """Fill a folder, unless it is there already; without C2PA it holds no signed pictures."""
    if folder.exists():
        return
    making = folder.with_name(f"{folder.name}.{os.getpid()}")
    making.mkdir(parents=True)
    if can_sign():
        _make_signed(making)
    with Pipeline() as pipe:
        owl = ASSETS / "owl.png"
        subject = pipe.encode_subject(
            owl, "a photo of an owl", keep_table=True, reference_schedule="clean"
        )
        subject.save(making / "light.subject")
        subject.save(making / "full.subject", form="full")
    making.rename(folder)


def _make_signed(folder: Path) -> None:
    """A chain of certificates, its key, another public key, a signed picture of each format."""
    from bootpig_rt.images.content_credentials import ContentCredentials
    from bootpig_rt.images.encode_image import encode_image

    _make_certificates(folder)
    credentials = ContentCredentials.load(
        folder / "chain.pem", folder / "key.pem", is_required=True
    )
    image = Image.effect_mandelbrot((48, 32), (-2, -1, 1, 1), 50).convert("RGB")
    for format in FORMATS:
        data = encode_image(
            image,
            format=format,  # type: ignore[arg-type]
            parameters={"prompt": "a dog", "model_fingerprint": "f" * 64},
            credentials=credentials,
        )
        (folder / f"signed.{format}").write_bytes(data)


def _make_certificates(folder: Path) -> None:
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec, ed25519
    from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

    now = datetime.now(UTC)
    root_key, key = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
    uses = ("content_commitment", "key_encipherment", "data_encipherment", "key_agreement")
    no_uses = dict.fromkeys((*uses, "encipher_only", "decipher_only"), False)

    def builder(public: Any, name: str, *, is_root: bool) -> Any:
        subject, issuer = (
            x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, one)]) for one in (name, "Root")
        )
        issued_by = x509.AuthorityKeyIdentifier.from_issuer_public_key(root_key.public_key())
        use = x509.KeyUsage(
            digital_signature=not is_root, key_cert_sign=is_root, crl_sign=is_root, **no_uses
        )
        return (
            x509.CertificateBuilder(issuer, subject, public)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(days=1))
            .not_valid_after(now + timedelta(days=90))
            .add_extension(x509.BasicConstraints(is_root, None), critical=True)
            .add_extension(use, critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
            .add_extension(issued_by, critical=False)
        )

    root = builder(root_key.public_key(), "Root", is_root=True).sign(root_key, hashes.SHA256())
    usage = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.EMAIL_PROTECTION])
    leaf = builder(key.public_key(), "Signer", is_root=False).add_extension(usage, critical=False)
    pem = serialization.Encoding.PEM
    chain = leaf.sign(root_key, hashes.SHA256()).public_bytes(pem) + root.public_bytes(pem)
    (folder / "chain.pem").write_bytes(chain)
    plain = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    (folder / "key.pem").write_bytes(key.private_bytes(pem, *plain))
    trusted = ed25519.Ed25519PrivateKey.generate().public_key()
    form = serialization.PublicFormat.SubjectPublicKeyInfo
    (folder / "trust.pem").write_bytes(trusted.public_bytes(pem, form))
