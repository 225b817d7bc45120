"""A bundle of ONNX graphs in ONNX Runtime."""
