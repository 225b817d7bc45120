"""The world of 3-D models: what they are called, where they stand, and samples of them."""
