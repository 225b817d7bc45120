"""Compiled kernels as a folder: cubin, PTX and one manifest that tells a host how to launch them.

    DIR/kernels.json                 versions, and a record for each binary
    DIR/<name>.cubin, DIR/<name>.ptx

A folder changes once all is compiled: what the manifest of an earlier run names goes, and no other
file; the new manifest is written last. The record of a binary holds its entry function, parameters
in order, grid in the words of the parameters, threads and shared memory of a program, constants
baked in, hashes of both files, and the resources of the machine code.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import bootpig_rt
from bootpig_rt.errors import StorageError, describe_os_error
from bootpig_rt.files.atomic import atomic_write_bytes, atomic_write_text
from bootpig_rt.kernels.compile import Compiled, compile_one, tool_versions
from bootpig_rt.kernels.variants import Variant

MANIFEST = "kernels.json"
FORMAT = 1


def write_artifacts(
    variants: Iterable[Variant],
    folder: Path,
    *,
    progress: Callable[[Compiled], object] | None = None,
) -> dict[str, Any]:
    """Compile variants into a folder, in place of what an earlier run put there.

    `progress` is called with each binary. Returns the manifest.

    Raises:
        StorageError: The folder cannot be made or written.
        BackendUnavailable: Triton is missing or too old.
        BootPIGError: A variant does not compile.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        all_compiled = []
        for variant in variants:
            all_compiled.append(compile_one(variant))
            if progress is not None:
                progress(all_compiled[-1])
        for path in (*_listed(folder), folder / MANIFEST):
            path.unlink(missing_ok=True)
    except StorageError:
        raise
    except OSError as error:
        raise StorageError(f"cannot write {str(folder)!r}: {describe_os_error(error)}") from error
    records = [compiled.describe() for compiled in all_compiled]
    manifest = {
        "format": FORMAT,
        "bootpig_rt": bootpig_rt.__version__,
        **tool_versions(),
        "kernels": records,
    }
    for compiled, record in zip(all_compiled, records, strict=True):
        atomic_write_bytes(folder / record["cubin"], compiled.cubin)
        atomic_write_text(folder / record["ptx"], compiled.ptx)
    atomic_write_text(folder / MANIFEST, json.dumps(manifest, indent=1) + "\n")
    return manifest


_FILES = ("cubin", "ptx")
"""Fields of a record that name files; each name ends with that of its field."""


def _listed(folder: Path) -> list[Path]:
    """Binaries that an earlier manifest names; nothing outside, nothing of a damaged one."""
    try:
        records = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["kernels"]
        names = [(str(record[kind]), kind) for record in records for kind in _FILES]
    except (FileNotFoundError, ValueError, LookupError, TypeError):
        return []
    return [
        folder / name
        for name, kind in names
        if Path(name).name == name and name.endswith(f".{kind}")
    ]


COLUMNS = (
    "kernel",
    "target",
    "registers",
    "stack",
    "spills",
    "shared KiB",
    "programs/SM",
    "tensor-core instructions",
)


def table_row(record: dict[str, Any]) -> tuple[str, ...]:
    """The cells of one record of a manifest, for `COLUMNS`."""
    target = str(record["target"])
    instructions = record["tensor_core_instructions"]
    counted = ", ".join(f"{count} {name}" for name, count in sorted(instructions.items()))
    return (
        str(record["name"]).replace(f"_{target}", ""),
        target,
        str(record["registers"]),
        str(record["stack_bytes"]),
        str(record["spills"]),
        f"{record['shared_bytes'] / 1024:.1f}",
        str(record["programs_per_sm"]),
        counted or "-",
    )


def markdown(manifest: dict[str, Any]) -> str:
    """The resources of all binaries of a manifest as a page."""
    lines = [
        "# What the compiled kernels need",
        "",
        f"Triton {manifest['triton']}, ptxas {manifest['ptxas']}, compiled without a GPU. A name "
        "ends with tile (queries x keys) and warps; `_any` takes any number of tokens, the others "
        "multiples of the tile. Registers and stack (bytes) are per thread, spills are "
        "instructions that touch local memory, shared memory and programs per multiprocessor "
        "count one program.",
        "",
        "| " + " | ".join(COLUMNS) + " |",
        "|" + "---|" * len(COLUMNS),
    ]
    lines += ["| " + " | ".join(table_row(record)) + " |" for record in manifest["kernels"]]
    return "\n".join(lines) + "\n"
