"""A U-Net that begins as that of a smaller pair: other latents and words, the same layers between.

Latents of the new autoencoder and of the old one hold the same pictures, so each is nearly a linear
function of the other, token by token: least squares over a few hundred pictures. The first and the
last convolution of the old U-Net take these maps in, so it sees what it saw and draws what it drew.
Everything else has the same shapes and is taken over as it is. Of new tokens the old vocabulary's
pieces are known, whose mean they begin as.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from bootpig_rt.bundle.pair_config import read_json
from bootpig_rt.errors import ConfigError
from bootpig_rt.models.load import Pair
from bootpig_rt.text.tokenizer import Tokenizer
from bootpig_rt.training.buckets import fit_reference
from bootpig_rt.training.latents import StoredLatents, encode

PICTURES = 256
"""From which the maps between latents are fitted: each has as many equations as tokens."""

_FIRST, _LAST = ("conv_in.weight", "conv_in.bias"), ("conv_out.weight", "conv_out.bias")
_END_OF_WORD = "</w>"


@dataclass(frozen=True)
class LinearMap:
    """`y = x @ weight + bias`; weight float32 [from, to], bias [to]."""

    weight: Tensor
    bias: Tensor


@torch.no_grad()
def grow(pair: Pair, vocabulary: Path, small: Pair, latents: StoredLatents) -> None:
    """Give a pair that was just built the weights of a smaller one.

    Args:
        pair: Tied; its U-Net, text encoder and the numbers in them are written.
        vocabulary: Folder of its tokenizer.
        small: Has the same layers, and latents of the same height and width. Its Base U-Net is
            taken.
        latents: Of pictures, by the pair's autoencoder.

    Raises:
        ConfigError: Layers or latents have other shapes, or they predict something else.
    """
    if pair.scheduler != small.scheduler:
        raise ConfigError(
            f"grow_from has the noise schedule {small.scheduler}, this stage {pair.scheduler}; set "
            "unet.prediction_type to that of grow_from"
        )
    there, back = _maps_between(pair, small, latents)
    old = {name: value.float() for name, value in small.base.unet.state_dict().items()}
    first, bias = (old[name] for name in _FIRST)
    old[_FIRST[0]] = torch.einsum("ojhw,cj->ochw", first, there.weight)
    old[_FIRST[1]] = bias + torch.einsum("ojhw,j->o", first, there.bias)
    last, bias = (old[name] for name in _LAST)
    old[_LAST[0]] = torch.einsum("jihw,jc->cihw", last, back.weight)
    old[_LAST[1]] = bias @ back.weight + back.bias
    _take("U-Net", pair.base.unet, old)
    text = {name: value.float() for name, value in small.text_encoder.state_dict().items()}
    name = next(key for key in text if key.endswith("token_embedding.weight"))
    text[name] = _words(text[name], vocabulary, small.tokenizer_folder)
    _take("text encoder", pair.text_encoder, text)


def _maps_between(pair: Pair, small: Pair, latents: StoredLatents) -> tuple[LinearMap, LinearMap]:
    """From the pair's latents to the small one's, and back."""
    samples = range(min(PICTURES, len(latents.samples)))
    new = latents.targets(samples).float()
    side = small.config.sample_size_px
    pictures = [latents.samples.read(sample, references=()).target for sample in samples]
    pixels = np.stack([fit_reference(each, side) for each in pictures])
    old = encode(small.vae, pixels, torch.device("cpu")).float()
    if old.shape[2:] != new.shape[2:]:
        raise ConfigError(
            f"latents of grow_from are {tuple(old.shape[2:])}, those of this stage "
            f"{tuple(new.shape[2:])}, expected as many"
        )
    flat_new, flat_old = (x.movedim(1, 3).flatten(0, 2) for x in (new, old))
    return _fit(flat_new, flat_old), _fit(flat_old, flat_new)


def _fit(x: Tensor, y: Tensor) -> LinearMap:
    """Least squares, float32 [N, from] to [N, to]."""
    ones = torch.ones(len(x), 1)
    found = torch.linalg.lstsq(torch.cat([x, ones], 1).double(), y.double()).solution.float()
    return LinearMap(found[:-1], found[-1])


def _words(old: Tensor, vocabulary: Path, old_folder: Path) -> Tensor:
    """Embeddings of a new vocabulary, [V, width], from those of an old one."""
    tokens, old_tokens = (read_json(one / "vocab.json") for one in (vocabulary, old_folder))
    tokenizer = Tokenizer.from_folder(old_folder)
    found = torch.zeros(len(tokens), old.shape[1])
    for token, row in tokens.items():
        if token in old_tokens:
            found[row] = old[old_tokens[token]]
            continue
        spelled = token.removesuffix(_END_OF_WORD)
        ids = tokenizer([spelled], tells_cut=False)[0]
        pieces = [n for n in ids.tolist() if n not in (tokenizer.bos_id, tokenizer.eos_id)]
        found[row] = old[pieces].mean(0) if pieces else old.mean(0)
    return found


def _take(what: str, module: nn.Module, weights: dict[str, Any]) -> None:
    """Load weights that have all names and shapes of a module."""
    own = module.state_dict()
    other = sorted(
        name for name in own | weights
        if name not in own or name not in weights or own[name].shape != weights[name].shape
    )  # fmt: skip
    if other:
        raise ConfigError(
            f"the {what} of grow_from has other layers than [unet] says, first {other[0]}; set the "
            "table [unet] to its sizes"
        )
    module.load_state_dict(weights)
