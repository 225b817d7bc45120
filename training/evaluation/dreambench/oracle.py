"""Whether an encoder gives real photographs the scores that are published for them.

The oracle row scores each photograph against the other ones of its subject. Weights of another
training, another view or another average give another number, and then nothing that is measured
with them can be laid beside the published table.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from bootpig_rt.training.evaluation.dreambench.data import NUM_SUBJECTS, DreamBench
from bootpig_rt.training.evaluation.dreambench.encoders import ImageEncoder
from bootpig_rt.training.evaluation.dreambench.scores import (
    Floats,
    identity_scores,
    mean_over_subjects,
    oracle_score,
)

EXPECTED = {"dino": 0.774, "clip": 0.885}
"""Of real images, DreamBooth table 1."""
TOLERANCE = 0.005


@dataclass(frozen=True)
class OracleCheck:
    """One encoder's oracle row beside the published one.

    Attributes:
        encoder: `dino` or `clip`.
        expected: As published.
        found: As measured.
        is_right: Whether they agree within the tolerance.
        instead: What would agree: another view, or photographs also against themselves; "" if
            nothing does, or nothing need.
    """

    encoder: str
    expected: float
    found: float
    is_right: bool
    instead: str

    @property
    def text(self) -> str:
        """One line."""
        name = {"dino": "DINO", "clip": "CLIP-I"}[self.encoder]
        line = (
            f"the oracle row has {name} {self.found:.3f}, published is {self.expected:.3f} "
            f"+- {TOLERANCE}"
        )
        if self.is_right:
            return f"{line}: as published"
        fix = f"; it agrees {self.instead}" if self.instead else "; check weights and photographs"
        return f"{line}: {name} is not comparable with the published table{fix}"


def check_oracle(
    bench: DreamBench, encoder: ImageEncoder, by_view: Sequence[tuple[str, Sequence[Floats]]]
) -> list[OracleCheck]:
    """Check an encoder of the protocol's architecture on the whole benchmark; else no check.

    `by_view` has features of the photographs, for each subject [R, F], by what makes the view; the
    encoder's own comes first.
    """
    name = encoder.about.name
    is_whole = len(bench.subjects) == NUM_SUBJECTS
    if name not in EXPECTED or not encoder.about.is_of_protocol or not is_whole:
        return []
    expected = EXPECTED[name]
    ways = []
    for words, features in by_view:
        pairs = sum(map(oracle_score, features)) / len(features)
        with_self = mean_over_subjects([identity_scores(own, own) for own in features])
        ways.append((words, pairs))
        ways.append((f"{words} when photographs are scored against themselves too", with_self))
    found = ways[0][1]
    is_right = abs(found - expected) <= TOLERANCE
    agreeing = [words.strip() for words, value in ways[1:] if abs(value - expected) <= TOLERANCE]
    instead = "" if is_right or not agreeing else agreeing[0]
    return [OracleCheck(name, expected, found, is_right, instead)]
