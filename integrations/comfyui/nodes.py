"""The nodes. Each is a thin skin of `bootpig_rt`; what a picture becomes does not depend on them.

Pictures travel as ComfyUI's IMAGE, float32 [B, H, W, 3] in [0, 1]. A pair travels as
BOOTPIG_PAIR, a subject as BOOTPIG_SUBJECT, maps that are followed as BOOTPIG_CONTROLS, and what
pictures were made from as BOOTPIG_PARAMETERS.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import torch

from bootpig_rt import (
    Canvas,
    Control,
    Event,
    PairOptions,
    ParameterError,
    Pipeline,
    ReferenceEvent,
    Request,
    StepEvent,
    Subject,
)
from bootpig_rt.bundle.control import ControlFolder, to_control_folders
from bootpig_rt.bundle.shipped import take_packaged
from bootpig_rt.images.picture import save_png

from .host import CATEGORY, Inputs, Progress, output_file, pair_folders, workflow_texts
from .pictures import as_pictures, as_tensor, cut_out

SHIPPED = "small pair of the package"
OWN = "the pair's own"
CONTROLNETS = (
    "depth: the control of the small pair of the package. Or ControlNets beside the pair's own, in "
    "diffusers' layout: depth=FOLDER; canny=FOLDER. These are for pairs that torch draws; a bundle "
    "has the controls that it was built with."
)


class LoadPair:
    """Load a pair or a bundle; it stays loaded until an input or its folder changes."""

    CATEGORY = CATEGORY
    FUNCTION = "load"
    RETURN_TYPES = ("BOOTPIG_PAIR",)
    RETURN_NAMES = ("pair",)
    DESCRIPTION = "A pair or a bundle of models/bootpig, or of any folder."

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        """A name from the list, or a path."""
        backends = ["auto", "onnxruntime", "openvino", "torch", "tensorrt"]
        return {
            "required": {
                "pair": ([SHIPPED, *pair_folders()], {"tooltip": "Folders in models/bootpig."}),
                "backend": (backends, {"tooltip": "auto: what the folder was made for."}),
                "device": ("STRING", {"default": "auto", "tooltip": "auto, cpu, cuda or cuda:N"}),
            },
            "optional": {
                "folder": ("STRING", {"default": "", "tooltip": "A path in place of the name."}),
                "controlnets": ("STRING", {"default": "", "tooltip": CONTROLNETS}),
            },
        }

    @classmethod
    def VALIDATE_INPUTS(cls, folder: str = "", controlnets: str = "") -> bool | str:
        """Say what is wrong with a path before anything runs."""
        if folder.strip() and not (Path(folder.strip()) / "pair.json").is_file():
            return f"{folder.strip()} is no folder of a pair or a bundle (it has no pair.json)"
        try:
            controls = _controls_of(controlnets)
        except ParameterError as error:
            return str(error)
        for control in controls:
            if not (control.path / "config.json").is_file():
                return (
                    f"{control.path} is no ControlNet in diffusers' layout (it has no config.json)"
                )
        return True

    @classmethod
    def IS_CHANGED(
        cls, pair: str, backend: str, device: str, folder: str = "", controlnets: str = ""
    ) -> str:
        """Another value where a folder was trained or built anew: the pair is loaded again."""
        where = _folder_of(pair, folder)
        files = [] if where is None else [where / "pair.json", where / "manifest.json"]
        files += [control.path / "config.json" for control in _controls_of(controlnets)]
        stamps = [file.stat().st_mtime_ns for file in files if file.is_file()]
        return f"{where or SHIPPED} {stamps}"

    def load(
        self, pair: str, backend: str, device: str, folder: str = "", controlnets: str = ""
    ) -> tuple[Pipeline]:
        """Load it.

        Raises:
            CheckpointError: It is no usable pair, or a ControlNet does not fit it.
            BackendUnavailable: A package or the device is missing.
        """
        where = _folder_of(pair, folder)
        controls = _names_in(controlnets)
        return (
            Pipeline(where, backend=backend, device=device, pair=PairOptions(controls=controls)),
        )


def _folder_of(pair: str, folder: str) -> Path | None:
    """The folder that was asked for; None for the pair inside the package."""
    if folder.strip():
        return Path(folder.strip())
    return None if pair == SHIPPED else pair_folders()[pair]


def _controls_of(controlnets: str) -> tuple[ControlFolder, ...]:
    """Folders of ControlNets that the node's text names.

    Raises:
        ParameterError: One says no kind, or a kind is there twice.
    """
    return to_control_folders(take_packaged(_names_in(controlnets))[1])


def _names_in(controlnets: str) -> list[str]:
    return [one.strip() for one in controlnets.split(";") if one.strip()]


class EncodeSubject:
    """Reference images to a subject, for any number of samplings."""

    CATEGORY = CATEGORY
    FUNCTION = "encode"
    RETURN_TYPES = ("BOOTPIG_SUBJECT", "IMAGE")
    RETURN_NAMES = ("subject", "as the pair sees it")
    DESCRIPTION = (
        "One or several pictures of one thing. Connect the mask of Load Image, and what is "
        "transparent there is left out; otherwise pictures should be on white."
    )

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        """Pictures, and what they show."""
        return {
            "required": {
                "pair": ("BOOTPIG_PAIR",),
                "images": ("IMAGE", {"tooltip": "A batch: several pictures of the subject."}),
                "reference_prompt": ("STRING", {"default": "a photo of an owl"}),
            },
            "optional": {"mask": ("MASK", {"tooltip": "1 where there is no subject."})},
        }

    def encode(
        self,
        pair: Pipeline,
        images: torch.Tensor,
        reference_prompt: str,
        mask: torch.Tensor | None = None,
    ) -> tuple[Subject, torch.Tensor]:
        """Cut out, put on white, encode.

        Raises:
            InputError: A picture or the prompt cannot be used.
        """
        prepared = pair.prepare_references(cut_out(images, mask))
        return pair.encode_prepared(prepared, reference_prompt), as_tensor(prepared)


class Sample:
    """Draw a subject as a prompt says."""

    CATEGORY = CATEGORY
    FUNCTION = "sample"
    RETURN_TYPES = ("IMAGE", "BOOTPIG_PARAMETERS")
    RETURN_NAMES = ("images", "parameters")
    DESCRIPTION = "Draws with previews; Cancel stops after the step that runs."

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        """What a request has; 0 and -1 stand for the pair's own."""
        scale = {"default": -1.0, "min": -1.0, "max": 100.0, "step": 0.1, "tooltip": "-1: own"}
        side = {"default": 0, "min": 0, "max": 4096, "step": 8, "tooltip": "0: the pair's own"}
        seed = {"default": 0, "min": 0, "max": 2**63 - 1, "control_after_generate": True}
        return {
            "required": {
                "pair": ("BOOTPIG_PAIR",),
                "subject": ("BOOTPIG_SUBJECT",),
                "prompt": ("STRING", {"multiline": True, "default": "a photo of an owl, "}),
                "negative_prompt": ("STRING", {"multiline": True, "default": ""}),
                "seed": ("INT", seed),
                "steps": ("INT", {"default": 0, "min": 0, "max": 1000, "tooltip": "0: own"}),
                "image_guidance": ("FLOAT", scale),
                "text_guidance": ("FLOAT", scale),
                "solver": ([OWN, "ddim", "dpmpp_2m", "unipc"],),
                "pictures": ("INT", {"default": 1, "min": 1, "max": 64}),
            },
            "optional": {
                "width": ("INT", side),
                "height": ("INT", side),
                "merge": ([OWN, "argmax", "softmax", "mean", "concat"],),
                "reference_schedule": ("STRING", {"default": "", "tooltip": "Empty: own"}),
                "preview_every": ("INT", {"default": 1, "min": 0, "max": 1000}),
                "controls": ("BOOTPIG_CONTROLS", {"tooltip": "Maps that the pictures follow."}),
            },
        }

    def sample(
        self,
        pair: Pipeline,
        subject: Subject,
        prompt: str,
        negative_prompt: str,
        seed: int,
        steps: int,
        image_guidance: float,
        text_guidance: float,
        solver: str,
        pictures: int,
        width: int = 0,
        height: int = 0,
        merge: str = OWN,
        reference_schedule: str = "",
        preview_every: int = 1,
        controls: tuple[Control, ...] = (),
        canvas: Canvas | None = None,
        strength: float | None = None,
    ) -> tuple[torch.Tensor, list[dict[str, Any]]]:
        """Draw, and let ComfyUI follow.

        Raises:
            InputError: The request cannot be drawn by this pair; says why.
            InterruptProcessingException: ComfyUI's, where Cancel was pressed; the pair stays
                loaded and as it was.
        """
        request = Request(
            prompt=prompt,
            negative_prompt=negative_prompt,
            subject=subject,
            seed=seed,
            num_inference_steps=steps or None,
            image_guidance_scale=None if image_guidance < 0 else image_guidance,
            text_guidance_scale=None if text_guidance < 0 else text_guidance,
            solver=None if solver == OWN else solver,
            num_images_per_prompt=pictures,
            width=width or None,
            height=height or None,
            merge=None if merge == OWN else merge,
            reference_schedule=reference_schedule.strip() or None,
            canvas=canvas,
            strength=strength,
            controls=controls,
        )
        return _draw(pair, request, preview_every)


