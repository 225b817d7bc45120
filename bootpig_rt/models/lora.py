"""LoRAs fused into the weights of a pair while it is loaded.

The U-Net of a LoRA's names is the Base U-Net, which draws. The Reference U-Net reads the subject,
was trained away from the weights that a LoRA was trained on, and stays as it is; what it reads
still goes through the base's fused key and value weights. Nothing is left out: a key that fits no
module ends the load, and all such keys are told.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from bootpig_rt.bundle.lora import FusedLora, Lora
from bootpig_rt.errors import CheckpointError
from bootpig_rt.models.lora_file import Layer, LoraFile, Part, named, names_text, read_lora
from bootpig_rt.models.weights import is_finite

logger = logging.getLogger(__name__)

_TEXT_PREFIX = "text_model."
_WIDTHS = {768: "Stable Diffusion 1", 1024: "Stable Diffusion 2", 2048: "Stable Diffusion XL"}


class LoraSet:
    """Files that were read, to be fused into one module after another.

    Args:
        loras: Their order changes nothing.

    Raises:
        CheckpointError: A file cannot be used; see `read_lora`.
    """

    def __init__(self, loras: Sequence[Lora] = ()) -> None:
        files = [read_lora(lora) for lora in loras]
        # Sums of floats depend on their order: one for all orders of the arguments.
        self._files = sorted(files, key=lambda file: (file.lora.sha256, file.lora.scale))
        for file in self._files:
            if file.unknown or not file.layers:
                what = "are no part of a LoRA of up and down (nor are LoHa, LoKr, DoRA and biases)"
                _refuse(file, list(file.unknown), what)

    @property
    def fused(self) -> tuple[FusedLora, ...]:
        """What a pair with these in it says of them."""
        return tuple(file.lora for file in self._files)

    def fuse(self, part: Part, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Weights with what the files change; those that change are float32 afterwards.

        Args:
            part: Whose weights.
            tensors: Name -> weight, as the module names them.

        Raises:
            CheckpointError: A layer fits no module, or not its shape, or adds what is not finite.
        """
        names = _Names(tensors)
        changes: dict[str, Tensor] = {}
        for file in self._files:
            layers = [layer for layer in file.layers if layer.part == part]
            found = [(layer, names.weight_of(layer)) for layer in layers]
            lost = [key for layer, name in found if name is None for key in layer.keys.values()]
            if lost:
                _refuse(file, lost, f"belong to no module of this pair's {part.replace('_', ' ')}")
            for layer, name in found:
                assert name is not None
                change = file.lora.scale * _change(file, layer, name, tensors[name])
                changes[name] = changes[name] + change if name in changes else change
        changed = {name: tensors[name].float() + change for name, change in changes.items()}
        for name, weight in changed.items():
            if not is_finite(weight):
                raise CheckpointError(
                    f"weight {named(name)} is no finite number with "
                    f"{' and '.join(file.lora.name for file in self._files)}; take smaller scales, "
                    "or leave out the one that was trained wrongly"
                )
        if changed:
            logger.info("%d weights of the %s are changed by LoRAs", len(changed), part)
        return tensors | changed


class _Names:
    """Finds the weight that a layer is meant for, by the names that the module has itself.

    Args:
        tensors: Of the module; what a layer can change are matrices and convolutions.
    """

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self._dotted = {
            name.removesuffix(".weight"): name
            for name, tensor in tensors.items()
            if name.endswith(".weight") and tensor.dim() in (2, 4)
        }
        self._flat: dict[str, list[str]] = {}
        for module, name in self._dotted.items():
            self._flat.setdefault(module.replace(".", "_"), []).append(name)

    def weight_of(self, layer: Layer) -> str | None:
        """The name of the weight; None where no module has it, or more than one could."""
        prefix = _TEXT_PREFIX.replace(".", "_") if layer.is_flat else _TEXT_PREFIX
        spellings = (layer.module, layer.module.removeprefix(prefix), prefix + layer.module)
        for spelling in spellings:
            if layer.is_flat:
                found = self._flat.get(spelling, [])
            else:
                found = [self._dotted[spelling]] if spelling in self._dotted else []
            if len(found) == 1:
                return found[0]
        return None


def _change(file: LoraFile, layer: Layer, name: str, weight: Tensor) -> Tensor:
    """What a layer adds, alpha / rank * up @ down: float32 in the shape of the weight.

    Raises:
        CheckpointError: It has another shape.
    """
    down, up = (layer.tensors[role].float() for role in ("down", "up"))
    mid = layer.tensors.get("mid")
    shape: tuple[int, ...] = (up.shape[0], *down.shape[1:])
    if mid is None:
        product = up.flatten(1) @ down.flatten(1)
    else:
        shape = (up.shape[0], down.shape[1], *mid.shape[2:])
        product = torch.einsum("oa,abkl,bi->oikl", up.flatten(1), mid.float(), down.flatten(1))
    # A linear layer and a convolution of 1 x 1 are the same, and files have either.
    if _matrix(shape) != _matrix(tuple(weight.shape)):
        raise CheckpointError(
            f"{file.path}: {layer.describe()} change a weight of {list(shape)}, and "
            f"{named(name)} is {list(weight.shape)}; the LoRA was trained on another base "
            f"model{_family(name, shape, weight)}, take one for this pair's",
            file.path,
        )
    return layer.factor * product.reshape(weight.shape)


def _matrix(shape: tuple[int, ...]) -> tuple[int, ...]:
    return shape[:2] if all(side == 1 for side in shape[2:]) else shape


def _family(name: str, shape: tuple[int, ...], weight: Tensor) -> str:
    """Which base models meet here, where the width of text tells."""
    is_text = name.endswith(("attn2.to_k.weight", "attn2.to_v.weight"))
    theirs, ours = (_WIDTHS.get(int(sizes[1])) for sizes in (shape, weight.shape))
    if not is_text or theirs is None:
        return ""
    return f" ({theirs}" + (f", this is {ours})" if ours else ")")


def _refuse(file: LoraFile, keys: list[str], what: str) -> None:
    """End the load for keys that cannot be fused; a log line has all of them.

    Raises:
        CheckpointError: Always.
    """
    if not keys:
        raise CheckpointError(
            f"{file.path} holds no tensors of a LoRA; it is another kind of file", file.path
        )
    keys = sorted(keys)
    total = len(file.unknown) + sum(len(layer.keys) for layer in file.layers)
    logger.error("%s: keys that %s: %s", file.path, what, ", ".join(named(key) for key in keys))
    raise CheckpointError(
        f"{file.path}: {len(keys)} of {total} keys {what}: {names_text(keys)}; nothing was "
        "loaded, take a LoRA of this pair's base model, in the layout of diffusers, kohya or PEFT",
        file.path,
    )
