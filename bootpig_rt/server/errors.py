"""Errors as callers see them: OpenAI's body, fixed texts, no paths, no addresses, no tracebacks."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from typing import Any

from bootpig_rt.errors import (
    BootPIGError,
    Cancelled,
    CredentialsError,
    DeadlineExceeded,
    EngineFull,
    EngineLost,
    ImageError,
    InputError,
    NumericalError,
    OutOfDeviceMemory,
    PromptError,
    StorageError,
    SubjectMismatch,
)

logger = logging.getLogger(__name__)

PARAMS: Mapping[str, str] = {
    "num_inference_steps": "num_inference_steps",
    "image_guidance_scale": "image_guidance_scale",
    "text_guidance_scale": "text_guidance_scale",
    "guidance_interval": "guidance_interval",
    "num_images_per_prompt": "n",
    "negative_prompt": "negative_prompt",
    "reference_prompt": "reference_prompt",
    "reference_schedule": "reference_schedule",
    "approximation": "approximation",
    "control_image": "controls",
    "control_scale": "controls",
    "control_interval": "controls",
    "controls": "controls",
    "noise_seed": "noise_seed",
    "prompt": "prompt",
    "solver": "solver",
    "merge": "merge",
    "seed": "seed",
    "sizes": "sizes",
    "strength": "strength",
    "mask_edge_px": "mask_edge_px",
    "mask_image": "mask",
    "image": "size",
    "width": "size",
    "height": "size",
    "number of steps": "num_inference_steps",
    "reference schedule": "reference_schedule",
}
"""Fields of the API, by the words that messages of the runtime name them with."""

_TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}


class ApiError(Exception):
    """What a caller is told in place of an answer.

    Args:
        status: Of HTTP.
        code: For programs; one of the documented ones.
        message: For people; nothing that a caller must not know.
        param: The field at fault.
        retry_after_s: When to try again, where that may help.
    """

    def __init__(
        self,
        status: int,
        code: str,
        message: str,
        *,
        param: str | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        """Keep what is told."""
        super().__init__(message)
        self.status, self.code, self.message = status, code, message
        self.param, self.retry_after_s = param, retry_after_s

    def body(self) -> dict[str, Any]:
        """As OpenAI's API says it."""
        usual = "server_error" if self.status >= 500 else "invalid_request_error"
        return {
            "error": {
                "message": self.message,
                "type": _TYPES.get(self.status, usual),
                "param": self.param,
                "code": self.code,
            }
        }

    def headers(self) -> dict[str, str]:
        """`Retry-After`, in whole seconds, where it may help."""
        if self.retry_after_s is None:
            return {}
        return {"retry-after": str(max(1, math.ceil(self.retry_after_s)))}


def api_error(error: BaseException) -> ApiError:
    """What a caller is told of an error of any kind; what he must not know is logged."""
    match error:
        case ApiError():
            return error
        case EngineFull():
            wait_s = error.retry_after_s
            text = f"too many pictures wait already; try again in {max(1, math.ceil(wait_s))} s"
            return ApiError(429, "queue_full", text, retry_after_s=wait_s)
        case EngineLost():
            logger.warning("an engine was lost: %s", error)
            text = "the process that drew the picture is gone; the same request may be sent again"
            return ApiError(503, "engine_lost", text, retry_after_s=error.retry_after_s)
        case DeadlineExceeded():
            text = "the picture was not done before its deadline; work on it has stopped"
            return ApiError(504, "deadline_exceeded", text, param="deadline_s")
        case Cancelled():
            return ApiError(409, "cancelled", "the job was cancelled")
        case SubjectMismatch():
            text = "the subject was encoded with another model; encode its reference images again"
            return ApiError(409, "subject_mismatch", text, param="subject_id")
        case PromptError():
            return ApiError(400, "invalid_prompt", str(error), param=_param(error) or "prompt")
        case ImageError():
            told = str(error)
            param = "mask" if told.startswith("mask ") else "image"
            param = "controls" if told.startswith("control_image ") else param
            return ApiError(400, "invalid_image", str(error), param=param)
        case InputError():
            return ApiError(400, "invalid_value", str(error), param=_param(error))
        case OutOfDeviceMemory():
            logger.warning("out of device memory: %s", error)
            text = "the device has no room for this picture now; ask for fewer or smaller ones"
            return ApiError(503, "out_of_memory", text, retry_after_s=1.0)
        case NumericalError():
            logger.error("numerical error: %s", error)
            text = "the model produced no valid picture; try lower guidance scales or another seed"
            return ApiError(500, "numerical_error", text)
        case CredentialsError():
            logger.error("credentials: %s", error)
            text = "the picture could not be signed, and is not given out; the log says why"
            return ApiError(500, "credentials_unavailable", text)
        case StorageError():
            logger.error("storage: %s", error)
            text = "the server could not use its storage; try again later"
            return ApiError(503, "storage_error", text, retry_after_s=5.0)
        case BootPIGError():
            logger.error("%s: %s", type(error).__name__, error)
        case _:
            logger.error("unexpected %s", type(error).__name__, exc_info=error)
    return ApiError(500, "internal_error", "the server failed to answer; its log says why")


def _param(error: BaseException) -> str | None:
    """The field that a message of the runtime begins with."""
    text = str(error)
    return next((field for words, field in PARAMS.items() if text.startswith(f"{words} ")), None)
