"""Training in two processes on the CPU, as `accelerate launch` starts it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

CONFIG = """\
stage = "vae"
output = "{output}"
data = "{data}"
steps = {steps}
batch_size = 2
seed = 5
log_every = 1
validate_every = 0
checkpoint_every = 2

[vae]
block_channels = [16, 32]
norm_groups = 8
"""


def launch(config: Path, *words: str) -> None:
    command = ["accelerate.commands.launch", "--cpu", "--num_processes", "2", "--num_machines", "1"]
    command += ["--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0"]
    done = subprocess.run(
        [sys.executable, "-m", *command, "-m", "bootpig_rt", "train", str(config), *words],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.slow
def test_two_processes_train_log_once_resume_and_leave_one_result(
    samples: Path, tmp_path: Path
) -> None:
    config, output = tmp_path / "vae.toml", tmp_path / "run"
    config.write_text(CONFIG.format(output=output, data=samples, steps=4))
    launch(config, "--max-minutes", "0.0001")
    assert not (output / "result").exists()
    launch(config)
    log = (output / "log.jsonl").read_text()
    steps = [json.loads(line)["step"] for line in log.splitlines()]
    assert [step for step in steps if step <= 4] == [1, 2, 3, 4]
    assert (output / "result" / "vae" / "diffusion_pytorch_model.safetensors").is_file()
