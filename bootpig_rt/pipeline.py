"""Pipeline: reference images and a prompt in, pictures of that subject in a new scene out.

The main path, top to bottom: a call becomes requests, requests become jobs of the engine, and the
engine draws them, whoever else is asking. It computes nothing itself: the backend does, behind one
seam. A pipeline holds no state of a call, so one may be used from several threads at once.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from os import PathLike
from pathlib import Path
from typing import Any, Literal, Self, overload

from bootpig_rt.approximation import Approximation
from bootpig_rt.backends import create_backend
from bootpig_rt.backends.options import BackendOptions
from bootpig_rt.backends.pair_options import PairOptions
from bootpig_rt.bundle.pair_config import TINY_VAE
from bootpig_rt.bundle.shipped import Variant, packaged_model, take_packaged
from bootpig_rt.checks import check_int, check_name, check_prompt, check_seed, wrap_seed
from bootpig_rt.curve import curve_path, load_curve
from bootpig_rt.engine.engine import Engine
from bootpig_rt.engine.events import OnEvent
from bootpig_rt.engine.options import EngineOptions
from bootpig_rt.engine.stream import draw_stream
from bootpig_rt.engine.warmup import DISC_PROMPT
from bootpig_rt.errors import ParameterError, PromptError
from bootpig_rt.images.background import BackgroundRemover
from bootpig_rt.images.canvas import Canvas
from bootpig_rt.images.control import (
    Control,
    ControlImages,
    ControlIntervals,
    ControlScales,
    load_controls,
)
from bootpig_rt.images.picture import ImageSource
from bootpig_rt.loaded_pair import LoadedPair
from bootpig_rt.reference.encode import encode
from bootpig_rt.reference.schedule import WHOLE, ReferenceSchedule
from bootpig_rt.reference.subject import Subject
from bootpig_rt.reference.table_options import TableOptions
from bootpig_rt.request import (
    GenerationResult,
    Request,
    Timings,
)
from bootpig_rt.storage.store import SubjectStore
from bootpig_rt.tuning import TunedSettings, check_wishes, tune

logger = logging.getLogger(__name__)


class Pipeline(LoadedPair):
    """A pair, loaded and ready to draw. Close it, or use it in a `with` block.

    Args:
        model: Folder of a pair or a bundle; the pair inside the package by default.
        backend: `auto`, the name of a backend, or its options, such as
            `OnnxRuntimeOptions(intra_op_threads=2)` or `TorchOptions(precision="bfloat16")`.
        device: `auto`, `cpu`, `cuda` or `cuda:N`.
        background_remover: Cuts the subject out of reference images without transparency.
        max_batch: Pictures drawn at once. Bounds memory and changes no picture. A bundle that was
            built for fewer lowers it.
        tables: How reference tables are made and kept; a `SubjectStore` in its place is shared
            with other pipelines.
        variant: Of the pair inside the package: `full`, or `fast`, its student, which draws in
            a few steps of one row each.
        pair: LoRAs, controls and other parts that are loaded beside the folder, the decoder, and
            who must have signed it.

    Raises:
        CheckpointError: The folder is not a usable pair, or a LoRA or a control does not fit it.
        BackendUnavailable: A package or the device is missing.
        ParameterError: An argument is unknown or out of range, or the pair has no such decoder.
    """

    def __init__(
        self,
        model: str | PathLike[str] | None = None,
        *,
        backend: str | BackendOptions = "auto",
        device: str = "auto",
        background_remover: BackgroundRemover | None = None,
        max_batch: int = 8,
        tables: TableOptions | SubjectStore | None = None,
        variant: Variant = "full",
        pair: PairOptions | None = None,
    ) -> None:
        """Load the pair."""
        pair = PairOptions() if pair is None else pair
        max_batch = check_int("max_batch", max_batch, 1, 1024, "8 is usual")
        if not isinstance(tables, TableOptions | SubjectStore | None):
            raise ParameterError(
                f"tables is of type {type(tables).__name__}, expected TableOptions or a "
                "SubjectStore, such as TableOptions(folder=...)"
            )
        store = tables if isinstance(tables, SubjectStore) else SubjectStore(tables)
        if model is None:
            kinds, others = take_packaged(pair.controls)
            pair = replace(pair, controls=others)
            self._folder = packaged_model(variant, kinds)
        elif variant == "full":
            self._folder = Path(model)
        else:
            raise ParameterError(
                f"got variant {variant!r} and a model, expected one of them: variants are of the "
                "pair inside the package; a student of another pair is a folder of its own"
            )
        loaded = create_backend(backend, self._folder, device=device, pair=pair)
        if pair.decoder not in loaded.spec.decoders:
            raise ParameterError(
                f"decoder is {pair.decoder}, but {self._folder} has no {TINY_VAE}; put the folder "
                "of an AutoencoderTiny there, build a bundle of it again, or leave the decoder out"
            )
        super().__init__(
            loaded, store, background_remover, max_batch=max_batch, decoder=pair.decoder
        )

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
        num_images_per_prompt: int = 1,
        seed: int | Sequence[int] | None = None,
        solver: str | None = None,
        merge: str | None = None,
        reference_schedule: ReferenceSchedule | str | None = None,
        guidance_interval: tuple[float, float] = WHOLE,
        approximation: Approximation | str = "none",
        width: int | None = None,
        height: int | None = None,
        sizes: tuple[int, ...] | None = None,
        image: ImageSource | None = None,
        mask_image: ImageSource | None = None,
        strength: float | None = None,
        mask_edge_px: int | None = None,
        control_image: ControlImages = None,
        control_scale: ControlScales = 1.0,
        control_interval: ControlIntervals = WHOLE,
        tenant: str = "",
        on_event: OnEvent | None = None,
    ) -> GenerationResult:
        """Draw one subject as one or more prompts say.

        Args:
            prompt: "a photo of a dog, on a beach", or a list of such prompts.
            reference_images: One or more pictures of the subject.
            subject: What `encode_subject` returned, in place of reference images.
            reference_prompt: What the reference images show, "a photo of a dog". Without it the
                prompt up to its first comma is taken, and logged.
            negative_prompt: What to stay away from.
            num_inference_steps: T, 1 to 1000; the pair's default (25) if left out.
            image_guidance_scale: How closely to follow the reference, 0 to 100; 1 is no guidance.
            text_guidance_scale: How closely to follow the prompt, 0 to 100; 1 is no guidance.
            num_images_per_prompt: 1 to 64.
            seed: One seed, from which the pictures of the call count on, or one for each prompt.
                A picture depends on its own seed alone, never on the batch that it is drawn in.
            solver: `ddim`, `dpmpp_2m` or `unipc`.
            merge: How several references are combined: `argmax`, `softmax`, `mean`, `concat`.
            reference_schedule: `exact`, `clean`, `anchor:T`, `stride:K` or `window:A-B`, see
                `ReferenceSchedule`.
            guidance_interval: Share of the steps with guidance, (0.0, 1.0) for all of them.
            approximation: `none`, `cache:K` or `cache:K+window:A-B`, see `Approximation`.
            width: Of the pictures, in pixels.
            height: Of the pictures, in pixels.
            sizes: What a pair of Stable Diffusion XL is told of them, see `Request`.
            image: A picture to draw into, or from; it gives the pictures their size.
            mask_image: Black and white, of the same size: white is drawn, black comes out as it
                is. Without it all of the image is drawn over.
            strength: Share of the steps that are done, over 0 up to 1: how much of what is drawn
                over may change. By default 1 with a mask, 0.8 without.
            mask_edge_px: Pixels inside the mask over which what is drawn fades into the image, 0 to
                256; by default as many as a latent is wide.
            control_image: Maps that the pictures follow, by the kind of the control that reads
                them, such as `{"depth": "depth.png"}`; they give the pictures their size.
            control_scale: How closely maps are followed, 0 to 10: a number for all of them, or one
                for each, in order or by kind. 1 is as the control was trained.
            control_interval: Share of the steps in which maps are followed, likewise.
            tenant: Whose call it is: tenants never share tables.
            on_event: Called with a `ReferenceEvent` after each launch of a reference pass and with
                a `StepEvent` after each step; what it raises ends the call.

        Returns:
            Pictures in the order of the prompts, with all their parameters.

        Raises:
            InputError: An argument cannot be used; says which, and what to do.
            SubjectMismatch: The subject was encoded with another pair.
            Cancelled: `on_event` asked for it.
            NumericalError: The model produced NaN or Inf.
        """
        prompts = _per_prompt(prompt, seed, num_images_per_prompt)
        timings = Timings()
        canvas = None
        if image is not None:
            canvas = Canvas.load(image, mask_image)
        elif mask_image is not None:
            raise ParameterError("mask_image is given without an image; give both, or neither")
        controls: tuple[Control, ...] = ()
        if control_image is not None or control_scale != 1.0 or control_interval != WHOLE:
            controls = load_controls(control_image, control_scale, control_interval)
        if subject is None:
            if reference_prompt is None:
                reference_prompt = class_phrase([one for one, _ in prompts])
            start = time.perf_counter()
            subject = encode(
                reference_images,
                reference_prompt,
                0,
                backend=self._backend,
                tokenizer=self._tokenizer,
                background_remover=self._background_remover,
            )
            timings.encode_ms = 1e3 * (time.perf_counter() - start)
        elif reference_images is not None or reference_prompt is not None:
            raise ParameterError(
                "got a subject together with reference images or a reference prompt, expected one "
                "or the other; a subject holds both"
            )
        requests = [
            Request(
                prompt=one,
                subject=subject,
                negative_prompt=negative_prompt,
                num_inference_steps=num_inference_steps,
                image_guidance_scale=image_guidance_scale,
                text_guidance_scale=text_guidance_scale,
                num_images_per_prompt=num_images_per_prompt,
                seed=first_seed,
                solver=solver,
                merge=merge,
                reference_schedule=reference_schedule,
                guidance_interval=guidance_interval,
                approximation=approximation,
                width=width,
                height=height,
                sizes=sizes,
                canvas=canvas,
                strength=strength,
                mask_edge_px=mask_edge_px,
                controls=controls,
                tenant=tenant,
            )
            for one, first_seed in prompts
        ]
        return self._draw(requests, on_event, timings)

    def generate(
        self, requests: Sequence[Request], *, on_event: OnEvent | None = None
    ) -> GenerationResult:
        """Draw requests that may differ in everything.

        They share batches as far as size and merge allow, with each other and with whatever else
        the engine draws, and each gives the picture that it gives alone.

        Args:
            requests: One or more.
            on_event: As in a call.

        Returns:
            Pictures in the order of the requests.

        Raises:
            ParameterError: No requests, or one that the pair cannot do: then none is drawn.
            SubjectMismatch: A subject was encoded with another pair.
            Cancelled: `on_event` asked for it.
            NumericalError: The model produced NaN or Inf.
        """
        if not requests:
            raise ParameterError("no requests, expected at least one")
        return self._draw(list(requests), on_event, Timings())

    def _draw(
        self, requests: Sequence[Request], on_event: OnEvent | None, timings: Timings
    ) -> GenerationResult:
        results = self.engine.draw(requests, timings=timings, on_event=on_event)
        return GenerationResult.joined(results, replace(timings))

    @overload
    def map(
        self, requests: Iterable[Request], *, on_error: Literal["raise"] = ...
    ) -> Iterator[GenerationResult]: ...

    @overload
    def map(
        self, requests: Iterable[Request], *, on_error: Literal["raise", "return"]
    ) -> Iterator[GenerationResult | Exception]: ...

    def map(
        self, requests: Iterable[Request], *, on_error: Literal["raise", "return"] = "raise"
    ) -> Iterator[Any]:
        """Draw a stream of requests, each with a result of its own, in their order.

        A slow stream holds up no picture: it is read on a thread of its own, as far ahead as is
        needed to keep the batch full.

        Args:
            requests: Where they come from.
            on_error: `raise` ends the stream with what a request failed with, after the results
                before it. `return` gives the error out in the place of the result, and goes on.

        Raises:
            BootPIGError: A request failed.
        """
        check_name("on_error", on_error, ("raise", "return"))
        return draw_stream(self.engine, requests, returns_errors=on_error == "return")

    def serve(self, options: EngineOptions | None = None) -> Engine:
        """Run the engine on a thread of its own until it is closed.

            with pipe.serve() as engine:
                job = engine.submit(request, deadline_s=30)

        Args:
            options: How many may wait, and what one request may ask for.

        Raises:
            ParameterError: It is being served already.
        """
        if options is not None:
            self.engine.options = options
        return self.engine.start()

    def tune(
        self,
        *,
        target_ms: float | None = None,
        min_fidelity: float | None = None,
        curve: str | PathLike[str] | None = None,
        students: bool = False,
    ) -> TunedSettings:
        """Choose cheaper settings from the pair's measured curve, for this machine.

        With `target_ms` the most faithful settings that are quick enough, with `min_fidelity` the
        quickest that are faithful enough, with both the quickest of those. What a step takes here
        is measured with a few short pictures. Nothing is set: use it as `pipe(prompt, **settings)`.

        Args:
            target_ms: The most that a picture of a known subject may take, one at a time.
            min_fidelity: The least that it must keep, 0 to 1: 1 is as faithful to its subject as
                the full setting, 0 as a picture that never saw it.
            curve: The file; by default that beside the pair's folder.
            students: Take few-step pairs of the curve into account. If one is chosen, it draws in a
                pipeline of its own, see `TunedSettings.is_student`.

        Returns:
            Settings that say what they cost: `print(settings.describe())`.

        Raises:
            ParameterError: No curve, one of another pair, or nothing on it will do.
            CheckpointError: The file is no curve.
        """
        check_wishes(target_ms, min_fidelity)
        found = load_curve(curve_path(self._folder) if curve is None else Path(curve))
        return tune(
            found,
            self.spec,
            self.engine,
            Request(prompt=DISC_PROMPT, subject=self._disc(1), seed=0),
            target_ms=target_ms,
            min_fidelity=min_fidelity,
            students=students,
        )

    def close(self) -> None:
        """End the engine, write what is still to be written, and let go of the device's memory."""
        self.engine.close(drain=False)
        self.store.flush()
        self.store.forget(self._backend)

    def __enter__(self) -> Self:
        """Close it at the end of the block."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close it."""
        self.close()


