"""A trained run to something people use: prediction on any image, calibration, the package, ONNX."""
