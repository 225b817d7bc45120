"""From a trained pair to engines. Empty so far; nothing here is imported at run time."""
