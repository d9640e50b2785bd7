"""GC ViT on the Hugging Face Hub."""

from __future__ import annotations

from huggingface_hub import PyTorchModelHubMixin

from mmgcvit.backbone import GCViT


class HubGCViT(GCViT, PyTorchModelHubMixin, library_name="mmgcvit", tags=["gcvit", "backbone"]):
    """:class:`~mmgcvit.GCViT` with ``from_pretrained``, ``save_pretrained`` and ``push_to_hub``.

    The arguments are saved as config.json, the weights as model.safetensors.

    Example:
        >>> model = HubGCViT("xxtiny", pad="window")
        >>> model.save_pretrained("folder")
        >>> model = HubGCViT.from_pretrained("folder")
    """
