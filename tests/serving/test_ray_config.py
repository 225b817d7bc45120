"""The Serve config in `deploy/`, and what the settings become on Ray."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import pytest

from bootpig_rt.bundle.shipped import default_model
from bootpig_rt.serving.ray_options import ENVIRONMENT, ray_options

pytest.importorskip("ray")


@pytest.fixture(scope="module")
def config(root: Path) -> Any:
    """The config as Ray reads it."""
    import yaml
    from ray.serve.schema import ServeDeploySchema

    text = (root / "deploy" / "ray" / "serve.yaml").read_text()
    return ServeDeploySchema.model_validate(yaml.safe_load(text))


def test_ray_takes_the_config_and_we_take_its_settings(config: Any) -> None:
    (application,) = config.applications
    module, _, name = str(application.import_path).partition(":")
    assert callable(getattr(importlib.import_module(module), name))
    options = ray_options(dict(application.args))
    assert options.server.keys is not None
    assert options.max_replicas > options.min_replicas


def deployments(args: dict[str, Any]) -> dict[str, Any]:
    """Deployments by name, with their options."""
    from bootpig_rt.serving.ray import build_app

    server = {"model": str(default_model()), "insecure": True} | args.pop("server", {})
    ingress: Any = build_app(args | {"server": server})._bound_deployment
    engines = ingress.init_args[1].values()
    found = [ingress, *(one._bound_deployment for one in engines)]
    return {one.name: one for one in found}


def test_a_fixed_number_of_replicas_is_not_scaled() -> None:
    found = deployments({"min_replicas": 3, "max_replicas": 3, "num_cpus": 2})
    assert set(found) == {"ingress", "engine-pair"}
    assert found["engine-pair"].num_replicas == 3
    assert found["engine-pair"]._deployment_config.autoscaling_config is None
    assert found["engine-pair"].ray_actor_options["num_cpus"] == 2


def test_replicas_are_scaled_by_the_requests_that_fill_a_batch() -> None:
    settings = {"min_replicas": 2, "max_replicas": 9, "num_gpus": 1, "memory_bytes": "2GiB"}
    server = {"max_batch": 16, "max_waiting": 32, "drain_s": 7}
    engine = deployments(settings | {"server": server})["engine-pair"]
    scaling = engine._deployment_config.autoscaling_config
    assert (scaling.min_replicas, scaling.max_replicas) == (2, 9)
    assert scaling.target_ongoing_requests == 16
    assert engine.max_ongoing_requests == 48
    assert engine._deployment_config.graceful_shutdown_timeout_s == 7
    actor = engine.ray_actor_options
    assert (actor["num_gpus"], actor["memory"]) == (1, 2 << 30)
    router = engine._deployment_config.request_router_config
    assert router.request_router_class.endswith("routing.SubjectRouter")
    assert router.request_router_kwargs == {"spill_over": 3, "is_sticky": True}


def test_the_app_has_the_settings_of_the_file_that_the_environment_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import bootpig_rt.serving.ray as module

    file = tmp_path / "fleet.toml"
    file.write_text(f'ingress_cpus = 3\n[server]\ninsecure = true\nmodel = "{default_model()}"\n')
    monkeypatch.setenv(ENVIRONMENT, str(file))
    assert module.app._bound_deployment.ray_actor_options["num_cpus"] == 3
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = module.nothing
