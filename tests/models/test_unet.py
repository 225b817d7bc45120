"""Base and Reference U-Net against diffusers, and the promises about rows of a batch."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from bootpig_rt.bundle.pair_config import Merge
from bootpig_rt.errors import CheckpointError, ParameterError
from bootpig_rt.models.attention import attention
from bootpig_rt.models.rows import RowGroup, RowPlan, plan_rows
from bootpig_rt.models.unet import BaseUNet, ReferenceKVLayers, ReferenceUNet

MERGES: tuple[Merge, ...] = ("argmax", "softmax", "mean", "concat")

CONFIGS: dict[str, dict[str, Any]] = {
    "linear projections": {},
    "convolution projections": {"use_linear_projection": False},
    "heads as one number": {"attention_head_dim": 4},
    "two transformer blocks": {"transformer_layers_per_block": 2},
    "transformer blocks by level": {"transformer_layers_per_block": (1, 3)},
    "two layers": {"layers_per_block": 2},
    "no padding": {"downsample_padding": 0},
    "plain outer level": {
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    },
    "plain inner level": {
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
    },
    "three levels": {
        "block_out_channels": (8, 16, 16),
        "down_block_types": ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        "attention_head_dim": (2, 4, 4),
    },
}


def _inputs(rows: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(rows)
    latents = torch.randn(rows, 4, 8, 8, generator=generator, dtype=dtype)
    t = torch.randint(0, 1000, (rows,), generator=generator)
    return latents, t, torch.randn(rows, 5, 12, generator=generator, dtype=dtype)


def _table(unet: BaseUNet, reference: ReferenceUNet, count: int) -> ReferenceKVLayers:
    parameter = next(unet.parameters())
    return unet.project_reference(reference(*_inputs(count, parameter.dtype)), ref_scale=1.1)


def _relative_error(got: Tensor, expected: Tensor) -> float:
    return float((got - expected).abs().max() / expected.abs().max())


@pytest.mark.parametrize("name", CONFIGS)
def test_without_references_the_base_is_the_diffusers_model(name: str, make_unet: Any) -> None:
    unet = make_unet(**CONFIGS[name]).double()
    inputs = _inputs(2, torch.float64)
    with torch.no_grad():
        assert _relative_error(BaseUNet(unet)(*inputs), unet(*inputs).sample) < 1e-12


STABLE_DIFFUSION: dict[str, dict[str, Any]] = {
    "1.5": {"cross_attention_dim": 768, "attention_head_dim": 8, "sample_size": 64},
    "2.1": {
        "cross_attention_dim": 1024,
        "attention_head_dim": (5, 10, 20, 20),
        "sample_size": 64,
        "use_linear_projection": True,
        "upcast_attention": True,
    },
}


@pytest.mark.parametrize("version", STABLE_DIFFUSION)
def test_stable_diffusion_has_16_layers_of_known_shape(version: str) -> None:
    build: Any = UNet2DConditionModel
    with torch.device("meta"):
        unet = build(**STABLE_DIFFUSION[version])
        base, reference = BaseUNet(unet), ReferenceUNet(unet)
        latents, t = torch.zeros(2, 4, 64, 64), torch.zeros(2, dtype=torch.int64)
        text = torch.zeros(2, 77, STABLE_DIFFUSION[version]["cross_attention_dim"])
        features = reference(latents, t, text)
        table = base.project_reference(features)
        plan = plan_rows(torch.tensor([[-1], [1]], device="cpu"), 2)
        assert base(latents, t, text, table, plan).shape == latents.shape
    assert base.num_layers == len(table) == 16
    assert [feature.shape[1] for feature in features] == (
        [4096] * 2 + [1024] * 2 + [256] * 2 + [64] + [256] * 3 + [1024] * 3 + [4096] * 3
    )
    # Keys of one reference at one step; as many values.
    assert sum(k[0].numel() for k, _ in table) == 11_550_720
    assert base.size_multiple == 8


@pytest.mark.parametrize("name", CONFIGS)
def test_features_are_what_the_norms_of_the_diffusers_model_give(name: str, make_unet: Any) -> None:
    unet = make_unet(**CONFIGS[name]).double()
    seen: dict[str, Tensor] = {}
    for module_name, module in unet.named_modules():
        if module_name.endswith("norm1") and "transformer_blocks" in module_name:
            module.register_forward_hook(
                lambda _module, _args, output, key=module_name: seen.update({key: output})
            )
    inputs = _inputs(2, torch.float64)
    with torch.no_grad():
        unet(*inputs)
        recorded = list(seen.values())
        features = ReferenceUNet(unet)(*inputs)
    places = [key.partition("_")[0] for key in seen]
    assert places == sorted(places, key=["down", "mid", "up"].index)
    assert len(features) == len(recorded) == ReferenceUNet(unet).num_layers
    for feature, expected in zip(features, recorded, strict=True):
        assert _relative_error(feature, expected) < 1e-12


def test_nothing_behind_the_last_norm_gets_a_gradient(make_unet: Any) -> None:
    unet = make_unet()
    features = ReferenceUNet(unet)(*_inputs(2))
    torch.stack([feature.sum() for feature in features]).sum().backward()
    with_gradient = {name for name, p in unet.named_parameters() if p.grad is not None}
    last = "up_blocks.1.attentions.1.transformer_blocks.0"
    assert f"{last}.norm1.weight" in with_gradient
    assert not with_gradient & {f"{last}.attn1.to_q.weight", "conv_out.weight"}


@pytest.fixture(scope="module")
def base_and_table(make_unet: Any) -> tuple[BaseUNet, ReferenceKVLayers]:
    """A Base U-Net in double precision, and what four references give it."""
    base, reference = BaseUNet(make_unet(0).double()), ReferenceUNet(make_unet(1).double())
    with torch.no_grad():
        return base, _table(base, reference, 4)


@pytest.mark.parametrize("merge", MERGES)
@settings(max_examples=12, deadline=None)
@given(refs=st.lists(st.lists(st.integers(-1, 3), min_size=4, max_size=4), min_size=1, max_size=6))
def test_a_row_gets_in_a_batch_what_it_gets_alone(
    merge: Merge, refs: list[list[int]], base_and_table: tuple[BaseUNet, ReferenceKVLayers]
) -> None:
    base, table = base_and_table
    latents, t, text = _inputs(len(refs), torch.float64)
    with torch.no_grad():
        batch = base(latents, t, text, table, torch.tensor(refs), merge=merge)
        for row, used in enumerate(refs):
            only = slice(row, row + 1)
            alone = base(
                latents[only], t[only], text[only], table, torch.tensor([used]), merge=merge
            )
            assert _relative_error(batch[only], alone) < 1e-6


@pytest.mark.parametrize("merge", MERGES)
@pytest.mark.parametrize("seed", range(2))
def test_a_mixed_batch_in_float32_stays_within_1e_5(
    merge: Merge, seed: int, make_unet: Any
) -> None:
    base, reference = BaseUNet(make_unet(seed)), ReferenceUNet(make_unet(seed + 50))
    refs = torch.tensor([[0, 1, 2, 3], [-1] * 4, [2, -1, -1, -1], [3, 0, -1, -1], [1, 2, 3, -1]])
    latents, t, text = _inputs(5)
    with torch.no_grad():
        all_features = reference(*_inputs(4))
        batch = base(latents, t, text, base.project_reference(all_features), refs, merge=merge)
        for row in range(5):
            used = [ref for ref in refs[row].tolist() if ref >= 0]
            only = slice(row, row + 1)
            if not used:
                alone = base(latents[only], t[only], text[only])
            else:
                # References go through their own U-Net alone as well.
                each = [reference(*(x[ref : ref + 1] for x in _inputs(4))) for ref in used]
                features = tuple(torch.cat(layer) for layer in zip(*each, strict=True))
                table = base.project_reference(features)
                own = torch.arange(len(used))[None]
                alone = base(latents[only], t[only], text[only], table, own, merge=merge)
            assert _relative_error(batch[only], alone) < 1e-5


@pytest.mark.parametrize("merge", MERGES)
def test_uncond_row_never_depends_on_a_reference(merge: Merge, make_unet: Any) -> None:
    base, reference = BaseUNet(make_unet(0)), ReferenceUNet(make_unet(1))
    inputs = _inputs(3)
    rows = torch.tensor([[-1, -1], [0, 1], [1, 0]])
    with torch.no_grad():
        table = _table(base, reference, 2)
        drawn = base(*inputs, table, rows, merge=merge)
        poisoned = tuple((k * float("nan"), v) for k, v in table)
        assert torch.equal(base(*inputs, poisoned, rows, merge=merge)[0], drawn[0])
        assert _relative_error(drawn[1:], base(*inputs)[1:]) > 1e-3


def test_a_batch_without_references_ignores_the_table(make_unet: Any) -> None:
    base, reference = BaseUNet(make_unet(0)), ReferenceUNet(make_unet(1))
    inputs = _inputs(2)
    with torch.no_grad():
        table = _table(base, reference, 1)
        drawn = base(*inputs, table, torch.tensor([[-1], [-1]]))
        assert torch.equal(drawn, base(*inputs))


def test_ref_scale_multiplies_keys_only(make_unet: Any) -> None:
    base, reference = BaseUNet(make_unet(0)), ReferenceUNet(make_unet(1))
    with torch.no_grad():
        features = reference(*_inputs(2))
        plain = base.project_reference(features)
        scaled = base.project_reference(features, ref_scale=1.5)
        scaled_first = base.project_reference(tuple(feature * 1.5 for feature in features))
    for (k, v), (k_scaled, v_scaled), (k_first, _) in zip(plain, scaled, scaled_first, strict=True):
        assert torch.equal(v, v_scaled)
        torch.testing.assert_close(k_scaled, 1.5 * k)
        torch.testing.assert_close(k_scaled, k_first, rtol=1e-5, atol=1e-5)


def test_a_plan_made_once_serves_as_the_tensor_does(make_unet: Any) -> None:
    base, reference = BaseUNet(make_unet(0)), ReferenceUNet(make_unet(1))
    rows = torch.tensor([[0, 1], [-1, -1], [1, -1]])
    with torch.no_grad():
        table = _table(base, reference, 2)
        drawn = base(*_inputs(3), table, rows)
        assert torch.equal(base(*_inputs(3), table, plan_rows(rows, 2)), drawn)


def test_gradients_reach_both_unets_through_a_mixed_batch(make_unet: Any) -> None:
    base, reference = BaseUNet(make_unet(0)), ReferenceUNet(make_unet(1))
    rows = torch.tensor([[-1, -1], [0, -1], [0, 1]])
    for merge in MERGES:
        base.zero_grad()
        reference.zero_grad()
        base(*_inputs(3), _table(base, reference, 2), rows, merge=merge).square().mean().backward()
        for unet, name in ((base.unet, "conv_out"), (reference.unet, "conv_in")):
            gradient = getattr(unet, name).weight.grad
            assert gradient.isfinite().all()
            assert gradient.abs().max() > 0


def test_autocast_to_bfloat16_stays_close(make_unet: Any) -> None:
    base, reference = BaseUNet(make_unet(0)), ReferenceUNet(make_unet(1))
    rows = torch.tensor([[-1, -1], [0, -1], [0, 1]])
    with torch.no_grad():
        full = base(*_inputs(3), _table(base, reference, 2), rows, merge="softmax")
        with torch.autocast("cpu", torch.bfloat16):
            half = base(*_inputs(3), _table(base, reference, 2), rows, merge="softmax")
    assert half.dtype == torch.bfloat16
    assert _relative_error(half.float(), full) < 0.05


class _Step(torch.nn.Module):
    """Three guidance rows as an engine would run them: the plan is a constant of the graph."""

    def __init__(self, base: BaseUNet, merge: Merge, num_references: int) -> None:
        super().__init__()
        self.base = base
        self.merge = merge
        refs = slice(0, num_references)
        self.plan = RowPlan(
            (RowGroup(slice(0, 1), 0), RowGroup(slice(1, 3), num_references, refs, shared=True))
        )

    def forward(self, latents: Tensor, t: Tensor, text: Tensor, *flat: Tensor) -> Tensor:
        table = tuple(zip(flat[::2], flat[1::2], strict=True))
        drawn: Tensor = self.base(latents, t, text, table, self.plan, merge=self.merge)
        return drawn


@pytest.mark.parametrize(
    ("merge", "count"),
    [
        ("argmax", 1),
        *(pytest.param(merge, 2, marks=pytest.mark.slow) for merge in ("argmax", "concat")),
    ],
)
def test_a_step_with_fixed_rows_exports(merge: Merge, count: int, make_unet: Any) -> None:
    one_level: dict[str, Any] = {
        "block_out_channels": (8,),
        "down_block_types": ("CrossAttnDownBlock2D",),
        "up_block_types": ("CrossAttnUpBlock2D",),
        "attention_head_dim": (2,),
    }
    base = BaseUNet(make_unet(0, **one_level))
    reference = ReferenceUNet(make_unet(1, **one_level))
    with torch.no_grad():
        table = _table(base, reference, count)
        flat = [tensor.contiguous() for layer in table for tensor in layer]
        step = _Step(base, merge, count)
        exported = torch.export.export(step, (*_inputs(3), *flat)).module()
        latents, t, text = _inputs(3)
        drawn = exported(latents * 0.5, t, text, *flat)
        rows = torch.tensor([[-1] * count, list(range(count)), list(range(count))])
        expected = base(latents * 0.5, t, text, table, rows, merge=merge)
    assert _relative_error(drawn, expected) < 1e-5


BAD_CALLS: dict[str, tuple[dict[str, Any], str]] = {
    "channels": ({"latents": torch.zeros(2, 3, 8, 8)}, r"expected \[B, 4, h, w\]"),
    "size": ({"latents": torch.zeros(2, 4, 7, 8)}, "latents are 7 x 8, expected multiples of 2"),
    "timesteps": ({"t": torch.zeros(3, dtype=torch.int64)}, "do not match 2 rows"),
    "text": ({"prompt_embeds": torch.zeros(1, 5, 12)}, "do not match 2 rows"),
    "no rows": ({"ref_of_row": None}, "together, or neither"),
    "rows": ({"ref_of_row": torch.zeros(3, 1, dtype=torch.int64)}, "has 3 rows, expected 2"),
    "type": ({"ref_of_row": torch.zeros(2, 1)}, "expected int64"),
    "index": (
        {"ref_of_row": torch.tensor([[0], [2]])},
        r"names reference 2, expected -1 \(none\) or 0..1",
    ),
    "negative": ({"ref_of_row": torch.tensor([[0], [-2]])}, "names reference -2"),
    "merge": ({"merge": "median"}, "merge is 'median'"),
    "layers": ({"reference_kv": ()}, "has 0 layers"),
}


@pytest.mark.parametrize("name", BAD_CALLS)
def test_arguments_that_do_not_fit_are_refused(name: str, make_unet: Any) -> None:
    changed, message = BAD_CALLS[name]
    base = BaseUNet(make_unet(0))
    latents, t, text = _inputs(2)
    arguments = {
        "latents": latents,
        "t": t,
        "prompt_embeds": text,
        "reference_kv": _table(base, ReferenceUNet(make_unet(1)), 2),
        "ref_of_row": torch.tensor([[0], [1]]),
    }
    with pytest.raises(ParameterError, match=message):
        base(**{**arguments, **changed})


def test_features_of_another_pair_are_refused(make_unet: Any) -> None:
    features = ReferenceUNet(make_unet(layers_per_block=2))(*_inputs(1))
    with pytest.raises(ParameterError, match="layers of reference features"):
        BaseUNet(make_unet()).project_reference(features)


@pytest.mark.parametrize(
    "option",
    [
        {"class_embed_type": "timestep"},
        {"addition_embed_type": "text"},
        {"resnet_time_scale_shift": "scale_shift"},
        {"act_fn": "gelu"},
        {"only_cross_attention": True},
        {"center_input_sample": True},
    ],
    ids=lambda option: next(iter(option)),
)
def test_an_option_that_changes_the_arithmetic_is_refused_by_name(
    option: dict[str, Any], make_unet: Any
) -> None:
    extra = {"addition_embed_type_num_heads": 2} if "addition_embed_type" in option else {}
    with pytest.raises(CheckpointError, match=f"U-Net option {next(iter(option))} is"):
        BaseUNet(make_unet(**option, **extra))


def test_text_may_be_projected_ahead_of_the_steps(make_unet: Any) -> None:
    base = BaseUNet(make_unet())
    latents, t, states = _inputs(3)

    def attend(_: int, attn: Any, tokens: Tensor) -> Tensor:
        return attention(attn, tokens, tokens)

    with torch.inference_mode():
        expected, _ = base.walk(latents, t, states, attend)
        found, _ = base.walk(latents, t, base.project_text(states), attend)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("has_pictures", [False, True])
def test_on_features_of_the_same_step_the_last_block_gives_what_all_give(
    name: str, has_pictures: bool, make_unet: Any
) -> None:
    unet = make_unet(**CONFIGS[name])
    base, reference = BaseUNet(unet), ReferenceUNet(unet)
    latents, t, states = _inputs(3)
    pictures = torch.tensor([0, 1, 0]) if has_pictures else None
    if has_pictures:
        latents, t = latents[:2], t[:2]
    with torch.inference_mode():
        table = _table(base, reference, 2)
        plan = plan_rows(torch.tensor([[0, 1], [-1, -1], [1, -1]]), 2, pictures)
        expected, features = base.draw(latents, t, states, table, plan)
        found, same = base.draw(latents, t, states, table, plan, features=features)
    torch.testing.assert_close(found, expected, rtol=0, atol=0)
    assert same is features
    assert features.shape == (3, base.deep_channels(), 8, 8)


def test_features_leave_out_the_attentions_of_the_deep_blocks(make_unet: Any) -> None:
    base = BaseUNet(make_unet())
    latents, t, states = _inputs(2)
    asked: list[int] = []

    def attend(layer: int, attn: Any, tokens: Tensor) -> Tensor:
        asked.append(layer)
        return attention(attn, tokens, tokens)

    with torch.inference_mode():
        _, features = base.walk(latents, t, states, attend)
        assert asked == list(range(base.num_layers))
        asked.clear()
        base.walk(latents, t, states, attend, features=features)
    assert asked == [layer for layer in range(base.num_layers) if layer not in base.deep_layers]
