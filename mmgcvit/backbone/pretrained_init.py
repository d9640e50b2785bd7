"""Where the backbone meets checkpoints.

The backbone imports nothing of :mod:`mmgcvit.checkpoint`. That package registers two functions here when it is
imported, which ``import mmgcvit`` does.
"""

from __future__ import annotations

from collections.abc import Callable, MutableMapping
from typing import TYPE_CHECKING, Any

from mmengine.model import PretrainedInit
from torch import Tensor, nn

if TYPE_CHECKING:

    class _Base(nn.Module):  # what the mixin uses of mmengine's BaseModule, which has no types
        init_cfg: Any
        is_init: bool

        def init_weights(self) -> None: ...
else:
    _Base = object

#: ``(model, source, **options)``: loads a checkpoint into a model. See :func:`mmgcvit.checkpoint.load_pretrained`.
PretrainedLoader = Callable[..., object]
#: ``(backbone, state_dict, prefix)``: brings the backbone's part of a state dict into its names and shapes, in place.
StateDictAdapter = Callable[[Any, MutableMapping[str, Tensor], str], None]

_loader: PretrainedLoader | None = None
_adapter: StateDictAdapter | None = None


def register_checkpoint_support(loader: PretrainedLoader | None, adapter: StateDictAdapter | None) -> None:
    """Set what ``init_cfg=dict(type='Pretrained')`` and ``load_state_dict`` of a backbone use; None removes it."""
    global _loader, _adapter
    _loader, _adapter = loader, adapter


def adapt_state_dict(backbone: nn.Module, state_dict: MutableMapping[str, Tensor], prefix: str, *_: object) -> None:
    """Load-state-dict pre-hook of the backbone: accepts any publisher's names, and windows of another size.

    Args:
        backbone: the module that the state dict is loaded into.
        state_dict: tensors by name, changed in place.
        prefix: the backbone's name in the model, with a dot, e.g. ``'backbone.'``.

    Raises:
        CheckpointError: the tensors belong to another network, or none are there.
    """
    if _adapter is not None:
        _adapter(backbone, state_dict, prefix)


class SafePretrainedInit(_Base):
    """Mixin for mmengine modules: an ``init_cfg`` of type 'Pretrained' is read by :mod:`mmgcvit.checkpoint`."""

    def init_weights(self) -> None:
        """Initialise the weights; an ``init_cfg`` of type 'Pretrained' accepts the files of every publisher.

        They are loaded by :func:`mmgcvit.checkpoint.load_pretrained`, which executes nothing that a file contains;
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
