"""Makes the self-attentions of the road's small base: training/road/text_attention.safetensors.

The shipped base was trained with references. Here its self-attentions begin anew, silent, and are
trained on captions and pictures alone, all else frozen: stage `pair` with every reference left out.
Has to be run again whenever another pair ships. Needs samples of the pair's size, those of the
recipe in training/README.md or others: data=FOLDER. Run it again to go on after an interruption.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from bootpig_rt.training.road.folders import TEXT_ATTENTION, keep_text_attention, write_small

WORK = Path("runs/text-attention")
SETTINGS = {
    "start_from": WORK / "silent",
    "output": WORK / "run",
    "steps": 420,
    "batch_size": 16,
    "seed": 6,
    "validation_data": '""',
    "validate_every": 0,
    "checkpoint_every": 100,
    "max_samples": 3500,
    "diffusion.reference_dropout": 1.0,
    "diffusion.prompt_dropout": 0.1,
    "diffusion.augmentation": "light",  # no reference is read; so none is encoded beforehand
    "optimizer.rsa_learning_rate": 2e-3,
    "optimizer.learning_rate": 2e-3,
    "optimizer.ema_decay": 0.99,
    "mixed_precision": "no",
}


def main() -> None:
    if not (WORK / "silent").exists():
        WORK.mkdir(parents=True, exist_ok=True)
        write_small(WORK / "silent", attention="silent")
    changes = [f"{key}={value}" for key, value in SETTINGS.items()]
    words = ["train", "training/configs/pair-128.toml", *changes, *sys.argv[1:]]
    subprocess.run([sys.executable, "-m", "bootpig_rt", *words], check=True)
    keep_text_attention(WORK / "run" / "result", TEXT_ATTENTION)
    print(TEXT_ATTENTION)


if __name__ == "__main__":
    main()
