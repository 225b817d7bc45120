"""LoRA files: every layout is fused as it is described, and what does not fit is told by name."""

from __future__ import annotations

import json
import logging
import shutil
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from bootpig_rt.bundle.lora import Lora, to_loras
from bootpig_rt.errors import CheckpointError, ParameterError
from bootpig_rt.models.load import Pair, load_pair
from bootpig_rt.models.lora import LoraSet
from bootpig_rt.models.save import save_pair

KEY = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_k"
MODULE = "mid_block.attentions.0.transformer_blocks.0.attn1.to_k"


def weights_of(pair: Pair) -> dict[str, torch.Tensor]:
    """All matrices and convolutions that a LoRA could change, by `part/module`."""
    parts: dict[str, Any] = {"base_unet": pair.base.unet, "text_encoder": pair.text_encoder}
    return {
        f"{part}/{name.removeprefix('text_model.')}": module.weight
        for part, whole in parts.items()
        for name, module in whole.named_modules()
        if isinstance(module, torch.nn.Linear | torch.nn.Conv2d)
    }


def expect(pair: Pair, plain: Pair, changes: dict[str, torch.Tensor], scale: float = 1.0) -> None:
    """Weights of a pair are those of the plain one, with changes where there are some."""
    wanted = {name.replace("text_model.", ""): change for name, change in changes.items()}
    before = weights_of(plain)
    assert wanted.keys() <= before.keys()
    for name, weight in weights_of(pair).items():
        if name in wanted:
            expected = before[name] + scale * wanted[name]
            assert float((weight - before[name]).abs().max()) > 1e-2
            torch.testing.assert_close(weight, expected, rtol=1e-5, atol=1e-6)
        else:
            assert torch.equal(weight, before[name]), name


@pytest.fixture(scope="module")
def plain(tiny_pair_folder: Path) -> Pair:
    """The pair without a LoRA."""
    return load_pair(tiny_pair_folder)


@pytest.fixture(scope="module")
def shallow(shallow_pair_folder: Path) -> Pair:
    """A smaller one, whose middle block has all that a LoRA changes."""
    return load_pair(shallow_pair_folder)


@pytest.fixture
def lora(shallow_pair_folder: Path, tmp_path: Path, make_lora: Any) -> Path:
    """A file in kohya's layout, of base and text encoder of the smaller pair."""
    make_lora(tmp_path / "style.safetensors", shallow_pair_folder, alpha=1.0)
    return tmp_path / "style.safetensors"


def write(path: Path, tensors: dict[str, torch.Tensor], **metadata: str) -> Lora:
    save_file(tensors, path, metadata=metadata or None)
    return Lora(path)


@pytest.mark.parametrize("alpha", [None, 0.5])
@pytest.mark.parametrize("layout", ["kohya", "diffusers", "old diffusers", "peft"])
def test_every_layout_adds_alpha_over_rank_times_up_times_down(
    plain: Pair,
    tiny_pair_folder: Path,
    tmp_path: Path,
    make_lora: Any,
    layout: str,
    alpha: float | None,
) -> None:
    path = tmp_path / "style.safetensors"
    changes = make_lora(path, tiny_pair_folder, layout=layout, alpha=alpha)
    assert any(change.dim() == 4 and change.shape[2] == 3 for change in changes.values())
    pair = load_pair(tiny_pair_folder, loras=[Lora(path, -0.7)])
    expect(pair, plain, changes, -0.7)
    for mine, theirs in zip(pair.reference.parameters(), plain.reference.parameters(), strict=True):
        assert torch.equal(mine, theirs)


