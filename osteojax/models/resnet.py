"""ResNet for images and volumes of one channel (He et al. 2016, basic blocks).

The shortcut of a block that halves space is that of ResNet-D (He et al. 2019, arXiv:1812.01187):
the mean of 2^rank voxels, then a 1x1x1 convolution of stride 1. Because the scale of a block's last
norm starts at zero, a network starts as the chain of its shortcuts. The strided 1x1x1 shortcut of
the original reads one voxel of 2^rank, so that such a network starts without most of its input: at
32^3, 216 of 32,768 voxels influence its embedding, and none of the central half-cube.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jax import Array

from osteojax.errors import UserError
from osteojax.models import AttentionLayer, from_fields
from osteojax.models.normalisation import Norm
from osteojax.ops.conv3d import Conv
from osteojax.ops.normalised import relu_of_sum
from osteojax.ops.pools import average_pool

SHORTCUTS = ("average", "strided")


class ResNet(nn.Module):
    """ResNet34 by default; 21.3 M parameters in 2D, 63.5 M in 3D.

    Stem: a convolution, norm, ReLU, 3^rank max-pool of stride 2. Stages of basic blocks have widths
    w, 2w, 4w, 8w; the first block of stages 2 to 4 halves space and has a projection on its
    shortcut. The defaults are the network of 0.1; shipped configs have shortcut "average".

    Attributes:
      stage_sizes: blocks in each stage.
      width: channels of the first stage.
      rank: 2 for images, 3 for volumes.
      norm: "batch", "group" or "per_map" (`Norm`).
      axis_name: mapped axis that the batch is spread over, for the statistics.
      dtype: of the computation; parameters and statistics are float32.
      remat: recomputes each block in the backward pass instead of keeping its activations.
      lowering: of the convolutions (`osteojax.ops.conv3d.conv`).
      shortcut: of a block that halves space. "average": `average_pool`, then a 1^rank convolution,
        which reads every voxel. "strided": a 1^rank convolution of stride 2, which reads one voxel
        of 2^rank.
      stem_window: edge of the stem's kernel in voxels, odd.
      stem_stride: of the stem's convolution.
      max_pool: whether the stem ends in the max-pool.
      block_scale: start of the scale of the last norm of every block. At zero a block starts as its
        shortcut (Goyal et al. 2017).
    """

    stage_sizes: tuple[int, ...] = (3, 4, 6, 3)
    width: int = 64
    rank: int = 3
    norm: str = "batch"
    axis_name: str | None = None
    dtype: Any = jnp.float32
    remat: bool = False
    lowering: str = "auto"
    shortcut: str = "strided"
    stem_window: int = 7
    stem_stride: int = 2
    max_pool: bool = True
    block_scale: float = 0.0

    @property
    def attention_layers(self) -> tuple[AttentionLayer, ...]:
        """The last block of each stage.

        Every convolution and the max-pool have odd windows and pad evenly, so that with strided
        shortcuts voxel i of a stage is centred on the input's voxel stride * i. An average shortcut
        is centred between the two voxels it reads, half a voxel further along each axis than the
        convolutions beside it. Both are taken to weigh alike: a quarter of the stage's stride.
        """
        layers, centre = [], 0.0
        stride = self.stem_stride * (2 if self.max_pool else 1)
        for stage, blocks in enumerate(self.stage_sizes, start=1):
            if stage > 1:
                centre += stride / 4 if self.shortcut == "average" else 0.0
                stride *= 2
            layers.append(AttentionLayer(f"stage{stage}_block{blocks}", stride, centre))
        return tuple(layers)

    @nn.compact
    def __call__(self, x: Array, *, train: bool, map_id: Array | None = None) -> dict[str, Array]:
        """Named features of normalised images.

        Args:
          x: f[B, *space, 1].
          train: batch statistics (True) or running averages (False).
          map_id: i32[B], texture map of each sample (index into `POOL`); for norm "per_map".

        Returns:
          "stage1".. dtype[B, *space / stride.., C], one for each stage, and "pooled" f32[B, C], the
          mean of the last one over space.
        """
        if x.ndim != self.rank + 2:
            raise ValueError(
                f"x has shape {x.shape}; a rank-{self.rank} ResNet takes [B, *space, 1]"
            )
        x = x.astype(self.dtype)
        x = Conv(
            self.width,
            (self.stem_window,) * self.rank,
            strides=self.stem_stride,
            padding=self.stem_window // 2,
            use_bias=False,
            dtype=self.dtype,
            kernel_init=KERNEL_INIT,
            lowering=self.lowering,
            name="stem",
        )(x)
        stem_norm = Norm(self.norm, self.axis_name, self.dtype, name="stem_norm")
        x = stem_norm(x, map_id, train=train, then="max_pool" if self.max_pool else "relu")
        block = nn.remat(BasicBlock, static_argnums=(3,)) if self.remat else BasicBlock
        features = {}
        for stage, blocks in enumerate(self.stage_sizes):
            for index in range(blocks):
                x = block(
                    self.width * 2**stage,
                    stride=2 if stage > 0 and index == 0 else 1,
                    norm=self.norm,
                    axis_name=self.axis_name,
                    dtype=self.dtype,
                    lowering=self.lowering,
                    shortcut=self.shortcut,
                    scale=self.block_scale,
                    name=f"stage{stage + 1}_block{index + 1}",
                )(x, map_id, train)
            features[f"stage{stage + 1}"] = x
        space = tuple(range(1, x.ndim - 1))
        return {**features, "pooled": jnp.mean(x, axis=space, dtype=jnp.float32)}


KERNEL_INIT = nn.initializers.variance_scaling(2.0, "fan_out", "normal")
"""He et al. 2015; the initialisation of torchvision's ResNets."""


