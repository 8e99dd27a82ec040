"""Encoders and heads. `model.name = "resnet"` in a config loads `osteojax/models/resnet.py`.

A backbone module names its Linen class `Backbone`; the class takes the other fields of
`config.model` and returns named features, "pooled" f32[B, F] among them.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

import flax.linen as nn
import jax.numpy as jnp

from osteojax.errors import UserError

if TYPE_CHECKING:
    from ml_collections import ConfigDict

BACKBONES = ("resnet",)


def build_backbone(config: ConfigDict, axis_name: str | None) -> nn.Module:
    """The backbone that `config.model` describes; statistics are taken over `axis_name`."""
    fields = config.to_dict()
    name = fields.pop("name")
    if name not in BACKBONES:
        raise UserError(f"model.name is {name!r}; choose one of {', '.join(BACKBONES)}.")
    module = importlib.import_module(f"osteojax.models.{name}")
    fields["dtype"] = jnp.dtype(fields["dtype"])
    fields["stage_sizes"] = tuple(fields["stage_sizes"])
    return module.Backbone(axis_name=axis_name, **fields)