class Inpaint(Sample):
    """Draw a subject into a part of a picture."""

    FUNCTION = "inpaint"
    DESCRIPTION = "Draws where the mask is 1; the rest of the image comes out as it is."

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        """Those of a sampling, a picture and its mask; the picture gives the size."""
        inputs = super().INPUT_TYPES()
        for name in ("width", "height"):
            del inputs["optional"][name]
        mask = ("MASK", {"tooltip": "1 where it is drawn, as Load Image gives it."})
        strength = {"default": 1.0, "min": 0.05, "max": 1.0, "step": 0.05}
        inputs["required"] = {
            "image": ("IMAGE",),
            "mask": mask,
            **inputs["required"],
            "strength": ("FLOAT", strength),
        }
        return inputs

    def inpaint(
        self, image: torch.Tensor, mask: torch.Tensor, **inputs: Any
    ) -> tuple[torch.Tensor, list[dict[str, Any]]]:
        """Draw into the first picture of a batch.

        Raises:
            InputError: The mask is of another size, or the request cannot be drawn.
            InterruptProcessingException: As for a sampling.
        """
        where = mask.detach().cpu().reshape(-1, *mask.shape[-2:])[0].numpy() >= 0.5
        canvas = Canvas.load(as_pictures(image[:1])[0], where)
        return self.sample(canvas=canvas, **inputs)


