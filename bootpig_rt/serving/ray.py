"""The service over Ray Serve: replicas that draw, and an ingress that takes requests.

    serve run bootpig_rt.serving.ray:app

`build_app` is what a Serve config names, with settings as its `args`; `app` has the settings of the
TOML file that BOOTPIG_RT_RAY_CONFIG names. The ingress is the same application as `bootpig-rt
serve`: routes, guards, subjects, page. What it draws with are replicas, each with a model and an
engine of its own, which batches the requests that come to it.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any, cast

from ray import serve
from ray.serve import Application
from ray.serve.config import AutoscalingConfig
from ray.serve.handle import DeploymentHandle

from bootpig_rt.server.app import create_app
from bootpig_rt.server.local import engine_limits, model_folders
from bootpig_rt.server.observe import Observer
from bootpig_rt.server.options import ServerOptions
from bootpig_rt.server.output import Output
from bootpig_rt.server.service import Service
from bootpig_rt.server.stack import guarded
from bootpig_rt.serving.fleet_metrics import FleetMetrics, IngressMetrics
from bootpig_rt.serving.ray_options import RayOptions, options_of_environment, ray_options
from bootpig_rt.serving.remote_engine import RemoteEngine
from bootpig_rt.serving.replica import EngineReplica
from bootpig_rt.serving.subject_storage import SubjectStorage

logger = logging.getLogger(__name__)

INGRESS = "ingress"
_INGRESS_ONGOING = 4096


class Replica(EngineReplica):
    """A deployment of Ray Serve that draws."""

    def __init__(
        self, name: str, folder: str, options: ServerOptions, subjects: str | None
    ) -> None:
        """Load the model; Ray sends requests from then on."""
        replica = serve.get_replica_context().replica_id.unique_id
        super().__init__(name, folder, options, subjects, replica)

    async def __del__(self) -> None:
        """Ray calls this when the requests under way have ended, or had their time."""
        await self.close(drain_s=0.0)


class Ingress:
    """A deployment of Ray Serve that takes requests over HTTP."""

    async def __init__(  # type: ignore[misc]  # Ray awaits it
        self, options: RayOptions, engines: Mapping[str, DeploymentHandle[Any]]
    ) -> None:
        """Connect to the replicas of each model; Ray sends requests from then on."""
        context = serve.get_replica_context()
        self._metrics = FleetMetrics(
            engines,
            ingress=context.replica_id.unique_id,
            handle=serve.get_deployment_handle(context.deployment, context.app_name),
        )
        storage = (
            None
            if options.subjects is None
            else SubjectStorage(options.subjects, ttl_s=options.server.subject_ttl_s)
        )
        # What waits is bounded by the replicas; here it is enough to know that all are full.
        server = replace(
            options.server, max_waiting=options.server.max_waiting * options.max_replicas
        )
        loaders = {
            name: partial(
                RemoteEngine.connect,
                handle,
                engine_limits(server),
                storage,
                self._metrics.launches_of(name),
            )
            for name, handle in engines.items()
        }
        self._service = Service(
            server,
            loaders,
            Output.of(server),
            self._metrics,
            tidy=None if storage is None else storage.drop_expired,
        )
        self._tracing = _tracing() if server.traces else None
        await self._service.start()

    def __serve_build_asgi_app__(self) -> Any:
        """The application behind its guards; Ray asks for it once."""
        app = guarded(create_app(self._service), self._service.options)
        return Observer(app, self._metrics, self._tracing)

    def own_metrics(self) -> IngressMetrics:
        """What this process counts; the one that is scraped asks all."""
        return self._metrics.own()

    async def __del__(self) -> None:
        """Ray calls this when the requests under way have ended, or had their time."""
        await self._service.close()


def _tracing() -> Any:
    from bootpig_rt.server.tracing import Tracing  # of an extra

    return Tracing()


def build_app(args: Mapping[str, Any]) -> Application:
    """The application with the settings of a Serve config; see `RayOptions`.

    Raises:
        ConfigError: A name is unknown, or a value of another type.
        ParameterError: A value is out of range.
        CheckpointError: A model's folder is not there.
    """
    return application(ray_options(args))


def application(options: RayOptions) -> Application:
    """The deployments of a service.

    Raises:
        CheckpointError: A model's folder is not there.
        ParameterError: A model's name is there twice.
    """
    server = options.server
    engines = {
        name: _engine_deployment(options, name).bind(name, str(folder), server, options.subjects)
        for name, folder in model_folders(server).items()
    }
    ingress = _deployment(
        serve.ingress()(Ingress),
        name=INGRESS,
        num_replicas=options.ingress_replicas,
        max_ongoing_requests=_INGRESS_ONGOING,
        ray_actor_options={"num_cpus": options.ingress_cpus},
        graceful_shutdown_timeout_s=server.drain_s,
    )
    app: Application = ingress.bind(options, engines)
    return app


def _engine_deployment(options: RayOptions, name: str) -> Any:
    server = options.server
    actor: dict[str, Any] = {"num_cpus": options.num_cpus, "num_gpus": options.num_gpus}
    if options.memory_bytes is not None:
        actor["memory"] = options.memory_bytes
    how_many: dict[str, Any] = {"num_replicas": options.min_replicas}
    if options.max_replicas > options.min_replicas:
        target = options.target_ongoing or float(server.max_batch)
        how_many = {
            "autoscaling_config": AutoscalingConfig(
                min_replicas=options.min_replicas,
                max_replicas=options.max_replicas,
                target_ongoing_requests=target,
                upscale_delay_s=options.upscale_delay_s,
                downscale_delay_s=options.downscale_delay_s,
            )
        }
    return _deployment(
        Replica,
        name=f"engine-{name}",
        max_ongoing_requests=options.max_ongoing,
        max_queued_requests=options.max_ongoing,
        ray_actor_options=actor,
        graceful_shutdown_timeout_s=server.drain_s,
        health_check_period_s=5.0,
        health_check_timeout_s=30.0,
        request_router_config={
            "request_router_class": "bootpig_rt.serving.routing.SubjectRouter",
            "request_router_kwargs": {
                "spill_over": options.spill_over,
                "is_sticky": options.is_sticky,
            },
        },
        **how_many,
    )


def _deployment(kind: type, **options: Any) -> Any:
    """`serve.deployment` as a function: its types are those of a decorator."""
    return cast("Any", serve.deployment)(kind).options(**options)


def __getattr__(name: str) -> Any:
    """`app`, made when it is asked for: the processes that draw import this module too."""
    if name == "app":
        return application(options_of_environment())
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
