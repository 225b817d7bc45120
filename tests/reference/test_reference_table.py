from __future__ import annotations

import json
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bootpig_rt.backends.host_table import pack_table
from bootpig_rt.diffusion.solver import NoiseSchedule, solver_table
from bootpig_rt.errors import CheckpointError, ParameterError
from bootpig_rt.reference import table_file
from bootpig_rt.reference.reference_pass import reference_latents
from bootpig_rt.reference.reference_table import ReferenceKey, ReferenceTable
from bootpig_rt.reference.schedule import ReferenceSchedule

NOISE_SCHEDULE = NoiseSchedule.from_config({"num_train_timesteps": 1000})
LATENTS = np.random.default_rng(0).standard_normal((3, 4, 8, 8), dtype=np.float32)


@pytest.mark.parametrize(
    ("text", "schedule"),
    [
        ("exact", ReferenceSchedule("exact")),
        ("clean", ReferenceSchedule("clean")),
        ("anchor:0", ReferenceSchedule("clean")),
        ("anchor:200", ReferenceSchedule("anchor", 200)),
        ("stride:4", ReferenceSchedule("stride", stride=4)),
        ("stride:1", ReferenceSchedule("exact")),
        ("window:0.0-0.6", ReferenceSchedule("exact", window=(0.0, 0.6))),
        ("clean+window:0-0.6", ReferenceSchedule("clean", window=(0.0, 0.6))),
        ("window:0.25-1+stride:2", ReferenceSchedule("stride", stride=2, window=(0.25, 1.0))),
    ],
)
def test_a_schedule_is_read_from_its_name(text: str, schedule: ReferenceSchedule) -> None:
    assert ReferenceSchedule.parse(text) == schedule
    assert ReferenceSchedule.parse(str(schedule)) == schedule


@pytest.mark.parametrize(
    "text",
    [
        *("", "Exact", "exact:1", "anchor", "anchor:", "anchor:-1", "a:1", "stride:0", "stride:x"),
        *("window:", "window:0.6-0.2", "window:0-1.1", "window:nan-1", "window:0-0.5+", "+"),
        *("exact+clean", "window:0-0.5+window:0-0.6", "stride", "window:1e-1-1", "window:0,2-1"),
    ],
)
def test_another_schedule_is_refused_by_name(text: str) -> None:
    with pytest.raises(ParameterError, match="expected exact, clean, anchor:T, stride:K"):
        ReferenceSchedule.parse(text)


@pytest.mark.parametrize(
    ("trained", "mode"), [("same", "exact"), ("clean", "clean"), ("mixed", "clean")]
)
def test_the_default_schedule_is_exact_for_the_pair(trained: str, mode: str) -> None:
    schedule = ReferenceSchedule.default_for(trained)
    assert schedule.mode == mode
    assert schedule.is_exact_for(trained)


def test_only_mixed_pairs_serve_both_schedules() -> None:
    exact, clean = ReferenceSchedule("exact"), ReferenceSchedule("clean")
    assert exact.is_exact_for("mixed")
    assert clean.is_exact_for("mixed")
    assert not exact.is_exact_for("clean")
    assert not clean.is_exact_for("same")
    assert not ReferenceSchedule("anchor", 10).is_exact_for("mixed")


def test_clean_reads_the_latents_as_they_are_at_timestep_zero() -> None:
    schedule = ReferenceSchedule("clean")
    timesteps = schedule.timesteps(np.array([900, 400], dtype=np.int64))
    assert timesteps.tolist() == [0]
    read = reference_latents(
        LATENTS, schedule, timesteps, noise_seed=1, noise_schedule=NOISE_SCHEDULE
    )
    np.testing.assert_array_equal(read, LATENTS[None])


def test_exact_noises_every_entry_to_its_own_step() -> None:
    timesteps = solver_table("ddim", NOISE_SCHEDULE, 4).timesteps
    schedule = ReferenceSchedule("exact")
    read = reference_latents(
        LATENTS,
        schedule,
        schedule.timesteps(timesteps),
        noise_seed=1,
        noise_schedule=NOISE_SCHEDULE,
    )
    signal = np.sqrt(NOISE_SCHEDULE.alphas_cumprod[timesteps])[:, None, None, None, None]
    noise = (read - signal * LATENTS) / np.sqrt(1 - signal**2)
    assert read.shape == (4, 3, 4, 8, 8)
    assert read.dtype == np.float32
    assert np.abs(noise.reshape(12, -1).mean(axis=1)).max() < 0.3
    assert np.abs(noise.reshape(12, -1).std(axis=1) - 1).max() < 0.2
    assert len(np.unique(noise[..., 0, 0, 0].round(4))) == 12  # fresh noise everywhere


def test_reference_noise_depends_on_seed_reference_and_timestep_alone() -> None:
    schedule = ReferenceSchedule("exact")

    def read(latents: np.ndarray, timesteps: list[int], seed: int = 5) -> np.ndarray:
        return reference_latents(
            latents,
            schedule,
            np.array(timesteps, dtype=np.int64),
            noise_seed=seed,
            noise_schedule=NOISE_SCHEDULE,
        )

    alone, together = read(LATENTS[:1], [500]), read(LATENTS, [900, 500, 100])
    np.testing.assert_array_equal(alone[0, 0], together[1, 0])
    assert np.abs(read(LATENTS, [500], seed=6) - together[1:2]).max() > 0.1


