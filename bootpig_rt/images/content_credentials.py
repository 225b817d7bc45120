"""Content Credentials: a signed manifest of C2PA in the picture, which says who vouches for what.

XMP can be written by anyone. A manifest is signed with a key whose certificate names its owner, and
it breaks if the picture is changed. It says that a trained model made the picture, with which
program and pair, and the sha256 of each reference image. A reference that brought a manifest of its
own keeps it, as an ingredient.

Nothing is fetched from a network, neither a time stamp nor a manifest that a picture only names:
the address would be the uploader's choice. This is the only file that imports c2pa.
"""

from __future__ import annotations

import hashlib
import io
import json
import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from PIL import Image

from bootpig_rt.errors import BackendUnavailable, CredentialsError, one_line
from bootpig_rt.images.credentials_manifest import SOFTWARE, ReferenceOrigin, manifest_of
from bootpig_rt.images.credentials_report import CredentialsReport, report_of
from bootpig_rt.images.image_input import format_name
from bootpig_rt.images.signing_files import SigningFiles, read_certificates, read_signing_files

MAX_ARCHIVE_BYTES = 2 * 2**20

_MEDIA_TYPE_OF_NAME = {"PNG": "image/png", "JPEG": "image/jpeg", "WebP": "image/webp"}
_HEAD_BYTES = 64
_SETTINGS = {
    "version": 1,
    "verify": {"remote_manifest_fetch": False, "ocsp_fetch": False},
    "builder": {"thumbnail": {"enabled": False}},  # a reference's would show what it shows
}

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ContentCredentials:
    """Signs pictures with one certificate. Several threads may use it at once.

    Attributes:
        files: The certificate and its facts.
        is_required: Whether a picture that cannot be signed is withheld. If not, it is given out
            unsigned, and a warning is logged.
    """

    files: SigningFiles
    is_required: bool
    _c2pa: Any = field(repr=False, compare=False)
    _context: Any = field(repr=False, compare=False)
    _signer: Any = field(repr=False, compare=False)

    @classmethod
    def load(
        cls,
        certificate_file: str | os.PathLike[str],
        key_file: str | os.PathLike[str],
        *,
        is_required: bool,
    ) -> ContentCredentials | None:
        """Read certificate and key, and sign a picture once to see that C2PA takes them.

        Args:
            certificate_file: PEM: the signer's certificate, then those that lead to its root.
            key_file: PEM: the private key of the first, without a passphrase.
            is_required: See the class.

        Returns:
            None if they cannot be used and are not required; the reason is logged as a warning.

        Raises:
            BackendUnavailable: The package c2pa-python is not installed.
            CredentialsError: Required, and a file is missing or damaged, the certificate has
                expired, is not for this key or not for signing pictures.
        """
        c2pa = _module()
        try:
            files = read_signing_files(certificate_file, key_file)
            credentials = cls(files, is_required, c2pa, _context(c2pa), _signer(c2pa, files))
            credentials._sign(_sample(), "image/png", {}, ())
        except CredentialsError as error:
            if is_required:
                raise
            logger.warning("pictures will not be signed: %s", error)
            return None
        return credentials

    def origin(self, data: bytes) -> ReferenceOrigin:
        """What manifests will say of a reference image.

        Args:
            data: The file as it came, of anybody. A manifest in it that does not hold is kept,
                with what c2pa found wrong; one that is damaged too badly for that, or is over
                2 MiB, is left out, so that no reference can keep its pictures from being signed.
        """
        return ReferenceOrigin(hashlib.sha256(data).hexdigest(), self._archive(data))

    def sign(
        self,
        encoded: bytes,
        media_type: str,
        *,
        parameters: Mapping[str, Any] | None = None,
        references: Sequence[ReferenceOrigin] = (),
    ) -> bytes:
        """Put a signed manifest into a picture.

        Args:
            encoded: A PNG, JPEG or WebP file.
            media_type: `image/png`, `image/jpeg` or `image/webp`.
            parameters: What made the picture. Pair and subject go into the manifest, prompts do
                not.
            references: Of the subject.

        Returns:
            The signed file; `encoded` itself if that failed and is not required.

        Raises:
            CredentialsError: Required, and it failed: the certificate has expired, for instance.
        """
        try:
            return self._sign(encoded, media_type, parameters or {}, references)
        except CredentialsError as error:
            if self.is_required:
                raise
            logger.warning("a picture is not signed: %s", error)
            return encoded

    def _sign(
        self,
        encoded: bytes,
        media_type: str,
        parameters: Mapping[str, Any],
        references: Sequence[ReferenceOrigin],
    ) -> bytes:
        self.files.check_time(datetime.now(UTC))
        archives = {r.sha256: r.archive for r in references if r.archive is not None}
        manifest = manifest_of(parameters, references, tuple(archives))
        signed = io.BytesIO()
        try:
            builder = self._c2pa.Builder(manifest, self._context)
            for archive in archives.values():
                builder.add_ingredient_from_archive(io.BytesIO(archive))
            # c2pa checks what it signed before it returns.
            builder.sign(self._signer, media_type, io.BytesIO(encoded), signed)
        except self._c2pa.C2paError as error:
            raise self.files.refused(str(error)) from error
        return signed.getvalue()

    def _archive(self, data: bytes) -> bytes | None:
        media_type = _MEDIA_TYPE_OF_NAME.get(format_name(data[:_HEAD_BYTES]))
        if media_type is None:
            return None
        stream = io.BytesIO()
        label = hashlib.sha256(data).hexdigest()
        ingredient = {"title": "reference image", "relationship": "inputTo", "label": label}
        try:
            if _reader(self._c2pa, self._context, media_type, data) is None:
                return None
            builder = self._c2pa.Builder({"claim_generator_info": [SOFTWARE]}, self._context)
            builder.add_ingredient(ingredient, media_type, io.BytesIO(data))
            builder.write_ingredient_archive(label, stream)
            archive = stream.getvalue()
            if len(archive) > MAX_ARCHIVE_BYTES:
                raise self._c2pa.C2paError(f"it has {len(archive)} bytes")
            # What c2pa takes in it may still not sign.
            self._sign(_sample(), "image/png", {}, [ReferenceOrigin(label, archive)])
        except (self._c2pa.C2paError, CredentialsError) as error:
            logger.info(
                "the manifest of a reference image was left out: %s", one_line(str(error), 200)
            )
            return None
        return archive


