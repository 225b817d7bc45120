"""Numbers that the plugin kernel is passed, and where a host reads them. Loads no Triton."""

from __future__ import annotations

# Numbers between inputs and outputs, in order: the name, and input and dimension it is read from.
PLUGIN_NUMBERS = (
    ("num_rows", 0, 0),
    ("num_heads", 0, 1),
    ("num_tokens", 0, 2),
    ("num_references", 3, 0),
    ("num_ref_tokens", 3, 2),
    ("num_ref_rows", 5, 0),
    ("num_slots", 5, 1),
)
