"""A bootstrap with real models: the shipped pair draws its world, GrabCut cuts out."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from bootpig_rt.training.bootstrap.run import bootstrap
from bootpig_rt.training.shards import read_samples


@pytest.mark.slow
def test_what_the_shipped_pair_draws_is_cut_out_where_its_caption_says(
    bootstrap_config: Any,
) -> None:
    config = bootstrap_config(
        captions={"source": "world", "count": 48},
        pictures={"source": "pair", "batch_size": 8},
        masks={"source": "grabcut"},
        filters={"min_area": 0.04, "max_area": 0.6},
        part_size=48,
    )
    outcome = bootstrap(config)
    assert outcome["samples"] >= 24, outcome["rejects"]
    middle = []
    centres: dict[str, list[float]] = {}
    for sample in read_samples(config.output_folder):
        _, columns = np.nonzero(sample.mask)
        centres.setdefault(sample.record["position"], []).append(float(columns.mean()) / 64)
        middle.append(float((sample.mask[24:40, 16:48] > 0).mean()))
        (reference,) = sample.references
        assert (reference[0] == 255).all()
    assert np.mean(centres["on the left of"]) < 0.45
    assert np.mean(centres["on the right of"]) > 0.55
    assert 0.45 < np.mean(centres["in the middle of"]) < 0.55
    assert np.mean(middle) > 0.5
