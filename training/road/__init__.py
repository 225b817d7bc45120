"""The whole road at small size, from a Stable Diffusion folder to a picture over HTTP."""
