"""Settings of a service over Ray: nothing misspelt is taken, nothing is open by accident."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from bootpig_rt.errors import ConfigError, ParameterError
from bootpig_rt.serving.ray_options import ENVIRONMENT, options_of_environment, ray_options


def test_settings_of_the_service_are_a_table_of_their_own() -> None:
    options = ray_options(
        {
            "min_replicas": 2,
            "max_replicas": 8,
            "num_gpus": 1,
            "memory_bytes": "4 GiB",
            "upscale_delay_s": "1m",
            "server": {"insecure": True, "max_batch": 16, "max_waiting": 32, "drain_s": 5},
        }
    )
    assert (options.min_replicas, options.max_replicas, options.num_gpus) == (2, 8, 1.0)
    assert (options.memory_bytes, options.upscale_delay_s) == (4 << 30, 60.0)
    assert (options.server.max_batch, options.server.drain_s) == (16, 5.0)
    assert options.max_ongoing == 48


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"replicas": 2}, "unknown key 'replicas'"),
        ({"server": {"max_bach": 2}}, "max_bach"),
        ({"server": 3}, "server in the settings is 3"),
        ({"min_replicas": "two"}, "min_replicas in the settings is 'two'"),
        ({"server": {"max_batch": [1]}}, "max_batch"),
        ({"memory_bytes": "much"}, "memory_bytes in the settings is 'much'"),
    ],
)
def test_what_is_misspelt_or_of_another_type_is_refused(values: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        ray_options({"server": {"insecure": True}} | values)


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"min_replicas": 0}, "min_replicas is 0"),
        ({"min_replicas": 3, "max_replicas": 2}, "max_replicas is 2"),
        ({"num_cpus": -1}, "num_cpus is -1"),
        ({"spill_over": 0}, "spill_over is 0"),
        ({"target_ongoing": 0}, "target_ongoing is 0"),
        ({"ingress_replicas": 2}, "unknown to the others"),
        ({"server": {"insecure": True, "max_batch": 0}}, "max_batch is 0"),
    ],
)
def test_what_is_out_of_range_is_refused(values: dict[str, Any], told: str) -> None:
    with pytest.raises(ParameterError, match=told):
        ray_options({"server": {"insecure": True}} | values)


def test_a_service_without_keys_must_say_that_it_is_open() -> None:
    with pytest.raises(ParameterError, match="no keys"):
        ray_options({})
    assert ray_options({"server": {"keys": "keys.json"}}).server.keys == "keys.json"


def test_the_environment_names_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "fleet.toml"
    file.write_text('max_replicas = 3\nsubjects = "s3://b/s"\n[server]\ninsecure = true\n')
    monkeypatch.setenv(ENVIRONMENT, str(file))
    options = options_of_environment()
    assert (options.max_replicas, options.subjects) == (3, "s3://b/s")
    file.write_text("max_replicas = ")
    with pytest.raises(ConfigError, match="no TOML"):
        options_of_environment()
    monkeypatch.setenv(ENVIRONMENT, str(tmp_path / "missing.toml"))
    with pytest.raises(ConfigError, match="cannot read"):
        options_of_environment()
