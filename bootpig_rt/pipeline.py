"""Pipeline: reference images and a prompt in, pictures of that subject in a new scene out.

The main path, top to bottom: a call becomes requests, requests become jobs of the engine, and the
engine draws them, whoever else is asking. It computes nothing itself: the backend does, behind one
seam. A pipeline holds no state of a call, so one may be used from several threads at once.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from os import PathLike
from pathlib import Path
from typing import Any, Literal, Self, overload

from PIL import Image, ImageDraw

from bootpig_rt.approximation import Approximation
from bootpig_rt.backends import create_backend
from bootpig_rt.backends.base import DECODERS, Backend, Decoder, PairSpec
from bootpig_rt.backends.host_table import TableDtype, table_bytes
from bootpig_rt.backends.options import BackendOptions
from bootpig_rt.bundle.lora import LoraArgument, to_loras
from bootpig_rt.bundle.pair_config import TINY_VAE
from bootpig_rt.checks import check_int, check_name, check_prompt, check_seed, wrap_seed
from bootpig_rt.curve import curve_path, load_curve, settings_of
from bootpig_rt.engine.engine import Engine
from bootpig_rt.engine.events import OnEvent, ReferenceEvent
from bootpig_rt.engine.options import EngineOptions
from bootpig_rt.engine.stream import Stream
from bootpig_rt.errors import (
    CheckpointError,
    ParameterError,
    PromptError,
)
from bootpig_rt.images.background import BackgroundRemover
from bootpig_rt.images.canvas import Canvas
from bootpig_rt.images.image_input import MAX_PIXELS
from bootpig_rt.images.picture import ImageSource, from_prepared, to_pil
from bootpig_rt.reference.encode import encode, encode_pixels, prepare
from bootpig_rt.reference.reference_pass import make_table
from bootpig_rt.reference.reference_table import ReferenceTable
from bootpig_rt.reference.schedule import WHOLE, ReferenceSchedule
from bootpig_rt.reference.subject import Subject
from bootpig_rt.reference.table_options import TableOptions
from bootpig_rt.request import GenerationResult, Request, Timings
from bootpig_rt.storage.store import SubjectStore
from bootpig_rt.text.tokenizer import Tokenizer
from bootpig_rt.tuning import TunedSettings, check_wishes, choose, measure_times

logger = logging.getLogger(__name__)


class Pipeline:
    """A pair, loaded and ready to draw. Close it, or use it in a `with` block.

    Args:
        model: Folder of a pair or a bundle; the pair inside the package by default.
        backend: `auto`, the name of a backend, or its options, such as
            `OnnxRuntimeOptions(intra_op_threads=2)` or `TorchOptions(precision="bfloat16")`.
        device: `auto`, `cpu`, `cuda` or `cuda:N`.
        base_model: A Stable Diffusion folder, for pairs in the published layout, which hold the
            two U-Nets alone.
        background_remover: Cuts the subject out of reference images without transparency.
        max_batch: Pictures drawn at once. Bounds memory and changes no picture. A bundle that was
            built for fewer lowers it.
        tables: How reference tables are made and kept; a `SubjectStore` in its place is shared
            with other pipelines.
        trust: Ed25519 public key, PEM; only a bundle that was signed with the private key that
            belongs to it is loaded.
        lora: LoRAs of the base model, fused into the weights: paths, texts such as
            `style.safetensors:0.8`, or `Lora(path, scale)`. It needs weights and torch; a bundle
            that was built with them needs neither.
        decoder: What makes pictures of latents: `full`, the pair's autoencoder, or `tiny`, its tiny
            one, many times quicker and less exact. Which one it was is written into each picture.

    Raises:
        CheckpointError: The folder is not a usable pair, or a LoRA does not fit it.
        BackendUnavailable: A package or the device is missing.
        ParameterError: An argument is unknown or out of range, or the pair has no such decoder.
    """

    def __init__(
        self,
        model: str | PathLike[str] | None = None,
        *,
        backend: str | BackendOptions = "auto",
        device: str = "auto",
        base_model: str | PathLike[str] | None = None,
        background_remover: BackgroundRemover | None = None,
        max_batch: int = 8,
        tables: TableOptions | SubjectStore | None = None,
        trust: str | PathLike[str] | None = None,
        lora: LoraArgument = None,
        decoder: Decoder = "full",
    ) -> None:
        """Load the pair."""
        check_name("decoder", decoder, DECODERS)
        max_batch = check_int("max_batch", max_batch, 1, 1024, "8 is usual")
        if not isinstance(tables, TableOptions | SubjectStore | None):
            raise ParameterError(
                f"tables is of type {type(tables).__name__}, expected TableOptions or a "
                "SubjectStore, such as TableOptions(folder=...)"
            )
        self.store = tables if isinstance(tables, SubjectStore) else SubjectStore(tables)
        self._folder = default_model() if model is None else Path(model)
        self._backend: Backend = create_backend(
            backend,
            self._folder,
            device=device,
            base_model=None if base_model is None else Path(base_model),
            trust=None if trust is None else Path(trust),
            loras=to_loras(lora),
        )
        if decoder not in self.spec.decoders:
            raise ParameterError(
                f"decoder is {decoder}, but {self._folder} has no {TINY_VAE}; put the folder of an "
                "AutoencoderTiny there, build a bundle of it again, or leave the decoder out"
            )
        self._decoder: Decoder = decoder
        self._background_remover = background_remover
        self._tokenizer = Tokenizer.from_folder(self.spec.tokenizer_folder)
        self.engine = self._engine(self.store, max_batch)

    @property
    def spec(self) -> PairSpec:
        """What is known about the pair: its size, defaults, limits and fingerprint."""
        return self._backend.spec

    @property
    def backend_name(self) -> str:
        """Name of what computes: `onnxruntime`, `torch` or `tensorrt`."""
        return self._backend.name

    @property
    def device(self) -> str:
        """Where it computes: `cpu` or `cuda:N`."""
        return self._backend.device

    @property
    def max_batch(self) -> int:
        """Pictures that are drawn at once."""
        return self.engine.max_batch

    @property
    def table_dtype(self) -> TableDtype:
        """How tables keep their numbers."""
        return self.store.options.dtype or self.spec.table_dtype

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
        image: ImageSource | None = None,
        mask_image: ImageSource | None = None,
        strength: float | None = None,
        mask_edge_px: int | None = None,
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
            image: A picture to draw into, or from; it gives the pictures their size.
            mask_image: Black and white, of the same size: white is drawn, black comes out as it
                is. Without it all of the image is drawn over.
            strength: Share of the steps that are done, over 0 up to 1: how much of what is drawn
                over may change. By default 1 with a mask, 0.8 without.
            mask_edge_px: Pixels inside the mask over which what is drawn fades into the image, 0 to
                256; by default as many as a latent is wide.
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
        prompts = _prompts(prompt)
        seeds = _seeds(seed, len(prompts), num_images_per_prompt)
        timings = Timings()
        canvas = None
        if image is not None:
            canvas = Canvas.load(image, mask_image)
        elif mask_image is not None:
            raise ParameterError("mask_image is given without an image; give both, or neither")
        if subject is None:
            if reference_prompt is None:
                reference_prompt = class_phrase(prompts)
            start = time.perf_counter()
            subject = self._encode(reference_images, reference_prompt, 0)
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
                canvas=canvas,
                strength=strength,
                mask_edge_px=mask_edge_px,
                tenant=tenant,
            )
            for one, first_seed in zip(prompts, seeds, strict=True)
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
        jobs = self.engine.submit_all(requests, timings=timings, on_event=on_event)
        try:
            self.engine.drive(jobs)
            results = [job.result() for job in jobs]
        except BaseException:  # one failed, or Ctrl-C: nobody will ask for the others
            for job in jobs:
                job.cancel()
            raise
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
        return self._map(requests, on_error)

    def _map(self, requests: Iterable[Request], on_error: str) -> Iterator[Any]:
        stream = Stream(self.engine, requests)
        try:
            for job in stream:
                self.engine.drive([job])
                error = job.exception() if not job.cancelled() else None
                if on_error == "return" and isinstance(error, Exception):
                    yield error
                else:
                    yield job.result()
        finally:
            stream.close()  # the reader left, or a request failed

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

    def encode_subject(
        self,
        images: ImageSource | Sequence[ImageSource],
        reference_prompt: str,
        *,
        noise_seed: int = 0,
        keep_table: bool = False,
        num_inference_steps: int | None = None,
        solver: str | None = None,
        reference_schedule: ReferenceSchedule | str | None = None,
        tenant: str = "",
        max_image_pixels: int = MAX_PIXELS,
        on_event: OnEvent | None = None,
    ) -> Subject:
        """Encode reference images once, for any number of calls.

        Where one table serves all steps, or the arguments say which is wanted, the table is made as
        well.

        Args:
            images: One or more pictures of the subject.
            reference_prompt: What they show, "a photo of a dog".
            noise_seed: Of the noise added to the reference by the schedules that add any.
            keep_table: The subject keeps its table, and can be saved with it.
            num_inference_steps: Of the table, for schedules that depend on them.
            solver: Likewise.
            reference_schedule: Of the table; the pair's own by default.
            tenant: Whose requests find the table: those with the same `tenant`.
            max_image_pixels: A larger image is refused. Reading one takes about six bytes of memory
                a pixel, and a file of a few kilobytes may hold many.
            on_event: Called with a `ReferenceEvent` after each launch of the pass.

        Raises:
            ImageError: No image, or one that cannot be used.
            PromptError: The reference prompt is empty.
            ParameterError: Too many images, a seed out of range, or a tenant that is no text.
        """
        usual = f"{MAX_PIXELS} is usual"
        most = check_int("max_image_pixels", max_image_pixels, 64, 1 << 28, usual)
        noise_seed = check_seed(noise_seed, "noise_seed")
        subject = self._encode(images, reference_prompt, noise_seed, max_pixels=most)
        request = Request(
            prompt=reference_prompt,
            subject=subject,
            num_inference_steps=num_inference_steps,
            solver=solver,
            reference_schedule=reference_schedule,
            tenant=tenant,
        )
        plan = self.engine.planner.plan(request).table
        assert plan is not None
        is_asked_for = keep_table or num_inference_steps or solver or reference_schedule
        if not is_asked_for and len(plan.key.timesteps) > 1:
            return subject
        table, _ = self.store.table(
            subject,
            plan.key,
            lambda: make_table(
                plan,
                backend=self._backend,
                tokenizer=self._tokenizer,
                rows_per_launch=self.store.options.rows_per_launch,
                progress=on_event and (lambda done, of: on_event(ReferenceEvent(done, of))),
            ),
            backend=self._backend,
            tenant=tenant,
            is_resident=plan.is_resident,
        )
        if not keep_table:
            return subject
        host = self._backend.download_table(table.data)
        return replace(subject, tables=(ReferenceTable.on_host(table.key, host),))

    def prepare_references(
        self,
        images: ImageSource | Sequence[ImageSource],
        *,
        max_image_pixels: int = MAX_PIXELS,
        warn: Callable[[str], object] = logger.warning,
    ) -> list[Image.Image]:
        """What the pair will see of reference images: cut out, cropped, on white squares.

        Args:
            images: One or more pictures of the subject.
            max_image_pixels: A larger image is refused.
            warn: Hears of an image whose subject was not found, so that it is taken whole.

        Raises:
            ImageError: No image, or one that cannot be used.
            ParameterError: Too many images.
        """
        pixels = prepare(
            images, self.spec, self._background_remover, max_pixels=max_image_pixels, warn=warn
        )
        return to_pil(pixels)

    def encode_prepared(
        self, prepared: Sequence[Image.Image], reference_prompt: str, *, noise_seed: int = 0
    ) -> Subject:
        """The subject of what `prepare_references` returned; no table is made yet.

        Raises:
            ImageError: A picture of another size or mode.
            PromptError: The reference prompt is empty.
        """
        return encode_pixels(
            from_prepared(prepared, self.spec.config.sample_size_px),
            reference_prompt,
            check_seed(noise_seed, "noise_seed"),
            backend=self._backend,
            tokenizer=self._tokenizer,
        )

    def num_tokens(self, prompt: str) -> tuple[int, int]:
        """Tokens of a prompt, begin and end included, and how many of them the pair reads.

        Raises:
            PromptError: Not text, or too long.
        """
        checked = check_prompt(prompt, allow_empty=True)
        return self._tokenizer.num_tokens(checked), self._tokenizer.max_length

    def table_bytes(
        self,
        num_references: int,
        *,
        num_inference_steps: int | None = None,
        solver: str | None = None,
        reference_schedule: ReferenceSchedule | str | None = None,
    ) -> int:
        """Bytes of the reference table of a subject, before it is made.

        Args:
            num_references: R.
            num_inference_steps: As in a call, and so are the others.
            solver: Likewise.
            reference_schedule: Likewise.
        """
        request = Request(
            prompt="any",
            num_inference_steps=num_inference_steps,
            solver=solver,
            reference_schedule=reference_schedule,
        )
        plan = self.engine.planner.plan(request)
        return table_bytes(
            self.spec.reference_shapes,
            num_entries=len(plan.schedule.timesteps(plan.solver.timesteps)),
            num_references=num_references,
            dtype=self.table_dtype,
        )

    def load_subject(self, path: str | PathLike[str]) -> Subject:
        """Read a subject's file and check that it is one of this pair.

        Raises:
            CheckpointError: Missing, damaged or changed.
            SubjectMismatch: Encoded with another pair or for another size.
        """
        subject = Subject.load(path)
        subject.check_for(self.spec)
        return subject

    def warmup(
        self,
        batch_sizes: Sequence[int] = (1,),
        num_references: Sequence[int] = (1,),
        *,
        num_inference_steps: int | None = None,
        solver: str | None = None,
        merge: str | None = None,
        width: int | None = None,
        height: int | None = None,
    ) -> float:
        """Draw one batch of each shape, so that the first request is as quick as the others.

        Whatever a backend makes once for a shape is made here: memory, chosen kernels, recorded
        graphs. A shape is the pictures of a batch, the references of their one subject, the size
        and the steps; guidance is that of the pair. The pictures and tables are thrown away.

        Args:
            batch_sizes: Pictures of a batch, each 1 to `max_batch`.
            num_references: Of the subject; 0 is a picture from its prompt alone.
            num_inference_steps: As in a call, and so are the others.
            solver: Likewise.
            merge: Likewise.
            width: Likewise.
            height: Likewise.

        Returns:
            Seconds that it took.

        Raises:
            ParameterError: A number is out of range, or more references than the pair takes.
        """
        most = self.spec.config.max_references
        for size in batch_sizes:
            check_int("batch_sizes", size, 1, self.max_batch, "raise max_batch for more")
        for count in num_references:
            check_int("num_references", count, 0, most, "what the pair takes")
        # A store of its own, without a folder: the user's keeps what it has.
        store = SubjectStore(self.store.options)
        store.folder = None
        engine = self._engine(store, self.max_batch)
        start = time.perf_counter()
        for count in num_references:
            subject = self._encode(_discs(count), _DISC_PROMPT, 0) if count else None
            for size in batch_sizes:
                request = Request(
                    prompt=_DISC_PROMPT,
                    subject=subject,
                    num_inference_steps=num_inference_steps,
                    solver=solver,
                    merge=merge,
                    width=width,
                    height=height,
                )
                jobs = engine.submit_all([request] * size, timings=Timings())
                engine.drive(jobs)
                for job in jobs:
                    job.result()
        return time.perf_counter() - start

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
        mine = self.spec.fingerprint
        if found.fingerprint != mine:
            raise ParameterError(
                f"the curve is of pair {found.pair} {found.fingerprint[:12]}, this is "
                f"{self.spec.config.name} {mine[:12]}; measure one with bootpig-rt tune --measure"
            )
        points = [p for p in found.points if students or p.fingerprint == mine]
        subject = self._encode(_discs(1), _DISC_PROMPT, 0)
        base = Request(prompt=_DISC_PROMPT, subject=subject, seed=0)

        def draw(**settings: Any) -> float:
            start = time.perf_counter()
            self.generate([replace(base, **settings)])
            return 1e3 * (time.perf_counter() - start)

        has_shallow = self.spec.keeps_features
        times = measure_times(draw, has_shallow=has_shallow)
        planned = []
        for point in points:
            settings = settings_of(point)
            if settings.approximation == "none" or has_shallow:
                plan = self.engine.planner.plan(replace(base, **settings))
                planned.append((point, times.picture_ms(plan)))
        return choose(found, planned, target_ms=target_ms, min_fidelity=min_fidelity)

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

    def _engine(self, store: SubjectStore, max_batch: int) -> Engine:
        return Engine(
            self._backend, self._tokenizer, store, max_batch=max_batch, decoder=self._decoder
        )

    def _encode(
        self,
        images: ImageSource | Sequence[ImageSource] | None,
        reference_prompt: str,
        noise_seed: int,
        max_pixels: int = MAX_PIXELS,
    ) -> Subject:
        return encode(
            images,
            reference_prompt,
            noise_seed,
            backend=self._backend,
            tokenizer=self._tokenizer,
            background_remover=self._background_remover,
            max_pixels=max_pixels,
        )


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


def _prompts(prompt: object) -> list[str]:
    """One prompt or several as a list."""
    prompts: list[Any] = [prompt]
    if isinstance(prompt, Sequence) and not isinstance(prompt, str):
        prompts = list(prompt)
    if not prompts:
        raise PromptError("prompt is an empty list, expected at least one prompt")
    return [check_prompt(one) for one in prompts]


def _seeds(seed: Any, count: int, num_images: int) -> list[int | None]:
    """The first seed of each prompt: one seed counts on over all pictures of the call."""
    if seed is None:
        return [None] * count
    if isinstance(seed, list | tuple):
        if len(seed) != count:
            raise ParameterError(f"{len(seed)} seeds for {count} prompts, expected one for each")
        return [check_seed(one) for one in seed]
    first = check_seed(seed)
    return [wrap_seed(first + index * num_images) for index in range(count)]


_DISC_PROMPT = "a photo of a disc"


def _discs(count: int) -> list[Image.Image]:
    """Reference images of a warm-up: grey discs, cut out, so that no remover is asked."""
    images = [Image.new("RGBA", (64, 64)) for _ in range(count)]
    for number, image in enumerate(images):
        grey = 40 + number % 8 * 20
        ImageDraw.Draw(image).ellipse((8, 8, 56, 56), fill=(grey, grey, grey, 255))
    return images


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
