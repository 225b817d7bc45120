"""The engine's way: the same call as requests of the runtime's own pipeline."""

from __future__ import annotations

from typing import Any

from PIL import Image

from bootpig_rt.engine.canvas_plan import strength_of
from bootpig_rt.engine.events import Event, StepEvent
from bootpig_rt.errors import ParameterError
from bootpig_rt.integrations.diffusers.call import Call, texts_of
from bootpig_rt.integrations.diffusers.controls import for_engine
from bootpig_rt.integrations.diffusers.output import BootPIGPipelineOutput, from_pictures
from bootpig_rt.pipeline import Pipeline
from bootpig_rt.request import PictureParameters, Request, Timings


def draw(pipe: Any, runtime: Pipeline, call: Call) -> BootPIGPipelineOutput:
    """Draw the pictures of a call on the engine of a runtime's pipeline.

    Args:
        pipe: The `BootPIGPipeline` that was called: its callback hears of the steps of the first
            picture. Where `interrupt` is set each picture stops after its step, and what the model
            took it to be comes back in its place.
        runtime: Draws.
        call: What to draw.

    Raises:
        ParameterError: Something that only the eager way has.
        BootPIGError: What a request failed with.
    """
    for name, value in (
        ("latents", call.latents),
        ("prompt_embeds", call.prompt_embeds),
        ("negative_prompt_embeds", call.negative_prompt_embeds),
        ("reference_prompt_embeds", call.reference_prompt_embeds),
        ("callback_on_step_end_tensor_inputs", call.on_step_end_tensors or None),
        ("output_type latent", True if call.output_type == "latent" else None),
    ):
        refuse(name, value)
    stopped: dict[int, Image.Image] = {}
    scales, done = call.scales, 0

    def on_event(event: Event) -> None:
        nonlocal done
        if not isinstance(event, StepEvent):
            return
        if 0 in event.pictures:
            if call.on_step_end is not None:
                returned = call.on_step_end(pipe, done, event.timestep, {})
                if returned or scales != (pipe.guidance_scale, pipe.txtim_guidance_scale):
                    raise ParameterError(
                        "callback_on_step_end changes tensors or scales, which an engine has laid "
                        "out ahead; load the pipeline without backend for that"
                    )
            done += 1
            bar.update()
        if pipe.interrupt:
            stopped.update(zip(event.pictures, event.decode(), strict=True))
            event.cancel()

    jobs = runtime.engine.submit_all(_requests(runtime, call), timings=Timings(), on_event=on_event)
    with pipe.progress_bar(total=call.steps) as bar:
        try:
            runtime.engine.drive(jobs)
        finally:  # Ctrl-C: nobody will ask for them
            for job in jobs:
                job.cancel()
    images: list[Image.Image] = []
    parameters: list[PictureParameters] = []
    for number, job in enumerate(jobs):
        if job.cancelled() and number in stopped:
            images.append(stopped[number])
        else:
            result = job.result()
            images += result.images
            parameters += result.parameters
    return BootPIGPipelineOutput(
        from_pictures(images, call.output_type), None if stopped else parameters
    )


def _requests(runtime: Pipeline, call: Call) -> list[Request]:
    """One request for each picture."""
    subject = runtime.encode_subject(call.reference_images, call.reference_prompt or "")
    s_image, s_text = call.scales
    steps = call.steps
    if call.canvas is not None and call.controls:
        steps -= strength_of(call.canvas, call.strength, steps)[1]  # those that are done
    controls = for_engine(call.controls, steps)
    return [
        Request(
            prompt=prompt,
            negative_prompt=negative,
            subject=subject,
            seed=call.seeds[number * call.per_prompt + picture],
            num_inference_steps=call.steps,
            image_guidance_scale=s_image,
            text_guidance_scale=s_text,
            merge=call.merge,
            reference_schedule=call.schedule,
            width=call.width if call.canvas is None else None,
            height=call.height if call.canvas is None else None,
            canvas=call.canvas,
            strength=call.strength,
            controls=controls,
        )
        for number, (prompt, negative) in enumerate(
            zip(texts_of(call.prompts, "prompt"), call.negatives, strict=True)
        )
        for picture in range(call.per_prompt)
    ]


def refuse(name: str, value: Any) -> None:
    """Refuse an argument that only the eager way has.

    Raises:
        ParameterError: It was given.
    """
    if value is not None:
        raise ParameterError(
            f"{name} is for the eager way, and this pipeline draws on an engine; leave it out, or "
            "load it without backend"
        )
