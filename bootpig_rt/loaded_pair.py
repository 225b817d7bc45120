"""A loaded pair: what is known of it, its subjects and tables, and what a shape needs once.

All of a pipeline but drawing what somebody asked for. It computes nothing: the backend does.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from os import PathLike

from PIL import Image

from bootpig_rt.backends.base import Backend, Decoder, PairSpec
from bootpig_rt.backends.host_table import TableDtype, table_bytes
from bootpig_rt.checks import check_int, check_prompt, check_seed
from bootpig_rt.engine.engine import Engine
from bootpig_rt.engine.events import OnEvent, ReferenceEvent
from bootpig_rt.engine.warmup import DISC_PROMPT, discs, warm_up
from bootpig_rt.images.background import BackgroundRemover
from bootpig_rt.images.image_input import MAX_PIXELS
from bootpig_rt.images.picture import ImageSource, from_prepared, to_pil
from bootpig_rt.reference.encode import encode, encode_pixels, prepare
from bootpig_rt.reference.reference_pass import make_table
from bootpig_rt.reference.reference_table import ReferenceTable
from bootpig_rt.reference.schedule import ReferenceSchedule
from bootpig_rt.reference.subject import Subject
from bootpig_rt.request import Request
from bootpig_rt.storage.store import SubjectStore

logger = logging.getLogger(__name__)


class LoadedPair:
    """A pair with its store and its engine.

    Args:
        backend: Computes.
        store: Keeps subjects and tables.
        background_remover: Cuts the subject out of reference images without transparency.
        max_batch: Pictures drawn at once.
        decoder: What makes pictures of latents.

    Attributes:
        store: Keeps subjects and tables.
        engine: Draws.
    """

    def __init__(
        self,
        backend: Backend,
        store: SubjectStore,
        background_remover: BackgroundRemover | None,
        *,
        max_batch: int,
        decoder: Decoder,
    ) -> None:
        """Read the vocabulary of the pair."""
        self._backend, self.store = backend, store
        self._background_remover = background_remover
        self._decoder = decoder
        self._tokenizer = self.spec.tokenizer()
        self.engine = self._engine(store, max_batch)

    def _engine(self, store: SubjectStore, max_batch: int) -> Engine:
        return Engine(
            self._backend, self._tokenizer, store, max_batch=max_batch, decoder=self._decoder
        )

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
        subject = encode(
            images,
            reference_prompt,
            noise_seed,
            backend=self._backend,
            tokenizer=self._tokenizer,
            background_remover=self._background_remover,
            max_pixels=most,
        )
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
        plan = self.engine.planner.plan(request, is_asked_for=False)
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
        request = Request(
            prompt=DISC_PROMPT,
            num_inference_steps=num_inference_steps,
            solver=solver,
            merge=merge,
            width=width,
            height=height,
        )
        # A store of its own, without a folder: the user's keeps what it has.
        store = SubjectStore(self.store.options)
        store.folder = None
        return warm_up(
            self._engine(store, self.max_batch),
            request,
            self._disc,
            most_references=self.spec.config.max_references,
            batch_sizes=batch_sizes,
            num_references=num_references,
        )

    def _disc(self, count: int) -> Subject:
        """Nobody's subject: grey discs, cut out, so that no remover is asked."""
        return encode(
            discs(count),
            DISC_PROMPT,
            0,
            backend=self._backend,
            tokenizer=self._tokenizer,
            background_remover=None,
        )
