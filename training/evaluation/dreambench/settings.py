"""What the pictures of a run were drawn with: written first, compared by all that come later.

Several machines, and a run that was stopped, fill one folder only if they would draw the same.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Literal, get_args

import msgspec

from bootpig_rt.errors import ConfigError, StorageError, describe_os_error
from bootpig_rt.files.atomic import atomic_write_bytes

SETTINGS_FILE = "settings.json"

References = Literal["first", "all"]
REFERENCES = get_args(References)


@dataclass(frozen=True, kw_only=True)
class DrawSettings:
    """All that the pictures depend on, beside the machine.

    Attributes:
        data_digest: Of the photographs and prompts.
        subjects: Names.
        num_prompts: Of each subject.
        per_prompt: Pictures of each prompt.
        seed: From which those of the pictures come.
        references: `first` photograph of the subject, or `all` up to the pair's most.
        max_references: The most that the pair takes.
        background: Name of the remover, None without.
        background_fingerprint: See `Cutter`.
        taken_whole: Photographs in which no subject was found, "dog/03.jpg".
        reference_prompt: What the references are said to show, `{noun}` the class.
        model: Name of the pair.
        model_fingerprint: Of its weights.
        steps: Of the solver.
        solver: Its name.
        merge: Of several references.
        reference_schedule: At which noise level a reference is read.
        image_guidance_scale: Of the reference.
        text_guidance_scale: Of the prompt.
        width: Of the pictures, in pixels.
        height: Of the pictures, in pixels.
    """

    data_digest: str
    subjects: tuple[str, ...]
    num_prompts: int
    per_prompt: int
    seed: int
    references: References
    max_references: int
    background: str | None
    background_fingerprint: str | None
    taken_whole: tuple[str, ...]
    reference_prompt: str
    model: str
    model_fingerprint: str
    steps: int
    solver: str
    merge: str
    reference_schedule: str
    image_guidance_scale: float
    text_guidance_scale: float
    width: int
    height: int


def read_settings(folder: Path) -> DrawSettings | None:
    """What a folder's pictures were drawn with; None if nothing was drawn there.

    Raises:
        ConfigError: The file is damaged.
        StorageError: It cannot be read.
    """
    path = folder / SETTINGS_FILE
    try:
        return msgspec.json.decode(path.read_bytes(), type=DrawSettings)
    except FileNotFoundError:
        return None
    except msgspec.MsgspecError as error:
        raise ConfigError(
            f"{path} is damaged ({error}); draw into another folder with -o"
        ) from error
    except OSError as error:
        raise StorageError(f"cannot read {path}: {describe_os_error(error)}") from error


def keep_settings(folder: Path, settings: DrawSettings) -> None:
    """Write the settings, or compare them with those that are there.

    Raises:
        ConfigError: The folder's pictures were drawn with others, or the file is damaged.
        StorageError: The folder cannot be written.
    """
    there = read_settings(folder)
    if there is not None:
        check_same(there, settings, folder)
        return
    content = msgspec.json.format(msgspec.json.encode(settings), indent=1)
    atomic_write_bytes(folder / SETTINGS_FILE, content + b"\n")


def check_same(there: DrawSettings, settings: DrawSettings, folder: Path) -> None:
    """Refuse settings that differ from those of the pictures in a folder.

    Raises:
        ConfigError: Names the first that differs.
    """
    for field in fields(settings):
        before, now = (getattr(each, field.name) for each in (there, settings))
        if before != now:
            raise ConfigError(
                f"the pictures in {folder} were drawn with {field.name} {_short(before)}, this run "
                f"has {_short(now)}; give the same options, or another folder with -o"
            )


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
