"""A bundle of TensorRT plans."""
