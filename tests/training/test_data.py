"""Batches from shards on the disk: read ahead, in buckets, by any processes, in little memory."""

from __future__ import annotations

import dataclasses
import io
import json
import logging
import tarfile
import tracemalloc
from collections.abc import Callable, Iterator
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from bootpig_rt.bundle.files import measure
from bootpig_rt.errors import ConfigError, InputError
from bootpig_rt.training.config import TrainConfig
from bootpig_rt.training.data import Batch, DiffusionData
from bootpig_rt.training.draws import Draws
from bootpig_rt.training.run import build_stage

if TYPE_CHECKING:
    from bootpig_rt.training.trainer import Trainer

pytestmark = pytest.mark.usefixtures("one_thread")
CPU = torch.device("cpu")
SIZES = ((16, 16), (24, 16), (16, 32))


def png(pixels: Any) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG", compress_level=1)
    return stream.getvalue()


def write_samples(
    folder: Path, sizes: list[tuple[int, int]], *, reference_px: int = 16, shard_size: int = 5
) -> Path:
    """Samples of many sizes, each with a subject in a colour of its own."""
    folder.mkdir()
    records = []
    for first in range(0, len(sizes), shard_size):
        path = folder / f"shard-{first // shard_size:05d}.tar"
        with tarfile.open(path, "w") as tar:
            for number, (width, height) in enumerate(sizes[first : first + shard_size], first):
                rng = np.random.default_rng(number)
                colour = rng.integers(0, 255, 3)
                target = np.full((height, width, 3), 120, np.uint8)
                mask = np.zeros((height, width), np.uint8)
                mask[height // 4 : height // 2, width // 4 : width // 2] = 255
                target[mask > 0] = colour
                reference = np.full((reference_px, reference_px, 3), 255, np.uint8)
                reference[4:-4, 4:-4] = colour
                texts = {"caption": f"a photo of a dog, number {number}"}
                texts["reference_prompt"] = "a photo of a dog"
                parts = {
                    "target.png": png(target),
                    "mask.png": png(mask),
                    "reference0.png": png(reference),
                    "reference1.png": png(reference[::-1].copy()),
                    "json": json.dumps(texts).encode(),
                }
                for part, data in parts.items():
                    info = tarfile.TarInfo(f"{number:08d}.{part}")
                    info.size = len(data)
                    tar.addfile(info, io.BytesIO(data))
        size, digest = measure(path)
        count = min(shard_size, len(sizes) - first)
        records.append({"file": path.name, "samples": count, "bytes": size, "sha256": digest})
    manifest = {"format": 1, "samples": len(sizes), "settings": {}, "shards": records}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


ConfigOf = Callable[..., TrainConfig]


@pytest.fixture
def config_of(make_config: Any, vae_result: Path, base_result: Path, make_output: Any) -> ConfigOf:
    start = {"vae": "", "base": str(vae_result), "pair": str(base_result)}

    def make(stage: str, name: str = "run", **changes: Any) -> TrainConfig:
        settings = {"start_from": start[stage], **changes}
        made: TrainConfig = make_config(stage, make_output(name), **settings)
        return made

    return make


def data_of(config: TrainConfig) -> DiffusionData:
    stage: Any = build_stage(config, CPU)[0]
    data: DiffusionData = stage.data
    return data


def parts_of(data: DiffusionData, first: int, size: int = 4) -> Iterator[tuple[Tensor, Draws]]:
    for step in range(first, 10**9):
        yield data.order.step(step, size, 0), Draws(0, step, range(size))


def assert_equal(one: Batch, other: Batch) -> None:
    for field in dataclasses.fields(Batch):
        mine, its = getattr(one, field.name), getattr(other, field.name)
        if isinstance(mine, Tensor):
            assert torch.equal(mine, its), field.name
        else:
            assert mine == its, field.name


@pytest.mark.parametrize("augmentation", ["none", "paper"])
def test_batches_are_the_same_read_ahead_or_not(augmentation: str, config_of: ConfigOf) -> None:
    diffusion = {"augmentation": augmentation, "max_references": 2, "reference_dropout": 0.3}
    plain = data_of(config_of("pair", "plain", diffusion=diffusion, samples={"readers": 0}))
    ahead = data_of(config_of("pair", "ahead", diffusion=diffusion, samples={"readers": 3}))
    for step in range(5):
        ahead.expect(parts_of(ahead, step))
        one, other = (data.batch(*next(parts_of(data, step))) for data in (plain, ahead))
        assert_equal(one, other)


def test_a_step_divided_over_processes_has_the_rows_of_the_whole_one(config_of: ConfigOf) -> None:
    data = data_of(config_of("pair", diffusion={"augmentation": "paper", "max_references": 2}))
    indices = data.order.step(3, 8, 0)
    whole = data.batch(indices, Draws(0, 3, range(8)))
    rows = {place: row for row, place in enumerate(whole.order)}
    for process in (0, 1):
        places = list(range(process, 8, 2))
        part = data.batch(indices[places], Draws(0, 3, places))
        for row, place in enumerate(part.order):
            same = rows[places[place]]
            assert torch.equal(part.latents[row], whole.latents[same])
            assert torch.equal(part.ids[row], whole.ids[same])
            mine = part.reference_latents[[n for n, o in enumerate(part.owner) if o == row]]
            its = whole.reference_latents[[n for n, o in enumerate(whole.owner) if o == same]]
            torch.testing.assert_close(mine, its, rtol=1e-3, atol=1e-3)


def test_the_trainer_tells_what_comes_next_as_it_then_asks_for_it(
    config_of: ConfigOf, train: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected, asked = list[Any](), list[Any]()
    expect, batch = DiffusionData.expect, DiffusionData.batch

    def spied_expect(self: Any, upcoming: Any) -> None:
        first = [next(upcoming), next(upcoming, None)]
        expected.append([None if part is None else part[1].key for part in first])
        expect(self, chain(filter(None, first), upcoming))

    def spied_batch(self: Any, indices: Tensor, draws: Draws) -> Batch:
        asked.append(draws.key)
        return batch(self, indices, draws)

    monkeypatch.setattr(DiffusionData, "expect", spied_expect)
    monkeypatch.setattr(DiffusionData, "batch", spied_batch)
    train(config_of("pair", steps=3, accumulate=2))
    assert len(asked) == 6
    assert expected == [list(pair) for pair in zip(asked, [*asked[1:], None], strict=True)]


# Buckets ------------------------------------------------------------------------------------------


MIXED = [(16, 16)] * 6 + [(24, 16)] * 5 + [(32, 64)] * 4 + [(20, 20)] * 2


def test_a_batch_has_one_size_and_all_that_belongs_to_a_sample_follows(
    config_of: ConfigOf, tmp_path: Path
) -> None:
    folder = write_samples(tmp_path / "mixed", MIXED, reference_px=20)
    diffusion = {"prompt_dropout": 0.0, "both_dropout": 0.0, "max_references": 2}
    data = data_of(
        config_of("pair", data=str(folder), diffusion=diffusion, samples={"buckets": SIZES})
    )
    sizes = set()
    for step in range(16):
        batch = data.batch(*next(parts_of(data, step)))
        height, width = batch.latents.shape[2:]
        sizes.add((width * 2, height * 2))
        assert batch.masks.shape == (4, height, width)
        assert batch.reference_latents.shape[1:] == (4, 8, 8)
        assert ((batch.masks > 0.5).flatten(1).sum(1) > 0).all()  # the subject is in the picture
    assert sizes == set(SIZES)


def test_what_is_fitted_is_counted_in_the_log(
    config_of: ConfigOf, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = write_samples(tmp_path / "mixed", MIXED, reference_px=20)
    with caplog.at_level(logging.INFO, "bootpig_rt.training.open_data"):
        data_of(config_of("pair", data=str(folder), samples={"buckets": SIZES}))
    line = next(r.getMessage() for r in caplog.records if "resized" in r.getMessage())
    assert "17 samples" in line
    assert "8 at 16 x 16, 5 at 24 x 16, 4 at 16 x 32 px; 6 are resized or cut, 0 of" in line
    assert "34 of 34 references are resized to 16 px" in line


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["base", "pair"])
def test_a_run_in_buckets_is_the_same_when_it_is_stopped_and_resumed(
    stage: str, config_of: ConfigOf, train: Any, tmp_path: Path
) -> None:
    folder = write_samples(tmp_path / "mixed", MIXED)
    settings: dict[str, Any] = {
        "data": str(folder),
        "samples": {"buckets": SIZES, "window": 7},
        "steps": 5,
        "log_every": 1,
        "diffusion": {"augmentation": "paper"},
        "validation_data": str(folder),
        "validate_every": 5,
    }
    whole: Trainer = train(config_of(stage, "whole", **settings))
    train(config_of(stage, "part", **settings), stop_after=2)
    rest: Trainer = train(config_of(stage, "part", **settings))
    assert rest.step == 5
    for name, parameter in whole.parameters.items():
        assert torch.equal(parameter, rest.parameters[name]), name


def test_buckets_that_the_model_cannot_take_are_refused(
    config_of: ConfigOf, tiny_pair_folder: Path, tmp_path: Path
) -> None:
    folder = write_samples(tmp_path / "mixed", MIXED)
    two_levels = {"block_channels": (16, 32)}
    for stage, changes, width, multiple in (
        ("base", {"unet": two_levels}, 18, 4),
        ("base", {}, 17, 2),
        ("pair", {"start_from": str(tiny_pair_folder)}, 34, 8),
        ("pair", {}, 17, 2),
    ):
        samples = {"buckets": ((16, 16), (width, 16))}
        config = config_of(stage, data=str(folder), samples=samples, **changes)
        wanted = rf"samples.buckets has {width} x 16, .*multiples of {multiple} px"
        with pytest.raises(ConfigError, match=wanted):
            data_of(config)


def test_a_sample_of_another_size_is_named_where_there_are_no_buckets(
    config_of: ConfigOf, tmp_path: Path
) -> None:
    folder = write_samples(tmp_path / "mixed", [(16, 16), (16, 16), (24, 16)])
    wanted = r"pictures of 24 x 16 px, sample 2 for one, but .*or .* samples.buckets=\[\[16, 16\]\]"
    for stage in ("base", "pair"):
        with pytest.raises(ConfigError, match=wanted):
            data_of(config_of(stage, data=str(folder)))
    with pytest.raises(ConfigError, match="sides from 16 to 24 px, .*squares of one size"):
        build_stage(config_of("vae", data=str(folder)), CPU)


# Text states --------------------------------------------------------------------------------------


def test_stored_text_states_are_those_that_the_text_encoder_gives(
    make_config: Any, base_result: Path, tmp_path: Path
) -> None:
    config = make_config(
        "pair",
        tmp_path / "run",
        start_from=str(base_result),
        diffusion={"prompt_dropout": 0.3, "reference_dropout": 0.3, "max_references": 3},
        samples={"text_states": "stored"},
    )
    stage: Any = build_stage(config, CPU)[0]
    for step in range(3):
        batch = stage.data.batch(*next(parts_of(stage.data, step, 12)))
        ids = torch.cat([batch.ids, batch.reference_ids])
        assert (batch.ids == stage.data.empty_ids).all(1).any()
        with torch.no_grad():
            wanted = stage.pair.text_encoder(ids)[0]
        assert batch.states is not None
        torch.testing.assert_close(batch.states, wanted, rtol=2e-3, atol=2e-3)
    folder = Path(config.output).parent / "latents"
    files = sorted(folder.glob("texts-*/*"))
    assert len(files) == 3
    kept = [file.stat().st_mtime_ns for file in files]
    data_of(config)
    assert [file.stat().st_mtime_ns for file in files] == kept


def count_calls(module: nn.Module) -> list[int]:
    """A list that grows with every call of a module."""
    calls: list[int] = []
    module.register_forward_hook(lambda *_: calls.append(1))
    return calls


def test_training_with_stored_text_states_does_not_run_the_text_encoder(
    config_of: ConfigOf, train: Any
) -> None:
    losses = []
    for text_states in ("computed", "stored"):
        samples = {"text_states": text_states}
        trainer = train(config_of("pair", text_states, samples=samples, steps=1))
        calls = count_calls(trainer.stage.pair.text_encoder)
        indices, draws = next(parts_of(trainer.stage.data, 3))
        loss, _ = trainer.stage.loss(indices, draws)
        assert bool(calls) == (text_states == "computed")
        losses.append(float(loss.detach()))
    assert losses[0] == pytest.approx(losses[1], rel=1e-2)


@pytest.mark.parametrize("stage", ["vae", "base"])
def test_settings_that_a_stage_would_ignore_are_refused(stage: str, config_of: ConfigOf) -> None:
    with pytest.raises(ConfigError, match=f"stage '{stage}' does not read stored text states"):
        config_of(stage, samples={"text_states": "stored"})
    if stage == "vae":
        with pytest.raises(ConfigError, match="trains on pictures of one size"):
            config_of(stage, samples={"buckets": ((16, 16),)})


def test_a_caption_that_is_cut_is_told_once(
    config_of: ConfigOf, caplog: pytest.LogCaptureFixture
) -> None:
    data = data_of(config_of("pair"))
    long = " ".join(["dog"] * 40)
    for _ in range(2):
        assert data.ids([long, "a dog"]).shape == (2, 24)
    told = [r.getMessage() for r in caplog.records if "the end is ignored" in r.getMessage()]
    assert len(told) == 1
    assert "42 tokens, the text encoder reads 24" in told[0]


# Damage and memory --------------------------------------------------------------------------------


@pytest.mark.parametrize("readers", [0, 2])
def test_a_shard_that_is_cut_amid_a_run_ends_it_with_its_name(
    readers: int, config_of: ConfigOf, tmp_path: Path
) -> None:
    folder = write_samples(tmp_path / "data", [(16, 16)] * 10)
    data = data_of(
        config_of(
            "pair",
            data=str(folder),
            diffusion={"augmentation": "paper", "reference_dropout": 0.0, "both_dropout": 0.0},
            samples={"readers": readers},
        )
    )
    data.batch(torch.tensor([8, 9]), Draws(0, 0, [0, 1]))
    path = folder / "shard-00001.tar"
    path.write_bytes(path.read_bytes()[:4000])
    data.batch(torch.tensor([0, 1]), Draws(0, 1, [0, 1]))
    part = torch.tensor([2, 8]), Draws(0, 2, [0, 1])
    data.expect(iter([part]))
    with pytest.raises(InputError, match="shard-00001.tar is not as .*it has 4000 bytes"):
        data.batch(*part)


LIMIT_BYTES = 12 << 20


def test_a_data_set_is_never_in_memory(config_of: ConfigOf, tmp_path: Path) -> None:
    """33 MB of pixels: 32 samples, each with a mask and two references, of 320 px."""
    side, count = 320, 32
    folder = write_samples(tmp_path / "large", [(side, side)] * count, reference_px=side)
    assert count * side * side * (3 + 1 + 3 + 3) > 2.5 * LIMIT_BYTES
    samples = {"buckets": ((16, 16),), "readers": 2}
    tracemalloc.start()
    try:
        stage: Any = build_stage(config_of("vae", data=str(folder)), CPU)[0]
        for step in range(4):
            indices = stage.order.step(step, 8, 0)
            stage._read(indices, Draws(0, step, range(8)))
        data = data_of(
            config_of(
                "pair", data=str(folder), samples=samples, diffusion={"augmentation": "paper"}
            )
        )
        for step in range(8):
            data.expect(parts_of(data, step))
            data.batch(*next(parts_of(data, step)))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < LIMIT_BYTES
