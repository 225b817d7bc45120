"""From pictures on their way to one `DenoiseBatch`: rows, tables, references counted through."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from threading import Lock

import numpy as np

from bootpig_rt.backends.base import Backend, DenoiseBatch, FloatArray
from bootpig_rt.diffusion.solver import BatchSolver
from bootpig_rt.engine.flight import Flight, joint_state
from bootpig_rt.engine.guidance import PictureBranches, plan_guidance
from bootpig_rt.reference.reference_table import ReferenceKV
from bootpig_rt.text.tokenizer import Tokenizer

_KEPT_TEXTS = 64
"""20 MB at the sizes of SD 2.1."""


class TextStates:
    """Text states of prompts; those of the last few are kept on the host. Safe to use from threads.

    Args:
        backend: Computes them.
        tokenizer: Of the pair.
    """

    def __init__(self, backend: Backend, tokenizer: Tokenizer) -> None:
        """Start empty."""
        self._backend, self._tokenizer = backend, tokenizer
        self._kept: OrderedDict[str, FloatArray] = OrderedDict()
        self._lock = Lock()

    def of(self, texts: Sequence[str]) -> FloatArray:
        """float32 [P, S, E], one entry a text; those that are not kept take one launch."""
        with self._lock:
            states = {text: self._kept[text] for text in texts if text in self._kept}
        missing = [text for text in dict.fromkeys(texts) if text not in states]
        if missing:
            made = self._backend.encode_text(self._tokenizer(missing))
            for text, state in zip(missing, self._backend.download_states(made), strict=True):
                states[text] = state.copy()  # not a view, which would keep all of them
        with self._lock:
            for text, state in states.items():
                self._kept[text] = state
                self._kept.move_to_end(text)
            while len(self._kept) > max(_KEPT_TEXTS, len(states)):
                self._kept.popitem(last=False)
        return np.stack([states[text] for text in texts])


def texts_of(flights: Sequence[Flight]) -> tuple[str, ...]:
    """Distinct prompts and negative prompts, in order."""
    requests = [flight.plan.request for flight in flights]
    return tuple(dict.fromkeys(t for r in requests for t in (r.prompt, r.negative_prompt)))


def build_batch(
    flights: Sequence[Flight],
    num_steps: int,
    *,
    texts: Sequence[str],
    prompt_embeds: FloatArray,
) -> DenoiseBatch:
    """Lay out the next steps of some pictures.

    Args:
        flights: Pictures of one size and one merge, none of them done.
        num_steps: T, steps in which no picture's rows change.
        texts: Distinct prompts and negative prompts.
        prompt_embeds: float32 [P, S, E], text states of `texts`.
    """
    # A table is one slot for all pictures that read the same entries at the same steps. Pictures of
    # one subject that are at different steps have a slot each; the table itself is shared.
    slots: dict[tuple[int, tuple[int, ...]], tuple[ReferenceKV, int]] = {}
    branches = []
    count = 0
    for flight in flights:
        references: tuple[int, ...] = ()
        table = flight.plan.table
        if table is not None and flight.reads:
            entries = flight.entries[flight.step : flight.step + num_steps].tolist()
            slot = (id(table.data), tuple(entries))
            if slot not in slots:
                slots[slot] = (table, count)
                count += table.num_references
            first = slots[slot][1]
            references = tuple(range(first, first + table.num_references))
        image_scale, text_scale = flight.scales
        request = flight.plan.request
        branches.append(
            PictureBranches(
                prompt=texts.index(request.prompt),
                negative_prompt=texts.index(request.negative_prompt),
                references=references,
                image_guidance_scale=image_scale,
                text_guidance_scale=text_scale,
            )
        )
    rows = plan_guidance(branches)
    entry_of_step = np.array([entries for _, entries in slots], dtype=np.int64)
    return DenoiseBatch(
        latents=joint_state(flights)[0],
        prompt_embeds=prompt_embeds,
        text_of_row=rows.text_of_row,
        picture_of_row=rows.picture_of_row,
        ref_of_row=rows.ref_of_row,
        rows_of_picture=rows.rows_of_picture,
        image_guidance_scale=np.array([f.scales[0] for f in flights], dtype=np.float32),
        text_guidance_scale=np.array([f.scales[1] for f in flights], dtype=np.float32),
        tables=tuple(table.data for table, _ in slots.values()),
        num_references=tuple(table.num_references for table, _ in slots.values()),
        entry_of_step=entry_of_step.reshape(len(slots), num_steps),
        solver=BatchSolver.of(
            [flight.plan.solver for flight in flights],
            starts=[flight.step for flight in flights],
            num_steps=num_steps,
        ),
        merge=flights[0].plan.merge,
    )
