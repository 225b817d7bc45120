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
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bootpig_rt.errors import BootPIGError, ParameterError
from bootpig_rt.kernels import tiles
from bootpig_rt.kernels.launch import (
    LOG2_E,
    attention_constants,
    find_kernel,
    launch_options,
)
from bootpig_rt.kernels.tiles import Tile
from bootpig_rt.kernels.toolchain import is_interpreting, require_triton

TYPE_OF_DTYPE = {"float16": "fp16", "bfloat16": "bf16", "float32": "fp32"}

SHARED_LIMIT = {80: 163, 86: 99, 89: 99, 90: 227, 100: 227, 120: 99}
"""KiB of shared memory that one program may have."""


@dataclass(frozen=True)
class Variant:
    """One binary to make.

    Attributes:
        name: Unique within a set; the file name.
        kernel: A name that `launch.find_kernel` knows.
        architecture: Compute capability, 90 for 9.0.
        dtype: `float16`, `bfloat16` or `float32`.
        signature: Triton's type of each parameter, `constexpr` for those that are baked in.
        constants: The values baked in.
        aligned: Parameters that the host promises to be multiples of 16 (pointers: of 16 bytes).
        options: Options of the compiler.
        grid: Programs along x, y and z, in the words of the parameters.
    """

    name: str
    kernel: str
    architecture: int
    dtype: str
    signature: Mapping[str, str]
    constants: Mapping[str, Any]
    aligned: tuple[str, ...]
    options: Mapping[str, Any]
    grid: tuple[str, ...]

    @property
    def parameters(self) -> list[dict[str, str]]:
        """What the host passes, in order, without Triton's two pointers at the end."""
        return [
            {"name": name, "type": kind}
            for name, kind in self.signature.items()
            if kind != "constexpr"
        ]


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


def attention_variant(
    *, architecture: int, mode: str, dtype: str, head_dim: int, tile: Tile, is_even: bool = True
) -> Variant:
    """A binary of `reference_attention_kernel`; `mode` is `joint` or `separate`.

    With `is_even` token counts are multiples of the tile: no masks. Otherwise it takes any count.
    """
    kernel = find_kernel("reference_attention")
    block = max(tile.block_m, tile.block_n)
    tokens = block if is_even else block + 1
    constants = attention_constants(
        dtype=dtype,
        head_dim=head_dim,
        tokens=tokens,
        ref_tokens=tokens,
        is_separate=mode == tiles.SEPARATE,
        tile=tile,
    ) | {"WIDEN": False}
    types = {"ref_of_row_ptr": "*i32", "step_ptr": "*i32", "scale": "fp32"}
    if tile.uses_tma:
        shape = [1, 1, tile.block_n, tiles.padded(head_dim)]
        described = f"tensordesc<{TYPE_OF_DTYPE[dtype]}{shape}>"
        types |= dict.fromkeys(("k_ptr", "v_ptr", "ref_k_ptr", "ref_v_ptr"), described)
    signature = _signature(kernel, constants, dtype, types)
    name = (
        f"reference_attention_{mode}_sm_{architecture}_{dtype}_d{head_dim}"
        f"_{tile.block_m}x{tile.block_n}_w{tile.num_warps}{'' if is_even else '_any'}"
        f"{'_tma' if tile.uses_tma else ''}"
    )
    return Variant(
        name=name,
        kernel="reference_attention",
        architecture=architecture,
        dtype=dtype,
        signature=signature,
        constants=constants,
        aligned=tuple(
            name
            for name in signature
            if "_stride_" in name
            or (
                name.endswith("_ptr")
                and signature[name].startswith("*")
                and signature[name] != "*i32"
            )
        ),
        options=launch_options(tile),
        grid=(f"ceil(num_tokens / {tile.block_m})", "num_heads", "num_rows"),
    )


