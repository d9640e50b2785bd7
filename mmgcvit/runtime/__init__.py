"""Exported models, run with numpy and Pillow on onnxruntime or OpenVINO; torch and OpenMMLab are not needed."""
