"""The evaluation of a pair: what is drawn, who judges it, and how the numbers are made.

Nothing here learns from the pair. The judges know the drawings, the scenes and, one of them,
ImageNet; their own accuracy on the renderer's pictures is measured in the same run.
"""