def class_phrase(prompts: Sequence[str]) -> str:
    """A reference prompt for a call that gives none: the prompt up to its first comma.

    The published trainer takes it from its captions in the same way. Never silent: a log line says
    what was taken.

    Raises:
        PromptError: The prompts begin differently.
    """
    phrases = {prompt.partition(",")[0].strip() for prompt in prompts}
    if len(phrases) > 1:
        raise PromptError(
            f"the prompts begin with {len(phrases)} different phrases, so it is not clear what the "
            'reference shows; pass reference_prompt, such as "a photo of a dog"'
        )
    phrase = phrases.pop()
    if phrase == prompts[0].strip():
        logger.warning(
            "no reference prompt and no comma in the prompt: the reference is read as %r; better "
            'say what it shows, such as reference_prompt="a photo of a dog"',
            phrase,
        )
    else:
        logger.info("no reference prompt: the reference is read as %r, from the prompt", phrase)
    return phrase


def _per_prompt(prompt: object, seed: Any, num_images: int) -> list[tuple[str, int | None]]:
    """One prompt or several, each with the first seed of its pictures.

    One seed counts on over all pictures of the call; without any, each prompt draws its own.

    Raises:
        PromptError: No prompt, or one that cannot be used.
        ParameterError: A seed out of range, or not one for each prompt.
    """
    given: list[Any] = [prompt]
    if isinstance(prompt, Sequence) and not isinstance(prompt, str):
        given = list(prompt)
    if not given:
        raise PromptError("prompt is an empty list, expected at least one prompt")
    prompts = [check_prompt(one) for one in given]
    if seed is None:
        return [(one, None) for one in prompts]
    if not isinstance(seed, list | tuple):
        first = check_seed(seed)
        return [(one, wrap_seed(first + n * num_images)) for n, one in enumerate(prompts)]
    if len(seed) != len(prompts):
        raise ParameterError(f"{len(seed)} seeds for {len(prompts)} prompts, expected one for each")
    return [(one, check_seed(own)) for one, own in zip(prompts, seed, strict=True)]
