"""Our renderer: 3-D models in scenes, as pictures, masks and depth, on a processor alone."""
