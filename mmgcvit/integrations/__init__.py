"""GC ViT in other libraries: torchvision's detectors, Hugging Face transformers and the Hugging Face Hub.

Each module imports its library. For timm see :mod:`mmgcvit.timm`; segmentation_models.pytorch uses it, too.
"""
