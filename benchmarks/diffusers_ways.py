"""diffusers' own text to image on the same base, plain and with an IP-Adapter."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from diffusers import StableDiffusionPipeline
from diffusers.utils import logging as diffusers_logging
from transformers import CLIPTokenizer

from bootpig_rt.benchmarks.published import PROMPT, SCHEDULERS, SEED
from bootpig_rt.models.load import Pair

IP_TOKENS = 4
IP_EMBED = 1024


class DiffusersWay:
    """`StableDiffusionPipeline` over the parts of a pair: two guidance rows a step.

    Args:
        pair: Whose base, VAE and text encoder draw; its modules are changed by an IP-Adapter.
        solver: Of `SCHEDULERS`.
        steps: T.
        size_px: Of the picture.
        ip_adapter: Give the U-Net the layers of an IP-Adapter, with random weights: what it draws
            means nothing, what it costs is right. Its image encoder is left out of the time, which
            favours it.
    """

    def __init__(
        self, pair: Pair, *, solver: str, steps: int, size_px: int, ip_adapter: bool = False
    ) -> None:
        """Assemble the pipeline."""
        folder = Path(pair.tokenizer_folder)
        diffusers_logging.set_verbosity_error()  # it advises on checkpoints of a hub
        scheduler = SCHEDULERS[solver].from_config({**pair.scheduler, "steps_offset": 1})
        self.pipe: Any = StableDiffusionPipeline(
            vae=pair.vae,
            text_encoder=pair.text_encoder,
            tokenizer=CLIPTokenizer.from_pretrained(folder, local_files_only=True),
            unet=pair.base.unet,
            scheduler=scheduler,
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
        self.pipe.set_progress_bar_config(disable=True)
        self.options: dict[str, Any] = {
            "num_inference_steps": steps,
            "width": size_px,
            "height": size_px,
            "output_type": "np",
        }
        if ip_adapter:
            self.pipe.unet._load_ip_adapter_weights([_ip_weights(pair.base.unet)])
            self.options["ip_adapter_image_embeds"] = [torch.randn(2, 1, IP_EMBED)]

    def picture(self) -> Any:
        """Draw one picture, from prompt to pixels."""
        generator = torch.Generator().manual_seed(SEED)
        with torch.inference_mode():
            return self.pipe(PROMPT, generator=generator, **self.options).images[0]


def _ip_weights(unet: Any) -> dict[str, dict[str, torch.Tensor]]:
    """Random weights in the layout of a published IP-Adapter."""
    width = unet.config.cross_attention_dim
    projection = {
        "proj.weight": 0.02 * torch.randn(IP_TOKENS * width, IP_EMBED),
        "proj.bias": torch.zeros(IP_TOKENS * width),
        "norm.weight": torch.ones(width),
        "norm.bias": torch.zeros(width),
    }
    layers: dict[str, torch.Tensor] = {}
    index = 1  # the published files number attentions with self-attention between
    for name in unet.attn_processors:
        if name.endswith("attn2.processor"):
            hidden = unet.get_submodule(name.removesuffix(".processor")).to_q.out_features
            for key in ("to_k_ip", "to_v_ip"):
                layers[f"{index}.{key}.weight"] = 0.02 * torch.randn(hidden, width)
            index += 2
    return {"image_proj": projection, "ip_adapter": layers}
