"""Exported models, run with numpy and Pillow on onnxruntime or OpenVINO; torch and OpenMMLab are not needed.

Examples:
    >>> from mmgcvit.runtime import Predictor
    >>> predictor = Predictor("detector.onnx")
    >>> for found in predictor(["a.jpg", "b.jpg"]):
    ...     print(found.name, found.boxes, found.scores, found.names)
"""

from mmgcvit.runtime.metadata import ModelInfo, Resize
from mmgcvit.runtime.predictions import Classification, Detections, Prediction, Segmentation
from mmgcvit.runtime.predictor import Predictor

__all__ = ["Classification", "Detections", "ModelInfo", "Prediction", "Predictor", "Resize", "Segmentation"]
