"""Pipeline: reference images and a prompt in, pictures of that subject in a new scene out.

The main path, top to bottom: checks, subject, text states, reference tables, steps, pictures. It
computes nothing itself: the backend does, behind one seam. A pipeline holds no state of a call, so
one may be used from several threads at once.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from os import PathLike
from pathlib import Path
from typing import Any, Literal, overload

from PIL import Image

from bootpig_rt.arguments import class_phrase, prompts_of, seeds_of_prompts
from bootpig_rt.backends import create_backend
from bootpig_rt.backends.base import Backend, PairSpec, PassProgress
from bootpig_rt.backends.finite import check_finite
from bootpig_rt.backends.host_table import TableDtype, table_bytes
from bootpig_rt.checks import check_int, check_seed
from bootpig_rt.engine.batch import TextStates, texts_of
from bootpig_rt.engine.planner import Planner, Tables, check_params, params_for_pair
from bootpig_rt.engine.sampler import Progress, StepCallback, StepEvent, denoise
from bootpig_rt.engine.scheduler import Scheduler
from bootpig_rt.engine.warmup import PROMPT, discs, requests_of
from bootpig_rt.errors import CheckpointError, ParameterError
from bootpig_rt.images.background import BackgroundRemover
from bootpig_rt.images.picture import ImageSource, to_pil
from bootpig_rt.reference.encode import encode
from bootpig_rt.reference.reference_pass import TableOptions
from bootpig_rt.reference.subject import SavedTable, Subject
from bootpig_rt.request import Clock, GenerationResult, PictureParameters, Request, SamplingParams
from bootpig_rt.storage.folder import DEFAULT_BYTES, StoreFolder
from bootpig_rt.storage.store import SubjectStore
from bootpig_rt.text.tokenizer import Tokenizer

__all__ = ["GenerationResult", "Pipeline", "Request", "StepEvent"]

# Room for two tables of Stable Diffusion 2.1: 1.4 GB each at 512 px, float16, 30 steps.
_STREAMED_BYTES = 4 << 30


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
            changes no picture. A bundle that was built for fewer lowers it.
        reference_cache_bytes: Device memory for reference tables that are kept between calls.
        host_cache_bytes: Host memory for tables that leave the device for lack of room, and for
            streamed ones. None: 4 GiB with a `table_budget_bytes`, none without; with 0 a streamed
            table is computed anew in every call.
        table_dtype: How tables keep their numbers: `float32`, `float16`, `bfloat16`, `float8` or
            `int8`, the last two with a scale for each head. None: as the backend computes.
        table_budget_bytes: Device memory for the tables that one batch reads; a larger table
            stays on the host and is streamed step by step. None: no limit.
        reference_rows: Rows that go through the Reference U-Net at once: bounds its memory.
        store: Keeps tables, in place of one made from the sizes above; pipelines may share it.
        store_folder: Keeps tables on disk, between processes.
        store_bytes: Disk space for those tables; the least recently used ones are removed.
        backend_options: Settings of the backend, such as `{"intra_op_threads": 2}` or
            `{"precision": "bfloat16"}`; see `OnnxRuntimeOptions` in
            `bootpig_rt.backends.onnxruntime.sessions` and `TorchOptions` in
            `bootpig_rt.backends.options`.
        trust: Ed25519 public key, PEM; only a bundle that was signed with the private key that
            belongs to it is loaded.

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
        host_cache_bytes: int | None = None,
        table_dtype: TableDtype | None = None,
        table_budget_bytes: int | None = None,
        reference_rows: int = 16,
        store: SubjectStore | None = None,
        store_folder: str | PathLike[str] | None = None,
        store_bytes: int = DEFAULT_BYTES,
        backend_options: Mapping[str, Any] | None = None,
        trust: str | PathLike[str] | None = None,
    ) -> None:
        """Load the pair."""
        self.max_batch = check_int("max_batch", max_batch, 1, 1024, "8 is usual")
        options = TableOptions(table_dtype or "float32", table_budget_bytes, reference_rows)
        if store is None:
            if host_cache_bytes is None:
                host_cache_bytes = 0 if table_budget_bytes is None else _STREAMED_BYTES
            check_int("store_bytes", store_bytes, 0, 1 << 50, "0: keep no table")
            folder = None if store_folder is None else StoreFolder(Path(store_folder), store_bytes)
            store = SubjectStore(
                device_bytes=reference_cache_bytes, host_bytes=host_cache_bytes, folder=folder
            )
        self.store = store
        self._backend: Backend = create_backend(
            backend,
            default_model() if model is None else Path(model),
            device=device,
            base_model=None if base_model is None else Path(base_model),
            options=backend_options,
            trust=None if trust is None else Path(trust),
        )
        self.max_batch = min(self.max_batch, self.spec.max_batch or self.max_batch)
        if table_dtype is None:
            options = replace(options, dtype=self.spec.table_dtype)
        self._background_remover = background_remover
        self._tokenizer = Tokenizer.from_folder(self.spec.tokenizer_folder)
        self._texts = TextStates(self._backend, self._tokenizer)
        self._planner = Planner(
            self._backend, tokenizer=self._tokenizer, store=store, options=options
        )

    @property
    def spec(self) -> PairSpec:
        """What is known about the pair: its size, defaults, limits and fingerprint."""
        return self._backend.spec

    @property
    def table_dtype(self) -> TableDtype:
        """How tables keep their numbers."""
        return self._planner.options.dtype

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
        guidance_interval: tuple[float, float] = (0.0, 1.0),
        width: int | None = None,
        height: int | None = None,
        tenant: str = "",
        callback_on_step_end: StepCallback | None = None,
        progress: PassProgress | None = None,
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
            reference_schedule: `exact`, `clean`, `anchor:T`, `stride:K` or `window:A-B`, see
                `ReferenceSchedule`.
            guidance_interval: Share of the steps with guidance, (0.0, 1.0) for all of them.
            width: Of the pictures, in pixels.
            height: Of the pictures, in pixels.
            tenant: Whose call it is: tenants never share tables.
            callback_on_step_end: Called with a `StepEvent` after each step.
            progress: Called with (rows done, rows in all) in each reference pass; what it raises
                ends the call.

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
                guidance_interval=guidance_interval,
                tenant=tenant,
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
        return self._generate(requests, params, callback_on_step_end, clock, on_pass=progress)

    def generate(
        self,
        requests: Sequence[Request],
        params: SamplingParams | None = None,
        *,
        callback_on_step_end: StepCallback | None = None,
        progress: PassProgress | None = None,
    ) -> GenerationResult:
        """Draw requests that differ in prompt, subject, number of references, scales and seed.

        They share batches, and each gives the picture that it gives alone. A request without a
        subject is drawn from its prompt.

        Args:
            requests: One or more.
            params: What they share; from `sampling_params()` by default.
            callback_on_step_end: Called with a `StepEvent` after each step.
            progress: Called with (rows done, rows in all) in each reference pass; what it raises
                ends the call.

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
        return self._generate(
            list(requests), params, callback_on_step_end, Clock(), on_pass=progress
        )

    @overload
    def map(
        self,
        requests: Iterable[Request],
        params: SamplingParams | None = ...,
        *,
        on_error: Literal["raise"] = ...,
    ) -> Iterator[GenerationResult]: ...

    @overload
    def map(
        self,
        requests: Iterable[Request],
        params: SamplingParams | None = ...,
        *,
        on_error: Literal["raise", "return"],
    ) -> Iterator[GenerationResult | Exception]: ...

    def map(
        self,
        requests: Iterable[Request],
        params: SamplingParams | None = None,
        *,
        on_error: Literal["raise", "return"] = "raise",
    ) -> Iterator[Any]:
        """Draw a stream of requests, each with a result of its own, in their order.

        Requests join the running batch between two steps and leave it when they are done, see
        `Scheduler`. Each gives the picture that it gives alone.

        Args:
            requests: Read as far ahead as is needed to keep the batch full.
            params: What they share; from `sampling_params()` by default.
            on_error: `raise` ends the stream with what a request failed with, after the results
                before it. `return` gives the error out in the place of the result, and goes on.

        Raises:
            BootPIGError: A request failed.
        """
        params = self.sampling_params() if params is None else params
        return self.scheduler().map(requests, params, on_error=on_error)

    def scheduler(self) -> Scheduler:
        """A scheduler over this pipeline's backend and store."""
        return Scheduler(self._planner, self._texts, max_batch=self.max_batch)

    def warmup(
        self,
        batch_sizes: Sequence[int] = (1,),
        num_references: Sequence[int] = (1,),
        params: SamplingParams | None = None,
    ) -> float:
        """Draw one batch of each shape, so that the first request is as quick as the others.

        Whatever a backend makes once for a shape is made here: memory, chosen kernels, recorded
        graphs. A shape is the pictures of a batch, the references of their one subject, the size
        and the steps; guidance is that of the pair. The pictures and tables are thrown away.

        Args:
            batch_sizes: Pictures of a batch, each 1 to `max_batch`.
            num_references: Of the subject; 0 is a picture from its prompt alone.
            params: Steps, solver, merge and size; from `sampling_params()` by default.

        Returns:
            Seconds that it took.

        Raises:
            ParameterError: A number is out of range, or more references than the pair takes.
        """
        params = self.sampling_params() if params is None else params
        most = self.spec.config.max_references
        for size in batch_sizes:
            check_int("batch_sizes", size, 1, self.max_batch, "raise max_batch for more")
        for count in num_references:
            check_int("num_references", count, 0, most, "what the pair takes")
        # A store of its own: the user's keeps what it has.
        planner = Planner(
            self._backend,
            tokenizer=self._tokenizer,
            store=SubjectStore(),
            options=self._planner.options,
        )
        start = time.perf_counter()
        for count in num_references:
            subject = self._encode(discs(count), PROMPT, 0) if count else None
            for size in batch_sizes:
                self._generate(requests_of(size, subject), params, None, Clock(), planner=planner)
        return time.perf_counter() - start

    def encode_subject(
        self,
        images: ImageSource | Sequence[ImageSource],
        reference_prompt: str,
        *,
        noise_seed: int = 0,
        keep_table: bool = False,
        params: SamplingParams | None = None,
        tenant: str = "",
        progress: PassProgress | None = None,
    ) -> Subject:
        """Encode reference images once, for any number of calls.

        Where one table serves all steps it is computed here as well.

        Args:
            images: One or more pictures of the subject.
            reference_prompt: What they show, "a photo of a dog".
            noise_seed: Of the noise added to the reference by the schedules that add any.
            keep_table: The subject keeps its table for `params`, and can be saved with it.
            params: Steps, solver and reference schedule of that table.
            tenant: Whose requests find the table that is computed here.
            progress: Called with (passes done, passes in all); what it raises ends the call.

        Raises:
            ImageError: No image, or one that cannot be used.
            PromptError: The reference prompt is empty.
            ParameterError: Too many images, a seed out of range, or a tenant that is no text.
        """
        if not isinstance(tenant, str):
            raise ParameterError(f"tenant is of type {type(tenant).__name__}, expected text")
        subject = self._encode(images, reference_prompt, check_seed(noise_seed, "noise_seed"))
        needs_steps = params is not None or keep_table
        params = self.sampling_params() if params is None else params
        if needs_steps or params.reference_schedule.mode != "exact":
            solver = self._planner.solver(params.solver, params.num_inference_steps)
            schedule = params.reference_schedule
            table, _ = self._planner.table(subject, schedule, solver, tenant, progress=progress)
            if keep_table:
                host = self._backend.download_table(table.data)
                subject = replace(subject, tables=(SavedTable(table.key, host),))
        return subject

    def table_bytes(self, num_references: int, params: SamplingParams | None = None) -> int:
        """Bytes of the reference table of a subject, before it is made.

        Args:
            num_references: R.
            params: Steps, solver and reference schedule; `sampling_params()` by default.
        """
        params = self.sampling_params() if params is None else params
        solver = self._planner.solver(params.solver, params.num_inference_steps)
        return table_bytes(
            self.spec.reference_shapes,
            num_entries=len(params.reference_schedule.timesteps(solver.timesteps)),
            num_references=num_references,
            dtype=self._planner.options.dtype,
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
        return params_for_pair(
            self.spec,
            num_inference_steps=num_inference_steps,
            solver=solver,
            merge=merge,
            reference_schedule=reference_schedule,
            width_px=width,
            height_px=height,
        )

    def _encode(
        self,
        images: ImageSource | Sequence[ImageSource] | None,
        reference_prompt: str,
        noise_seed: int,
    ) -> Subject:
        return encode(
            images,
            reference_prompt,
            noise_seed,
            backend=self._backend,
            tokenizer=self._tokenizer,
            background_remover=self._background_remover,
        )

    def _generate(
        self,
        requests: Sequence[Request],
        params: SamplingParams,
        callback: StepCallback | None,
        clock: Clock,
        *,
        on_pass: PassProgress | None = None,
        planner: Planner | None = None,
    ) -> GenerationResult:
        check_params(self.spec, params)
        planner = self._planner if planner is None else planner
        pictures = [picture for request in requests for picture in request.split()]
        batches = planner.batches(pictures, params, self.max_batch)
        steps = [p.num_inference_steps or params.num_inference_steps for p in pictures]
        progress = Progress(callback, sum(max(steps[b.start : b.stop]) for b in batches))
        tables: Tables = {}
        images: list[Image.Image] = []
        parameters: list[PictureParameters] = []
        passes = 0
        for numbers in batches:
            if planner.options.budget_bytes is not None:
                tables = {}  # those of the batch before make room
            with clock.stage("reference"):
                flights, new = planner.flights(
                    [pictures[n] for n in numbers], params, tables, progress=on_pass
                )
                passes += new
            with clock.stage("text"):
                self._texts.of(texts_of(flights))
            with clock.stage("denoise"):
                latents = denoise(
                    self._backend, flights, texts=self._texts, progress=progress, pictures=numbers
                )
            with clock.stage("decode"):
                pixels = check_finite(self._backend.decode(latents), "the image decoder")
                images += to_pil(pixels)
            parameters += [planner.parameters(flight, params) for flight in flights]
        return GenerationResult(images, parameters, clock.timings(), passes)


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
