"""Nodes of ComfyUI: load a pair, encode a subject, apply a control, sample with previews, save.

ComfyUI loads this folder by its path from `custom_nodes/`, so the imports inside are relative.
"""

from .control_nodes import ApplyControl, Outlines
from .nodes import EncodeSubject, Inpaint, LoadPair, Sample, Save

NODE_CLASS_MAPPINGS = {
    "BootPIGLoadPair": LoadPair,
    "BootPIGEncodeSubject": EncodeSubject,
    "BootPIGOutlines": Outlines,
    "BootPIGApplyControl": ApplyControl,
    "BootPIGSample": Sample,
    "BootPIGInpaint": Inpaint,
    "BootPIGSave": Save,
}

NODE_DISPLAY_NAME_MAPPINGS = {
    "BootPIGLoadPair": "BootPIG: load pair",
    "BootPIGEncodeSubject": "BootPIG: encode subject",
    "BootPIGOutlines": "BootPIG: outlines of a picture",
    "BootPIGApplyControl": "BootPIG: apply control",
    "BootPIGSample": "BootPIG: sample",
    "BootPIGInpaint": "BootPIG: draw into a picture",
    "BootPIGSave": "BootPIG: save pictures",
}

__all__ = ["NODE_CLASS_MAPPINGS", "NODE_DISPLAY_NAME_MAPPINGS"]
