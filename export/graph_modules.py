"""What the graphs of a pair compute, as torch modules: tensors in, tensors out.

    text_encoder   ids -> prompt_embeds
    text_kv        prompt_embeds, text_of_row -> text_k_0, text_v_0, text_k_1, text_v_1, ..., added
    vae_encoder    pixels -> latents
    reference_kv   latents, noise, alpha, sigma, timesteps, prompt_embeds -> k_0, v_0, k_1, v_1, ...
    denoise_step   everything that one step of a batch needs -> next_state, estimate, features
    shallow_step   the same and features, of an earlier step -> next_state, estimate
    vae_decoder    latents -> pixels
    tiny_decoder   the same, by the tiny autoencoder

No value is read while tracing: sizes follow from shapes, so one graph serves every solver, number
of steps, schedule and batch. Inputs and outputs are float32 or int64, except text states, keys and
values, which have the type that the graphs compute in. `added`, what texts add to the embedding of
timesteps, is there for pairs of Stable Diffusion XL alone; their steps read it, and no pairs of
rows, which differ from the first block on. This file knows no ONNX.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from bootpig_rt.export.cpu_modules import with_plane_norms
from bootpig_rt.export.dialect import Dialect
from bootpig_rt.export.reference_op import OpMerge, reference_attention
from bootpig_rt.models.latent_scale import LatentScale, mean_latents
from bootpig_rt.models.unet import BaseUNet, ReferenceUNet


class TextEncoder(nn.Module):
    """ids int64 [P, S] -> prompt_embeds [P, S, E]; of two encoders as `TwoTextEncoders` says."""

    def __init__(self, text_encoder: Any) -> None:
        """Wrap a CLIP text model, or two as one."""
        super().__init__()
        self.text_encoder = text_encoder

    def forward(self, ids: Tensor) -> Tensor:
        """See the class."""
        states: Tensor = self.text_encoder(ids).last_hidden_state
        return states


class TextTable(nn.Module):
    """The base's text projections: keys and values of every cross-attention, once for all steps.

    Args:
        base: Its key and value projections are used.
    """

    def __init__(self, base: BaseUNet) -> None:
        """Keep the U-Net."""
        super().__init__()
        self.base = base

    def forward(self, prompt_embeds: Tensor, text_of_row: Tensor) -> tuple[Tensor, ...]:
        """Project each text once, and hand it to the rows that read it.

        Args:
            prompt_embeds: [P, S, E], distinct text states.
            text_of_row: int64 [N], which of them each row reads.

        Returns:
            text_k_0, text_v_0, text_k_1, text_v_1, ...: L pairs [N, S, H_l * D_l]; then added
            [N, T], where texts add something to the embedding of timesteps.
        """
        parts = [part for layer in self.base.project_text(prompt_embeds) for part in layer]
        _, added = self.base.split_text(prompt_embeds)
        parts += [] if added is None else [added]
        return tuple(part.index_select(0, text_of_row) for part in parts)


class VaeEncoder(nn.Module):
    """pixels float32 [N, 3, H, W] -> scaled latents float32 [N, C, h, w], mean of the posterior."""

    def __init__(self, vae: Any) -> None:
        """Wrap an autoencoder."""
        super().__init__()
        self.vae: Any = with_plane_norms(vae)
        self.scale = LatentScale(vae)

    def forward(self, pixels: Tensor) -> Tensor:
        """See the class."""
        return self.scale.scaled(mean_latents(self.vae, pixels.to(self.vae.dtype)).float())


class VaeDecoder(nn.Module):
    """Scaled latents float32 [N, C, h, w] -> pixels float32 [N, 3, H, W], about [-1, 1]."""

    def __init__(self, vae: Any) -> None:
        """Wrap an autoencoder."""
        super().__init__()
        self.vae = vae
        self.scale = LatentScale(vae)

    def forward(self, latents: Tensor) -> Tensor:
        """See the class."""
        plain = self.scale.unscaled(latents)
        pixels: Tensor = self.vae.decode(plain.to(self.vae.dtype)).sample.float()
        return pixels


class TinyDecoder(nn.Module):
    """Scaled latents float32 [N, C, h, w] -> pixels float32 [N, 3, H, W], about [-1, 1]."""

    def __init__(self, tiny_vae: Any) -> None:
        """Wrap a tiny autoencoder, of which the decoder is used."""
        super().__init__()
        self.tiny_vae = tiny_vae
        self.scale = LatentScale(tiny_vae)

    def forward(self, latents: Tensor) -> Tensor:
        """See the class."""
        plain = self.scale.unscaled(latents)
        pixels: Tensor = self.tiny_vae.decode(plain.to(self.tiny_vae.dtype)).sample.float()
        return pixels


class ReferenceTable(nn.Module):
    """Reference U-Net and the base's projections: keys and values of every self-attention.

    Args:
        base: Its key and value projections are used.
        reference: Runs up to its last self-attention.
        ref_scale: Multiplies the keys.
    """

    def __init__(self, base: BaseUNet, reference: ReferenceUNet, ref_scale: float) -> None:
        """Keep both U-Nets."""
        super().__init__()
        self.base = base
        self.reference = reference
        self._ref_scale = ref_scale

    def forward(
        self,
        latents: Tensor,
        noise: Tensor,
        alpha: Tensor,
        sigma: Tensor,
        timesteps: Tensor,
        prompt_embeds: Tensor,
    ) -> tuple[Tensor, ...]:
        """Noise the references and run them.

        Args:
            latents: float32 [N, C, h, w], clean and scaled; or noised ones with alpha 1, sigma 0.
            noise: float32 [N, C, h, w].
            alpha: float32 [N], of the signal.
            sigma: float32 [N], of the noise.
            timesteps: int64 [N].
            prompt_embeds: [N, S, E], text states of the reference prompt.

        Returns:
            k_0, v_0, k_1, v_1, ...: L pairs [N, H_l, M_l, D_l], `ref_scale` in the keys.
        """
        column = (-1, 1, 1, 1)
        noised = alpha.view(column) * latents + sigma.view(column) * noise
        features = self.reference(noised.to(prompt_embeds.dtype), timesteps, prompt_embeds)
        layers = self.base.project_reference(features, ref_scale=self._ref_scale)
        return tuple(tensor for layer in layers for tensor in layer)


class DenoiseStep(nn.Module):
    """One step of a batch: rows of the Base U-Net, guidance and solver.

    Args:
        base: The Base U-Net.
        merge: How several references of a row are combined; `one` where R is 1.
        dialect: What the graph is written for.
    """

    def __init__(self, base: BaseUNet, merge: OpMerge, dialect: Dialect = "portable") -> None:
        """Keep the U-Net."""
        super().__init__()
        self.base = base
        self._merge = merge
        self._dialect = dialect
        self._layers: tuple[int, ...] = tuple(range(base.num_layers))

    def forward(
        self,
        step: Tensor,
        state: Tensor,
        timesteps: Tensor,
        matrices: Tensor,
        x0: Tensor,
        clip_weight: Tensor,
        clip_range: Tensor,
        canvas: Tensor,
        canvas_weights: Tensor,
        mask: Tensor,
        picture_of_row: Tensor,
        rows_of_picture: Tensor,
        image_guidance_scale: Tensor,
        text_guidance_scale: Tensor,
        ref_of_row: Tensor,
        pair_of_row: Tensor,
        picture_of_pair: Tensor,
        ref_of_pair: Tensor,
        *text_and_table: Tensor,
    ) -> tuple[Tensor, ...]:
        """Take step `step` of each picture's own solver table.

        Args:
            step: int64 [1].
            state: float32 [1 + K, B, C, h, w], latents and the solver's history.
            timesteps: int64 [T, B].
            matrices: float32 [T, B, 1 + K, 2 + K], see `bootpig_rt.diffusion.solver`.
            x0: float32 [T, B, 2].
            clip_weight: float32 [T, B].
            clip_range: float32 [1]; 3e38 for none.
            canvas: float32 [3, B, C, h, w], latents of the given pictures, the noise of the
                pictures, and latents of the given pictures with what is drawn in grey, which
                U-Nets for inpainting read.
            canvas_weights: float32 [T, B, 2], of the first two at the level that a step arrives at.
            mask: float32 [B, 1, h, w], 1 where latents are drawn, 0 where they are the canvas's.
            picture_of_row: int64 [N].
            rows_of_picture: int64 [3, B], rows of the branches uncond, image, text_image.
            image_guidance_scale: float32 [B].
            text_guidance_scale: float32 [B].
            ref_of_row: int64 [T, Nr, R], what the last Nr rows read of the table; -1 for none.
            pair_of_row: int64 [N]. Rows of a picture that read the same references are one pair:
                the text, which tells them apart, comes after the first self-attention.
            picture_of_pair: int64 [U], pairs that read nothing first.
            ref_of_pair: int64 [T, Ur, R], what the last Ur pairs read of the table.
            text_and_table: What `text_kv` makes, text_k_0, text_v_0, ..., each [N, S, H_l * D_l];
                then the table, k_0, v_0, ..., each [F, H_l, M_l, D_l].

        Returns:
            next_state [1 + K, B, C, h, w] and estimate (x0) [B, C, h, w], float32; features of the
            deep blocks [N, C', h, w], of the type of the text.
        """
        return self._take(
            step,
            state,
            timesteps,
            matrices,
            x0,
            clip_weight,
            clip_range,
            canvas,
            canvas_weights,
            mask,
            picture_of_row,
            rows_of_picture,
            image_guidance_scale,
            text_guidance_scale,
            ref_of_row,
            *text_and_table,
            pairs=(pair_of_row, picture_of_pair, ref_of_pair),
        )

    def _take(
        self,
        step: Tensor,
        state: Tensor,
        timesteps: Tensor,
        matrices: Tensor,
        x0: Tensor,
        clip_weight: Tensor,
        clip_range: Tensor,
        canvas: Tensor,
        canvas_weights: Tensor,
        mask: Tensor,
        picture_of_row: Tensor,
        rows_of_picture: Tensor,
        image_guidance_scale: Tensor,
        text_guidance_scale: Tensor,
        ref_of_row: Tensor,
        *text_and_table: Tensor,
        pairs: tuple[Tensor, Tensor, Tensor] | None = None,
        kept: Tensor | None = None,
        residuals: Sequence[Tensor] = (),
    ) -> tuple[Tensor, ...]:
        """Take a step: with pairs all of the U-Net, with features that were kept its last block.

        Residuals of controls, for the rows, are added to its skip connections and middle block.
        Where texts add something, that leads `text_and_table`.
        """

        def now(per_step: Tensor) -> Tensor:
            return per_step.index_select(0, step).squeeze(0)

        sample, history = state[0], state[1:]
        added = text_and_table[0] if self.base.added_width else None
        text_and_table = text_and_table if added is None else text_and_table[1:]
        layers = list(zip(text_and_table[::2], text_and_table[1::2], strict=True))
        count = len(self._layers)
        # The walk counts all layers; those that are left out read neither text nor table.
        text_of_layer = dict(zip(self._layers, layers[:count], strict=True))
        unread = (sample, sample)
        text = tuple(text_of_layer.get(i, unread) for i in range(self.base.num_layers))
        table = dict(zip(self._layers, layers[count:], strict=True))
        refs_of_rows = now(ref_of_row)
        refs_of_pairs = refs_of_rows if pairs is None else now(pairs[2])

        def self_attention(layer: int, attn: Any, tokens: Tensor) -> Tensor:
            parts = [project(tokens) for project in (attn.to_q, attn.to_k, attn.to_v)]
            refs = refs_of_rows
            paired = pairs if layer == 0 else None
            if paired:  # up to here rows of one picture are alike, and were computed once
                parts = [part.index_select(0, paired[1]) for part in parts]
                refs = refs_of_pairs
            attended = reference_attention(
                *parts,
                heads=attn.heads,
                ref_k=table[layer][0],
                ref_v=table[layer][1],
                ref_of_row=refs,
                out_weight=attn.to_out[0].weight,
                merge=self._merge,
                scale=(parts[0].shape[-1] // attn.heads) ** -0.5,
                dialect=self._dialect,
            )
            projected: Tensor = attn.to_out[0](attended)
            return projected.index_select(0, paired[0]) if paired else projected

        read = torch.cat([sample, mask, canvas[2]], dim=1) if self.base.reads_canvas else sample
        output, features = self.base.walk(
            read.to(layers[0][0].dtype if kept is None else kept.dtype),
            now(timesteps),
            text,
            self_attention,
            picture_of_row=picture_of_row,
            t_of_row=now(timesteps).index_select(0, picture_of_row),
            features=kept,
            residuals=residuals,
            added=added,
        )
        output = output.float()

        column = (-1, 1, 1, 1)
        uncond, image, text_image = (
            output.index_select(0, rows_of_picture[branch]) for branch in range(3)
        )
        guided = (
            uncond
            + image_guidance_scale.view(column) * (image - uncond)
            + text_guidance_scale.view(column) * (text_image - image)
        )
        known = torch.cat([sample.unsqueeze(0), guided.unsqueeze(0), history])  # [2 + K, B, ...]
        estimate = _combine(now(x0).unsqueeze(1), known[:2])[0]
        following = _combine(now(matrices), known)
        clipped = torch.minimum(torch.maximum(estimate, -clip_range), clip_range)
        change = now(clip_weight).view(column) * (clipped - estimate)
        is_drawn = mask > 0
        signal, spread = (now(canvas_weights)[:, part].view(column) for part in range(2))
        given = signal * canvas[0] + spread * canvas[1]  # no product of matrices, which int8 rounds
        sample = torch.where(is_drawn, following[0] + change, given)
        estimate = torch.where(is_drawn, clipped, canvas[0])
        next_state = torch.cat([sample.unsqueeze(0), following[1:]])
        return (next_state, estimate, features) if kept is None else (next_state, estimate)


class SizedStep(DenoiseStep):
    """A step of a pair whose texts add something to timesteps, so that rows are no pairs."""

    def forward(self, *arguments: Tensor) -> tuple[Tensor, ...]:
        """Take a step.

        Args:
            arguments: Those of `DenoiseStep` but for the pairs; ahead of text and table `added`
                [N, T].
        """
        return self._take(*arguments)


class ShallowStep(DenoiseStep):
    """A step that computes the last block of the U-Net, on features of an earlier step."""

    def __init__(self, base: BaseUNet, merge: OpMerge, dialect: Dialect = "portable") -> None:
        """Keep the U-Net, and which layers are left."""
        super().__init__(base, merge, dialect)
        self._layers = tuple(i for i in self._layers if i not in base.deep_layers)

    def forward(self, features: Tensor, *arguments: Tensor) -> tuple[Tensor, ...]:
        """Take a step.

        Args:
            features: [N, C', h, w], what `denoise_step` gave for the same rows.
            arguments: Those of `DenoiseStep` but for the pairs, and text and table of the layers
                that are left; ahead of these `added`, where the step with all blocks reads it.

        Returns:
            next_state [1 + K, B, C, h, w] and estimate (x0) [B, C, h, w], float32.
        """
        return self._take(*arguments, kept=features)


def _combine(weights: Tensor, tensors: Tensor) -> Tensor:
    """Per picture: weights [B, I, J] times tensors [J, B, C, h, w] -> [I, B, C, h, w]."""
    by_picture = tensors.transpose(0, 1)
    combined = weights @ by_picture.flatten(2)
    unfolded: Tensor = combined.unflatten(2, tuple(by_picture.shape[2:]))
    return unfolded.transpose(0, 1)
