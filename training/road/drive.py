"""Drives the road: every step in a process of its own, as a user would type it, one after another.

A step that is done is not done again: killed or interrupted, the same call goes on where it was.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from bootpig_rt.bundle.shipped import default_model
from bootpig_rt.errors import ConfigError, EngineError
from bootpig_rt.files.atomic import atomic_write_text
from bootpig_rt.files.held import held
from bootpig_rt.training.road.folders import write_sd21, write_small
from bootpig_rt.training.road.serve import draw_over_http
from bootpig_rt.training.road.stand_ins import write_stand_ins
from bootpig_rt.training.road.steps import (
    GUIDANCE,
    LAYOUT_SIZE,
    PROMPT,
    REFERENCE_PROMPT,
    Kind,
    Places,
    Size,
    Step,
    steps_of,
)
from bootpig_rt.training.sprites import LIST_FILE

SETTINGS_FILE = "settings.json"
DONE_FILE = "done.json"
"""Seconds and facts of the steps that are done, by their names."""

OnStep = Callable[[str], None]
"""Told the name of the step that begins."""
Work = Callable[[], dict[str, Any]]


@dataclass(frozen=True)
class Road:
    """What is driven.

    Attributes:
        output: Everything goes there.
        size: How much is done.
        data: Drawings that `fetch-data` made; plain shapes stand in where there are none.
        with_layout: Also drive the folder of random weights in the shape of SD 2.1 base.
    """

    output: Path
    size: Size = Size()  # noqa: RUF009
    data: Path = Path("data")
    with_layout: bool = True


def drive(road: Road, *, on_step: OnStep) -> dict[str, dict[str, Any]]:
    """Drive the whole road, or what is left of it.

    Returns:
        What was done by the names of the steps: `about`, `command`, `seconds` and facts.

    Raises:
        ConfigError: The output holds a road of another size.
        EngineError: A step failed; its log says why.
        StorageError: The output cannot be written, or another process drives there.
    """
    output = road.output
    output.mkdir(parents=True, exist_ok=True)
    with held(output, "road"):
        _check_settings(road)
        subjects = road.data
        if not (subjects / LIST_FILE).is_file():
            subjects = output / "subjects"
            if not (subjects / LIST_FILE).is_file():
                write_stand_ins(subjects)
        done = _Done(output / DONE_FILE, on_step)
        _drive_one("small", road, output, subjects, done)
        if road.with_layout:
            layout = replace(road, size=LAYOUT_SIZE)
            _drive_one("sd21", layout, output / "layout", subjects, done)
        return done.found


def _drive_one(kind: Kind, road: Road, root: Path, subjects: Path, done: _Done) -> None:
    at, prefix = Places(root), "layout: " * (kind == "sd21")
    logs = root / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    write, what = (write_small, "the small base") if kind == "small" else (write_sd21, "SD 2.1")

    def write_folder() -> dict[str, Any]:
        if not at.base.exists():
            write(at.base)
        return {"about": f"a Stable Diffusion folder in the shape of {what}"}

    done.once(f"{prefix}folder", at.base / "model_index.json", write_folder)
    for step in steps_of(kind, at, road.size, subjects):

        def run(step: Step = step) -> dict[str, Any]:
            _run(step, logs / f"{step.name}.log")
            return {"about": step.about, "command": " ".join(("bootpig-rt", *step.words))}

        done.once(prefix + step.name, step.made, run)
    if kind == "small":
        report = root / "comparison" / "report.json"
        done.once("compare", report, lambda: _compare(road, at, subjects, report))
    done.once(f"{prefix}serve", at.picture, lambda: _serve(at, logs / "serve.log"))


def _serve(at: Places, log: Path) -> dict[str, Any]:
    found = draw_over_http(
        at.bundle,
        default_model().parent / "subjects" / "owl.png",
        at.picture,
        prompt=PROMPT,
        reference_prompt=REFERENCE_PROMPT,
        log=log,
    )
    about = "the server in a process of its own, and one picture over HTTP"
    return {"about": about, "command": f"bootpig-rt serve {at.bundle} --port 0", "answer": found}


def _compare(road: Road, at: Places, subjects: Path, report: Path) -> dict[str, Any]:
    # Loads the networks that judge: only where they are needed.
    from bootpig_rt.training.road.compare import Comparison, compare

    image, text = GUIDANCE
    settings = Comparison(
        subjects=road.size.subjects,
        prompts=2,
        steps=8,
        reference_schedule="clean",
        image_guidance_scale=image,
        text_guidance_scale=text,
    )
    report.parent.mkdir(exist_ok=True)
    found = compare(at.start, at.pair, subjects, report.parent, settings)
    found["drawings"] = "plain shapes" if subjects.parent == road.output else "fetched drawings"
    atomic_write_text(report, json.dumps(found, indent=1) + "\n")
    return {"about": "the trained pair and its start draw the same subjects, judged in pairs"}


class _Done:
    """What is done, in a file: seconds are those of the first time."""

    def __init__(self, path: Path, on_step: OnStep) -> None:
        self._path, self._on_step = path, on_step
        self.found: dict[str, dict[str, Any]] = {}
        if path.is_file():
            self.found = json.loads(path.read_text(encoding="utf-8"))

    def once(self, name: str, made: Path, work: Work) -> None:
        """Do a step unless what it makes is there and its seconds are known."""
        self._on_step(name)
        if name in self.found and made.exists():
            return
        begun = time.monotonic()
        facts = work()
        if not made.exists():
            raise EngineError(f"step {name!r} ended well, but left no {made}")
        self.found[name] = {**facts, "seconds": round(time.monotonic() - begun, 1)}
        atomic_write_text(self._path, json.dumps(self.found, indent=1) + "\n")


def _run(step: Step, log: Path) -> None:
    """Run one command; its bars are shown where there is a terminal, all else goes to its log.

    Raises:
        EngineError: It ended with another code than 0.
    """
    if step.made.exists():  # done, but killed before that was written down
        return
    command = [sys.executable, "-m", "bootpig_rt", *step.words]
    environment = os.environ | {"PYTHONSAFEPATH": "1"}
    with log.open("a", encoding="utf-8") as stream:
        errors = None if sys.stderr.isatty() else stream
        code = subprocess.run(command, stdout=stream, stderr=errors, env=environment).returncode
    if code != 0:
        lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-1:]
        raise EngineError(
            f"step {step.name!r} ended with code {code}: {' '.join(lines)[:500]}; its log is "
            f"{log}; the same command goes on from here"
        )


def _check_settings(road: Road) -> None:
    path = road.output / SETTINGS_FILE
    now = {**asdict(road.size), "data": str(road.data)}
    if path.is_file():
        before = json.loads(path.read_text(encoding="utf-8"))
        changed = sorted(key for key in now if before.get(key) != now[key])
        if changed:
            raise ConfigError(
                f"{road.output} holds a road of other {', '.join(changed)}; use another output "
                "folder, or delete it to start anew"
            )
    atomic_write_text(path, json.dumps(now, indent=1) + "\n")