def merge_variant(*, architecture: int, dtype: str, channels: int, merge: str) -> Variant:
    """A binary of `reference_merge_kernel` for `channels` and one merge."""
    from bootpig_rt.kernels.reference_merge import MODE_OF_MERGE

    kernel = find_kernel("reference_merge")
    block_t, num_warps = tiles.merge_tile(channels)
    constants = {
        "CHANNELS": channels,
        "BLOCK_C": tiles.padded(channels),
        "BLOCK_T": block_t,
        "MODE": MODE_OF_MERGE[merge],
    }
    signature = _signature(kernel, constants, dtype, {"ref_of_row_ptr": "*i32"})
    return Variant(
        name=f"reference_merge_{merge}_sm_{architecture}_{dtype}_c{channels}",
        kernel="reference_merge",
        architecture=architecture,
        dtype=dtype,
        signature=signature,
        constants=constants,
        aligned=tuple(
            name for name in signature if name.endswith("_ptr") and signature[name] != "*i32"
        ),
        options={"num_warps": num_warps, "enable_fp_fusion": True},
        grid=(f"ceil(num_tokens / {block_t})", "num_rows"),
    )


def plugin_variant(
    *, architecture: int, dtype: str, head_dim: int, scale: float, tile: Tile
) -> Variant:
    """A binary of `reference_attention_plugin_kernel`; `scale` is the operator's, baked in."""
    kernel = find_kernel("reference_attention_plugin")
    constants = {
        "SCALE": scale * LOG2_E,
        "HEAD_DIM": head_dim,
        "BLOCK_D": tiles.padded(head_dim),
        "BLOCK_M": tile.block_m,
        "BLOCK_N": tile.block_n,
        "PRECISION": "tf32x3" if dtype == "float32" else "tf32",
        "WIDEN": False,
    }
    signature = _signature(kernel, constants, dtype, {"ref_of_row_ptr": "*i64"})
    return Variant(
        name=f"reference_attention_plugin_sm_{architecture}_{dtype}_d{head_dim}"
        f"_{tile.block_m}x{tile.block_n}_w{tile.num_warps}",
        kernel="reference_attention_plugin",
        architecture=architecture,
        dtype=dtype,
        signature=signature,
        constants=constants,
        aligned=tuple(
            name for name in signature if name.endswith("_ptr") and name != "ref_of_row_ptr"
        ),
        options=launch_options(tile),
        grid=(f"ceil(num_tokens / {tile.block_m})", "num_heads", "num_rows"),
    )


def _signature(
    kernel: Any, constants: Mapping[str, Any], dtype: str, types: Mapping[str, str]
) -> dict[str, str]:
    """Triton's type of each parameter: a constant, one of `types`, a pointer, or an integer."""
    return {
        name: "constexpr"
        if name in constants
        else types.get(name, f"*{TYPE_OF_DTYPE[dtype]}" if name.endswith("_ptr") else "i32")
        for name in kernel.arg_names
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


def variants_of(
    architecture: int, *, dtypes: list[str], head_dims: list[int], channels: list[int]
) -> list[Variant]:
    """All binaries that a host needs on one architecture.

    Each tile of the table, for token counts that are multiples of it and for any count; and the
    merges for each number of channels.

    Raises:
        ParameterError: An architecture without tile configurations.
    """
    if architecture not in tiles.ARCHITECTURES:
        known = ", ".join(f"sm_{number}" for number in tiles.ARCHITECTURES)
        raise ParameterError(f"target is sm_{architecture}, expected one of {known}")
    variants: dict[str, Variant] = {}
    for dtype in dtypes:
        for mode in (tiles.JOINT, tiles.SEPARATE):
            for head_dim in head_dims:
                found = tiles.tiles_for(
                    architecture=architecture, mode=mode, dtype=dtype, head_dim=head_dim
                )
                # A host passes pointers; descriptors would be its own to make.
                for tile in dict.fromkeys(tile.with_plain_loads() for tile in found):
                    for is_even in (True, False):
                        variant = attention_variant(
                            architecture=architecture,
                            mode=mode,
                            dtype=dtype,
                            head_dim=head_dim,
                            tile=tile,
                            is_even=is_even,
                        )
                        variants[variant.name] = variant
        for width in channels:
            for merge in ("argmax", "softmax", "mean"):
                variant = merge_variant(
                    architecture=architecture, dtype=dtype, channels=width, merge=merge
                )
                variants[variant.name] = variant
    return list(variants.values())


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
