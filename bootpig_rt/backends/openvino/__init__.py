"""A bundle of ONNX graphs in OpenVINO."""
