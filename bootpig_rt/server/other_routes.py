"""Models, limits and jobs; probes, metrics and reloading."""

from __future__ import annotations

import asyncio
from typing import Any, get_args

from fastapi import APIRouter
from fastapi import Request as HttpRequest
from starlette.responses import JSONResponse, Response

from bootpig_rt.bundle.pair_config import MERGES
from bootpig_rt.diffusion.noise_schedule import SolverName
from bootpig_rt.server.calls import call_of, read_json
from bootpig_rt.server.engine_client import ModelFacts
from bootpig_rt.server.errors import ApiError
from bootpig_rt.server.metrics import CONTENT_TYPE
from bootpig_rt.server.parse import parse_json, validated
from bootpig_rt.server.schema import MAX_PROMPT, ReloadFields
from bootpig_rt.server.service import Service

SCHEDULES = ("exact", "clean", "anchor:500", "stride:4", "window:0-0.8")
"""One example of each kind of reference schedule."""


def model_routes(service: Service) -> APIRouter:
    """`/v1/models` and `/v1/limits`."""
    routes = APIRouter(prefix="/v1")

    @routes.get("/models")
    async def models() -> Response:
        """The models that requests may name."""
        service.check_ready()
        facts = [one.facts for one in service.clients.values()]
        return JSONResponse({"object": "list", "data": [_model(one) for one in facts]})

    @routes.get("/models/{name}")
    async def model(name: str) -> Response:
        """One model."""
        service.check_ready()
        return JSONResponse(_model(service.client(name).facts))

    @routes.get("/limits")
    async def limits() -> Response:
        """What this server takes and does."""
        options = service.options
        return JSONResponse(
            {
                "max_images": options.most_images,
                "max_references": options.max_references,
                "max_steps": options.max_steps,
                "max_side_px": options.max_side_px,
                "max_body_bytes": options.max_body_bytes,
                "max_image_pixels": options.max_image_pixels,
                "max_prompt_chars": MAX_PROMPT,
                "max_deadline_s": options.max_deadline_s,
                "default_deadline_s": options.default_deadline_s,
                "subject_ttl_s": options.subject_ttl_s,
                "solvers": list(get_args(SolverName)),
                "merges": list(MERGES),
                "reference_schedules": list(SCHEDULES),
                "keys": options.keys is not None,
                "safety": options.safety_model is not None,
                "credentials": options.credentials_certificate is not None,
                "contact": options.contact,
            }
        )

    return routes


def job_routes(service: Service) -> APIRouter:
    """`/v1/jobs`."""
    routes = APIRouter(prefix="/v1/jobs")

    @routes.get("/{job_id}")
    async def show(http: HttpRequest, job_id: str) -> Response:
        """How far a request is."""
        return JSONResponse(service.jobs.show(call_of(http).tenant, job_id))

    @routes.post("/{job_id}/cancel")
    async def cancel(http: HttpRequest, job_id: str) -> Response:
        """Stop a request within a step. May be asked twice, also when it has ended."""
        tenant = call_of(http).tenant
        service.jobs.cancel(tenant, job_id)
        return JSONResponse(service.jobs.show(tenant, job_id))

    return routes


def operation_routes(service: Service) -> APIRouter:
    """Probes, metrics, and the routes of who runs the service."""
    routes = APIRouter()

    @routes.get("/livez")
    async def alive() -> Response:
        """It runs, and its engines do what they are asked."""
        is_alive = service.state != "failed" and service.fault() is None
        text = "ok" if is_alive else "failed"
        return JSONResponse({"status": text}, status_code=200 if is_alive else 503)

    @routes.get("/readyz")
    async def ready() -> Response:
        """It takes requests: every model is loaded and warm, and it is not stopping."""
        state = service.state if service.fault() is None else "failed"
        return JSONResponse({"status": state}, status_code=200 if state == "ready" else 503)

    @routes.get("/metrics")
    async def metrics() -> Response:
        """Counters and gauges for Prometheus."""
        library = service.library  # of this thread alone
        service.metrics.subjects(library.count, library.size_bytes)
        text = await asyncio.to_thread(service.metrics.render)
        return Response(text, media_type=CONTENT_TYPE)

    @routes.post("/v1/admin/reload")
    async def reload(http: HttpRequest) -> Response:
        """Load a model again from its folder; the old one draws until the new one is warm."""
        service.check_ready()
        fields = validated(ReloadFields, parse_json(await read_json(http)))
        if fields.model is not None and fields.model not in service.clients:
            raise ApiError(404, "model_not_found", "no such model", param="model")
        client = await service.reload(fields.model)
        return JSONResponse({"model": client.facts.name, "fingerprint": client.facts.fingerprint})

    return routes


def _model(facts: ModelFacts) -> dict[str, Any]:
    return {
        "id": facts.name,
        "object": "model",
        "created": 0,
        "owned_by": "bootpig-rt",
        "fingerprint": facts.fingerprint,
        "size_px": facts.size_px,
        "size_multiple_px": facts.size_multiple_px,
        "max_side_px": facts.max_side_px,
        "max_references": facts.max_references,
        "is_few_step": facts.is_few_step,
        "controls": list(facts.controls),
        "runtime": facts.runtime,
        "precision": facts.precision,
        "defaults": {
            "num_inference_steps": facts.num_inference_steps,
            "image_guidance_scale": facts.image_guidance_scale,
            "text_guidance_scale": facts.text_guidance_scale,
            "solver": facts.solver,
            "merge": facts.merge,
            "reference_schedule": facts.reference_schedule,
        },
    }
