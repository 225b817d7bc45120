"""Nodes for maps that pictures follow."""

from __future__ import annotations

import torch

from bootpig_rt import Control, ParameterError, canny_map

from .host import CATEGORY, Inputs
from .pictures import as_pictures, as_tensor


class Outlines:
    """Make a map of a picture's outlines."""

    CATEGORY = CATEGORY
    FUNCTION = "outline"
    RETURN_TYPES = ("IMAGE",)
    RETURN_NAMES = ("map",)
    DESCRIPTION = "Canny's outlines, white on black: what controls of kind canny read."

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        """Pictures, and how long a gradient an outline needs."""
        side = {"min": 0, "max": 4080, "step": 1}
        return {
            "required": {
                "images": ("IMAGE",),
                "low": ("INT", {"default": 100, **side, "tooltip": "to go on with an outline"}),
                "high": ("INT", {"default": 200, **side, "tooltip": "to begin one"}),
            }
        }

    def outline(self, images: torch.Tensor, low: int, high: int) -> tuple[torch.Tensor]:
        """The outlines of each picture.

        Raises:
            ParameterError: The low number is above the high one.
        """
        return (as_tensor([canny_map(one, low=low, high=high) for one in as_pictures(images)]),)


class ApplyControl:
    """Have pictures follow a map; several are chained."""

    CATEGORY = CATEGORY
    FUNCTION = "apply"
    RETURN_TYPES = ("BOOTPIG_CONTROLS",)
    RETURN_NAMES = ("controls",)
    DESCRIPTION = (
        "A map of the size of the picture: depth, outlines, or what else a ControlNet of the pair "
        "reads. It gives the picture its size; nothing is resized."
    )

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        """A map, what it shows, how closely it is followed and when."""
        share = {"min": 0.0, "max": 1.0, "step": 0.01}
        kind = {"default": "depth", "tooltip": "depth, canny, ...: of controlnet_KIND of the pair"}
        strength = {"default": 1.0, "min": 0.0, "max": 10.0, "step": 0.05}
        return {
            "required": {
                "image": ("IMAGE", {"tooltip": "The first of a batch."}),
                "kind": ("STRING", kind),
                "strength": ("FLOAT", {**strength, "tooltip": "1: as it was trained"}),
                "start": ("FLOAT", {"default": 0.0, **share, "tooltip": "share of the steps"}),
                "end": ("FLOAT", {"default": 1.0, **share, "tooltip": "likewise"}),
            },
            "optional": {
                "controls": ("BOOTPIG_CONTROLS", {"tooltip": "Of another apply control."}),
            },
        }

    def apply(
        self,
        image: torch.Tensor,
        kind: str,
        strength: float,
        start: float,
        end: float,
        controls: tuple[Control, ...] = (),
    ) -> tuple[tuple[Control, ...]]:
        """Add one map to those that are followed.

        Raises:
            ImageError: The map is in colour, and its kind has none.
            ParameterError: The kind is none or is there already, or the shares are no interval.
        """
        if kind.strip() in [one.kind for one in controls]:
            raise ParameterError(
                f"control {kind.strip()} is there twice, expected one map of each kind; leave one "
                "of the nodes out"
            )
        picture = as_pictures(image[:1])[0]
        made = Control.load(kind.strip(), picture, scale=strength, interval=(start, end))
        return ((*controls, made),)
