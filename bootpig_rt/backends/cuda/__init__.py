"""CUDA without torch: devices, memory, streams, recordings."""
