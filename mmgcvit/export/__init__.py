"""Export of whole models, from image to predictions, to ONNX, OpenVINO and torch.export files."""
