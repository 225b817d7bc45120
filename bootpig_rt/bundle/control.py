"""Controls of a pair by name: which folders hold them. Knows no tensors and reads no file."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from bootpig_rt.checks import check_kind
from bootpig_rt.errors import ParameterError, shown

CONTROL_PREFIX = "controlnet_"
"""How folders of controls begin, beside the other parts of a pair: `controlnet_depth`."""

CONTROL_WEIGHTS = "diffusion_pytorch_model.safetensors"


@dataclass(frozen=True)
class ControlFolder:
    """A ControlNet in diffusers' layout, and what its maps show.

    Attributes:
        kind: `depth`, `canny`, or another word of small letters and digits.
        path: The folder.

    Raises:
        ParameterError: Either is none.
    """

    kind: str
    path: Path

    def __post_init__(self) -> None:
        """Check both."""
        check_kind(self.kind)
        if not isinstance(self.path, str | os.PathLike) or not os.fspath(self.path):
            raise ParameterError(f"the path of control {self.kind} is {shown(self.path)}")
        object.__setattr__(self, "path", Path(self.path))

    @classmethod
    def parse(cls, text: str) -> ControlFolder:
        """Read `KIND=DIR`, or a folder that is named `controlnet_KIND`.

        Raises:
            ParameterError: It says no kind.
        """
        kind, equals, path = text.partition("=")
        if equals and kind.isalnum():
            return cls(kind, Path(path))
        name = Path(text).name
        if not name.startswith(CONTROL_PREFIX):
            raise ParameterError(
                f"control is {shown(text)}, expected KIND=DIR such as depth={text}, or a folder "
                f"that is named {CONTROL_PREFIX}KIND; a kind alone is a control of the pair inside "
                "the package, where no other is named"
            )
        return cls(name.removeprefix(CONTROL_PREFIX), Path(text))


ControlsArgument: TypeAlias = (
    Mapping[str, str | os.PathLike[str]] | Sequence[str | os.PathLike[str]] | str | None
)
"""How an argument gives folders of controls: `{"depth": "folder"}`, or texts to parse."""


def to_control_folders(given: ControlsArgument) -> tuple[ControlFolder, ...]:
    """What an argument gives, by kind.

    Raises:
        ParameterError: A kind is no name, or is there twice.
    """
    if given is None:
        return ()
    if isinstance(given, Mapping):
        folders = [ControlFolder(kind, Path(path)) for kind, path in given.items()]
    else:
        texts = [given] if isinstance(given, str | os.PathLike) else list(given)
        folders = [ControlFolder.parse(os.fspath(text)) for text in texts]
    return in_order(folders)


def in_order(folders: Sequence[ControlFolder]) -> tuple[ControlFolder, ...]:
    """Sorted by kind.

    Raises:
        ParameterError: A kind is there twice.
    """
    kinds = [folder.kind for folder in folders]
    twice = next((kind for kind in kinds if kinds.count(kind) > 1), None)
    if twice is not None:
        raise ParameterError(
            f"control {twice} is given twice, expected one of each kind; give the other another "
            "kind, as in KIND=DIR"
        )
    return tuple(sorted(folders, key=lambda folder: folder.kind))


def all_controls(pair: Path, more: Sequence[ControlFolder] = ()) -> tuple[ControlFolder, ...]:
    """Controls that lie in a pair's folder, and others, by kind.

    Raises:
        ParameterError: A kind is there twice.
    """
    return in_order([*find_controls(pair), *more])


def find_controls(folder: Path) -> tuple[ControlFolder, ...]:
    """Controls that lie beside the other parts of a pair."""
    found = [
        ControlFolder(path.name.removeprefix(CONTROL_PREFIX), path)
        for path in folder.glob(f"{CONTROL_PREFIX}*")
        if path.is_dir()
    ]
    return in_order(found)