def read_credentials(
    data: bytes, *, trust_anchors: str | os.PathLike[str] | None = None
) -> CredentialsReport | None:
    """Check and read the manifest in a picture.

    Args:
        data: A PNG, JPEG or WebP file, of anybody.
        trust_anchors: PEM with the root certificates whose signers are trusted; None trusts none.

    Returns:
        None if there is none that can be read.

    Raises:
        BackendUnavailable: The package c2pa-python is not installed.
        CredentialsError: The trust anchors cannot be read.
    """
    c2pa = _module()
    anchors = None if trust_anchors is None else read_certificates(trust_anchors).decode()
    media_type = _MEDIA_TYPE_OF_NAME.get(format_name(data[:_HEAD_BYTES]))
    try:
        reader = media_type and _reader(c2pa, _context(c2pa, anchors), media_type, data)
        if not reader:
            return None
        store = json.loads(reader.json())
    except (c2pa.C2paError, ValueError) as error:
        logger.info("the picture's manifest cannot be read: %s", one_line(str(error), 200))
        return None
    return report_of(store)


def _module() -> Any:
    try:
        import c2pa
    except ImportError as error:
        raise BackendUnavailable(
            "content credentials need the package c2pa-python, which is not installed; "
            "pip install 'bootpig-rt[provenance]'"
        ) from error
    return c2pa


def _context(c2pa: Any, trust_anchors: str | None = None) -> Any:
    trust = {} if trust_anchors is None else {"trust": {"trust_anchors": trust_anchors}}
    return c2pa.Context.from_dict({**_SETTINGS, **trust})


def _signer(c2pa: Any, files: SigningFiles) -> Any:
    try:
        return c2pa.Signer.from_info(
            c2pa.C2paSignerInfo(files.algorithm, files.certificates, files.key, None)
        )
    except c2pa.C2paError as error:
        raise files.refused(str(error)) from error


def _reader(c2pa: Any, context: Any, media_type: str, data: bytes) -> Any:
    return c2pa.Reader.try_create(media_type, io.BytesIO(data), None, context)


def _sample() -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (8, 8)).save(stream, "PNG")
    return stream.getvalue()
