"""Kernels compiled ahead of time: cubin and PTX for a target, on a machine without a GPU.

A `Variant` is one binary: kernel, target, types and the constants that are baked in. `compile_one`
makes it and reads back what the machine code needs: registers, stack, shared memory, tensor-core
instructions. `bootpig-rt compile-kernels` writes them with a manifest for hosts that embed them.
"""

from __future__ import annotations

import collections
import functools
import hashlib
import re
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bootpig_rt.errors import BootPIGError, ParameterError
from bootpig_rt.kernels.launch import (
    find_kernel,
)
from bootpig_rt.kernels.toolchain import is_interpreting, require_triton
from bootpig_rt.kernels.variants import Variant

SHARED_LIMIT = {80: 163, 86: 99, 89: 99, 90: 227, 100: 227, 120: 99}
"""KiB of shared memory that one program may have."""


@dataclass(frozen=True)
class Resources:
    """What the machine code of a variant needs.

    Attributes:
        registers: Per thread.
        stack_bytes: Per thread; 0 in a good kernel.
        spills: Instructions that load from or store to local memory.
        shared_bytes: Per program.
        tensor_core: Tensor-core instructions, by name: `HMMA`, `HGMMA` (9.0) or `UTCHMMA` (10.0).
        programs_per_sm: Programs that fit on a multiprocessor at once by registers and shared
            memory.
    """

    registers: int
    stack_bytes: int
    spills: int
    shared_bytes: int
    tensor_core: dict[str, int]
    programs_per_sm: int


@dataclass(frozen=True)
class Compiled:
    """A variant with its code. `entry` is the name of the function in both."""

    variant: Variant
    entry: str
    cubin: bytes
    ptx: str
    num_threads: int
    resources: Resources

    @property
    def hidden_pointers(self) -> int:
        """Parameters that Triton appended to the kernel's own: 1 or 2, by its version."""
        return len(_entry_parameters(self.ptx, self.entry)) - len(self.variant.parameters)

    def describe(self) -> dict[str, Any]:
        """The manifest's record: everything that a host needs for a launch."""
        variant = self.variant
        return {
            "name": variant.name,
            "kernel": variant.kernel,
            "target": f"sm_{variant.architecture}",
            "dtype": variant.dtype,
            "entry": self.entry,
            "cubin": f"{variant.name}.cubin",
            "cubin_sha256": hashlib.sha256(self.cubin).hexdigest(),
            "ptx": f"{variant.name}.ptx",
            "ptx_sha256": hashlib.sha256(self.ptx.encode()).hexdigest(),
            "ptx_version": _first(r"^\.version (\S+)", self.ptx),
            "ptx_target": _first(r"^\.target ([^\s,]+)", self.ptx),
            "parameters": variant.parameters,
            # Triton appends pointers to scratch memory, which these kernels never read.
            "hidden_pointers": self.hidden_pointers,
            "aligned_to_16": list(variant.aligned),
            "grid": list(variant.grid),
            "threads": self.num_threads,
            "shared_bytes": self.resources.shared_bytes,
            "constants": dict(variant.constants),
            "registers": self.resources.registers,
            "stack_bytes": self.resources.stack_bytes,
            "spills": self.resources.spills,
            "tensor_core_instructions": self.resources.tensor_core,
            "programs_per_sm": self.resources.programs_per_sm,
        }


def without_hidden_pointers(ptx: str, entry: str, count: int) -> str:
    """PTX whose entry has lost its last `count` parameters.

    Triton appends pointers to scratch memory. A host that passes the kernel's own parameters alone
    would leave them to whatever lies behind its array.

    Raises:
        BootPIGError: The code reads one of them, or there are not so many.
    """
    if count == 0:
        return ptx
    parameters = _entry_parameters(ptx, entry)
    if len(parameters) <= count:
        raise BootPIGError(f"the PTX of {entry} has {len(parameters)} parameters, expected more")
    for parameter in parameters[-count:]:
        name = parameter.split()[-1]
        if len(re.findall(rf"\b{re.escape(name)}\b", ptx)) != 1:
            raise BootPIGError(
                f"the PTX of {entry} reads its scratch pointer {name}, expected none in use; use a "
                "kernel without scratch memory"
            )
    return ptx.replace(",".join(parameters), ",".join(parameters[:-count]), 1)


