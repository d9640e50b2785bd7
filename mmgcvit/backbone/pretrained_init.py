"""Hooks through which :mod:`mmgcvit.checkpoint` loads checkpoints into the backbone.

The backbone imports nothing from :mod:`mmgcvit.checkpoint`. That package registers two functions here when it is
imported; ``import mmgcvit`` imports it.
"""

from __future__ import annotations

from collections.abc import Callable, MutableMapping
from typing import TYPE_CHECKING, Any

from mmengine.model import PretrainedInit
from torch import Tensor, nn

if TYPE_CHECKING:

    class _Base(nn.Module):  # the part of mmengine's untyped BaseModule that the mixin uses
        init_cfg: Any
        is_init: bool

        def init_weights(self) -> None: ...
else:
    _Base = object

#: ``(model, source, **options)``: loads a checkpoint into a model. See :func:`mmgcvit.checkpoint.load_pretrained`.
PretrainedLoader = Callable[..., object]
#: ``(backbone, state_dict, prefix)``: converts the backbone's part of a state dict to its names and shapes, in place.
StateDictAdapter = Callable[[Any, MutableMapping[str, Tensor], str], None]

_loader: PretrainedLoader | None = None
_adapter: StateDictAdapter | None = None


def register_checkpoint_support(loader: PretrainedLoader | None, adapter: StateDictAdapter | None) -> None:
    """Set the functions that a backbone's ``init_cfg`` and ``load_state_dict`` use; None removes them."""
    global _loader, _adapter
    _loader, _adapter = loader, adapter


def adapt_state_dict(backbone: nn.Module, state_dict: MutableMapping[str, Tensor], prefix: str, *_: object) -> None:
    """Load-state-dict pre-hook of the backbone: accepts any publisher's names, and other window sizes.

    Args:
        backbone: the module that the state dict is loaded into.
        state_dict: tensors by name, changed in place.
        prefix: the backbone's name in the model, with a dot, e.g. ``'backbone.'``.

    Raises:
        CheckpointError: the tensors belong to another network, or there are none under ``prefix``.
    """
    if _adapter is not None:
        _adapter(backbone, state_dict, prefix)


class SafePretrainedInit(_Base):
    """Mixin for mmengine modules: :mod:`mmgcvit.checkpoint` loads an ``init_cfg`` of type 'Pretrained'."""

    def init_weights(self) -> None:
        """Initialise the weights; an ``init_cfg`` of type 'Pretrained' accepts the files of every publisher.

        Files are loaded by :func:`mmgcvit.checkpoint.load_pretrained`, which never executes code from a file;
        mmengine's own loader may.

        Raises:
            CheckpointError: the weights cannot be fetched or read, or belong to another network.
            RuntimeError: :mod:`mmgcvit.checkpoint` has not been imported.
        """
        cfgs = self.init_cfg if isinstance(self.init_cfg, (list, tuple)) else [self.init_cfg] if self.init_cfg else []
        pretrained = [cfg for cfg in cfgs if cfg["type"] in ("Pretrained", PretrainedInit)]
        if not pretrained or self.is_init:
            super().init_weights()
            return
        if _loader is None:
            raise RuntimeError(
                f"{type(self).__name__}: init_cfg of type 'Pretrained' needs mmgcvit.checkpoint, which has not been "
                "imported; `import mmgcvit` imports it"
            )
        given, self.init_cfg = self.init_cfg, [cfg for cfg in cfgs if cfg not in pretrained]
        try:
            super().init_weights()
            for cfg in pretrained:
                options = {key: value for key, value in cfg.items() if key not in ("type", "checkpoint")}
                _loader(self, cfg["checkpoint"], **options)
        except Exception:
            self.is_init = False  # so that the next call tries again instead of returning early
            raise
        finally:
            self.init_cfg = given
