"""The published way to draw, from its description, in torch and diffusers.

- The Reference U-Net runs at every step, to its end, on the references noised to that step.
- Keys and values are projected from base and reference tokens together, at every step.
- All rows attend to themselves; the two guided rows attend once more with each reference, and the
  difference decides which reference a token follows.
- One picture at a time.

Features of the references are views for both guided rows here; the published code copies them.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, Literal, TypeAlias

import torch
import torch.nn.functional as F
from diffusers import UniPCMultistepScheduler
from torch import Tensor

from bootpig_rt.backends.base import FloatArray
from bootpig_rt.benchmarks.gpu.picture_inputs import (
    NEGATIVE,
    PROMPT,
    REFERENCE,
    PictureInputs,
    Stages,
)
from bootpig_rt.models.load import Pair
from bootpig_rt.reference.reference_table import ReferenceSchedule, reference_latents

Mode: TypeAlias = Literal["eager", "sdpa", "single"]
"""`eager`: attention as products and softmax. `sdpa`: through SDPA, as published. `single`: also
own tokens are projected once, and rows that read one reference attend once."""


class PublishedWay:
    """Implements `PictureWay` for one picture.

    Args:
        pair: Its modules are used as diffusers runs them; their attention processors are changed.
        device: Of the pair.
        dtype: Of all modules, the autoencoder's as well.
        mode: How attention is computed.
    """

    def __init__(self, pair: Pair, device: str, dtype: torch.dtype, mode: Mode) -> None:
        """Keep the modules; the autoencoder is copied into the type of the others."""
        self._pair, self._device, self._dtype, self._mode = pair, device, dtype, mode
        self._base: Any = pair.base.unet
        self._reference: Any = pair.reference.unet
        vae: Any = pair.vae
        self._vae = copy.deepcopy(vae).to(dtype) if vae.dtype != dtype else vae
        self._features: list[Tensor] = []

    def begin(self, inputs: PictureInputs, stages: Stages) -> _PublishedSteps:
        """Text and reference latents; the references themselves are read at every step."""
        self._install()
        with torch.inference_mode():
            with stages.stage("text"):
                ids = torch.from_numpy(inputs.ids).to(self._device)
                texts = self._pair.text_encoder(ids).last_hidden_state
            with stages.stage("encode"):
                pixels = torch.from_numpy(inputs.pixels).to(self._device, self._dtype)
                mean = self._vae.encode(pixels).latent_dist.mean.float()
                latents = (mean * self._vae.config.scaling_factor).cpu().numpy()
        return _PublishedSteps(self, inputs, texts, latents)

    def decode(self, latents: FloatArray) -> FloatArray:
        """Pixels of the latents."""
        with torch.inference_mode():
            some = torch.from_numpy(latents).to(self._device) / self._vae.config.scaling_factor
            pixels: FloatArray = self._vae.decode(some.to(self._dtype)).sample.float().cpu().numpy()
        return pixels

    def forget(self) -> None:
        """Nothing is kept between pictures."""
        self._features = []

    def output(
        self, x: Tensor, noised: Tensor, t: Tensor, rows: Tensor, reference_texts: Tensor
    ) -> Tensor:
        """Model output of the three rows of one picture."""
        self._features = []
        self._reference(noised.to(self._dtype), t, reference_texts)
        output: Tensor = self._base(x.to(self._dtype).repeat(3, 1, 1, 1), t, rows).sample
        return output.float()

    def _install(self) -> None:
        """Give both U-Nets their attention processors, as the published code binds methods."""
        for unet, processor in (
            (self._base, self._attend_to_reference),
            (self._reference, self._record),
        ):
            for name, module in unet.named_modules():
                if name.endswith("attn1"):
                    module.set_processor(_Processor(processor))
                elif name.endswith("attn2"):
                    module.set_processor(_Processor(self._plain))

    def _attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        if self._mode == "eager":
            scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)
            attended: Tensor = scores.softmax(dim=-1) @ v
            return attended
        return F.scaled_dot_product_attention(q, k, v)

    def _plain(self, attn: Any, tokens: Tensor, context: Tensor | None = None) -> Tensor:
        context = tokens if context is None else context
        q, k, v = (_heads(attn, z) for z in _projected(attn, tokens, context, context))
        return _out(attn, self._attend(q, k, v))

    def _record(self, attn: Any, tokens: Tensor, context: Tensor | None = None) -> Tensor:
        self._features.append(tokens)
        return self._plain(attn, tokens)

    def _attend_to_reference(
        self, attn: Any, tokens: Tensor, context: Tensor | None = None
    ) -> Tensor:
        features = self._features.pop(0)  # [R, N, C]
        if self._mode == "single":
            return self._attend_once(attn, tokens, features)
        plain = self._plain(attn, tokens)
        guided = tokens[1:]
        changes = []
        for feature in features:
            feature = feature.expand(len(guided), -1, -1)
            scaled = feature * self._pair.config.ref_scale
            q, k, v = (
                _heads(attn, z)
                for z in _projected(
                    attn, guided, torch.cat([guided, scaled], 1), torch.cat([guided, feature], 1)
                )
            )
            changes.append(_out(attn, self._attend(q, k, v)) - plain[1:])
        return torch.cat([plain[:1], plain[1:] + _largest(torch.stack(changes))])

    def _attend_once(self, attn: Any, tokens: Tensor, features: Tensor) -> Tensor:
        q, k, v = (_heads(attn, z) for z in _projected(attn, tokens, tokens, tokens))
        ref_k = _heads(attn, attn.to_k(features) * self._pair.config.ref_scale)
        ref_v = _heads(attn, attn.to_v(features))

        def with_reference(index: int) -> Tensor:
            guided = len(tokens) - 1
            keys, values = (
                torch.cat([own[1:], ref[index].expand(guided, -1, -1, -1)], dim=2)
                for own, ref in ((k, ref_k), (v, ref_v))
            )
            return self._attend(q[1:], keys, values)

        if len(features) == 1:
            first = self._attend(q[:1], k[:1], v[:1])
            return _out(attn, torch.cat([first, with_reference(0)]))
        plain = _out(attn, self._attend(q, k, v))
        changes = [_out(attn, with_reference(r)) - plain[1:] for r in range(len(features))]
        return torch.cat([plain[:1], plain[1:] + _largest(torch.stack(changes))])


class _PublishedSteps:
    """Implements `Steps`: one picture on its way, in float32 between the calls of the U-Nets."""

    def __init__(
        self, way: PublishedWay, inputs: PictureInputs, texts: Tensor, latents: FloatArray
    ) -> None:
        self._way, self._inputs = way, inputs
        device = way._device
        self._rows = texts[[NEGATIVE, NEGATIVE, PROMPT]]
        self._reference_texts = texts[[REFERENCE] * inputs.references]
        scheduler: Any = UniPCMultistepScheduler.from_config(way._pair.scheduler)
        scheduler.set_timesteps(inputs.solver.num_steps, device=device)
        self._scheduler = scheduler
        noised = reference_latents(
            latents,
            ReferenceSchedule("exact"),
            inputs.solver.timesteps,
            noise_seed=0,
            noise_schedule=inputs.noise_schedule,
        )
        self._noised = torch.from_numpy(noised).to(device)
        self._x = torch.from_numpy(inputs.noise).to(device) * float(scheduler.init_noise_sigma)

    def step(self, index: int) -> None:
        with torch.inference_mode():
            t = self._scheduler.timesteps[index]
            output = self._way.output(
                self._x, self._noised[index], t, self._rows, self._reference_texts
            )
            uncond, image, text_image = output.chunk(3)
            guided = (
                uncond
                + self._inputs.image_scale * (image - uncond)
                + self._inputs.text_scale * (text_image - image)
            )
            self._x = self._scheduler.step(guided, t, self._x).prev_sample

    def latents(self) -> FloatArray:
        found: FloatArray = self._x.cpu().numpy()
        return found


class _Processor:
    """A function as diffusers calls its attention processors."""

    def __init__(self, function: Callable[..., Tensor]) -> None:
        self._function = function

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        *args: Any,
        **kwargs: Any,
    ) -> Tensor:
        return self._function(attn, hidden_states, encoder_hidden_states)


def _projected(
    attn: Any, tokens: Tensor, for_keys: Tensor, for_values: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    return attn.to_q(tokens), attn.to_k(for_keys), attn.to_v(for_values)


def _heads(attn: Any, projected: Tensor) -> Tensor:
    split: Tensor = projected.unflatten(-1, (attn.heads, -1))
    return split.transpose(1, 2)


def _out(attn: Any, attended: Tensor) -> Tensor:
    projected: Tensor = attn.to_out[0](attended.transpose(1, 2).flatten(-2))
    return projected


def _largest(change: Tensor) -> Tensor:
    """Per token the change [R, b, N, C] with the largest norm, [b, N, C]."""
    best = change.float().norm(dim=-1).argmax(dim=0)
    index = best[None, ..., None].expand(-1, -1, -1, change.shape[-1])
    return change.gather(0, index)[0]
