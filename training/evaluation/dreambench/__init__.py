"""DreamBench: thirty photographed subjects in twenty-five prompts, scored as its paper says.

Protocol: Ruiz et al., DreamBooth (arXiv 2208.12242), section 4.1. `data.py` reads photographs and
prompts, `drawing.py` draws, `encoders.py` and `features.py` embed, `scores.py` has the arithmetic,
`published.py` what others got.
"""
