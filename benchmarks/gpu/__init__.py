"""`bootpig-rt bench-gpu`: kernels, steps and pictures on a CUDA device, correctness first."""
