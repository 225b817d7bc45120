"""The steps of the road as commands: what each is told, and what is there when it is done.

Every step but the first is a command of `bootpig-rt` on what the steps before it wrote, without an
edit in between. Knows no processes; see `drive.py`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from bootpig_rt.training.compose import REFERENCE_LENGTH
from bootpig_rt.training.road.folders import side_px

CONFIGS = Path(__file__).parents[1] / "configs"
PROMPT = "a photo of an owl, in the middle of a snowy field"
REFERENCE_PROMPT = "a photo of an owl"
GUIDANCE = (3.5, 2.0)
"""Image and text guidance of the small world, as in `configs/base.toml`."""

Kind = Literal["small", "sd21"]


@dataclass(frozen=True)
class Size:
    """How much is done. The defaults take less than ten minutes on two cores.

    Attributes:
        pictures: Captions of the bootstrap, each one picture; some are rejected.
        steps: Of training, `batch` samples each.
        batch: Of training.
        subjects: Held-out drawings of the comparison, two prompts each.
        seed: Of everything.
    """

    pictures: int = 360
    steps: int = 320
    batch: int = 8
    subjects: int = 12
    seed: int = 0


LAYOUT_SIZE = Size(steps=2, batch=2)
"""Of the folder of random weights, which shows that layouts fit and nothing else."""


@dataclass(frozen=True)
class Step:
    """One command of `bootpig-rt`.

    Attributes:
        name: Of its log and its row in the report.
        about: What it does, for the report.
        words: The command, without the program.
        made: There once it is done, and never before.
    """

    name: str
    about: str
    words: tuple[str, ...]
    made: Path


@dataclass(frozen=True)
class Places:
    """Where the steps of one folder write."""

    root: Path

    @property
    def base(self) -> Path:
        """The Stable Diffusion folder."""
        return self.root / "base"

    @property
    def start(self) -> Path:
        """The untrained pair."""
        return self.root / "start"

    @property
    def shards(self) -> Path:
        """Samples that the bootstrap made."""
        return self.root / "shards"

    @property
    def run(self) -> Path:
        """The training."""
        return self.root / "run"

    @property
    def pair(self) -> Path:
        """The trained pair."""
        return self.run / "result"

    @property
    def evaluation(self) -> Path:
        """Report and sheets of `evaluate`."""
        return self.root / "evaluation"

    @property
    def bundle(self) -> Path:
        """The pair with its graphs."""
        return self.root / "bundle"

    @property
    def picture(self) -> Path:
        """What came over HTTP."""
        return self.root / "picture.png"


def steps_of(kind: Kind, places: Places, size: Size, subjects: Path) -> list[Step]:
    """The commands between the Stable Diffusion folder and the server.

    Args:
        kind: Which folder the road begins with; the random one, in a folder inside the small
            one's, trains on the samples of that.
        places: Where they write.
        size: How much is done.
        subjects: Drawings that the pair is evaluated on; not with the random folder.
    """
    at = places
    steps = [
        Step(
            "init-pair",
            "an untrained pair: both U-Nets are the folder's one",
            (
                *("init-pair", "--base-model", str(at.base), "-o", str(at.start)),
                # As in the samples: both pairs of the comparison see the same references.
                *("--dtype", "float32", "--subject-share", str(REFERENCE_LENGTH)),
            ),
            at.start / "pair.json",
        )
    ]
    shards = at.shards
    if kind == "small":
        about = "captions, pictures by the base, masks, filters, triplets in shards"
        made = at.shards / "manifest.json"
        steps.append(Step("bootstrap", about, _bootstrap(at, size), made))
    else:  # noise has no subject to cut out
        shards = Places(at.root.parent).shards
    words = _train(at, size, shards)
    steps.append(Step("train", "stage pair on those samples", words, at.pair / "pair.json"))
    if kind == "small":
        words = (
            "model-card",
            str(at.pair),
            "--panel",
            "--pair-licence",
            "Apache-2.0",
        )
        words += ("--base-licence", "Apache-2.0", "--data-licence", "Apache-2.0, made by the base")
        about = "licences and the panel of people; the small world has none"
        steps.append(Step("model-card", about, words, at.pair / "card.json"))
        words = ("evaluate", "--suite", "tiny", "--model", str(at.pair), "--data", str(subjects))
        words += ("--steps", "8", "--resume", "-o", str(at.evaluation))
        report = at.evaluation / "report.json"
        steps.append(Step("evaluate", "held-out subjects, with controls", words, report))
    steps.append(
        Step(
            "build-engine",
            "graphs for this machine's CPU, each compared with torch",
            ("build-engine", "--pair", str(at.pair), "-o", str(at.bundle), *_profile()),
            at.bundle / "manifest.json",
        )
    )
    return steps


def _bootstrap(at: Places, size: Size) -> tuple[str, ...]:
    values: dict[str, object] = {
        "output": at.shards,
        "seed": size.seed,
        "size_px": side_px(),
        "captions.count": size.pictures,
        "pictures.source": "diffusers",
        "pictures.model": at.base,
        # Guidance draws the mean of what fits a prompt: every subject in the same mixed colours.
        "pictures.steps": 12,
        "pictures.guidance": 1.0,
        "pictures.batch_size": 16,
    }
    config = str(CONFIGS / "bootstrap-world.toml")
    return ("bootstrap", config, *(f"{key}={value}" for key, value in values.items()))


def _train(at: Places, size: Size, shards: Path) -> tuple[str, ...]:
    image, text = GUIDANCE
    values = {
        "start_from": at.start,
        "data": shards,
        "validation_data": '""',
        "output": at.run,
        "steps": size.steps,
        "batch_size": size.batch,
        "seed": size.seed,
        "checkpoint_every": 100,
        "validate_every": 0,
        "optimizer.warmup_steps": min(20, size.steps),
        # The copied Reference U-Net sees well already; reading it is what has to be learned.
        "optimizer.learning_rate": 2e-4,
        "optimizer.rsa_learning_rate": 2e-3,
        "optimizer.ema_decay": 0.99,
        "diffusion.foreground_weight": 4.0,
        "diffusion.prompt_dropout": 0.05,
        "diffusion.reference_dropout": 0.05,
        "pair.reference_timestep": "clean",
        "pair.image_guidance_scale": image,
        "pair.text_guidance_scale": text,
        "pair.default_steps": 8,
    }
    config = str(CONFIGS / "pair.toml")
    return ("train", config, *(f"{key}={value}" for key, value in values.items()))


def _profile() -> tuple[str, ...]:
    return (
        "--resolution",
        str(side_px()),
        "--max-batch",
        "1",
        "--max-references",
        "1",
        "--steps",
        "8",
    )
