"""GC ViT as an ``AutoBackbone`` of Hugging Face transformers, e.g. for UperNet and Mask2Former.

Importing this module registers :class:`GCViTConfig` and :class:`GCViTBackbone` with transformers. A saved backbone is
loaded by ``GCViTBackbone.from_pretrained(folder)``: ``AutoBackbone.from_pretrained`` of transformers 5.24 takes only
names of repositories on the Hub.

Example:
    >>> from transformers import UperNetConfig, UperNetForSemanticSegmentation
    >>> backbone = GCViTConfig(arch="xxtiny", out_indices=[0, 1, 2, 3])
    >>> model = UperNetForSemanticSegmentation(UperNetConfig(backbone, num_labels=3, auxiliary_in_channels=256))
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from transformers import AutoBackbone, AutoConfig, PreTrainedConfig, PreTrainedModel
from transformers.backbone_utils import BackboneConfigMixin, BackboneMixin
from transformers.modeling_outputs import BackboneOutput

from mmgcvit.backbone import GCViT
from mmgcvit.backbone.checks import STAGES
from mmgcvit.checkpoint.fit import LoadReport
from mmgcvit.checkpoint.loading import load_pretrained


class GCViTConfig(BackboneConfigMixin, PreTrainedConfig):
    """Configuration of a :class:`GCViTBackbone`; fields as the arguments of :class:`~mmgcvit.GCViT`.

    ``out_indices`` (0 to 3) or ``out_features`` ('stage1' to 'stage4') choose the maps, by default the last one.
    """

    model_type = "mmgcvit"

    arch: str | dict = "tiny"
    num_channels: int = 3
    window_size: int | list | tuple | None = None
    pad: str = "input"
    drop_path_rate: float | None = None
    drop_rate: float = 0.0
    attn_drop_rate: float = 0.0
    _out_features: list | None = None
    _out_indices: list | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        self.stage_names = [f"stage{i + 1}" for i in range(STAGES)]
        self.set_output_features_output_indices(
            out_indices=kwargs.pop("out_indices", None), out_features=kwargs.pop("out_features", None)
        )
        super().__post_init__(**kwargs)


class GCViTBackbone(BackboneMixin, PreTrainedModel):
    """GC ViT for models of transformers that take a backbone; every map has a norm of its own."""

    config_class = GCViTConfig
    main_input_name = "pixel_values"
    base_model_prefix = "backbone"
    has_attentions = False

    def __init__(self, config: GCViTConfig) -> None:
        super().__init__(config)
        names = ("window_size", "pad", "drop_path_rate", "drop_rate", "attn_drop_rate")
        self.backbone = GCViT(
            config.arch,
            in_channels=config.num_channels,
            out_indices=config.out_indices,
            **{name: getattr(config, name) for name in names},
        )
        self.num_features = list(self.backbone.arch.dims)
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        """Do nothing: the backbone initialises itself when it is built."""

    def forward(
        self,
        pixel_values: Tensor,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        return_dict: bool | None = None,
        **_: Any,
    ) -> BackboneOutput | tuple[Any, ...]:
        """Compute the maps of images (B, num_channels, H, W) of any size.

        Returns:
            ``feature_maps``: a map (B, C * 2^i, H / stride, W / stride) for each of the config's ``out_indices``. The
            hidden states, if asked for, are the same maps. Attentions are not available.
        """
        maps = self.backbone(pixel_values)
        hidden = output_hidden_states if output_hidden_states is not None else self.config.output_hidden_states
        output = BackboneOutput(feature_maps=maps, hidden_states=maps if hidden else None)
        return output if return_dict or (return_dict is None and self.config.return_dict) else output.to_tuple()

    def load_published(self, source: str) -> LoadReport:
        """Load a published name, a file or a URL, see :func:`mmgcvit.load_pretrained`."""
        return load_pretrained(self, source)


AutoConfig.register(GCViTConfig.model_type, GCViTConfig, exist_ok=True)
AutoBackbone.register(GCViTConfig, GCViTBackbone, exist_ok=True)
