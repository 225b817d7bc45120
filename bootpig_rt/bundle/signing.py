"""Ed25519 signatures of manifests. The package `cryptography` is imported only when one is used.

Knows bytes and keys, nothing of what is signed.
"""

from __future__ import annotations

import binascii
import json
from pathlib import Path
from typing import Any

from bootpig_rt.errors import BackendUnavailable, BundleError, ParameterError, describe_os_error

MAKE_KEYS = (
    "openssl genpkey -algorithm ed25519 -out key.pem && "
    "openssl pkey -in key.pem -pubout -out key.pub.pem"
)
"""Makes a private key to sign with and the public key to trust."""


def check_private_key(key: Path) -> None:
    """Refuse a key that `sign` could not use, before hours of work.

    Raises:
        BackendUnavailable: The package `cryptography` is not installed.
        ParameterError: The file is no Ed25519 private key.
    """
    _private_key(key)


def sign(data: bytes, key: Path) -> bytes:
    """The contents of a signature file.

    Args:
        data: What to sign.
        key: Private key, PEM, without a passphrase.

    Raises:
        BackendUnavailable: The package `cryptography` is not installed.
        ParameterError: The file is no Ed25519 private key.
    """
    private = _private_key(key)
    public = private.public_key().public_bytes_raw()
    values = {
        "algorithm": "ed25519",
        "public_key": public.hex(),
        "signature": private.sign(data).hex(),
    }
    return (json.dumps(values, indent=1) + "\n").encode()


def check_signature(data: bytes, signature: bytes, key: Path, *, what: str) -> None:
    """Refuse data that was not signed with the private key that belongs to a public one.

    Args:
        data: What was signed.
        signature: Contents of a signature file.
        key: Public key, PEM.
        what: What the data belongs to, for the message.

    Raises:
        BackendUnavailable: The package `cryptography` is not installed.
        ParameterError: The key file is no Ed25519 public key.
        BundleError: The signature is damaged, another key's, or of other data.
    """
    serialization, ed25519 = _modules()
    from cryptography.exceptions import InvalidSignature

    trusted = _load(key, "public", serialization.load_pem_public_key)
    if not isinstance(trusted, ed25519.Ed25519PublicKey):
        raise ParameterError(f"{key} is no Ed25519 public key; make one with: {MAKE_KEYS}")
    try:
        values: Any = json.loads(signature)
        signed_by, proof = (binascii.unhexlify(values[k]) for k in ("public_key", "signature"))
    except (ValueError, TypeError, LookupError, RecursionError) as error:
        raise BundleError(
            f"{what}: the signature is damaged ({type(error).__name__}); copy the bundle again"
        ) from error
    if signed_by != trusted.public_bytes_raw():
        raise BundleError(
            f"{what} was signed with another key ({signed_by.hex()[:12]}) than the trusted one "
            f"({trusted.public_bytes_raw().hex()[:12]}, {key}); do not use it, or trust that key"
        )
    try:
        trusted.verify(proof, data)
    except InvalidSignature as error:
        raise BundleError(
            f"{what}: the manifest was changed after it was signed; do not use it, copy the "
            "bundle again"
        ) from error


def _private_key(key: Path) -> Any:
    serialization, ed25519 = _modules()
    private = _load(
        key, "private", lambda pem: serialization.load_pem_private_key(pem, password=None)
    )
    if not isinstance(private, ed25519.Ed25519PrivateKey):
        raise ParameterError(f"{key} is no Ed25519 private key; make one with: {MAKE_KEYS}")
    return private


def _modules() -> tuple[Any, Any]:
    try:
        from cryptography.hazmat.primitives import serialization
        from cryptography.hazmat.primitives.asymmetric import ed25519
    except ModuleNotFoundError as error:
        raise BackendUnavailable(
            "signatures need the package cryptography, not installed; "
            "pip install 'bootpig-rt[sign]'"
        ) from error
    return serialization, ed25519


def _load(path: Path, kind: str, load: Any) -> Any:
    try:
        return load(path.read_bytes())
    except OSError as error:
        raise ParameterError(
            f"cannot read the {kind} key {path}: {describe_os_error(error)}"
        ) from (error)
    # A key of another form raises ValueError, one with a passphrase TypeError, one of an unknown
    # algorithm the package's own.
    except Exception as error:
        raise ParameterError(
            f"{path} is no {kind} key in PEM form without a passphrase ({type(error).__name__}); "
            f"make one with: {MAKE_KEYS}"
        ) from error
