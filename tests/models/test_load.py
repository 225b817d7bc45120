"""Model folders: both layouts load, and a wrong folder is refused before anything runs."""

from __future__ import annotations

import json
import shutil
import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from bootpig_rt.errors import CheckpointError, NumericalError, ParameterError, StorageError
from bootpig_rt.models.load import load_pair
from bootpig_rt.models.save import save_pair
from bootpig_rt.models.unet import ReferenceUNet

UNET_FILE = "base_unet/diffusion_pytorch_model.safetensors"


@pytest.fixture
def folder(shallow_pair_folder: Path, tmp_path: Path) -> Path:
    """A copy that a test may spoil."""
    return Path(shutil.copytree(shallow_pair_folder, tmp_path / "pair"))


def _outputs(folder: Path, **options: Any) -> list[torch.Tensor]:
    pair: Any = load_pair(folder, **options)
    torch.manual_seed(0)
    ids = torch.randint(0, 516, (2, 24))
    latents, t = torch.randn(2, 4, 8, 8), torch.tensor([3, 700])
    with torch.inference_mode():
        text = pair.text_encoder(ids).last_hidden_state
        features = pair.reference(latents, t, text)
        table = pair.base.project_reference(features, ref_scale=1.1)
        drawn = pair.base(latents, t, text, table, torch.tensor([[0], [-1]]))
        return [text, drawn, pair.vae.decode(latents).sample]


def test_a_saved_pair_loads_with_equal_outputs(shallow_pair_folder: Path, tmp_path: Path) -> None:
    pair = load_pair(shallow_pair_folder)
    again = save_pair(pair, tmp_path / "again", dtype=torch.float32)
    for left, right in zip(_outputs(shallow_pair_folder), _outputs(again), strict=True):
        assert torch.equal(left, right)
    assert load_pair(again).fingerprint == pair.fingerprint
    assert load_pair(again).config == pair.config


def test_both_layouts_give_equal_outputs(
    tiny_pair_folder: Path, published_layout_folder: Path
) -> None:
    base_model = published_layout_folder.parent / "base_model"
    ours = _outputs(tiny_pair_folder)
    published = _outputs(published_layout_folder, base_model=base_model)
    for left, right in zip(ours, published, strict=True):
        assert torch.equal(left, right)


def test_published_layout_gets_the_settings_of_the_published_trainer(
    published_layout_folder: Path,
) -> None:
    base_model = published_layout_folder.parent / "base_model"
    config = load_pair(published_layout_folder, base_model=base_model).config
    assert (config.ref_scale, config.reference_timestep, config.sample_size_px) == (1.1, "same", 32)


def test_float16_on_disk_is_computed_in_float32(shallow_pair_folder: Path, tmp_path: Path) -> None:
    half = save_pair(load_pair(shallow_pair_folder), tmp_path / "half")
    assert load_file(half / UNET_FILE)["conv_in.weight"].dtype == torch.float16
    pair = load_pair(half)
    assert {p.dtype for p in pair.base.parameters()} == {torch.float32}
    assert pair.fingerprint != load_pair(shallow_pair_folder).fingerprint


