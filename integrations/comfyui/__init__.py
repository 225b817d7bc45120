"""Nodes of ComfyUI: load a pair, encode a subject, sample with previews and interrupt, save.

ComfyUI loads this folder by its path from `custom_nodes/`, so the imports inside are relative.
"""

from .nodes import EncodeSubject, Inpaint, LoadPair, Sample, Save

NODE_CLASS_MAPPINGS = {
    "BootPIGLoadPair": LoadPair,
    "BootPIGEncodeSubject": EncodeSubject,
    "BootPIGSample": Sample,
    "BootPIGInpaint": Inpaint,
    "BootPIGSave": Save,
}

NODE_DISPLAY_NAME_MAPPINGS = {
    "BootPIGLoadPair": "BootPIG: load pair",
    "BootPIGEncodeSubject": "BootPIG: encode subject",
    "BootPIGSample": "BootPIG: sample",
    "BootPIGInpaint": "BootPIG: draw into a picture",
    "BootPIGSave": "BootPIG: save pictures",
}

__all__ = ["NODE_CLASS_MAPPINGS", "NODE_DISPLAY_NAME_MAPPINGS"]