def test_a_window_alone_is_a_window_of_the_pairs_own_schedule() -> None:
    assert str(ReferenceSchedule.parse("window:0-0.6", "clean")) == "clean+window:0-0.6"


@pytest.mark.parametrize(
    ("text", "entries", "timesteps"),
    [
        ("exact", [0, 1, 2, 3, 4, 5], [50, 40, 30, 20, 10, 0]),
        ("clean", [0] * 6, [0]),
        ("anchor:33", [0] * 6, [33]),
        ("stride:4", [0, 0, 0, 0, 1, 1], [50, 10]),
        ("window:0.5-1", [-1, -1, -1, 0, 1, 2], [20, 10, 0]),
        ("stride:2+window:0-0.5", [0, 0, 1, -1, -1, -1], [50, 30]),
        ("clean+window:0.3-0.6", [-1, -1, 0, 0, -1, -1], [0]),
    ],
)
def test_a_schedule_says_what_each_step_reads(
    text: str, entries: list[int], timesteps: list[int]
) -> None:
    schedule = ReferenceSchedule.parse(text)
    assert schedule.entry_of_step(6).tolist() == entries
    visited = np.array([50, 40, 30, 20, 10, 0], dtype=np.int64)
    assert schedule.timesteps(visited).tolist() == timesteps


def test_a_share_of_the_steps_is_not_moved_by_rounding() -> None:
    for steps in range(1, 200):
        for tenth in range(1, 11):
            schedule = ReferenceSchedule("clean", window=(0.0, tenth / 10))
            expected = -(-tenth * steps // 10)
            assert (schedule.entry_of_step(steps) >= 0).sum() == expected


def test_a_window_without_a_step_is_refused() -> None:
    with pytest.raises(ParameterError, match="none of 2 steps lies in its window; widen it"):
        ReferenceSchedule("clean", window=(0.1, 0.2)).entry_of_step(2)


KEY = ReferenceKey(
    subject="s",
    pixels="p",
    reference_prompt="a dog",
    noise_seed=0,
    pair="pair",
    is_noised=True,
    timesteps=(900, 400),
    ref_scale=1.0,
    precision="float32",
    dtype="float32",
    size=(8, 8),
    num_references=2,
)


@pytest.mark.parametrize("name", [field.name for field in fields(ReferenceKey)])
def test_the_error_for_a_table_of_another_key_names_the_field_that_differs(name: str) -> None:
    change: dict[str, Any] = {name: "other"}
    other = replace(KEY, **change)
    assert f"made with {name} 'other', expected" in str(other.mismatch(KEY))
    assert other.digest() != KEY.digest()
    assert KEY.difference(KEY) is None


def test_long_values_are_cut_in_the_error_for_a_table_of_another_key() -> None:
    other = replace(KEY, reference_prompt="a dog " * 1000)
    for one, needed in ((KEY, other), (other, KEY)):
        assert len(str(one.mismatch(needed))) < 250


def test_a_table_as_files_hold_it_counts_its_own_bytes_and_lies_on_the_host() -> None:
    numbers = np.ones((2, 2, 1, 3, 4), np.float32)
    packed = pack_table([(numbers, numbers)], "float16")
    table = ReferenceTable.on_host(KEY, packed)
    assert (table.key, table.data, table.is_resident) == (KEY, packed, False)
    assert table.size_bytes == 2 * numbers.size * 2


def test_a_key_goes_through_json() -> None:
    assert ReferenceKey.from_dict(json.loads(json.dumps(KEY.to_dict()))) == KEY
    for change in (
        {"timesteps": [0.5]},
        {"size": [8]},
        {"pair": 3},
        {"dtype": "int4"},
        {"precision": "int4"},
        {"precision": None},
        {"x": 1},
    ):
        with pytest.raises(ParameterError, match="the key of a table"):
            ReferenceKey.from_dict({**json.loads(json.dumps(KEY.to_dict())), **change})


def test_a_table_file_of_an_older_version_is_refused_and_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    numbers = np.ones((2, 2, 1, 3, 4), np.float32)
    saved = ReferenceTable.on_host(KEY, pack_table([(numbers, numbers)], "float32"))
    with monkeypatch.context() as older:
        older.setattr(table_file, "SCHEMA", "1")
        table_file.write_table(tmp_path / "old.safetensors", saved)
    with pytest.raises(CheckpointError, match="'1'.*expected .*'2'.*delete it"):
        table_file.read_table(tmp_path / "old.safetensors", max_bytes=1 << 20)
    table_file.write_table(tmp_path / "new.safetensors", saved)
    assert table_file.read_table(tmp_path / "new.safetensors", max_bytes=1 << 20).key == KEY


def test_a_key_of_an_older_version_is_refused_and_the_field_is_named() -> None:
    older = {name: value for name, value in KEY.to_dict().items() if name != "precision"}
    with pytest.raises(ParameterError, match="lacks or adds 'precision': it is of another version"):
        ReferenceKey.from_dict(json.loads(json.dumps(older)))