class Save:
    """Save pictures with what made them: parameters, the mark of generated pictures, workflow."""

    CATEGORY = CATEGORY
    FUNCTION = "save"
    RETURN_TYPES: ClassVar[tuple[str, ...]] = ()
    OUTPUT_NODE = True
    DESCRIPTION = "PNG files that say that they are generated and from what."

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        """Pictures and a name."""
        return {
            "required": {
                "images": ("IMAGE",),
                "filename_prefix": ("STRING", {"default": "BootPIG"}),
            },
            "optional": {"parameters": ("BOOTPIG_PARAMETERS",)},
            "hidden": {"prompt": "PROMPT", "extra_pnginfo": "EXTRA_PNGINFO"},
        }

    def save(
        self,
        images: torch.Tensor,
        filename_prefix: str,
        parameters: list[dict[str, Any]] | None = None,
        prompt: Any = None,
        extra_pnginfo: dict[str, Any] | None = None,
    ) -> dict[str, Any]:
        """Write each picture whole or not at all.

        Raises:
            ParameterError: Parameters of another number of pictures.
            StorageError: The disk refuses.
        """
        pictures = as_pictures(images)
        if parameters is not None and len(parameters) != len(pictures):
            raise ParameterError(
                f"{len(parameters)} parameters for {len(pictures)} images; connect both outputs "
                "of one BootPIG: sample"
            )
        texts, saved = workflow_texts(prompt, extra_pnginfo), []
        for number, picture in enumerate(pictures):
            path, told = output_file(filename_prefix, picture, number)
            made_from = None if parameters is None else parameters[number]
            save_png(picture, path, made_from, texts=texts)
            saved.append(told)
        return {"ui": {"images": saved}}


def _draw(
    pair: Pipeline, request: Request, preview_every: int
) -> tuple[torch.Tensor, list[dict[str, Any]]]:
    """Draw a request while ComfyUI shows its steps; returns IMAGE and parameters."""
    plan = pair.engine.planner.plan(request)
    progress = Progress(plan.solver.num_steps * request.num_images_per_prompt)

    def on_event(event: Event) -> None:
        if isinstance(event, ReferenceEvent):
            progress.show(0)
        elif isinstance(event, StepEvent):
            progress.show(event.done, event.previews[0] if event.previews else None)

    job = pair.engine.submit(request, on_event=on_event, preview_every=preview_every or None)
    try:
        pair.engine.drive([job])
    finally:
        job.cancel()  # nothing, where it is done
    result = job.result()
    return as_tensor(result.images), [one.to_dict() for one in result.parameters]