def compile_one(variant: Variant) -> Compiled:
    """Compile a variant with Triton and the assembler that it brings.

    Raises:
        BackendUnavailable: Triton is missing or too old.
        ParameterError: The interpreter is switched on.
        BootPIGError: The compiler or its tools failed.
    """
    require_triton()
    if is_interpreting():
        raise ParameterError("TRITON_INTERPRET is set, so nothing is compiled; unset it")
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    kernel = find_kernel(variant.kernel)
    attributes = {
        (kernel.arg_names.index(name),): [["tt.divisibility", 16]] for name in variant.aligned
    }
    source = ASTSource(kernel, dict(variant.signature), dict(variant.constants), attributes)
    try:
        made = triton.compile(
            source,
            target=GPUTarget("cuda", variant.architecture, 32),
            options=dict(variant.options),
        )
    except RuntimeError as error:  # what Triton raises for every failure of its stages
        raise BootPIGError(
            f"Triton {triton.__version__} cannot compile {variant.name}: {error}"
        ) from error
    cubin: bytes = made.asm["cubin"]
    num_threads = 32 * int(made.metadata.num_warps)
    return Compiled(
        variant=variant,
        entry=str(made.metadata.name),
        cubin=cubin,
        ptx=str(made.asm["ptx"]),
        num_threads=num_threads,
        resources=_resources(cubin, variant.architecture, int(made.metadata.shared), num_threads),
    )


def tool_versions() -> dict[str, str]:
    """Versions of what makes the binaries."""
    import triton

    listing = subprocess.run(
        [_tool("ptxas"), "--version"], capture_output=True, text=True, check=True
    ).stdout
    return {
        "triton": str(triton.__version__),
        "ptxas": _first(r"release \S+ (V\S+)", listing),
    }


def _resources(cubin: bytes, architecture: int, shared: int, num_threads: int) -> Resources:
    """Read registers and instructions out of machine code with NVIDIA's `cuobjdump`."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as stream:
        stream.write(cubin)
        stream.flush()
        usage, code = (
            subprocess.run(
                [_tool("cuobjdump"), option, stream.name],
                capture_output=True,
                text=True,
                check=True,
            ).stdout
            for option in ("-res-usage", "-sass")
        )
    registers = int(_first(r"REG:(\d+)", usage))
    threads_of_registers = 65536 // (-(-registers // 8) * 8)
    by_registers = threads_of_registers // num_threads
    by_shared = (SHARED_LIMIT[architecture] + 1) * 1024 // (shared + 1024)
    return Resources(
        registers=registers,
        stack_bytes=int(_first(r"STACK:(\d+)", usage)),
        spills=len(re.findall(r"\b(?:LDL|STL)\b", code)),
        shared_bytes=shared,
        tensor_core=dict(collections.Counter(re.findall(r"\b(?:HG?|UTC[HQ])MMA\b", code))),
        programs_per_sm=min(by_registers, by_shared),
    )


@functools.cache
def _tool(name: str) -> str:
    """Path of a program that comes with Triton."""
    import triton

    path = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / name
    if not path.is_file():
        raise BootPIGError(
            f"{name} is not in the installed Triton ({path}), expected the wheel from PyPI; "
            "pip install --force-reinstall triton"
        )
    return str(path)


def _entry_parameters(ptx: str, entry: str) -> list[str]:
    """The declarations of a function's parameters, as they are written."""
    found = re.search(rf"\.entry {re.escape(entry)}\((.*?)\n?\)", ptx, re.DOTALL)
    return [] if found is None else found[1].split(",")


def _first(pattern: str, text: str) -> str:
    found = re.search(pattern, text, re.MULTILINE)
    return found[1] if found else "unknown"
