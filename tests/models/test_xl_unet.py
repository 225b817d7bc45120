"""U-Nets of Stable Diffusion XL against diffusers, and against an oracle of what a pair adds."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from diffusers import ControlNetModel, UNet2DConditionModel
from torch import Tensor

from bootpig_rt.errors import CheckpointError, ParameterError
from bootpig_rt.models.control import Control
from bootpig_rt.models.rows import plan_rows
from bootpig_rt.models.text_encoders import pack
from bootpig_rt.models.unet import BaseUNet, ReferenceUNet
from bootpig_rt.models.unet_config import check_unet_config

POOLED, EACH, TOKENS, WIDTH = 10, 4, 5, 12
ADDED = POOLED + 6 * EACH

XL: dict[str, Any] = {
    "block_out_channels": (8, 16, 16),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "attention_head_dim": (1, 2, 4),
    "transformer_layers_per_block": (1, 2, 3),
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": EACH,
    "projection_class_embeddings_input_dim": ADDED,
}

SIZES = torch.tensor([[64.0, 48, 3, 5, 32, 32], [32, 32, 0, 0, 32, 32], [9, 8, 7, 6, 5, 4]])


def seeded(unet: Any, seed: int) -> Any:
    """Weights of a seed in float64; biases too, which start as zeros."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in unet.double().parameters():
        noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        parameter.data += 0.1 * noise
    return unet


@pytest.fixture
def unets(make_unet: Any) -> tuple[Any, Any]:
    return seeded(make_unet(**XL), 1), seeded(make_unet(**XL), 2)


class Given:
    """Inputs of `rows` rows, as diffusers takes them and as pairs do."""

    def __init__(self, unet: Any, rows: int, seed: int = 0) -> None:
        generator = torch.Generator().manual_seed(seed)

        def normal(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator, dtype=torch.float64)

        self.latents, self.tokens, pooled = (
            normal(rows, 4, 8, 8),
            normal(rows, TOKENS, WIDTH),
            normal(rows, POOLED),
        )
        self.t = torch.randint(0, 1000, (rows,), generator=generator)
        sizes = SIZES[torch.arange(rows) % len(SIZES)]
        self.added = {"text_embeds": pooled, "time_ids": sizes}
        sinusoids = unet.add_time_proj(sizes.flatten()).reshape(rows, -1).double()
        self.states = pack(self.tokens, torch.cat([pooled, sinusoids], dim=1))

    @property
    def plain(self) -> tuple[Tensor, Tensor, Tensor]:
        return self.latents, self.t, self.tokens


def close(got: Tensor, expected: Tensor) -> None:
    # Sinusoids of timesteps and sizes are float32 on both sides.
    torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-9)


def test_without_references_the_base_is_the_diffusers_model(unets: tuple[Any, Any]) -> None:
    unet, _ = unets
    given = Given(unet, 3)
    assert given.states.shape == (3, TOKENS + 3, WIDTH)  # 34 numbers fill three rows of 12
    with torch.no_grad():
        expected = unet(*given.plain, added_cond_kwargs=given.added).sample
        close(BaseUNet(unet)(given.latents, given.t, given.states), expected)
        other = {**given.added, "time_ids": given.added["time_ids"] + 1.0}
        assert (unet(*given.plain, added_cond_kwargs=other).sample - expected).abs().max() > 1e-6


