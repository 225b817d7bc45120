"""The engine in other people's servers: Ray Serve and NVIDIA Triton."""