class BasicBlock(nn.Module):
    """Two 3^rank convolutions with norms and a shortcut. See `ResNet` for the attributes."""

    features: int
    stride: int
    norm: str
    axis_name: str | None
    dtype: Any
    lowering: str
    shortcut: str = "strided"
    scale: float = 0.0

    @nn.compact
    def __call__(self, x: Array, map_id: Array | None, train: bool) -> Array:
        """dtype[B, *space, C] -> dtype[B, *ceil(space / stride), features]."""
        rank = x.ndim - 2

        def convolution(x: Array, window: int, stride: int, name: str) -> Array:
            return Conv(
                self.features,
                (window,) * rank,
                strides=stride,
                padding=window // 2,
                use_bias=False,
                dtype=self.dtype,
                kernel_init=KERNEL_INIT,
                lowering=self.lowering,
                name=name,
            )(x)

        def norm(x: Array, name: str, then: str = "", **options: Any) -> Array:
            return Norm(self.norm, self.axis_name, self.dtype, name=name, **options)(
                x, map_id, train=train, then=then
            )

        y = norm(convolution(x, 3, self.stride, "conv1"), "norm1", then="relu")
        y = convolution(y, 3, 1, "conv2")
        y = norm(y, "norm2", scale_init=nn.initializers.constant(self.scale))
        if x.shape != y.shape:
            stride = self.stride
            if stride == 2 and self.shortcut == "average":
                x, stride = average_pool(x), 1
            x = norm(convolution(x, 1, stride, "projection"), "projection_norm")
        return relu_of_sum(x, y)


def resnet34(**fields: Any) -> ResNet:
    """ResNet34: stages of 3, 4, 6 and 3 basic blocks."""
    return ResNet(**{"stage_sizes": (3, 4, 6, 3), **fields})


def build(fields: Mapping[str, Any], axis_name: str | None) -> nn.Module:
    """The `ResNet` of a config's fields; see `osteojax.models`.

    Raises:
      UserError: a field that it does not know, or a value that it cannot have.
    """
    dtype, stage_sizes = jnp.dtype(fields["dtype"]), tuple(fields["stage_sizes"])
    own = {**fields, "dtype": dtype, "stage_sizes": stage_sizes}
    model = from_fields(ResNet, own, axis_name)
    window, stride = own.get("stem_window", 7), own.get("stem_stride", 2)
    if own.get("shortcut", "strided") not in SHORTCUTS:
        raise UserError(
            f"model.shortcut is {own['shortcut']!r}; choose from {', '.join(SHORTCUTS)}."
        )
    if window < 1 or window % 2 == 0:
        raise UserError(f"model.stem_window is {window}; it must be odd, as 3, 5 or 7.")
    if stride < 1:
        raise UserError(f"model.stem_stride is {stride}; it must be 1 or more.")
    return model


PLAIN = {"lowering": "xla", "remat": False}
"""XLA's own convolutions, each computed once."""

FORM = ("shortcut", "stem_stride", "max_pool")
"""Fields that change what the same parameters compute."""