# Of diffusers, on the noise schedule of the tiny pair.
@pytest.mark.filterwarnings("ignore:(?s).*steps_offset:FutureWarning")
@pytest.mark.parametrize("layout", ["kohya", "diffusers", "old diffusers"])
def test_diffusers_own_loader_fuses_the_same_weights(
    plain: Pair,
    tiny_pair_folder: Path,
    tmp_path: Path,
    make_lora: Any,
    layout: str,
) -> None:
    pytest.importorskip("peft", reason="diffusers loads LoRAs with the package peft alone")
    from diffusers import DDIMScheduler, StableDiffusionPipeline
    from transformers import CLIPTokenizer

    modules = r"base_unet/.*(attn[12]\.to_[qkv]|to_out\.0)|text_encoder/.*(q|v)_proj"
    if layout == "kohya":  # of its names for text encoders diffusers 0.42 infers no layout
        modules = modules.partition("|text_encoder")[0]
    path = tmp_path / "style.safetensors"
    # Of alpha in the metadata of a file the version of diffusers decides; without it all agree.
    alpha = 1.0 if layout == "kohya" else None
    make_lora(path, tiny_pair_folder, layout=layout, modules=modules, alpha=alpha)
    theirs = load_pair(tiny_pair_folder)
    pipe: Any = StableDiffusionPipeline(
        vae=theirs.vae,
        text_encoder=theirs.text_encoder,
        tokenizer=CLIPTokenizer.from_pretrained(theirs.tokenizer_folder),
        unet=theirs.base.unet,
        scheduler=DDIMScheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipe.load_lora_weights(str(path.parent), weight_name=path.name)
    pipe.fuse_lora(lora_scale=0.6)
    pipe.unload_lora_weights()
    ours = weights_of(load_pair(tiny_pair_folder, loras=[Lora(path, 0.6)]))
    fused, before = weights_of(theirs), weights_of(plain)
    changed = {name for name in fused if not torch.equal(fused[name], before[name])}
    assert any("text_encoder" in name for name in changed) == (layout != "kohya")
    assert any("base_unet" in name for name in changed)
    for name, weight in fused.items():
        torch.testing.assert_close(ours[name], weight, rtol=1e-5, atol=1e-6, msg=name)


def test_a_product_of_three_is_a_convolution_between_two_of_1_x_1(
    shallow: Pair, shallow_pair_folder: Path, tmp_path: Path
) -> None:
    key = "lora_unet_down_blocks_0_resnets_0_conv1"
    down, mid, up = torch.randn(3, 16, 1, 1), torch.randn(3, 3, 3, 3), torch.randn(16, 3, 1, 1)
    tensors = {f"{key}.lora_down.weight": down, f"{key}.lora_mid.weight": mid}
    tensors |= {f"{key}.lora_up.weight": up, f"{key}.alpha": torch.tensor(1.5)}
    lora = write(tmp_path / "locon.safetensors", tensors)
    unet: Any = load_pair(shallow_pair_folder, loras=[lora]).base.unet
    old: Any = shallow.base.unet
    x = torch.randn(1, 16, 6, 6)
    one, other = (each.down_blocks[0].resnets[0].conv1 for each in (unet, old))
    conv = torch.nn.functional.conv2d
    added = 0.5 * conv(conv(conv(x, down), mid, padding=1), up)
    torch.testing.assert_close(one(x), other(x) + added, rtol=1e-4, atol=1e-3)


def test_alpha_patterns_and_rank_stabilised_adapters_of_peft(
    shallow: Pair, shallow_pair_folder: Path, tmp_path: Path, make_lora: Any
) -> None:
    path = tmp_path / "adapter_model.safetensors"
    modules = r"base_unet/mid_block.*attn1\.to_[kv]"
    changes = make_lora(path, shallow_pair_folder, layout="peft", modules=modules, rank=4)
    settings = {"r": 8, "lora_alpha": 2, "alpha_pattern": {r"attn1\.to_k": 6}}
    settings |= {"use_rslora": True}
    (tmp_path / "adapter_config.json").write_text(json.dumps(settings))
    factors = {"to_k": 6 / 4**0.5, "to_v": 2 / 4**0.5}
    wanted = {name: factors[name[-4:]] * change for name, change in changes.items()}
    expect(load_pair(shallow_pair_folder, loras=[Lora(tmp_path)]), shallow, wanted)


def test_several_add_up_in_any_order(
    shallow: Pair, shallow_pair_folder: Path, tmp_path: Path, make_lora: Any
) -> None:
    paths = [tmp_path / "a.safetensors", tmp_path / "b.safetensors"]
    one, two = (
        make_lora(path, shallow_pair_folder, seed=seed, rank=seed + 1)
        for seed, path in enumerate(paths)
    )
    loras = [Lora(paths[0], 0.8), Lora(paths[1], 0.3)]
    pair = load_pair(shallow_pair_folder, loras=loras)
    expect(pair, shallow, {name: 0.8 * one[name] + 0.3 * two[name] for name in one})
    again = load_pair(shallow_pair_folder, loras=loras[::-1])
    assert again.fingerprint == pair.fingerprint
    mine, theirs = weights_of(pair), weights_of(again)
    assert all(torch.equal(mine[name], theirs[name]) for name in mine)
    assert {lora.name: lora.scale for lora in pair.config.loras} == {
        "a.safetensors": 0.8,
        "b.safetensors": 0.3,
    }


def test_a_fingerprint_tells_files_and_scales_apart(
    shallow: Pair, shallow_pair_folder: Path, lora: Path, tmp_path: Path, make_lora: Any
) -> None:
    other = tmp_path / "other.safetensors"
    make_lora(other, shallow_pair_folder, seed=1)
    renamed = shutil.copy(lora, tmp_path / "renamed.safetensors")
    ways = [[Lora(lora)], [Lora(lora, 0.5)], [Lora(other)], [Lora(lora), Lora(other)]]
    found = [load_pair(shallow_pair_folder, loras=loras).fingerprint for loras in ways]
    assert len({shallow.fingerprint, *found}) == 5
    assert load_pair(shallow_pair_folder, loras=[Lora(renamed)]).fingerprint == found[0]


def test_what_alpha_an_adapter_has_is_in_the_fingerprint(
    shallow_pair_folder: Path, tmp_path: Path, make_lora: Any
) -> None:
    found = set()
    for alpha in (1.0, 2.0):
        make_lora(tmp_path / "a.safetensors", shallow_pair_folder, layout="peft", alpha=alpha)
        found.add(
            load_pair(shallow_pair_folder, loras=[Lora(tmp_path / "a.safetensors")]).fingerprint
        )
    assert len(found) == 2


def test_a_saved_pair_says_what_is_in_it_and_takes_more(
    shallow_pair_folder: Path, lora: Path, tmp_path: Path
) -> None:
    pair = load_pair(shallow_pair_folder, loras=[Lora(lora, 0.5)])
    saved = save_pair(pair, tmp_path / "saved", dtype=torch.float32)
    again = load_pair(saved)
    assert again.config.loras == pair.config.loras
    assert len(load_pair(saved, loras=[Lora(lora)]).config.loras) == 2
    assert "loras" not in (shallow_pair_folder / "pair.json").read_text()
    settings = json.loads((saved / "pair.json").read_text())
    settings["loras"][0]["scale"] = "much"
    (saved / "pair.json").write_text(json.dumps(settings))
    with pytest.raises(CheckpointError, match="loras is wrong: Expected `float`"):
        load_pair(saved)


def test_weights_are_fused_before_they_are_rounded(
    shallow_pair_folder: Path, tmp_path: Path
) -> None:
    path = tmp_path / "style.safetensors"
    down, up = torch.randn(2, 16) / 50, torch.randn(16, 2) / 50
    write(path, {f"{KEY}.lora_down.weight": down, f"{KEY}.lora_up.weight": up})
    wide: Any = load_pair(shallow_pair_folder, loras=[Lora(path)])
    half: Any = load_pair(shallow_pair_folder, dtype=torch.bfloat16, loras=[Lora(path)])
    name = f"base_unet/{MODULE}"
    assert torch.equal(weights_of(half)[name], weights_of(wide)[name].bfloat16())


def test_one_unet_for_both_stays_one(shallow: Pair, lora: Path, tmp_path: Path) -> None:
    config = replace(shallow.config, shared_unet=True)
    shared = save_pair(replace(shallow, config=config), tmp_path / "shared", dtype=torch.float32)
    pair = load_pair(shared, loras=[Lora(lora)])
    assert pair.reference.unet is pair.base.unet
    name = f"base_unet/{MODULE}"
    assert not torch.equal(weights_of(pair)[name], weights_of(shallow)[name])


def test_keys_that_belong_to_nothing_are_all_told_and_nothing_is_loaded(
    shallow_pair_folder: Path, lora: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tensors = load_file(lora)
    for number in range(12):
        key = f"lora_unet_down_blocks_{number + 5}_attn1_to_k"
        tensors |= {f"{key}.lora_down.weight": torch.ones(2, 4)}
        tensors |= {f"{key}.lora_up.weight": torch.ones(4, 2)}
    save_file(tensors, lora)
    with caplog.at_level(logging.ERROR), pytest.raises(CheckpointError) as caught:
        load_pair(shallow_pair_folder, loras=[Lora(lora)])
    text = str(caught.value)
    assert f"24 of {len(tensors)} keys belong to no module of this pair's unet" in text
    assert "lora_unet_down_blocks_10_attn1_to_k" in text
    assert "and 16 more" in text
    assert caught.value.path == lora
    assert "lora_unet_down_blocks_16_attn1_to_k.lora_up.weight" in caplog.text


@pytest.mark.parametrize(
    "key",
    [
        f"{KEY}.hada_w1_a",
        f"{KEY}.dora_scale",
        f"unet.{MODULE}.lora_magnitude_vector",
        f"unet.{MODULE}.lora_B.bias",
        "conditioner.embedders.0.weight",
    ],
)
def test_what_is_no_part_of_a_lora_is_not_dropped(
    shallow_pair_folder: Path, lora: Path, key: str
) -> None:
    save_file({**load_file(lora), key: torch.ones(2, 2)}, lora)
    with pytest.raises(CheckpointError, match=r"1 of \d+ keys are no part of a LoRA") as caught:
        load_pair(shallow_pair_folder, loras=[Lora(lora)])
    assert key in str(caught.value)


def test_a_lora_of_another_family_is_refused_with_keys_and_shapes(
    shallow_pair_folder: Path, tmp_path: Path
) -> None:
    key = KEY.replace("attn1", "attn2")
    tensors = {f"{key}.lora_down.weight": torch.ones(4, 768)}
    tensors |= {f"{key}.lora_up.weight": torch.ones(16, 4)}
    lora = write(tmp_path / "sd1.safetensors", tensors)
    with pytest.raises(CheckpointError) as caught:
        load_pair(shallow_pair_folder, loras=[lora])
    text = str(caught.value)
    for part in (f"{key}.lora_down.weight", "[4, 768]", "[16, 4]", "[16, 768]", "[16, 16]"):
        assert part in text
    assert "Stable Diffusion 1" in text
    other = {"lora_te2_text_model_encoder_layers_0_mlp_fc1.lora_down.weight": torch.ones(4, 16)}
    lora = write(tmp_path / "xl.safetensors", other)
    with pytest.raises(CheckpointError, match="no up"):
        load_pair(shallow_pair_folder, loras=[lora])


@pytest.mark.parametrize(
    ("tensors", "expected"),
    [
        ({"lora_down": (2, 16), "lora_up": (16, 4)}, r"\[2, 16\].*\[16, 4\] do not fit each other"),
        ({"lora_down": (2, 16)}, r"\[2, 16\] and no up; the file is not whole"),
        ({"lora_up": (16, 2)}, r"\[16, 2\] and no down"),
        ({"lora_down": (2, 16), "lora_up": (16, 2), "alpha": (3,)}, r"alpha.*is \[3\], expected"),
        ({"lora_down": (2, 16), "lora_up": (16, 2, 3, 3)}, "do not fit each other"),
        ({"lora_down": (0, 16), "lora_up": (16, 0)}, "do not fit each other"),
        ({}, "holds no tensors of a LoRA"),
    ],
)
def test_layers_that_are_not_whole_are_refused(
    shallow_pair_folder: Path, tmp_path: Path, tensors: dict[str, tuple[int, ...]], expected: str
) -> None:
    ends = {"alpha": ".alpha", "lora_up": ".lora_up.weight", "lora_down": ".lora_down.weight"}
    made = {f"{KEY}{ends[name]}": torch.ones(shape) for name, shape in tensors.items()}
    lora = write(tmp_path / "bad.safetensors", made)
    with pytest.raises(CheckpointError, match=expected):
        load_pair(shallow_pair_folder, loras=[lora])


def test_files_that_cannot_be_read_are_refused(
    shallow_pair_folder: Path, lora: Path, tmp_path: Path, make_lora: Any
) -> None:
    def refused(path: Path, expected: str) -> None:
        with pytest.raises(CheckpointError, match=expected):
            load_pair(shallow_pair_folder, loras=[Lora(path)])

    refused(tmp_path / "none.safetensors", "does not exist; check the path")
    (tmp_path / "old.bin").write_bytes(b"pickle")
    refused(tmp_path / "old.bin", "is no .safetensors file; a pickle can run code")
    refused(tmp_path, "holds 0 of pytorch_lora_weights.safetensors")
    whole = lora.read_bytes()
    lora.write_bytes(whole[:-100])
    refused(lora, "truncated or damaged")
    lora.write_bytes(whole)
    tensors = load_file(lora)
    tensors[next(iter(tensors))].fill_(torch.nan)
    save_file(tensors, lora)
    refused(lora, "NaN or Inf")
    make_lora(lora, shallow_pair_folder, layout="peft")
    (tmp_path / "adapter_config.json").unlink()
    refused(lora, "none beside it; copy it from where the file came from")
    (tmp_path / "adapter_config.json").write_text('{"lora_alpha": 2, "use_dora": true}')
    refused(lora, "is a DoRA")
    key = f"{KEY}.lora_down.weight"
    write(lora, {key: torch.ones(2, 16), f"unet.{MODULE}.lora_A.weight": torch.ones(2, 16)})
    refused(lora, "and no up")
    write(lora, {key: torch.ones(2, 16)}, lora_adapter_metadata="{")
    refused(lora, "is no json")


def test_a_change_that_is_not_finite_is_refused(shallow_pair_folder: Path, tmp_path: Path) -> None:
    tensors = {f"{KEY}.lora_down.weight": torch.full((1, 16), 1e30)}
    tensors |= {f"{KEY}.lora_up.weight": torch.full((16, 1), 1e30)}
    lora = write(tmp_path / "huge.safetensors", tensors)
    with pytest.raises(CheckpointError, match=r"no finite number with huge\.safetensors"):
        load_pair(shallow_pair_folder, loras=[lora])


def test_damaged_files_are_read_or_refused_and_do_nothing_else(lora: Path) -> None:
    whole, random = lora.read_bytes(), Random(0)
    header = int.from_bytes(whole[:8], "little")
    read, told = 0, []
    for _ in range(150):
        data = bytearray(whole)
        for _ in range(random.randrange(1, 4)):
            most = 8 + header if random.random() < 0.8 else len(data)
            data[random.randrange(most)] = random.choice((*b'0123456789"{}[],.x', 255, 0))
        lora.write_bytes(bytes(data) if random.random() < 0.9 else bytes(data[: len(data) // 2]))
        try:
            LoraSet([Lora(lora)])
            read += 1
        except CheckpointError as error:
            told.append(str(error))
    assert read
    assert told
    assert max(map(len, told)) < 2000


def test_names_with_underscores_are_found_by_the_models_own(tmp_path: Path) -> None:
    tensors = {"a.b_c.weight": torch.zeros(4, 4), "d.weight": torch.zeros(4, 4)}
    layer = {"lora_down.weight": torch.ones(1, 4), "lora_up.weight": torch.ones(4, 1)}
    lora = write(tmp_path / "x.safetensors", {f"lora_unet_a_b_c.{k}": v for k, v in layer.items()})
    fused = LoraSet([lora]).fuse("unet", tensors)
    assert torch.equal(fused["a.b_c.weight"], torch.ones(4, 4))
    assert torch.equal(fused["d.weight"], torch.zeros(4, 4))
    with pytest.raises(CheckpointError, match="2 of 2 keys belong to no module"):  # or to which?
        LoraSet([lora]).fuse("unet", {**tensors, "a_b.c.weight": torch.zeros(4, 4)})


def test_arguments_are_read_as_people_write_them(tmp_path: Path) -> None:
    assert to_loras(None) == ()
    assert to_loras("a.safetensors:0.8") == (Lora("a.safetensors", 0.8),)
    assert to_loras([Path("a"), "b:-1e-1", Lora("c", 2)]) == (
        Lora(Path("a")),
        Lora("b", -0.1),
        Lora("c", 2),
    )
    odd = tmp_path / "x:2"
    odd.write_bytes(b"")
    assert Lora.parse(str(odd)) == Lora(str(odd))
    assert Lora.parse("C:dir/a.safetensors") == Lora("C:dir/a.safetensors")
    for bad in ("a:0", "a:1000", "", [3]):
        with pytest.raises(ParameterError):
            to_loras(bad)  # type: ignore[arg-type]
