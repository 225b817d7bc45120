"""Two text encoders as one, as Stable Diffusion XL has them (arXiv 2307.01952, section 2).

What cross-attentions read are the states ahead of the last layer of both, side by side; what is
added to the embedding of the timestep is a pooled state of the second and sinusoids of six numbers
of the picture's size. All of it is one tensor of text states; see `bootpig_rt.bundle.text_parts`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from diffusers.models.embeddings import Timesteps
from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutput

from bootpig_rt.bundle.text_parts import NUM_SIZES
from bootpig_rt.errors import CheckpointError


def pack(states: Tensor, added: Tensor) -> Tensor:
    """Token states [N, S, E] and added numbers [N, W] -> text states [N, S + A, E]."""
    width = states.shape[-1]
    rows = -(-added.shape[-1] // width)
    padded = F.pad(added, (0, rows * width - added.shape[-1]))
    return torch.cat([states, padded.unflatten(-1, (rows, width))], dim=1)


def unpack(states: Tensor, added_width: int) -> tuple[Tensor, Tensor]:
    """Text states [N, S + A, E] -> token states [N, S, E] and added numbers [N, W]."""
    rows = -(-added_width // states.shape[-1])
    return states[:, :-rows], states[:, -rows:].flatten(1)[:, :added_width]


class TwoTextEncoders(nn.Module):
    """Two text encoders that are called like one of transformers.

    Args:
        first: `CLIPTextModel`.
        second: `CLIPTextModelWithProjection`, of prompts as long.
        unet: Configuration of the U-Nets that read them.
        zeros_for_empty: An empty prompt has zeros in place of states, as in training of those
            U-Nets; the numbers of the size stay.

    Raises:
        CheckpointError: They do not fit together.
    """

    def __init__(
        self, first: Any, second: Any, unet: Mapping[str, Any], *, zeros_for_empty: bool = False
    ) -> None:
        """Compare sizes, and keep both."""
        super().__init__()
        self.first, self.second = first, second
        self.zeros_for_empty = zeros_for_empty
        self.length = int(first.config.max_position_embeddings)
        self.width = int(first.config.hidden_size) + int(second.config.hidden_size)
        pooled, each = int(second.config.projection_dim), unet.get("addition_time_embed_dim")
        self.added_width = pooled + NUM_SIZES * int(each or 0)
        lengths = self.length, int(second.config.max_position_embeddings)
        if lengths[0] != lengths[1]:
            raise CheckpointError(
                f"text_encoder reads {lengths[0]} tokens and text_encoder_2 {lengths[1]}, expected "
                "as many, for their states go side by side; copy both from one model"
            )
        if self.added_width != unet.get("projection_class_embeddings_input_dim"):
            raise CheckpointError(
                f"the U-Net adds {unet.get('projection_class_embeddings_input_dim')} numbers to "
                f"its timesteps, expected {self.added_width}: {pooled} of text_encoder_2 and "
                f"{NUM_SIZES} x {each} of the picture's size; use the base model of Stable "
                "Diffusion XL, not its refiner, with its own text encoders"
            )
        self.sinusoids: Any = Timesteps(
            int(each or 0), bool(unet.get("flip_sin_to_cos", True)), int(unet.get("freq_shift", 0))
        )

    @property
    def rows(self) -> int:
        """S + A, rows of the text states."""
        return self.length - (-self.added_width // self.width)

    def forward(self, ids: Tensor) -> BaseModelOutput:
        """Text states of some prompts.

        Args:
            ids: int64 [P, 2 S + 6], tokens for the first encoder, for the second, and sizes.

        Returns:
            `last_hidden_state` [P, S + A, E], also under the index 0.
        """
        length = self.length
        first = self.first(ids[:, :length], output_hidden_states=True)
        second = self.second(ids[:, length : 2 * length], output_hidden_states=True)
        states = torch.cat([first.hidden_states[-2], second.hidden_states[-2]], dim=-1)
        pooled = second.text_embeds
        if self.zeros_for_empty:
            # CLIP's end token has the highest number; where it follows the begin, nothing is said.
            is_empty = (ids[:, 1] == ids[:, :length].amax(dim=1))[:, None]
            states = states.masked_fill(is_empty[..., None], 0.0)
            pooled = pooled.masked_fill(is_empty, 0.0)
        added = torch.cat([pooled, self._of_sizes(ids[:, 2 * length :], states)], dim=-1)
        return BaseModelOutput(last_hidden_state=pack(states, added))

    def told_sizes(self, states: Tensor, sizes: Sequence[int]) -> Tensor:
        """Text states [N, S + A, E] of which all are told these six numbers in place of theirs."""
        tokens, added = unpack(states, self.added_width)
        numbers = torch.tensor(sizes, device=states.device).expand(len(states), -1)
        sinusoids = self._of_sizes(numbers, states)
        return pack(tokens, torch.cat([added[:, : -sinusoids.shape[1]], sinusoids], dim=-1))

    def _of_sizes(self, sizes: Tensor, like: Tensor) -> Tensor:
        """Sinusoids [N, 6 * D] of sizes int64 [N, 6]: float32, cast as diffusers casts them."""
        embedded: Tensor = self.sinusoids(sizes.flatten())
        rows: Tensor = embedded.unflatten(0, (-1, NUM_SIZES))
        return rows.flatten(1).to(like.dtype)


def states_shape(text_encoder: Any) -> tuple[int, int]:
    """Rows and width of the text states that a text encoder, or two as one, makes of a prompt."""
    if isinstance(text_encoder, TwoTextEncoders):
        return text_encoder.rows, text_encoder.width
    config = text_encoder.config
    return int(config.max_position_embeddings), int(config.hidden_size)


def ids_length(text_encoder: Any) -> int:
    """Numbers that it reads of a prompt: tokens, and sizes where it is told them."""
    if isinstance(text_encoder, TwoTextEncoders):
        return 2 * text_encoder.length + NUM_SIZES
    return int(text_encoder.config.max_position_embeddings)
