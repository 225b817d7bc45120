"""The published pipeline on the same pair, written from its description, in torch and diffusers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler, UniPCMultistepScheduler
from diffusers.models.attention_processor import AttnProcessor2_0
from PIL import Image
from torch import Tensor

from bootpig_rt.backends.torch.backend import TorchBackend
from bootpig_rt.engine.flight import picture_noise
from bootpig_rt.images.picture import prepare_reference
from bootpig_rt.reference.reference_table import ReferenceSchedule, reference_latents
from bootpig_rt.text.tokenizer import Tokenizer

PROMPT = "a photo of a dog, in the middle of a sandy beach"
REFERENCE_PROMPT = "a photo of a dog"
SEED = 7
SCHEDULERS = {
    "ddim": DDIMScheduler,
    "dpmpp_2m": DPMSolverMultistepScheduler,
    "unipc": UniPCMultistepScheduler,
}


class PublishedWay:
    """The published pipeline on the same pair, from its description, in torch and diffusers.

    - The Reference U-Net runs at every step, to its end, on the reference noised to that step.
    - Keys and values of base and reference features are projected at every step, in each layer.
    - All rows attend to themselves; the two guided rows attend once more, with the reference. The
      difference decides which of several references a token follows: a mask of the largest, which
      is multiplied and summed, with one reference too.
    - One picture at a time: its code cannot batch.
    """

    def __init__(self, backend: TorchBackend, *, steps: int, solver: str) -> None:
        self.backend = backend
        self.tokenizer = Tokenizer.from_folder(backend.spec.tokenizer_folder)
        self.steps, self.solver = steps, solver
        self.base: Any = backend.pair.base.unet
        self.reference: Any = backend.pair.reference.unet
        self.features: list[Tensor] = []
        self.ref_scale = backend.spec.config.ref_scale

    def install(self) -> None:
        """Give both U-Nets their attention processors, as the published code binds methods."""
        for unet, processor in (
            (self.base, self._attend_to_reference),
            (self.reference, self._record),
        ):
            for name, module in unet.named_modules():
                if name.endswith("attn1"):
                    module.set_processor(_Processor(processor))

    def picture(self, image: Image.Image) -> tuple[np.ndarray, np.ndarray]:
        """Draw one picture; returns its latents and its pixels."""
        config = self.backend.spec.config
        latents_ref = self.backend.encode_image(
            prepare_reference(image, config.sample_size_px, subject_share=config.subject_share)[
                None
            ]
        )
        with torch.inference_mode():
            embeds = self.backend.encode_text(self.tokenizer(["", PROMPT, REFERENCE_PROMPT]))
            rows, ref_embeds = embeds[[0, 0, 1]], embeds[[2]]
            scheduler: Any = SCHEDULERS[self.solver].from_config(self.backend.pair.scheduler)
            scheduler.set_timesteps(self.steps)
            timesteps = scheduler.timesteps.numpy()
            noised = reference_latents(
                latents_ref,
                ReferenceSchedule("exact"),
                timesteps,
                noise_seed=0,
                noise_schedule=self.backend.spec.noise_schedule,
            )
            x = torch.from_numpy(picture_noise(SEED, latents_ref.shape[1:]))[None]
            for index, t in enumerate(scheduler.timesteps):
                self.features = []
                self.reference(torch.from_numpy(noised[index]), t, ref_embeds)
                output = self.base(x.repeat(3, 1, 1, 1), t, rows).sample
                uncond, with_image, with_both = output.chunk(3)
                guided = (
                    uncond
                    + config.image_guidance_scale * (with_image - uncond)
                    + config.text_guidance_scale * (with_both - with_image)
                )
                x = scheduler.step(guided, t, x).prev_sample
            latents = x.numpy()
        return latents, self.backend.decode(latents)

    def _record(self, attn: Any, tokens: Tensor) -> Tensor:
        self.features.append(tokens)
        plain: Tensor = PLAIN(attn, tokens)
        return plain

    def _attend_to_reference(self, attn: Any, tokens: Tensor) -> Tensor:
        feature = self.features.pop(0)
        plain: Tensor = PLAIN(attn, tokens)
        guided = tokens[1:]
        feature = feature.repeat(len(guided), 1, 1)
        q = attn.to_q(guided)
        k = torch.cat([attn.to_k(guided), attn.to_k(feature * self.ref_scale)], dim=1)
        v = attn.to_v(torch.cat([guided, feature], dim=1))
        q, k, v = (z.unflatten(-1, (attn.heads, -1)).transpose(1, 2) for z in (q, k, v))
        seen = torch.nn.functional.scaled_dot_product_attention(q, k, v)
        seen = attn.to_out[0](seen.transpose(1, 2).flatten(-2))
        change = (seen - plain[1:]).unsqueeze(0)  # [references, rows, tokens, channels]
        norms = change.norm(dim=-1)
        number = torch.arange(len(norms)).view(-1, 1, 1)
        is_largest = (number == norms.argmax(dim=0)).to(change.dtype).unsqueeze(-1)
        plain[1:] += (change * is_largest).sum(dim=0)
        return plain


PLAIN: Any = AttnProcessor2_0()


class _Processor:
    """A function as diffusers calls its attention processors."""

    def __init__(self, function: Callable[[Any, Tensor], Tensor]) -> None:
        self.function = function

    def __call__(self, attn: Any, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return self.function(attn, hidden_states)
