"""The published way to draw, from its description, in torch and diffusers, on a CPU or a GPU.

- The Reference U-Net runs at every step, to its end, on the references noised to that step.
- Keys and values are projected from base and reference tokens together, at every step.
- All rows attend to themselves; the two guided rows attend once more with each reference, and the
  difference decides which reference a token follows: with one reference too.
- One picture at a time: its code cannot batch.

Attention is `scaled_dot_product_attention`, as in diffusers. The steps may be compiled, recorded as
a CUDA graph, and computed in bfloat16: whoever is compared with this way is compared with the
strongest of these.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch._inductor.config
import torch.nn.functional as F
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler, UniPCMultistepScheduler
from numpy.typing import NDArray
from torch import Tensor

from bootpig_rt.models.latent_scale import LatentScale, mean_latents
from bootpig_rt.models.load import Pair

FloatArray = NDArray[np.float32]
SCHEDULERS: dict[str, Any] = {
    "ddim": DDIMScheduler,
    "dpmpp_2m": DPMSolverMultistepScheduler,
    "unipc": UniPCMultistepScheduler,
}


@dataclass(frozen=True)
class Scene:
    """What a picture is drawn from.

    Attributes:
        ids: int64 [3, S], tokens of no prompt, the prompt and the reference prompt.
        pixels: float32 [R, 3, H, W] in [-1, 1], the references.
        noise: float32 [C, h, w], of the picture.
        add_noise: Latents [R, C, h, w] and timesteps [T] -> noised latents [T, R, C, h, w].
        solver: Of `SCHEDULERS`.
        steps: T.
    """

    ids: NDArray[np.int64]
    pixels: FloatArray
    noise: FloatArray
    add_noise: Callable[[FloatArray, NDArray[np.int64]], FloatArray]
    solver: str
    steps: int

    @property
    def size_px(self) -> int:
        """Side of the picture."""
        return int(self.pixels.shape[-1])


class PublishedWay:
    """Draws scenes.

    Args:
        pair: Its U-Nets run as diffusers runs them; their attention processors are changed. The
            autoencoder is computed in the type of the U-Nets.
        device: Of the pair.
        compiles: The step goes through `torch.compile`.
        records: The step is recorded once as a CUDA graph and replayed. On a CPU the same buffers
            are used, and a replay is a call.
        autocast: Compute in this type where torch's autocast does; None: in that of the weights.
    """

    def __init__(
        self,
        pair: Pair,
        device: str = "cpu",
        *,
        compiles: bool = False,
        records: bool = False,
        autocast: torch.dtype | None = None,
    ) -> None:
        self._pair, self._device, self._autocast = pair, device, autocast
        self._base: Any = pair.base.unet
        self._reference: Any = pair.reference.unet
        self._dtype: torch.dtype = self._base.dtype
        self._vae: Any = pair.vae
        torch.nn.Module.to(self._vae, dtype=self._dtype)
        self.latents: Tensor | None = None  # of the last picture
        self._features: list[Tensor] = []
        self._install()
        self._output: Callable[..., Tensor] = self._guided
        if compiles:
            # Workers of their own would count as others' work on this machine.
            torch._inductor.config.compile_threads = 1
            self._output = torch.compile(self._guided, dynamic=False)
        if records:
            self._output = Recorded(self._output, device)

    def picture(self, scene: Scene) -> FloatArray:
        """Pixels of one picture, float32 [1, 3, H, W], about [-1, 1], on the host."""
        device, config = self._device, self._pair.config
        with torch.inference_mode(), self._precision():
            texts = self._pair.text_encoder(torch.from_numpy(scene.ids).to(device))
            texts = texts.last_hidden_state.to(self._dtype)
            rows, reference_texts = texts[[0, 0, 1]], texts[[2] * len(scene.pixels)]
            pixels = torch.from_numpy(scene.pixels).to(device, self._dtype)
            scale = LatentScale(self._vae)
            latents = scale.scaled(mean_latents(self._vae, pixels).float())
            scheduler = SCHEDULERS[scene.solver].from_config(self._pair.scheduler)
            scheduler.set_timesteps(scene.steps, device=device)
            timesteps = scheduler.timesteps.cpu().numpy()
            noised = scene.add_noise(latents.cpu().numpy(), timesteps)
            read = torch.from_numpy(noised).to(device)
            x = torch.from_numpy(scene.noise).to(device)[None] * float(scheduler.init_noise_sigma)
            scales = torch.tensor(
                [config.image_guidance_scale, config.text_guidance_scale], device=device
            )
            for index, t in enumerate(scheduler.timesteps):
                guided = self._output(x, read[index], t, rows, reference_texts, scales)
                x = scheduler.step(guided, t, x).prev_sample
            self.latents = x
            plain = scale.unscaled(x).to(self._dtype)
            drawn: FloatArray = self._vae.decode(plain).sample.float().cpu().numpy()
        return drawn

    def _precision(self) -> AbstractContextManager[Any]:
        if self._autocast is None:
            return nullcontext()
        return torch.autocast(self._device.partition(":")[0], dtype=self._autocast)

    def _guided(
        self,
        x: Tensor,
        noised: Tensor,
        t: Tensor,
        rows: Tensor,
        reference_texts: Tensor,
        scales: Tensor,
    ) -> Tensor:
        """Guided model output of one picture, float32 [1, C, h, w]."""
        self._features = []
        self._reference(noised.to(self._dtype), t, reference_texts)
        output = self._base(x.to(self._dtype).repeat(3, 1, 1, 1), t, rows).sample.float()
        uncond, image, text_image = output.chunk(3)
        guided: Tensor = uncond + scales[0] * (image - uncond) + scales[1] * (text_image - image)
        return guided

    def _install(self) -> None:
        """Give both U-Nets their attention processors, as the published code binds methods."""
        for unet, function in ((self._base, self._attend), (self._reference, self._record)):
            for name, module in unet.named_modules():
                if name.endswith("attn1"):
                    module.set_processor(_Processor(function))
                elif name.endswith("attn2"):
                    module.set_processor(_Processor(attend_plain))

    def _record(self, attn: Any, tokens: Tensor, context: Tensor | None = None) -> Tensor:
        self._features.append(tokens)
        return attend_plain(attn, tokens)

    def _attend(self, attn: Any, tokens: Tensor, context: Tensor | None = None) -> Tensor:
        features = self._features.pop(0)  # [R, N, C]
        plain = attend_plain(attn, tokens)
        guided = tokens[1:]
        changes = []
        for feature in features:
            feature = feature.expand(len(guided), -1, -1)
            keys = torch.cat([guided, feature * self._pair.config.ref_scale], dim=1)
            values = torch.cat([guided, feature], dim=1)
            changes.append(attend(attn, guided, keys, values) - plain[1:])
        change = torch.stack(changes)  # [R, 2, N, C]
        best = change.float().norm(dim=-1).argmax(dim=0)
        index = best[None, ..., None].expand(-1, -1, -1, change.shape[-1])
        return torch.cat([plain[:1], plain[1:] + change.gather(0, index)[0]])


class Recorded:
    """A function of tensors of one shape, over buffers of its own: recorded once, then replayed.

    Args:
        function: Reads and makes tensors of the device, and nothing of the host.
        device: `cpu` or a CUDA device.
    """

    def __init__(self, function: Callable[..., Tensor], device: str) -> None:
        self._function, self._is_cuda = function, device.startswith("cuda")
        self._inputs: tuple[Tensor, ...] = ()
        self._result: Tensor | None = None
        self._graph: Any = None

    def __call__(self, *inputs: Tensor) -> Tensor:
        """The result, in a tensor that the next call does not change."""
        if self._result is None:
            self._inputs = tuple(each.clone() for each in inputs)
            self._prepare()
        for buffer, each in zip(self._inputs, inputs, strict=True):
            buffer.copy_(each)
        if self._graph is None:
            self._result = self._function(*self._inputs)
        else:
            self._graph.replay()
        assert self._result is not None
        return self._result.clone()

    def _prepare(self) -> None:
        if not self._is_cuda:
            return
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(3):  # libraries load, kernels are chosen and compiled
                self._function(*self._inputs)
        torch.cuda.current_stream().wait_stream(stream)
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph):
            self._result = self._function(*self._inputs)


class _Processor:
    """A function as diffusers calls its attention processors."""

    def __init__(self, function: Callable[..., Tensor]) -> None:
        self._function = function

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
    ) -> Tensor:
        return self._function(attn, hidden_states, encoder_hidden_states)


def attend_plain(attn: Any, tokens: Tensor, context: Tensor | None = None) -> Tensor:
    """Attention to a context, or to the tokens themselves: [B, N, C] -> [B, N, C]."""
    context = tokens if context is None else context
    return attend(attn, tokens, context, context)


def attend(attn: Any, tokens: Tensor, for_keys: Tensor, for_values: Tensor) -> Tensor:
    """Projections, attention, output projection: [B, N, C] -> [B, N, C]."""
    q, k, v = (
        z.unflatten(-1, (attn.heads, -1)).transpose(1, 2)
        for z in (attn.to_q(tokens), attn.to_k(for_keys), attn.to_v(for_values))
    )
    attended = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(-2)
    projected: Tensor = attn.to_out[0](attended)
    return projected
