from __future__ import annotations

import numpy as np
import pytest

from bootpig_rt.errors import ParameterError
from bootpig_rt.reference_cache import ReferenceCache
from bootpig_rt.reference_kv import (
    ReferenceKey,
    ReferenceKV,
    ReferenceSchedule,
    reference_latents,
)
from bootpig_rt.solver import NoiseSchedule, solver_table

NOISE_SCHEDULE = NoiseSchedule.from_config({"num_train_timesteps": 1000})
LATENTS = np.random.default_rng(0).standard_normal((3, 4, 8, 8), dtype=np.float32)


def table(name: str, size_bytes: int = 10) -> ReferenceKV:
    key = ReferenceKey(subject=name, pair="pair", schedule="clean", timesteps=(0,), ref_scale=1.0)
    return ReferenceKV(key, object(), num_entries=1, num_references=1, size_bytes=size_bytes)


@pytest.mark.parametrize(
    ("text", "schedule"),
    [
        ("exact", ReferenceSchedule("exact")),
        ("clean", ReferenceSchedule("clean")),
        ("anchor:0", ReferenceSchedule("clean")),
        ("anchor:200", ReferenceSchedule("anchor", 200)),
    ],
)
def test_a_schedule_is_read_from_its_name(text: str, schedule: ReferenceSchedule) -> None:
    assert ReferenceSchedule.parse(text) == schedule
    assert ReferenceSchedule.parse(str(schedule)) == schedule


@pytest.mark.parametrize("text", ["", "Exact", "exact:1", "anchor", "anchor:", "anchor:-1", "a:1"])
def test_another_schedule_is_refused_by_name(text: str) -> None:
    with pytest.raises(ParameterError, match="expected exact, clean or anchor:T"):
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


def test_the_cache_drops_the_least_recently_used_table() -> None:
    cache = ReferenceCache(max_bytes=25)
    first, second, third = table("a"), table("b"), table("c")
    cache.put(first)
    cache.put(second)
    assert cache.get(first.key) is first
    cache.put(third)
    assert cache.get(second.key) is None
    assert cache.get(first.key) is first
    assert cache.get(third.key) is third
    assert cache.size_bytes == 20


def test_the_cache_keeps_no_table_that_is_over_its_size() -> None:
    cache = ReferenceCache(max_bytes=25)
    cache.put(table("small"))
    cache.put(table("large", 26))
    assert cache.get(table("large").key) is None
    assert cache.get(table("small").key) is not None
    cache.clear()
    assert cache.size_bytes == 0


def test_a_table_put_twice_is_counted_once() -> None:
    cache = ReferenceCache(max_bytes=25)
    cache.put(table("a"))
    cache.put(table("a"))
    assert cache.size_bytes == 10
