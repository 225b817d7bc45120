"""Reference self-attention: oracles, Triton kernels, the operators made of them, compilation."""
