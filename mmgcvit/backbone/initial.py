"""Initial values from a file, read by our own reader."""

from __future__ import annotations

from mmengine.model import PretrainedInit


class SafePretrainedInit:
    """For mmengine modules: their ``init_cfg`` of type 'Pretrained' goes through :mod:`mmgcvit.checkpoint`."""

    def init_weights(self) -> None:
        """Set initial values; where ``init_cfg`` is of type 'Pretrained', any publisher's weights.

        They are read by :func:`mmgcvit.checkpoint.load_pretrained`, which runs nothing that is in a file, and not by
        mmengine, which may.

        Raises:
            CheckpointError: the weights cannot be had or read, or are of another network.
        """
        cfgs = self.init_cfg if isinstance(self.init_cfg, (list, tuple)) else [self.init_cfg] if self.init_cfg else []
        pretrained = [cfg for cfg in cfgs if cfg["type"] in ("Pretrained", PretrainedInit)]
        if not pretrained or self.is_init:
            super().init_weights()
            return
        from mmgcvit.checkpoint.loading import load_pretrained

        given, self.init_cfg = self.init_cfg, [cfg for cfg in cfgs if cfg not in pretrained]
        try:
            super().init_weights()
            for cfg in pretrained:
                arguments = {key: value for key, value in cfg.items() if key not in ("type", "checkpoint")}
                load_pretrained(self, cfg["checkpoint"], **arguments)
        except Exception:
            self._is_init = False  # a further call is not to pass over it
            raise
        finally:
            self.init_cfg = given
