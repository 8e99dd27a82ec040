"""ResNet for images and volumes of one channel (He et al. 2016, basic blocks)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jax import Array, lax

from osteojax.models import AttentionLayer, from_fields
from osteojax.models.normalisation import Norm
from osteojax.ops.conv3d import Conv

STEM_STRIDE = 4
"""Stride of stage 1 relative to the input; each later stage doubles it."""


class ResNet(nn.Module):
    """ResNet34 by default; 21.3 M parameters in 2D, 63.5 M in 3D.

    Stem: 7^rank stride 2, norm, ReLU, 3^rank max-pool stride 2. Stages of basic blocks have widths
    w, 2w, 4w, 8w; stages 2 to 4 have stride 2, with 1x1 stride-2 projections on their shortcuts.
    The scale of the last norm of every block starts at zero, so that a block starts as its shortcut
    (Goyal et al. 2017).

    Attributes:
      stage_sizes: blocks in each stage.
      width: channels of the first stage.
      rank: 2 for images, 3 for volumes.
      norm: "batch", "group" or "per_map" (`Norm`).
      axis_name: mapped axis that the batch is spread over, for the statistics.
      dtype: of the computation; parameters and statistics are float32.
      remat: recomputes each block in the backward pass instead of keeping its activations.
      lowering: of the convolutions (`osteojax.ops.conv3d.conv`).
    """

    stage_sizes: tuple[int, ...] = (3, 4, 6, 3)
    width: int = 64
    rank: int = 3
    norm: str = "batch"
    axis_name: str | None = None
    dtype: Any = jnp.float32
    remat: bool = False
    lowering: str = "auto"

    @property
    def attention_layers(self) -> tuple[AttentionLayer, ...]:
        """The last block of each stage. Voxel i of a stage is centred on the input's voxel
        stride * i, because every layer of stride 2 pads evenly."""
        return tuple(
            AttentionLayer(f"stage{stage}_block{blocks}", STEM_STRIDE * 2 ** (stage - 1))
            for stage, blocks in enumerate(self.stage_sizes, start=1)
        )

    @nn.compact
    def __call__(self, x: Array, *, train: bool, map_id: Array | None = None) -> dict[str, Array]:
        """Named features of normalised images.

        Args:
          x: f[B, *space, 1].
          train: batch statistics (True) or running averages (False).
          map_id: i32[B], texture map of each sample (index into `POOL`); for norm "per_map".

        Returns:
          "stage1".. dtype[B, *space / 4.., C], one for each stage, and "pooled" f32[B, C], the mean
          of the last one over space.
        """
        if x.ndim != self.rank + 2:
            raise ValueError(
                f"x has shape {x.shape}; a rank-{self.rank} ResNet takes [B, *space, 1]"
            )
        x = x.astype(self.dtype)
        x = Conv(
            self.width,
            (7,) * self.rank,
            strides=2,
            padding=3,
            use_bias=False,
            dtype=self.dtype,
            kernel_init=KERNEL_INIT,
            lowering=self.lowering,
            name="stem",
        )(x)
        x = Norm(self.norm, self.axis_name, self.dtype, name="stem_norm")(x, map_id, train=train)
        x = max_pool(nn.relu(x))
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

    @nn.compact
    def __call__(self, x: Array, map_id: Array | None, train: bool) -> Array:
        """dtype[B, *space, C] -> dtype[B, *space / stride, features]."""
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

        def norm(x: Array, name: str, **options: Any) -> Array:
            return Norm(self.norm, self.axis_name, self.dtype, name=name, **options)(
                x, map_id, train=train
            )

        y = nn.relu(norm(convolution(x, 3, self.stride, "conv1"), "norm1"))
        y = convolution(y, 3, 1, "conv2")
        y = norm(y, "norm2", scale_init=nn.initializers.zeros_init())
        if x.shape != y.shape:
            x = norm(convolution(x, 1, self.stride, "projection"), "projection_norm")
        return nn.relu(x + y)


def max_pool(x: Array) -> Array:
    """Maximum over 3^rank windows, stride 2, one voxel of padding at both ends of every axis.

    f[B, *space, C] -> f[B, *ceil(space / 2), C]. Axes are pooled one after another, which takes 9
    instead of 27 comparisons. The gradient selects from whole arrays, whereas that of
    `lax.reduce_window` scatters voxel by voxel on CPU. Ties share the gradient.
    """
    for axis in range(1, x.ndim - 1):
        size = x.shape[axis]
        count = -(-size // 2)
        config = [(0, 0, 0)] * x.ndim
        config[axis] = (1, 2 * count - size, 0)
        padded = lax.pad(x, jnp.array(-jnp.inf, x.dtype), config)
        parts = [
            lax.slice_in_dim(padded, start, start + 2 * count - 1, 2, axis) for start in range(3)
        ]
        x = jnp.maximum(jnp.maximum(parts[0], parts[1]), parts[2])
    return x


def resnet34(**fields: Any) -> ResNet:
    """ResNet34: stages of 3, 4, 6 and 3 basic blocks."""
    return ResNet(**{"stage_sizes": (3, 4, 6, 3), **fields})


def build(fields: Mapping[str, Any], axis_name: str | None) -> nn.Module:
    """The `ResNet` of a config's fields; see `osteojax.models`."""
    dtype, stage_sizes = jnp.dtype(fields["dtype"]), tuple(fields["stage_sizes"])
    return from_fields(ResNet, {**fields, "dtype": dtype, "stage_sizes": stage_sizes}, axis_name)


PLAIN = {"lowering": "xla", "remat": False}
"""XLA's own convolutions, each computed once."""
