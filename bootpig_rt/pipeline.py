"""Pipeline: reference images and a prompt in, pictures of that subject in a new scene out.

The main path, top to bottom: checks, subject, text states, reference tables, steps, pictures. It
computes nothing itself: the backend does, behind one seam. A pipeline holds no state of a call, so
one may be used from several threads at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from bootpig_rt import __version__
from bootpig_rt.arguments import class_phrase, prompts_of, seeds_of_prompts, sources_of
from bootpig_rt.backends import create_backend
from bootpig_rt.backends.base import Backend, IntArray, PairSpec
from bootpig_rt.background import BackgroundRemover
from bootpig_rt.batch import build_batch, scales_of
from bootpig_rt.config import SamplingParams, check_int, check_prompt, check_seed
from bootpig_rt.errors import CheckpointError, ParameterError
from bootpig_rt.generation import Clock, GenerationResult, PictureParameters, Request
from bootpig_rt.image import ImageSource, prepare_reference, to_pil
from bootpig_rt.reference_cache import ReferenceCache, reference_table
from bootpig_rt.reference_kv import ReferenceKV, ReferenceSchedule
from bootpig_rt.sampler import Progress, StepCallback, StepEvent, check_finite, denoise
from bootpig_rt.solver import solver_table
from bootpig_rt.subject import Subject
from bootpig_rt.text import Tokenizer

__all__ = ["GenerationResult", "Pipeline", "Request", "StepEvent"]

# The largest picture, in multiples of the side that the pair was trained on: attention grows with
# the fourth power of the side, and pictures far from the trained size repeat themselves.
_MAX_SIZE_FACTOR = 4


class Pipeline:
    """A pair, loaded and ready to draw.

    Args:
        model: Folder of a pair; the one inside the package by default.
        backend: `auto` or the name of a backend.
        device: `auto`, `cpu`, `cuda` or `cuda:N`.
        base_model: A Stable Diffusion folder, for pairs in the published layout, which hold the
            two U-Nets alone.
        background_remover: Cuts the subject out of reference images without transparency.
        max_batch: Pictures drawn at once; more are drawn in several batches. Bounds memory and
            changes no picture.
        reference_cache_bytes: Device memory for reference tables that are kept between calls.

    Raises:
        CheckpointError: The folder is not a usable pair.
        BackendUnavailable: A package or the device is missing.
        ParameterError: An argument is unknown or out of range.
    """

    def __init__(
        self,
        model: str | PathLike[str] | None = None,
        *,
        backend: str = "auto",
        device: str = "auto",
        base_model: str | PathLike[str] | None = None,
        background_remover: BackgroundRemover | None = None,
        max_batch: int = 8,
        reference_cache_bytes: int = 1 << 30,
    ) -> None:
        """Load the pair."""
        self.max_batch = check_int("max_batch", max_batch, 1, 1024, "8 is usual")
        cache_bytes = check_int(
            "reference_cache_bytes", reference_cache_bytes, 0, 1 << 50, "0 keeps nothing"
        )
        self._backend: Backend = create_backend(
            backend,
            default_model() if model is None else Path(model),
            device=device,
            base_model=None if base_model is None else Path(base_model),
        )
        self._background_remover = background_remover
        self._tokenizer = Tokenizer.from_folder(self.spec.tokenizer_folder)
        self._cache = ReferenceCache(cache_bytes)

    @property
    def spec(self) -> PairSpec:
        """What is known about the pair: its size, defaults, limits and fingerprint."""
        return self._backend.spec

    def __call__(
        self,
        prompt: str | Sequence[str],
        *,
        reference_images: ImageSource | Sequence[ImageSource] | None = None,
        subject: Subject | None = None,
        reference_prompt: str | None = None,
        negative_prompt: str = "",
        num_inference_steps: int | None = None,
        image_guidance_scale: float | None = None,
        text_guidance_scale: float | None = None,
        num_images: int = 1,
        seed: int | Sequence[int] | None = None,
        solver: str | None = None,
        merge: str | None = None,
        reference_schedule: str | None = None,
        width: int | None = None,
        height: int | None = None,
        callback_on_step_end: StepCallback | None = None,
    ) -> GenerationResult:
        """Draw one subject as one or more prompts say.

        Args:
            prompt: "a photo of a dog, on a beach", or a list of such prompts: one batch.
            reference_images: One or more pictures of the subject.
            subject: What `encode_subject` returned, in place of reference images.
            reference_prompt: What the reference images show, "a photo of a dog". Without it the
                prompt up to its first comma is taken, and logged.
            negative_prompt: What to stay away from.
            num_inference_steps: T, 1 to 1000; the pair's default (25) if left out.
            image_guidance_scale: How closely to follow the reference, 0 to 100; 1 is no guidance.
            text_guidance_scale: How closely to follow the prompt, 0 to 100; 1 is no guidance.
            num_images: Pictures of each prompt, 1 to 64.
            seed: One seed, from which the pictures of the call count on, or one for each prompt.
                A picture depends on its own seed alone, never on the batch that it is drawn in.
            solver: `ddim`, `dpmpp_2m` or `unipc`.
            merge: How several references are combined: `argmax`, `softmax`, `mean`, `concat`.
            reference_schedule: `exact`, `clean` or `anchor:T`, see `ReferenceSchedule`.
            width: Of the pictures, in pixels.
            height: Of the pictures, in pixels.
            callback_on_step_end: Called with a `StepEvent` after each step.

        Returns:
            Pictures in the order of the prompts, with all their parameters.

        Raises:
            InputError: An argument cannot be used; says which, and what to do.
            SubjectMismatch: The subject was encoded with another pair.
            Cancelled: The callback asked for it.
            NumericalError: The model produced NaN or Inf.
        """
        prompts = prompts_of(prompt)
        params = self.sampling_params(
            num_inference_steps=num_inference_steps,
            solver=solver,
            merge=merge,
            reference_schedule=reference_schedule,
            width=width,
            height=height,
        )
        requests = [
            Request(
                prompt=one,
                subject=subject,
                negative_prompt=negative_prompt,
                image_guidance_scale=image_guidance_scale,
                text_guidance_scale=text_guidance_scale,
                num_images=num_images,
                seed=first_seed,
            )
            for one, first_seed in zip(
                prompts, seeds_of_prompts(seed, len(prompts), num_images), strict=True
            )
        ]
        clock = Clock()
        if subject is None:
            if reference_prompt is None:
                reference_prompt = class_phrase([request.prompt for request in requests])
            with clock.stage("encode"):
                subject = self._encode(reference_images, reference_prompt, 0)
            requests = [replace(request, subject=subject) for request in requests]
        elif reference_images is not None or reference_prompt is not None:
            raise ParameterError(
                "got a subject together with reference images or a reference prompt, expected one "
                "or the other; a subject holds both"
            )
        return self._generate(requests, params, callback_on_step_end, clock)

    def generate(
        self,
        requests: Sequence[Request],
        params: SamplingParams | None = None,
        *,
        callback_on_step_end: StepCallback | None = None,
    ) -> GenerationResult:
        """Draw requests that differ in prompt, subject, number of references, scales and seed.

        They share batches, and each gives the picture that it gives alone. A request without a
        subject is drawn from its prompt.

        Args:
            requests: One or more.
            params: What they share; from `sampling_params()` by default.
            callback_on_step_end: Called with a `StepEvent` after each step.

        Returns:
            Pictures in the order of the requests.

        Raises:
            ParameterError: No requests, or a size that the pair cannot do.
            SubjectMismatch: A subject was encoded with another pair.
            Cancelled: The callback asked for it.
            NumericalError: The model produced NaN or Inf.
        """
        if not requests:
            raise ParameterError("no requests, expected at least one")
        params = self.sampling_params() if params is None else params
        return self._generate(list(requests), params, callback_on_step_end, Clock())

    def encode_subject(
        self,
        images: ImageSource | Sequence[ImageSource],
        reference_prompt: str,
        *,
        noise_seed: int = 0,
    ) -> Subject:
        """Encode reference images once, for any number of calls.

        Where one table serves all steps it is computed here as well.

        Args:
            images: One or more pictures of the subject.
            reference_prompt: What they show, "a photo of a dog".
            noise_seed: Of the noise added to the reference by the schedules that add any.

        Raises:
            ImageError: No image, or one that cannot be used.
            PromptError: The reference prompt is empty.
            ParameterError: Too many images, or a seed out of range.
        """
        subject = self._encode(images, reference_prompt, check_seed(noise_seed, "noise_seed"))
        schedule = ReferenceSchedule.default_for(self.spec.config.reference_timestep)
        if schedule.mode != "exact":
            self._reference_table(subject, schedule, np.zeros(0, dtype=np.int64))
        return subject

    def sampling_params(
        self,
        *,
        num_inference_steps: int | None = None,
        solver: str | None = None,
        merge: str | None = None,
        reference_schedule: str | None = None,
        width: int | None = None,
        height: int | None = None,
    ) -> SamplingParams:
        """Settings of a batch, with the pair's defaults for what is left out.

        Raises:
            ParameterError: A value is unknown, out of range or not for this pair.
        """
        config = self.spec.config
        side = config.sample_size_px
        params = SamplingParams(
            num_inference_steps=_or(num_inference_steps, config.default_steps),
            solver=_or(solver, config.default_solver),
            merge=_or(merge, config.merge),
            reference_schedule=(
                ReferenceSchedule.default_for(config.reference_timestep)
                if reference_schedule is None
                else ReferenceSchedule.parse(reference_schedule)
            ),
            width_px=_or(width, side),
            height_px=_or(height, side),
        )
        self._check_for_pair(params)
        return params

    def _check_for_pair(self, params: SamplingParams) -> None:
        multiple, side = self.spec.size_multiple_px, self.spec.config.sample_size_px
        for name, size in (("width", params.width_px), ("height", params.height_px)):
            if size % multiple or not multiple <= size <= _MAX_SIZE_FACTOR * side:
                raise ParameterError(
                    f"{name} is {size}, expected a multiple of {multiple} up to "
                    f"{_MAX_SIZE_FACTOR * side}; this pair was trained at {side}"
                )
        last = self.spec.noise_schedule.num_train_timesteps - 1
        if params.reference_schedule.timestep > last:
            raise ParameterError(
                f"reference schedule is {params.reference_schedule}, expected a timestep 0..{last}"
            )

    def _encode(
        self,
        images: ImageSource | Sequence[ImageSource] | None,
        reference_prompt: str,
        noise_seed: int,
    ) -> Subject:
        reference_prompt = check_prompt(reference_prompt, "reference_prompt")
        sources = sources_of(images)
        limit = self.spec.config.max_references
        if len(sources) > limit:
            raise ParameterError(
                f"{len(sources)} reference images, expected 1..{limit} for this pair; "
                "leave some out"
            )
        side = self.spec.config.sample_size_px
        pixels = np.stack(
            [
                prepare_reference(
                    source,
                    side,
                    self._background_remover,
                    what="reference image" if len(sources) == 1 else f"reference image {index}",
                    subject_share=self.spec.config.subject_share,
                )
                for index, source in enumerate(sources)
            ]
        )
        latents = check_finite(self._backend.encode_image(pixels), "the image encoder")
        return Subject(pixels, latents, reference_prompt, noise_seed, self.spec.fingerprint)

    def _generate(
        self,
        requests: Sequence[Request],
        params: SamplingParams,
        callback: StepCallback | None,
        clock: Clock,
    ) -> GenerationResult:
        self._check_for_pair(params)
        solver = solver_table(params.solver, self.spec.noise_schedule, params.num_inference_steps)
        pictures = [picture for request in requests for picture in request.split()]
        subjects = {p.subject.fingerprint: p.subject for p in pictures if p.subject is not None}
        for subject in subjects.values():
            subject.check_pair(self.spec.fingerprint)

        with clock.stage("text"):
            texts = list(dict.fromkeys(t for p in pictures for t in (p.prompt, p.negative_prompt)))
            prompt_embeds = self._backend.encode_text(self._tokenizer(texts))
        with clock.stage("reference"):
            found = {
                name: self._reference_table(subject, params.reference_schedule, solver.timesteps)
                for name, subject in subjects.items()
            }
            tables = {name: table for name, (table, _) in found.items()}

        batches = [
            range(start, min(start + self.max_batch, len(pictures)))
            for start in range(0, len(pictures), self.max_batch)
        ]
        progress = Progress(callback, total=solver.num_steps * len(batches))
        images: list[Image.Image] = []
        for numbers in batches:
            batch = build_batch(
                [pictures[number] for number in numbers],
                params,
                solver,
                spec=self.spec,
                texts=texts,
                prompt_embeds=prompt_embeds,
                tables=tables,
            )
            with clock.stage("denoise"):
                latents = denoise(self._backend, batch, progress=progress, pictures=numbers)
            with clock.stage("decode"):
                pixels = check_finite(self._backend.decode(latents), "the image decoder")
                images += to_pil(pixels)
        parameters = [self._parameters(picture, params) for picture in pictures]
        passes = sum(passes for _, passes in found.values())
        return GenerationResult(images, parameters, clock.timings(), passes)

    def _reference_table(
        self, subject: Subject, schedule: ReferenceSchedule, solver_timesteps: IntArray
    ) -> tuple[ReferenceKV, int]:
        return reference_table(
            subject,
            schedule,
            solver_timesteps,
            backend=self._backend,
            tokenizer=self._tokenizer,
            cache=self._cache,
        )

    def _parameters(self, picture: Request, params: SamplingParams) -> PictureParameters:
        subject = picture.subject
        image_scale, text_scale = scales_of(picture, self.spec)
        return PictureParameters(
            prompt=picture.prompt,
            negative_prompt=picture.negative_prompt,
            reference_prompt=subject.reference_prompt if subject else None,
            num_references=subject.num_references if subject else 0,
            subject_fingerprint=subject.fingerprint if subject else None,
            seed=picture.seed or 0,
            num_inference_steps=params.num_inference_steps,
            solver=params.solver,
            image_guidance_scale=image_scale,
            text_guidance_scale=text_scale,
            merge=params.merge,
            reference_schedule=str(params.reference_schedule),
            reference_noise_seed=subject.noise_seed if subject else None,
            width=params.width_px,
            height=params.height_px,
            model=self.spec.config.name,
            model_fingerprint=self.spec.fingerprint,
            backend=self._backend.name,
            device=self._backend.device,
            version=__version__,
        )


def default_model() -> Path:
    """Folder of the pair inside the package.

    Raises:
        CheckpointError: This installation has none.
    """
    folder = Path(__file__).parent / "assets" / "pair"
    if not (folder / "pair.json").is_file():
        raise CheckpointError(
            f"no pair inside the package ({folder}); name one with model=FOLDER or --model FOLDER, "
            "or install the package again",
            folder,
        )
    return folder


def _or(value: Any, default: Any) -> Any:
    """`value`, or the pair's default where it was left out."""
    return default if value is None else value
