"""A module to rewrite for export, whose weights are those of the original."""

from __future__ import annotations

import copy
from typing import Any, TypeVar

from torch import nn

_Module = TypeVar("_Module", bound=nn.Module)


def shared_copy(module: _Module) -> _Module:
    """A copy that shares all parameters and buffers; the original stays as it is."""
    kept: dict[int, Any] = {
        id(tensor): tensor for tensor in (*module.parameters(), *module.buffers())
    }
    return copy.deepcopy(module, kept)  # a memo of what is not copied
