"""From pictures on their way to one `DenoiseBatch`: rows, tables, references counted through."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from threading import Lock

import numpy as np

from bootpig_rt.backends.base import Backend, DenoiseBatch, DeviceArray
from bootpig_rt.flight import Flight, joint_state
from bootpig_rt.guidance import PictureBranches, plan_guidance
from bootpig_rt.reference_kv import ReferenceKV
from bootpig_rt.solver import BatchSolver
from bootpig_rt.text import Tokenizer

_KEPT_TEXTS = 8


class TextStates:
    """Text states of lists of prompts; the last few lists are kept. Safe to use from threads.

    Args:
        backend: Computes them.
        tokenizer: Of the pair.
    """

    def __init__(self, backend: Backend, tokenizer: Tokenizer) -> None:
        """Start empty."""
        self._backend, self._tokenizer = backend, tokenizer
        self._kept: OrderedDict[tuple[str, ...], DeviceArray] = OrderedDict()
        self._lock = Lock()

    def of(self, texts: tuple[str, ...]) -> DeviceArray:
        """[P, S, E], one entry a text."""
        with self._lock:
            if texts in self._kept:
                self._kept.move_to_end(texts)
                return self._kept[texts]
        states = self._backend.encode_text(self._tokenizer(list(texts)))
        with self._lock:
            self._kept[texts] = states
            while len(self._kept) > _KEPT_TEXTS:
                self._kept.popitem(last=False)
        return states


def texts_of(flights: Sequence[Flight]) -> tuple[str, ...]:
    """Distinct prompts and negative prompts, in order."""
    requests = [flight.plan.request for flight in flights]
    return tuple(dict.fromkeys(t for r in requests for t in (r.prompt, r.negative_prompt)))


def build_batch(
    flights: Sequence[Flight],
    num_steps: int,
    *,
    texts: Sequence[str],
    prompt_embeds: DeviceArray,
) -> DenoiseBatch:
    """Lay out the next steps of some pictures.

    Args:
        flights: Pictures of one size and one merge, none of them done.
        num_steps: T, steps in which no picture's rows change.
        texts: Distinct prompts and negative prompts.
        prompt_embeds: [P, S, E], text states of `texts`.
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
