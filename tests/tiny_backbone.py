"""A backbone outside this repository, as its owner would write it: patches and one convolution."""

from __future__ import annotations

import flax.linen as nn
import jax.numpy as jnp

from osteojax.models import AttentionLayer, from_fields


class TinyNet(nn.Module):
    """Patches of 4 voxels an edge and one 3^rank convolution; no running statistics."""

    width: int = 4
    rank: int = 3
    axis_name: str | None = None

    attention_layers = (AttentionLayer("mix", stride=4, first_centre=1.5),)

    @nn.compact
    def __call__(self, x, *, train, map_id=None):
        patch = (4,) * self.rank
        x = nn.relu(nn.Conv(self.width, patch, strides=patch, padding="VALID", name="patches")(x))
        x = nn.relu(nn.Conv(2 * self.width, (3,) * self.rank, name="mix")(x))
        return {"mixed": x, "pooled": jnp.mean(x, axis=tuple(range(1, x.ndim - 1)))}


def build(fields, axis_name):
    return from_fields(TinyNet, fields, axis_name)