def test_shards_load_and_keep_the_fingerprint(folder: Path) -> None:
    whole = load_pair(folder).fingerprint
    tensors = load_file(folder / UNET_FILE)
    names = sorted(tensors)
    weight_map: dict[str, str] = {}
    for number in range(2):
        shard = f"diffusion_pytorch_model-{number}.safetensors"
        save_file({name: tensors[name] for name in names[number::2]}, folder / "base_unet" / shard)
        weight_map |= dict.fromkeys(names[number::2], shard)
    (folder / UNET_FILE).unlink()
    index = folder / "base_unet" / "diffusion_pytorch_model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": weight_map}))
    assert load_pair(folder).fingerprint == whole
    (folder / "base_unet" / "diffusion_pytorch_model-1.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"model-1\.safetensors is missing"):
        load_pair(folder)
    index.write_text(json.dumps({"weight_map": {"conv_in.weight": "../../x.safetensors"}}))
    with pytest.raises(CheckpointError, match="do not use this model"):
        load_pair(folder)


def test_a_shared_unet_is_stored_and_loaded_once(shallow_pair_folder: Path, tmp_path: Path) -> None:
    pair = load_pair(shallow_pair_folder)
    shared = replace(
        pair,
        config=replace(pair.config, shared_unet=True),
        reference=ReferenceUNet(pair.base.unet),
    )
    saved = save_pair(shared, tmp_path / "shared")
    assert not (saved / "ref_unet").exists()
    loaded = load_pair(saved)
    assert loaded.reference.unet is loaded.base.unet


def test_names_of_old_checkpoints_are_understood(folder: Path) -> None:
    before = _outputs(folder)
    path = folder / "vae" / "diffusion_pytorch_model.safetensors"
    old_names = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    renamed = {}
    for name, tensor in load_file(path).items():
        new = name
        for today, old in old_names.items():
            new = new.replace(f"attentions.0.{today}.", f"attentions.0.{old}.")
        renamed[new] = tensor[:, :, None, None] if new != name and tensor.dim() == 2 else tensor
    save_file(renamed, path)
    path = folder / "text_encoder" / "model.safetensors"
    states = load_file(path)
    assert all(name.startswith("text_model.") for name in states)
    save_file({name.removeprefix("text_model."): tensor for name, tensor in states.items()}, path)
    for left, right in zip(before, _outputs(folder), strict=True):
        assert torch.equal(left, right)


def _change_tensor(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    tensors = load_file(folder / UNET_FILE)
    change(tensors)
    save_file(tensors, folder / UNET_FILE)


def _change_json(path: Path, **values: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def _truncate(folder: Path) -> None:
    path = folder / UNET_FILE
    path.write_bytes(path.read_bytes()[:-100])


def _lie_about_header_length(folder: Path) -> None:
    path = folder / UNET_FILE
    path.write_bytes(struct.pack("<Q", 2**63) + path.read_bytes()[8:])


def _lie_about_offsets(folder: Path) -> None:
    header = json.dumps({"a": {"dtype": "F32", "shape": [4], "data_offsets": [0, 64]}}).encode()
    (folder / UNET_FILE).write_bytes(struct.pack("<Q", len(header)) + header + bytes(16))


def _only_pickle(folder: Path) -> None:
    (folder / UNET_FILE).unlink()
    (folder / "base_unet" / "diffusion_pytorch_model.bin").write_bytes(b"\x80\x04.")


def _set_nan(tensors: dict[str, torch.Tensor]) -> None:
    tensors["conv_in.weight"][0, 0, 0, 0] = float("nan")


def _set_shape(tensors: dict[str, torch.Tensor]) -> None:
    tensors["conv_in.weight"] = torch.zeros(16, 5, 3, 3)


Spoil = Callable[[Path], object]

BAD_FOLDERS: dict[str, tuple[Spoil, str]] = {
    "no weights": (lambda f: (f / UNET_FILE).unlink(), r"model\.safetensors is missing"),
    "no ref_unet": (lambda f: shutil.rmtree(f / "ref_unet"), "ref_unet.*is missing"),
    "no vae": (lambda f: shutil.rmtree(f / "vae"), "has no vae folder"),
    "no base_unet": (lambda f: shutil.rmtree(f / "base_unet"), "has no base_unet folder"),
    "no config": (lambda f: (f / "vae/config.json").unlink(), r"config\.json is missing"),
    "no merges": (lambda f: (f / "tokenizer/merges.txt").unlink(), "neither vocab.json and merges"),
    "no scheduler": (
        lambda f: (f / "scheduler/scheduler_config.json").unlink(),
        r"scheduler_config\.json is missing",
    ),
    "pickle": (_only_pickle, "a pickle, which can run code"),
    "truncated": (_truncate, "truncated or damaged"),
    "empty file": (lambda f: (f / UNET_FILE).write_bytes(b""), "truncated or damaged"),
    "header length": (_lie_about_header_length, "truncated or damaged"),
    "offsets": (_lie_about_offsets, "truncated or damaged"),
    "NaN": (lambda f: _change_tensor(f, _set_nan), "'conv_in.weight' holds NaN or Inf"),
    "shape": (
        lambda f: _change_tensor(f, _set_shape),
        r"\[16, 5, 3, 3\], expected \[16, 4, 3, 3\]",
    ),
    "unknown tensor": (
        lambda f: _change_tensor(f, lambda t: t.update(lora=torch.zeros(1))),
        "'lora' is unknown",
    ),
    "missing tensor": (
        lambda f: _change_tensor(f, lambda t: (t.pop("conv_out.bias"), t.pop("conv_out.weight"))),
        r"is missing \(and 1 more\)",
    ),
    "not json": (lambda f: (f / "pair.json").write_text("{"), "is not valid json"),
    "json of bytes": (lambda f: (f / "pair.json").write_bytes(b"\xff\xfe"), "is not valid json"),
    "json list": (lambda f: (f / "vae/config.json").write_text("[]"), "holds a json list"),
    "unknown field": (
        lambda f: _change_json(f / "pair.json", colour="red"),
        "unknown field 'colour'",
    ),
    "wrong field": (lambda f: _change_json(f / "pair.json", ref_scale="big"), "ref_scale is 'big'"),
    "future format": (lambda f: _change_json(f / "pair.json", format=9), "format is 9, expected 1"),
    "prediction type": (
        lambda f: _change_json(f / "scheduler/scheduler_config.json", prediction_type="flow"),
        "prediction_type is 'flow'",
    ),
    "option": (
        lambda f: _change_json(f / "base_unet/config.json", addition_embed_type="text_image"),
        "addition_embed_type is 'text_image', supported: None or 'text_time'",
    ),
    "block": (
        lambda f: _change_json(f / "ref_unet/config.json", down_block_types=["AttnDownBlock2D"]),
        "holds 'AttnDownBlock2D'",
    ),
    "groups": (
        lambda f: _change_json(f / "base_unet/config.json", norm_num_groups=7),
        "does not describe a usable model",
    ),
    "heads differ": (
        lambda f: _change_json(f / "ref_unet/config.json", attention_head_dim=[4]),
        "different self-attentions",
    ),
}


@pytest.mark.parametrize("name", BAD_FOLDERS)
def test_a_bad_folder_is_refused_in_one_line(name: str, folder: Path) -> None:
    spoil, message = BAD_FOLDERS[name]
    spoil(folder)
    with pytest.raises(CheckpointError, match=message) as caught:
        load_pair(folder)
    assert "\n" not in str(caught.value)
    assert str(caught.value.path).startswith(str(folder))


def test_a_folder_that_is_no_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="does not exist"):
        load_pair(tmp_path / "nothing")
    (tmp_path / "model.ckpt").write_bytes(b"")
    with pytest.raises(CheckpointError, match="is a file"):
        load_pair(tmp_path / "model.ckpt")


def test_published_layout_without_its_base_model_says_what_to_give(
    published_layout_folder: Path, tmp_path: Path
) -> None:
    with pytest.raises(CheckpointError, match="give base_model"):
        load_pair(published_layout_folder)
    with pytest.raises(CheckpointError, match=r"base model .* is not a folder"):
        load_pair(published_layout_folder, base_model=tmp_path / "nothing")


def test_a_changed_weight_changes_the_fingerprint(folder: Path) -> None:
    before = load_pair(folder).fingerprint
    _change_tensor(folder, lambda tensors: tensors["conv_in.bias"].add_(1e-3))
    assert load_pair(folder).fingerprint != before


def test_a_pair_has_one_fingerprint_in_every_type_that_holds_its_numbers(
    folder: Path, tmp_path: Path
) -> None:
    half = save_pair(load_pair(folder), tmp_path / "half", dtype=torch.float16)
    pair = load_pair(half)
    assert pair.fingerprint != load_pair(folder).fingerprint  # it was rounded
    wide = save_pair(pair, tmp_path / "wide", dtype=torch.float32)
    assert load_pair(wide).fingerprint == pair.fingerprint
    parameter = next(pair.vae.parameters())
    parameter.data.flatten()[0] += 2.0**-20 * parameter.data.flatten()[0]
    other = save_pair(pair, tmp_path / "other", dtype=torch.float32)
    assert load_pair(other).fingerprint != pair.fingerprint


def test_defaults_of_sampling_do_not_change_the_fingerprint(folder: Path) -> None:
    before = load_pair(folder).fingerprint
    _change_json(folder / "pair.json", default_steps=7, name="other")
    assert load_pair(folder).fingerprint == before
    _change_json(folder / "pair.json", ref_scale=1.5)
    assert load_pair(folder).fingerprint != before


def test_saving_never_replaces_without_being_asked(
    shallow_pair_folder: Path, tmp_path: Path
) -> None:
    pair = load_pair(shallow_pair_folder)
    target = save_pair(pair, tmp_path / "pair")
    with pytest.raises(ParameterError, match="overwrite=True"):
        save_pair(pair, target)
    save_pair(pair, target, dtype=torch.float32, overwrite=True)
    assert load_pair(target).fingerprint == pair.fingerprint
    (tmp_path / "notes").mkdir()
    with pytest.raises(ParameterError, match="is no pair"):
        save_pair(pair, tmp_path / "notes", overwrite=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["notes", "pair"]


def test_a_full_disk_leaves_the_old_pair_and_nothing_else(
    shallow_pair_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pair = load_pair(shallow_pair_folder)
    target = save_pair(pair, tmp_path / "pair", dtype=torch.float32)

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("bootpig_rt.models.save.os.fsync", full)
    with pytest.raises(StorageError, match=r"no space left on device; free some space"):
        save_pair(pair, target, overwrite=True)
    assert [path.name for path in tmp_path.iterdir()] == ["pair"]
    assert load_pair(target).fingerprint == pair.fingerprint


def test_a_diverged_pair_is_not_saved(shallow_pair_folder: Path, tmp_path: Path) -> None:
    pair = load_pair(shallow_pair_folder)
    pair.base.unet.conv_in.weight[0] = 1e30
    with pytest.raises(NumericalError, match=r"conv_in\.weight"):
        save_pair(pair, tmp_path / "pair")
    assert list(tmp_path.iterdir()) == []
