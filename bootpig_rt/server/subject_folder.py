"""SubjectFolder: subjects of the service on disk, one file each, so that a restart loses none.

    FOLDER/<id>.json      JSON: whose it is, what it shows, its references as PNGs or its file

A file appears whole or not at all, and its time is that of the subject's last use. One that cannot
be read is left where it is, and told.
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
import re
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import msgspec
from PIL import Image

from bootpig_rt.errors import BootPIGError, StorageError, describe_os_error
from bootpig_rt.files.atomic import atomic_write_bytes
from bootpig_rt.images.credentials_manifest import ReferenceOrigin
from bootpig_rt.images.image_input import load_image
from bootpig_rt.reference.subject import Subject

logger = logging.getLogger(__name__)

_ID = re.compile(r"sub_[0-9a-f]{24}")
_MAX_FILE_BYTES = 256 << 20


@dataclass(eq=False)
class SubjectRecord:
    """What outlives the process of a subject.

    Attributes:
        id: `sub_` and 24 hex digits: of its content and its tenant.
        tenant: Whose it is.
        model: That it was made with.
        reference_prompt: What the references show.
        noise_seed: Of the reference noise.
        prepared: The references as the model sees them; none for one that came as a file.
        file: The subject that came as a file.
        num_references: R.
        created_at: Unix seconds.
        ttl_s: How long it is kept after its last use.
        used_at: Unix seconds, when it was used last.
        is_explicit: Its maker asked for it to be kept; the others give way first.
        origins: Of the reference images, for signed manifests.
        fingerprints: Of the subject as every pair encoded it: by these its tables are known.
    """

    id: str
    tenant: str
    model: str
    reference_prompt: str
    noise_seed: int
    prepared: tuple[Image.Image, ...]
    file: Subject | None
    num_references: int
    created_at: float
    ttl_s: float
    used_at: float
    is_explicit: bool
    origins: tuple[ReferenceOrigin, ...] = ()
    fingerprints: tuple[str, ...] = ()


class _File(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Contents of a file. `images` are PNGs, `subject` a safetensors file."""

    id: str
    tenant: str
    model: str
    reference_prompt: str
    noise_seed: int
    num_references: int
    created_at: float
    ttl_s: float
    used_at: float
    is_explicit: bool
    images: list[bytes]
    subject: bytes | None
    origins: tuple[ReferenceOrigin, ...] = ()
    fingerprints: tuple[str, ...] = ()


@dataclass(frozen=True)
class SubjectFolder:
    """Files of subjects.

    Attributes:
        path: The folder; made when something is written.
    """

    path: Path

    def write(self, record: SubjectRecord) -> None:
        """Keep a subject.

        Raises:
            StorageError: The file cannot be written; the old one stays.
        """
        names = set(_File.__struct_fields__) - {"images", "subject"}
        contents = _File(
            images=[png_bytes(one) for one in record.prepared],
            subject=None if record.file is None else subject_bytes(record.file),
            **{name: getattr(record, name) for name in names},
        )
        try:
            self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise StorageError(f"cannot make {self.path}: {describe_os_error(error)}") from error
        atomic_write_bytes(self._file(record.id), msgspec.json.encode(contents))

    def records(self) -> Iterator[SubjectRecord]:
        """All subjects that can be read."""
        for file in sorted(self.path.glob("sub_*.json")):
            try:
                info = file.stat()
                if info.st_size > _MAX_FILE_BYTES:
                    raise StorageError("it is too large")
                contents = msgspec.json.decode(file.read_bytes(), type=_File)
                if not _ID.fullmatch(contents.id) or file.stem != contents.id:
                    raise StorageError("its name is not that of its subject")
                yield SubjectRecord(
                    prepared=tuple(load_image(one).convert("RGB") for one in contents.images),
                    file=None if contents.subject is None else read_subject(contents.subject),
                    used_at=max(contents.used_at, info.st_mtime),
                    **{
                        name: getattr(contents, name)
                        for name in _File.__struct_fields__
                        if name not in ("images", "subject", "used_at")
                    },
                )
            except (OSError, ValueError, msgspec.MsgspecError, BootPIGError) as error:
                logger.warning("the subject %s cannot be read: %s", file.name, error)

    def holds(self, id: str) -> bool:
        """Whether a subject is there."""
        return self._file(id).exists()

    def touch(self, id: str, used_at: float) -> None:
        """Note when a subject was used last; one that is not there is fine."""
        with contextlib.suppress(OSError):
            os.utime(self._file(id), (used_at, used_at))

    def remove(self, id: str) -> None:
        """Remove a subject; one that is not there is fine."""
        with contextlib.suppress(OSError):
            self._file(id).unlink()

    def _file(self, id: str) -> Path:
        return self.path / f"{id}.json"


def png_bytes(image: Image.Image) -> bytes:
    """A picture as a PNG, without loss."""
    stream = io.BytesIO()
    image.save(stream, "PNG", compress_level=1)
    return stream.getvalue()


def subject_bytes(subject: Subject) -> bytes:
    """The light file of a subject, safetensors.

    Raises:
        StorageError: No room for a temporary file.
    """
    try:
        with tempfile.TemporaryDirectory(prefix="bootpig-subject-") as folder:
            path = Path(folder) / "one.subject"
            subject.save(path)
            return path.read_bytes()
    except OSError as error:
        raise StorageError(f"cannot write a subject: {describe_os_error(error)}") from error


def read_subject(data: bytes) -> Subject:
    """The subject of a light file, checked in full. Nothing in it is ever run.

    Raises:
        CheckpointError: Damaged, of another version, or with NaN.
        StorageError: No room for a temporary file.
    """
    try:
        with tempfile.TemporaryDirectory(prefix="bootpig-subject-") as folder:
            path = Path(folder) / "one.subject"
            path.write_bytes(data)
            return Subject.load(path, max_bytes=max(1, len(data)))
    except BootPIGError:
        raise
    except OSError as error:
        raise StorageError(f"cannot read a subject: {describe_os_error(error)}") from error
