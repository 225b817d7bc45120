"""`pair.json`: what is accepted, and what is written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from bootpig_rt.bundle.pair_config import PairConfig, read_pair_config
from bootpig_rt.errors import CheckpointError, ConfigError


def test_a_config_survives_the_file(tmp_path: Path) -> None:
    config = PairConfig(name="x", sample_size_px=64, ref_scale=1.25, merge="softmax")
    (tmp_path / "pair.json").write_text(config.to_json())
    assert read_pair_config(tmp_path / "pair.json") == config
    assert config.to_json().startswith('{\n  "format": 1,')


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"name": " "}, "name is ' '"),
    ({"sample_size_px": 4}, "sample_size_px is 4, expected a whole number 8..4096"),
    ({"sample_size_px": True}, "sample_size_px is True"),
    ({"max_references": 0}, "max_references is 0"),
    ({"default_steps": 25.0}, r"default_steps is 25\.0"),
    ({"ref_scale": float("nan")}, "ref_scale is nan"),
    ({"text_guidance_scale": -1}, "text_guidance_scale is -1"),
    ({"text_guidance_scale": 10**400}, r"text_guidance_scale is 10+\.\.\., expected a number"),
    ({"image_guidance_scale": "4"}, "image_guidance_scale is '4'"),
    ({"merge": "median"}, "expected one of argmax, softmax, mean, concat"),
    ({"reference_timestep": "late"}, "expected one of same, clean, mixed"),
    ({"default_solver": "euler"}, "default_solver is 'euler'"),
    ({"shared_unet": 1}, "shared_unet is 1"),
    ({"format": 2}, "format is 2, expected 1"),
]


@pytest.mark.parametrize(("fields", "message"), WRONG, ids=lambda value: str(value)[:40])
def test_a_wrong_field_is_named(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        PairConfig.from_dict({"format": 1, "name": "x", "sample_size_px": 64, **fields})


def test_a_missing_field_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="'name' is missing"):
        PairConfig.from_dict({"format": 1, "sample_size_px": 64})


def test_the_file_is_named_where_a_field_is_wrong(tmp_path: Path) -> None:
    (tmp_path / "pair.json").write_text('{"format": 1, "name": "x", "sample_size_px": 0}')
    with pytest.raises(CheckpointError, match=r"pair\.json: sample_size_px is 0") as caught:
        read_pair_config(tmp_path / "pair.json")
    assert caught.value.path == tmp_path / "pair.json"


def test_a_nested_bomb_is_bad_json_and_no_crash(tmp_path: Path) -> None:
    (tmp_path / "pair.json").write_text("[" * 200_000)
    with pytest.raises(CheckpointError, match="is not valid json"):
        read_pair_config(tmp_path / "pair.json")
