"""Measures the LoRA of the documentation: how far pictures go into its style, and what they keep.

    bootpig-rt fetch-data -o data
    python tests/tools/measure_style.py --data data

Draws the same pictures of subjects that training never saw with the LoRA at several scales, and
with a control: the same numbers in another order, each layer scaled to change its weight as much.
Prints the table of docs/how-to/loras.md, means by subject with 95 % intervals.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from tqdm import tqdm

from bootpig_rt.backends.pair_options import PairOptions
from bootpig_rt.benchmarks.judged import ends_of
from bootpig_rt.bundle.lora import Lora
from bootpig_rt.pipeline import Pipeline
from bootpig_rt.request import Request
from bootpig_rt.training.evaluation.alignment import AlignmentJudge
from bootpig_rt.training.evaluation.efficientnet import load_efficientnet
from bootpig_rt.training.evaluation.identity import (
    Candidates,
    FeatureJudge,
    IdentityJudge,
    network_features,
)
from bootpig_rt.training.evaluation.suite import (
    SUITES,
    EvalSubject,
    Shot,
    caption_of,
    choose_subjects,
    main_shots,
    reference_pictures,
    stream,
)
from bootpig_rt.training.splits import load_splits
from bootpig_rt.training.sprites import load_sprites
from tests.tools.style_lora import STYLE, cyanotype

CONFIG = replace(SUITES["small"], identities=12, concepts=8, prompts=2, seeds=1)
HEADER = ("", "from the style's colours", "own subject, network", "own subject, in grey")
_TOGETHER = 10


def colours_apart(pictures: NDArray[np.uint8]) -> list[float]:
    """Mean distance of a picture's pixels to the nearest colour of the style, 0 to 442.

    Args:
        pictures: uint8 [N, S, S, 3].
    """
    greys = np.repeat(np.arange(256.0)[:, None], 3, axis=1)
    palette = cyanotype(greys)
    found = []
    for picture in pictures:
        pixels = picture.reshape(-1, 1, 3).astype(np.float64)
        found.append(float(np.linalg.norm(pixels - palette, axis=-1).min(axis=1).mean()))
    return found


def shuffled(source: Path, path: Path) -> Path:
    """Write a LoRA of the same numbers in another order, whose changes have the same norms."""
    generator = torch.Generator().manual_seed(0)
    tensors = load_file(source)
    mixed = {
        name: tensor.flatten()[torch.randperm(tensor.numel(), generator=generator)].view_as(tensor)
        for name, tensor in tensors.items()
    }
    for up in [name for name in tensors if ".lora_B." in name]:
        down = up.replace(".lora_B.", ".lora_A.")
        norms = [(each[up].float() @ each[down].float()).norm() for each in (tensors, mixed)]
        mixed[up] = (mixed[up].float() * (norms[0] / norms[1])).half()
    save_file(mixed, path)
    return path


def draw(
    subjects: Sequence[EvalSubject], shots: Sequence[Shot], loras: Sequence[Lora], bar: Any
) -> NDArray[np.uint8]:
    """Pictures of some shots, uint8 [N, S, S, 3], of the same seeds whatever is fused."""
    found = []
    with Pipeline(backend="torch", device="cpu", pair=PairOptions(lora=loras)) as pipe:
        for first in range(0, len(shots), _TOGETHER):
            requests = []
            for shot in shots[first : first + _TOGETHER]:
                whose = subjects[shot.subject]
                caption = caption_of(whose, whose.prompts[shot.prompt])
                shown = reference_pictures(whose, whose.own, 1, CONFIG.seed)
                noise = stream(CONFIG.seed, "noise", whose.key, shot.prompt, shot.seed)
                requests.append(
                    Request(
                        prompt=caption.text,
                        subject=pipe.encode_subject(shown, caption.reference_prompt),
                        seed=int(noise.integers(2**32)),
                    )
                )
            found += [np.asarray(image) for image in pipe.generate(requests).images]
            bar.update(len(requests))
    return np.stack(found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=Path("data"), help="what fetch-data made")
    parser.add_argument("--lora", type=Path, default=STYLE)
    args = parser.parse_args()
    subjects = choose_subjects(load_sprites(args.data), load_splits(), CONFIG)
    shots = main_shots(subjects, CONFIG)
    drawn: dict[str, NDArray[np.uint8]] = {}
    with (
        tempfile.TemporaryDirectory() as folder,
        tqdm(total=4 * len(shots), unit="picture", disable=None) as bar,
    ):
        other = shuffled(args.lora, Path(folder) / "shuffled.safetensors")
        ways = {
            "without": [],
            "scale 0.5": [Lora(args.lora, 0.5)],
            "scale 1": [Lora(args.lora)],
            "control: its numbers in another order, scale 1": [Lora(other)],
        }
        for name, loras in ways.items():
            drawn[name] = draw(subjects, shots, loras, bar)
    printed = cyanotype(drawn["without"]).round().astype(np.uint8)
    drawn["without, the style laid over the picture"] = printed
    judges: list[IdentityJudge] = [
        FeatureJudge(
            "network",
            "",
            network_features(load_efficientnet()),
            parts=2,
            candidates=Candidates(subjects, CONFIG),
        ),
        AlignmentJudge(subjects, CONFIG, is_grey=True),
    ]
    whose = [shot.subject for shot in shots]
    own = [subjects[shot.subject].own for shot in shots]
    print(f"{len(shots)} pictures of {len(subjects)} subjects")
    print(f"| {' | '.join(HEADER)} |\n|{'---|' * len(HEADER)}")
    for name, pictures in drawn.items():
        cells = [name, _cell(colours_apart(pictures), whose, 1, "")]
        for judge in judges:
            chosen = [int(row.argmax()) for row in judge.scores(shots, pictures)]
            cells.append(_cell(np.equal(chosen, own).astype(float).tolist(), whose, 100, " %"))
        print(f"| {' | '.join(cells)} |")


def _cell(said: Sequence[float], whose: Sequence[int], factor: int, unit: str) -> str:
    mean, low, high = (factor * float(each or 0) for each in ends_of("", said, whose).values())
    return f"{mean:.0f}{unit} [{low:.0f}, {high:.0f}]"


if __name__ == "__main__":
    main()
