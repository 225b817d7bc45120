"""The graphs as modules: inputs, free axes, and the parts that torch can run by itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from bootpig_rt.errors import ParameterError
from bootpig_rt.export import graph_modules
from bootpig_rt.export.graphs import GRAPH_NAMES, build_graph, table_names, text_names
from bootpig_rt.models.attention import join_heads, split_heads
from bootpig_rt.models.load import Pair, load_pair


@pytest.fixture(scope="module")
def pair(tiny_pair_folder: Path) -> Pair:
    return load_pair(tiny_pair_folder)


def test_there_are_five_graphs_beside_two_steps_for_each_merge() -> None:
    assert GRAPH_NAMES == (
        "text_encoder",
        "text_kv",
        "vae_encoder",
        "reference_kv",
        "denoise_step",
        "denoise_step_argmax",
        "denoise_step_softmax",
        "denoise_step_mean",
        "denoise_step_concat",
        "shallow_step",
        "shallow_step_argmax",
        "shallow_step_softmax",
        "shallow_step_mean",
        "shallow_step_concat",
        "vae_decoder",
    )


def test_an_unknown_graph_is_refused(pair: Pair) -> None:
    with pytest.raises(ParameterError, match="graph is 'refiner', expected one of text_encoder"):
        build_graph("refiner", pair)


@pytest.mark.parametrize("name", GRAPH_NAMES)
def test_free_axes_exist_and_equal_sizes_agree(pair: Pair, name: str) -> None:
    graph = build_graph(name, pair)
    sizes: dict[str, int] = {}
    for key, axes in graph.axes.items():
        for axis, dim in axes.items():
            size = graph.inputs[key].shape[axis]
            assert sizes.setdefault(str(dim), size) == size
            assert size > 1  # a size of 0 or 1 would be traced as a constant


def test_a_step_reads_what_the_reference_graph_writes(pair: Pair) -> None:
    step, reference = build_graph("denoise_step_mean", pair), build_graph("reference_kv", pair)
    assert reference.outputs == table_names(pair.base)
    assert tuple(step.inputs)[-len(reference.outputs) :] == reference.outputs
    for layer, (_, heads, inner) in enumerate(pair.base.layer_shapes()):
        assert step.inputs[f"k_{layer}"].shape[1::2] == (heads, inner // heads)


def test_a_step_reads_what_the_text_graph_writes(pair: Pair) -> None:
    step, text = build_graph("denoise_step", pair), build_graph("text_kv", pair)
    assert text.outputs == text_names(pair.base)
    names = tuple(step.inputs)
    first = names.index("text_k_0")
    assert names[first : first + len(text.outputs)] == text.outputs
    with torch.inference_mode():
        made = text.module(torch.randn(2, 24, 16), torch.tensor([1, 0, 1]))
    assert [part.shape[1:] for part in made] == [step.inputs[n].shape[1:] for n in text.outputs]
    for part in made:
        assert torch.equal(part[0], part[2])
        assert not torch.equal(part[0], part[1])


def test_a_shallow_step_reads_the_features_and_what_the_last_block_needs(pair: Pair) -> None:
    deep, shallow = build_graph("denoise_step", pair), build_graph("shallow_step", pair)
    assert shallow.outputs == deep.outputs[:2]
    last = pair.base.num_layers - 1
    assert set(shallow.inputs) - set(deep.inputs) == {"features"}
    layers = {name for name in shallow.inputs if name.rpartition("_")[2].isdigit()}
    assert layers == {f"{kind}_{last}" for kind in ("k", "v", "text_k", "text_v")}
    assert not [name for name in shallow.inputs if "pair" in name]


def test_only_a_step_with_a_merge_has_free_slots(pair: Pair) -> None:
    assert 2 not in build_graph("denoise_step", pair).axes["ref_of_row"]
    assert 2 in build_graph("denoise_step_concat", pair).axes["ref_of_row"]


def test_the_reference_graph_noises_and_projects(pair: Pair) -> None:
    graph = build_graph("reference_kv", pair)
    torch.manual_seed(0)
    latents, noise = torch.randn(2, 2, 4, 8, 8).unbind()
    alpha, sigma = torch.tensor([0.8, 1.0]), torch.tensor([0.6, 0.0])
    t, states = torch.tensor([400, 0]), torch.randn(2, 24, 16)
    with torch.inference_mode():
        made = graph.module(latents, noise, alpha, sigma, t, states)
        noised = torch.stack([0.8 * latents[0] + 0.6 * noise[0], latents[1]])
        features = pair.reference(noised, t, states)
        layers = pair.base.project_reference(features, ref_scale=pair.config.ref_scale)
    expected = [tensor for layer in layers for tensor in layer]
    assert len(made) == len(expected) == 2 * pair.base.num_layers
    for got, want in zip(made, expected, strict=True):
        torch.testing.assert_close(got, want)


def test_the_table_is_scaled_by_ref_scale_in_the_keys_alone(pair: Pair) -> None:
    from bootpig_rt.export.graphs import reference_graph

    inputs = (torch.randn(1, 4, 8, 8), torch.zeros(1, 4, 8, 8), torch.ones(1), torch.zeros(1))
    rest = (torch.tensor([10]), torch.randn(1, 24, 16))
    with torch.inference_mode():
        one, double = (
            reference_graph(pair.base, pair.reference, scale, 24, torch.float32).module(
                *inputs, *rest
            )
            for scale in (1.0, 2.0)
        )
    for layer in range(pair.base.num_layers):
        torch.testing.assert_close(double[2 * layer], 2 * one[2 * layer])
        torch.testing.assert_close(double[2 * layer + 1], one[2 * layer + 1])


def test_the_autoencoder_graphs_scale_latents(pair: Pair) -> None:
    pixels = torch.rand(1, 3, 32, 32) * 2 - 1
    with torch.inference_mode():
        latents = build_graph("vae_encoder", pair).module(pixels)
        back = build_graph("vae_decoder", pair).module(latents)
        vae: Any = pair.vae
        mean = vae.encode(pixels).latent_dist.mean
        decoded = vae.decode(mean).sample
    torch.testing.assert_close(latents, mean * vae.config.scaling_factor)
    torch.testing.assert_close(back, decoded, rtol=1e-4, atol=1e-4)


def test_layer_levels_count_the_halvings(pair: Pair) -> None:
    assert pair.base.layer_levels() == (0, 1, 1, 1, 1, 0, 0)


def test_rows_of_one_picture_are_computed_once_until_they_meet_their_text(
    pair: Pair, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    """Six rows of two pictures: the first layers see two, and the result is that of six."""
    graph = build_graph("denoise_step", pair)
    attended: list[int] = []

    def attend(q: torch.Tensor, *own: torch.Tensor, heads: int, **_: object) -> torch.Tensor:
        attended.append(len(q))
        q, k, v = (split_heads(part, heads) for part in (q, *own))
        return join_heads(torch.nn.functional.scaled_dot_product_attention(q, k, v))

    monkeypatch.setattr(graph_modules, "reference_attention", attend)
    torch.manual_seed(0)
    values = {
        "step": torch.tensor([1]),
        "state": torch.randn(3, 2, 4, 8, 8),
        "timesteps": torch.tensor([[900, 800], [700, 20]]),
        "matrices": torch.randn(2, 2, 3, 4),
        "x0": torch.randn(2, 2, 2),
        "clip_weight": torch.zeros(2, 2),
        "clip_range": torch.full((1,), 3e38),
        "canvas": torch.randn(3, 2, 4, 8, 8),
        "canvas_weights": torch.rand(2, 2, 2),
        "mask": (torch.rand(2, 1, 8, 8) > 0.3).float(),
        "picture_of_row": torch.tensor([0, 1, 0, 1, 0, 1]),
        "rows_of_picture": torch.tensor([[0, 1], [2, 3], [4, 5]]),
        "image_guidance_scale": torch.tensor([2.0, 3.0]),
        "text_guidance_scale": torch.tensor([4.0, 5.0]),
        "ref_of_row": torch.zeros(2, 4, 1, dtype=torch.int64),
        "pair_of_row": torch.tensor([0, 1, 2, 3, 2, 3]),
        "picture_of_pair": torch.tensor([0, 1, 0, 1]),
        "ref_of_pair": torch.zeros(2, 2, 1, dtype=torch.int64),
    }
    table = [torch.zeros(1)] * (2 * pair.base.num_layers)
    texts = torch.randn(3, 24, 16)
    with torch.inference_mode():
        text = build_graph("text_kv", pair).module(texts, torch.tensor([0, 0, 0, 0, 1, 2]))
    seen: list[int] = []
    unet = pair.base.unet
    for module in (unet.conv_in, unet.down_blocks[0].resnets[0]):
        handle = module.register_forward_hook(lambda _, inputs, out: seen.append(len(out)))
        request.addfinalizer(handle.remove)
    with torch.inference_mode():
        together, _, features = graph.module(*values.values(), *text, *table)
    assert set(seen) == {2}
    assert len(features) == 6
    assert attended[0] == 4  # the guided rows of a picture are one pair
    assert set(attended[1:]) == {6}
    # A picture for each row: nothing is shared.
    pictures = values["picture_of_row"]
    alone = {
        **values,
        "state": values["state"][:, pictures],
        "picture_of_row": torch.arange(6),
        "pair_of_row": torch.arange(6),
        "picture_of_pair": torch.arange(6),
        **{name: values[name][:, pictures] for name in ("timesteps", "matrices", "x0")},
        "clip_weight": values["clip_weight"][:, pictures],
        "canvas": values["canvas"][:, pictures],
        "canvas_weights": values["canvas_weights"][:, pictures],
        "mask": values["mask"][pictures],
        "rows_of_picture": values["rows_of_picture"][:, [0, 1, 0, 1, 0, 1]],
        **{
            name: values[name][pictures] for name in ("image_guidance_scale", "text_guidance_scale")
        },
    }
    seen.clear()
    with torch.inference_mode():
        apart, _, _ = graph.module(*alone.values(), *text, *table)
    assert set(seen) == {6}
    torch.testing.assert_close(together, apart[:, :2], rtol=1e-4, atol=1e-5)
