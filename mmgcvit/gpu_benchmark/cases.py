"""What the GPU benchmark measures, the most important first."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from itertools import product
from typing import Any

from mmgcvit.benchmark import MODES

#: float32 with and without TF32 for matrix products and convolutions; otherwise the dtype of autocast.
DTYPES = ("float32", "tf32", "bfloat16", "float16")
#: torch's implementations of scaled_dot_product_attention, with their names in ``torch.nn.attention.SDPBackend``.
SDPA = {
    "sdpa-flash": "FLASH_ATTENTION",
    "sdpa-efficient": "EFFICIENT_ATTENTION",
    "sdpa-math": "MATH",
    "sdpa-cudnn": "CUDNN_ATTENTION",
}
#: How a network runs: eager mode; a CUDA graph of it; compiled; eager mode with one implementation of attention.
NETWORK_VARIANTS = ("eager", "graph", "compiled", "triton", *SDPA)
#: Implementations of attention alone: torch's choice, each of torch's, plain operations, ours in Triton, FlexAttention.
ATTENTION_VARIANTS = ("sdpa", *SDPA, "plain", "triton", "flex")


@dataclass(frozen=True)
class Network:
    """A forward pass or a training step of a backbone.

    Args:
        model: name, as accepted by :func:`mmgcvit.benchmark.build`.
        mode: one of :data:`mmgcvit.benchmark.MODES`.
        batch: batch size.
        shape: height and width of the images.
        dtype: one of :data:`DTYPES`.
        variant: one of :data:`NETWORK_VARIANTS`.
    """

    model: str
    mode: str
    batch: int
    shape: tuple[int, int]
    dtype: str
    variant: str = "eager"

    @property
    def expected_seconds(self) -> float:
        """Roughly how long the measurement takes, with building and compilation."""
        return (60 if self.mode == "forward" else 150) if self.variant == "compiled" else 5


@dataclass(frozen=True)
class Attention:
    """Window attention with its bias, alone; a training step includes the gradients of q, k, v and bias.

    Args:
        place: where in a network windows like these occur.
        windows: number of windows.
        heads: number of heads.
        tokens: tokens per window.
        dim: channels per head.
        mode: one of :data:`mmgcvit.benchmark.MODES`.
        dtype: one of :data:`DTYPES`.
        variant: one of :data:`ATTENTION_VARIANTS`.
    """

    place: str
    windows: int
    heads: int
    tokens: int
    dim: int
    mode: str
    dtype: str
    variant: str

    @property
    def expected_seconds(self) -> float:
        """Roughly how long the measurement takes, with compilation."""
        return 25 if self.variant == "flex" else 2


Case = Network | Attention

CLASSIFICATION = (128, (224, 224))
DENSE = (2, (800, 1344))
WINDOW_24 = "window_size=24/24/24/24,global_query_reductions=3/2/1/0"
PLACES = (
    ("stage 1 of GC ViT-T, 128 x 224 x 224", 8192, 2, 49, 32),
    ("stage 3 of GC ViT-T, 128 x 224 x 224", 128, 8, 196, 32),
    ("stage 1 with windows 24, 2 x 800 x 1344", 224, 2, 576, 32),
)


def key(case: Case) -> tuple[Any, ...]:
    """Identifier of a case, the same for the dict that JSON returns of it."""
    return key_of(asdict(case))


def key_of(entry: dict[str, Any]) -> tuple[Any, ...]:
    """Identifier of a case from an entry of the JSON file, which has the fields of the case among others."""
    fields = (Network if "model" in entry else Attention).__dataclass_fields__
    return tuple(tuple(v) if isinstance(v := entry[name], list) else v for name in fields)


def networks(
    batch: int,
    shape: tuple[int, int],
    models: Iterable[str],
    dtypes: Iterable[str] = ("bfloat16",),
    variants: Iterable[str] = ("eager",),
    modes: Iterable[str] = MODES,
) -> Iterator[Network]:
    """All combinations of models, modes, dtypes and variants at one image size."""
    for dtype, variant, mode, model in product(dtypes, variants, modes, models):
        yield Network(model, mode, batch, shape, dtype, variant)


def attention(
    places: Iterable[tuple[str, int, int, int, int]], variants: Iterable[str], dtypes: Iterable[str] = ("bfloat16",)
) -> Iterator[Attention]:
    """All combinations of places, modes, dtypes and variants."""
    for dtype, place, mode, variant in product(dtypes, places, MODES, variants):
        yield Attention(*place, mode, dtype, variant)


def at_224(size: str) -> list[str]:
    """Backbones of one size for classification."""
    return [f"gcvit-{size}", f"timm-gcvit-{size}", f"timm-swin-{size}", f"timm-convnext-{size}"]


def dense(size: str) -> list[str]:
    """Backbones of one size for images of any size. timm's GC ViT accepts no 800 x 1344 with windows of 7."""
    height, width = DENSE[1]
    return [
        f"gcvit-{size},pad=window",
        f"gcvit-{size},pad=window,{WINDOW_24}",
        f"timm-swin-{size},img_size={height}/{width}",
        f"timm-convnext-{size}",
    ]


def plan() -> list[Case]:
    """List what is measured on a GPU, in this order, until the time is over."""
    own = [(CLASSIFICATION, ["gcvit-tiny"]), (DENSE, ["gcvit-tiny,pad=window"])]
    own_and_swin = [(CLASSIFICATION, ["gcvit-tiny", "timm-swin-tiny"]), (DENSE, dense("tiny")[::2])]
    cases: list[Case] = [
        *networks(*CLASSIFICATION, at_224("tiny")),
        *networks(*DENSE, [*dense("tiny"), "swin-t"]),
        *attention(PLACES, [v for v in ATTENTION_VARIANTS if v != "flex"]),
    ]
    for where, models in own:
        cases += networks(*where, models, variants=("triton", "graph", *SDPA))
    cases += networks(*CLASSIFICATION, at_224("tiny"), ("float16",), modes=("forward",))
    for where, models in own_and_swin:
        cases += networks(*where, models, variants=("compiled",), modes=("forward",))
    cases += networks(*CLASSIFICATION, at_224("tiny")[::2], ("float16",), ("compiled",), ("forward",))
    cases += attention(PLACES, ["flex"])
    for where, models in own_and_swin:
        cases += networks(*where, models, variants=("graph",))
        cases += networks(*where, models, ("float32", "tf32"))
    for size in ("small", "base"):
        cases += networks(*CLASSIFICATION, at_224(size))
        cases += networks(*DENSE, dense(size))
    for where, models in own_and_swin:
        cases += networks(*where, models, variants=("compiled",), modes=("train",))
    cases += attention(PLACES, ATTENTION_VARIANTS, ("float32", "float16"))
    cases += networks(*CLASSIFICATION, at_224("tiny"), DTYPES)
    cases += networks(*DENSE, [*dense("tiny"), "swin-t"], DTYPES)
    return list(dict.fromkeys(cases))


def quick_plan() -> list[Case]:
    """A few small cases of every kind, to try the benchmark itself; they run on a CPU, too."""
    own, side = "gcvit-xxtiny,window_size=2/2/2/2", (32, 40)
    return [
        *networks(2, side, [own, "swin-t"], ("bfloat16",)),
        *networks(2, side, [own], ("float32",), ("graph", "triton", "sdpa-math", "sdpa-efficient"), ("train",)),
        *attention([("small", 6, 2, 9, 16)], ATTENTION_VARIANTS, ("float32",)),
    ]
