"""A pair of Stable Diffusion 2.1's size with random weights: folders, ways, processes."""
