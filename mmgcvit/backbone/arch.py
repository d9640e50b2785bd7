"""Published variants of the network, and validation of custom ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields

from mmgcvit.backbone.checks import STAGES, check_four, check_integer, check_number, check_rate, check_windows

# Paper, tables 1 and A.1, and the released 21k models. `layer_scale` is the initial value; None means no layer scale.
# fmt: off
ARCHS: dict[str, dict] = {
    name: dict(zip(
        ("embed_dims", "depths", "num_heads", "mlp_ratio", "window_size", "drop_path_rate", "layer_scale"), row,
        strict=True))
    for name, *row in (
        # name        dim  depths          heads            mlp  windows           drop path  layer scale
        ("xxtiny",     64, (2, 2,  6, 2), (2, 4,  8, 16),   3., ( 7,  7, 14,  7), 0.2,       None),
        ("xtiny",      64, (3, 4,  6, 5), (2, 4,  8, 16),   3., ( 7,  7, 14,  7), 0.2,       None),
        ("tiny",       64, (3, 4, 19, 5), (2, 4,  8, 16),   3., ( 7,  7, 14,  7), 0.2,       None),
        ("tiny2",      64, (3, 4, 29, 5), (2, 4,  8, 16),   3., ( 7,  7, 14,  7), 0.25,      None),
        ("small",      96, (3, 4, 19, 5), (3, 6, 12, 24),   2., ( 7,  7, 14,  7), 0.3,       1e-5),
        ("small2",     96, (3, 4, 23, 5), (3, 6, 12, 24),   3., ( 7,  7, 14,  7), 0.35,      1e-5),
        ("base",      128, (3, 4, 19, 5), (4, 8, 16, 32),   2., ( 7,  7, 14,  7), 0.5,       1e-5),
        ("large",     192, (3, 4, 19, 5), (6, 12, 24, 48),  2., ( 7,  7, 14,  7), 0.5,       1e-5),
        ("large-384", 192, (3, 4, 19, 5), (6, 12, 24, 48),  2., (12, 12, 24, 12), 0.1,       1e-5),
        ("large-512", 192, (3, 4, 19, 5), (6, 12, 24, 48),  2., (16, 16, 32, 16), 0.1,       1e-5),
    )
}
# fmt: on


@dataclass(frozen=True)
class Arch:
    """Architecture of a network. See :data:`ARCHS` for the published variants.

    Args:
        embed_dims: channels C of stage 0; stage i has C * 2^i.
        depths: blocks per stage; even ones attend locally, odd ones globally.
        num_heads: attention heads per stage; each must divide its stage's channels.
        mlp_ratio: ratio of the hidden channels of a block's MLP to the block's channels.
        window_size: side of the windows per stage, in tokens; an int w means (w, w, 2w, w).
        drop_path_rate: drop path rate of the last block; the rate grows linearly from 0 at the first block.
        layer_scale: initial value of the blocks' layer scale; None for no layer scale.

    Raises:
        ValueError: a value is not allowed. The message names the argument, its value and what is allowed.
    """

    embed_dims: int
    depths: tuple[int, ...]
    num_heads: tuple[int, ...]
    mlp_ratio: float = 3.0
    window_size: tuple[int, ...] = (7, 7, 14, 7)
    drop_path_rate: float = 0.0
    layer_scale: float | None = None

    def __post_init__(self) -> None:
        checked = dict(
            # squeeze-and-excitation works on a quarter of the channels
            embed_dims=check_integer("arch: embed_dims", self.embed_dims, 4),
            depths=check_four("arch: depths", self.depths, 1),
            num_heads=check_four("arch: num_heads", self.num_heads, 1),
            mlp_ratio=check_number("arch: mlp_ratio", self.mlp_ratio, "a number > 0", positive=True),
            window_size=check_windows(self.window_size),
            drop_path_rate=check_rate("drop_path_rate", self.drop_path_rate),
        )
        if self.layer_scale is not None:
            checked["layer_scale"] = check_number("arch: layer_scale", self.layer_scale, "a number or None")
        for name, value in checked.items():
            object.__setattr__(self, name, value)
        if int(self.embed_dims * self.mlp_ratio) < 1:
            raise ValueError(f"arch: mlp_ratio={self.mlp_ratio!r}; allowed: at least 1 / embed_dims={self.embed_dims}")
        for stage, (dim, heads) in enumerate(zip(self.dims, self.num_heads, strict=True)):
            if dim % heads:
                raise ValueError(
                    f"arch: num_heads={self.num_heads}: {heads} heads do not divide the {dim} channels "
                    f"of stage {stage} (embed_dims={self.embed_dims} doubles per stage)"
                )

    @property
    def dims(self) -> tuple[int, ...]:
        """Channels of the four stages."""
        return tuple(self.embed_dims * 2**i for i in range(STAGES))


def resolve_arch(arch: str | Mapping, window_size: int | Sequence[int] | None, drop_path_rate: float | None) -> Arch:
    """Build an :class:`Arch` from a name or a dict, and apply the two overrides.

    Raises:
        ValueError: the name is unknown, or a value is not allowed.
        TypeError: ``arch`` is neither a name nor a dict, or has unknown or missing keys.
    """
    if isinstance(arch, str):
        if arch not in ARCHS:
            raise ValueError(f"arch={arch!r} is unknown; allowed: {', '.join(ARCHS)}, or a dict")
        given = dict(ARCHS[arch])
    elif isinstance(arch, Mapping):
        given = dict(arch)
        known = [field.name for field in fields(Arch)]
        unknown = [key for key in given if key not in known]
        missing = [key for key in known[:3] if key not in given]
        if unknown or missing:
            raise TypeError(
                f"arch: a dict with unknown keys {unknown}, missing keys {missing}; "
                f"allowed: {', '.join(known)}, of which the first three are required"
            )
    else:
        raise TypeError(f"arch={arch!r} is a {type(arch).__name__}; allowed: a name ({', '.join(ARCHS)}) or a dict")
    if window_size is not None:
        given["window_size"] = window_size
    if drop_path_rate is not None:
        given["drop_path_rate"] = drop_path_rate
    return Arch(**given)
