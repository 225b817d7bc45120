"""The keys and values that the Base U-Net reads of a subject, and when they are valid.

Attention is one-way: the reference never sees the picture that is drawn. The table therefore
depends on the subject, the timesteps and the subject's noise seed, never on prompt, seed or
latents, and one table serves all pictures of a subject. What a table holds is the backend's own;
this file knows what it was made from.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, fields
from typing import Any

import msgspec

from bootpig_rt.backends.host_table import HostTable, Precision, TableDtype
from bootpig_rt.errors import ParameterError, SubjectMismatch, one_line, shown


@dataclass(frozen=True)
class ReferenceKey:
    """What a table was computed from: two tables with equal keys are equal.

    The solver is in it by its timesteps alone: solvers that visit the same ones share a table.

    Attributes:
        subject: Fingerprint of all that is kept of the subject.
        pixels: sha256 of the reference images as the model sees them.
        reference_prompt: What the Reference U-Net was told.
        noise_seed: Of the reference noise.
        pair: Fingerprint of weights and configuration.
        is_noised: Whether noise was added; `clean` adds none.
        timesteps: Timesteps of the entries.
        ref_scale: Factor on the reference keys.
        precision: What the Reference U-Net computed in.
        dtype: How the numbers are kept.
        size: Height and width of the reference latents.
        num_references: R.
        origin: sha256 of the file that brought the table along; empty for one that was made here.
            Nobody can check such a table against its subject, so only who brings the same file
            reads it.
    """

    subject: str
    pixels: str
    reference_prompt: str
    noise_seed: int
    pair: str
    is_noised: bool
    timesteps: tuple[int, ...]
    ref_scale: float
    precision: Precision
    dtype: TableDtype
    size: tuple[int, int]
    num_references: int
    origin: str = ""

    def mismatch(self, needed: ReferenceKey) -> SubjectMismatch:
        """The error for a table where another one is needed; names the first field that differs."""
        return SubjectMismatch(
            f"the reference table {self.difference(needed)}; encode the subject again with these "
            "settings"
        )

    def difference(self, needed: ReferenceKey) -> str | None:
        """The first field that differs, in words; None where the keys are equal."""
        for field in fields(self):
            got, want = getattr(self, field.name), getattr(needed, field.name)
            if got != want:
                return f"was made with {field.name} {shown(got, 40)}, expected {shown(want, 40)}"
        return None

    def to_dict(self) -> dict[str, Any]:
        """For the header of a file, which cannot say where it comes from itself."""
        values = asdict(self)
        del values["origin"]
        return values

    @classmethod
    def from_dict(cls, values: object) -> ReferenceKey:
        """Read what `to_dict` made, after JSON.

        Raises:
            ParameterError: A field is missing, unknown or of the wrong type.
        """
        names = {field.name for field in fields(cls)} - {"origin"}
        if not isinstance(values, dict):
            raise ParameterError(f"the key of a table is {shown(values, 40)}")
        if set(values) != names:
            differ = ", ".join(sorted(map(str, names.symmetric_difference(values))))
            raise ParameterError(
                f"the key of a table lacks or adds {shown(differ, 40)}: it is of another version"
            )
        try:
            return msgspec.convert(values, cls)
        except (msgspec.ValidationError, UnicodeEncodeError) as error:  # the latter of no text
            raise ParameterError(f"the key of a table is wrong: {one_line(str(error))}") from error

    def digest(self, tenant: str = "") -> str:
        """sha256 of everything above and a tenant: the name of the table's file."""
        text = json.dumps([tenant, self.origin, self.to_dict()], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()


@dataclass(frozen=True)
class ReferenceTable:
    """The table of one subject: on the backend's device, streamed to it, or as it is saved.

    Attributes:
        key: What it was computed from.
        data: E entries x L layers of keys and values [R, H, M, D], in the backend's own layout;
            a `HostTable` where it came from a file or travels with a subject.
        size_bytes: Bytes of `data` where it lies: `host_table.table_bytes` of its type there.
        is_resident: `data` is on the device as a whole. Otherwise it is on the host, and each step
            copies the entry that it reads.
    """

    key: ReferenceKey
    data: Any
    size_bytes: int
    is_resident: bool = True

    @classmethod
    def on_host(cls, key: ReferenceKey, table: HostTable) -> ReferenceTable:
        """A table as files and backends exchange it."""
        return cls(key, table, table.nbytes, is_resident=False)