def test_published_xl_has_70_layers_of_known_shape() -> None:
    build: Any = UNet2DConditionModel
    published = {
        **XL,
        "block_out_channels": (320, 640, 1280),
        "attention_head_dim": (5, 10, 20),
        "transformer_layers_per_block": (1, 2, 10),
        "cross_attention_dim": 2048,
        "addition_time_embed_dim": 256,
        "projection_class_embeddings_input_dim": 2816,
        "use_linear_projection": True,
    }
    with torch.device("meta"):
        base = BaseUNet(build(**published))
    assert base.num_layers == 70
    assert {inner // heads for _, heads, inner in base.layer_shapes()} == {64}
    levels = base.layer_levels()
    assert (levels.count(1), levels.count(2)) == (10, 60)
    assert sum(parameter.numel() for parameter in base.parameters()) == 2_567_463_684


class Attend:
    """An attention processor that reads references too, from the method's description.

    Keys and values of a row's own tokens, then those of its reference: the features of the
    Reference U-Net through the Base U-Net's projections, those for keys times `scale`.
    """

    def __init__(self, features: Tensor, reads: list[bool], scale: float) -> None:
        self.features, self.reads, self.scale = features, reads, scale

    def __call__(self, attn: Any, hidden_states: Tensor, *_: Any, **__: Any) -> Tensor:
        rows = []
        for number, tokens in enumerate(hidden_states):
            keys, values = attn.to_k(tokens), attn.to_v(tokens)
            if self.reads[number]:
                keys = torch.cat([keys, attn.to_k(self.scale * self.features)])
                values = torch.cat([values, attn.to_v(self.features)])
            q, k, v = (
                x.unflatten(-1, (attn.heads, -1)).transpose(0, 1)
                for x in (attn.to_q(tokens), keys, values)
            )
            scores = F.softmax(q @ k.transpose(1, 2) / q.shape[-1] ** 0.5, dim=-1)
            rows.append((scores @ v).transpose(0, 1).flatten(1))
        projected: Tensor = attn.to_out[0](torch.stack(rows))
        return projected


def recorded_features(unet: Any, given: Given) -> dict[str, Tensor]:
    """What diffusers' own forward gives ahead of each self-attention, by the attention's name."""
    seen: dict[str, Tensor] = {}
    hooks = [
        unet.get_submodule(f"{block}.norm1").register_forward_hook(
            lambda _module, _args, output, key=f"{block}.attn1": seen.update({key: output})
        )
        for block in [
            name.removesuffix(".attn1") for name, _ in unet.named_modules() if name[-6:] == ".attn1"
        ]
    ]
    unet(*given.plain, added_cond_kwargs=given.added)
    for hook in hooks:
        hook.remove()
    return seen


def test_the_reference_path_is_that_of_the_description(unets: tuple[Any, Any]) -> None:
    base_unet, ref_unet = unets
    base, reference = BaseUNet(base_unet), ReferenceUNet(ref_unet)
    subject, rows = Given(ref_unet, 1, seed=5), Given(base_unet, 3, seed=6)
    with torch.no_grad():
        found = recorded_features(ref_unet, subject)
        features = reference(subject.latents, subject.t, subject.states)
        assert len(features) == len(found) == base.num_layers
        for mine, theirs in zip(features, found.values(), strict=True):
            close(mine, theirs)
        table = base.project_reference(features, ref_scale=1.1)
        refs = torch.tensor([[-1], [0], [0]])
        got = base(rows.latents, rows.t, rows.states, table, refs)
        for name, feature in found.items():
            attn = base_unet.get_submodule(name)
            attn.set_processor(Attend(feature[0], [False, True, True], 1.1))
        expected = base_unet(*rows.plain, added_cond_kwargs=rows.added).sample
        close(got, expected)


def test_rows_of_a_picture_have_each_their_own_text_from_the_first_block_on(
    unets: tuple[Any, Any],
) -> None:
    unet, ref_unet = unets
    base, reference = BaseUNet(unet), ReferenceUNet(ref_unet)
    pictures, rows, subject = Given(unet, 2, seed=1), Given(unet, 4, seed=2), Given(unet, 1, seed=3)
    refs, of_row = torch.tensor([[0], [-1], [0], [-1]]), torch.tensor([0, 0, 1, 1])
    with torch.no_grad():
        table = base.project_reference(reference(subject.latents, subject.t, subject.states))
        plan = plan_rows(refs, 1, of_row)
        latents, t = pictures.latents, pictures.t
        text, (_, added) = base.project_text(rows.states), base.split_text(rows.states)
        shared, found = base.draw(latents, t, text, table, plan, added=added)
        alone = base(latents[of_row], t[of_row], rows.states, table, refs)
        close(shared, alone)
        again, _ = base.draw(latents, t, text, table, plan, added=added, features=found)
        close(again, shared)
        with pytest.raises(ParameterError, match="expected what they add as well"):
            base.draw(latents, t, text, table, plan)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"addition_time_embed_dim": None}, "addition_time_embed_dim is None, expected a whole"),
        ({"transformer_layers_per_block": [1, [2, 2], 4]}, r"holds \[2, 2\], expected whole num"),
        ({"addition_embed_type": "text_image"}, "supported: None or 'text_time'; use a Stable"),
        ({"reverse_transformer_layers_per_block": [[4, 1], 2, 1]}, "reverse_transformer_layers_p"),
    ],
)
def test_what_no_walk_computes_is_refused_by_name(changes: dict[str, Any], message: str) -> None:
    check_unet_config(XL)
    with pytest.raises(CheckpointError, match=message):
        check_unet_config({**XL, **changes})


def test_pairs_without_sizes_have_no_such_part(make_unet: Any) -> None:
    base = BaseUNet(make_unet())
    states = torch.randn(1, TOKENS, WIDTH)
    assert base.split_text(states) == (states, None)
    assert base.added_width == 0


def test_a_control_is_that_of_diffusers_and_its_residuals_reach_the_base(
    unets: tuple[Any, Any],
) -> None:
    unet, _ = unets
    net = seeded(
        ControlNetModel.from_unet(unet, conditioning_embedding_out_channels=(4, 8, 8)), 3
    ).eval()
    given = Given(unet, 3)
    maps = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(4)).double()
    with torch.no_grad():
        down, middle = net(*given.plain, maps, added_cond_kwargs=given.added, return_dict=False)
        expected = unet(
            *given.plain,
            added_cond_kwargs=given.added,
            down_block_additional_residuals=down,
            mid_block_additional_residual=middle,
        ).sample
        control = Control(net)
        residuals = control(given.latents, given.t, given.states, control.embed(maps))
        drawn, _ = BaseUNet(unet).draw(given.latents, given.t, given.states, residuals=residuals)
    for got, wanted in zip(residuals, [*down, middle], strict=True):
        close(got, wanted)
    close(drawn, expected)
