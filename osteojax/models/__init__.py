"""Encoders and heads. `model.name = "resnet"` in a config loads `osteojax/models/resnet.py`.

A backbone is a module with `build(fields, axis_name) -> nn.Module`; `fields` are those of
`config.model` without `name`, and only this module knows them. One of them is `rank`, which
objectives read too: 3 for volumes, 2 for the mid-sagittal slice. The Linen module is called as
`backbone(x f[B, *space, 1], train=bool, map_id=i32[B])`, where map_id is the texture map of each
sample, and returns named features, with "pooled" f32[B, F] among them. It may have

  attention_layers    layers for Grad-CAM (`AttentionLayer`), from the first to the last
  remat               a field: whether layers are computed again in the backward pass

and its file may have PLAIN, values of fields for the plain program whose FLOPs are counted, without
our optimisations (`osteojax.train.costs`), and FORM, names of fields that change what the same
parameters compute: a run that starts from another one's encoder must have its values.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import flax.linen as nn

from osteojax.choices import chosen_module
from osteojax.errors import UserError

if TYPE_CHECKING:
    from ml_collections import ConfigDict


class AttentionLayer(NamedTuple):
    """A layer whose output f[B, *space, C] keeps the position in the image.

    Attributes:
      name: of the module in the backbone, with "/" between nested modules.
      stride: voxels of the input from one voxel of the output to the next.
      first_centre: voxel of the input on which the output's first voxel is centred.
    """

    name: str
    stride: int
    first_centre: float = 0.0


def build_backbone(config: ConfigDict, axis_name: str | None) -> nn.Module:
    """The backbone that `config.model` describes; batch statistics are over `axis_name`.

    Raises:
      UserError: no such backbone, or it has no such field.
    """
    fields = config.to_dict()
    module = chosen_module("model.name", fields.pop("name"), __name__)
    return module.build(fields, axis_name)


def from_fields(
    backbone: type[nn.Module], fields: Mapping[str, Any], axis_name: str | None
) -> nn.Module:
    """Returns `backbone(axis_name=axis_name, **fields)`; a helper for `build`.

    Raises:
      UserError: it has no such field.
    """
    known = {field.name for field in dataclasses.fields(backbone)} - {"parent", "name", "axis_name"}
    if unknown := sorted(set(fields) - known):
        raise UserError(
            f"config.model has {', '.join(unknown)}, which {backbone.__name__} does not know; its "
            f"fields are {', '.join(sorted(known))}."
        )
    return backbone(axis_name=axis_name, **fields)


def plain_fields(config: ConfigDict) -> dict[str, Any]:
    """`PLAIN` of the backbone that `config.model` names; {} where it has none."""
    module = chosen_module("model.name", config.name, __name__)
    return dict(getattr(module, "PLAIN", {}))


def form_of(config: ConfigDict) -> dict[str, Any]:
    """Values of the fields that the backbone's module names in `FORM`; a field that `config` lacks
    has the backbone's default.

    Raises:
      UserError: no such backbone, or it has no such field.
    """
    module = chosen_module("model.name", config.name, __name__)
    backbone = build_backbone(config, None)
    return {name: getattr(backbone, name) for name in getattr(module, "FORM", ())}
