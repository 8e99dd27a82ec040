"""Export of a run's encoder, and the image of a vertebra as the input of exported programs."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
from jax import Array

from osteojax.data.boxes import BOXES, CUBE
from osteojax.data.vertebra_columns import BODY_NUMBERS
from osteojax.data.vertebrae import HU_MAX, HU_MIN, KIND, LEVELS, about
from osteojax.models import build_backbone
from osteojax.objectives.sight import Sight
from osteojax.types import Export, ModelState, Params

if TYPE_CHECKING:
    from ml_collections import ConfigDict

    from osteojax.data.schema import Manifest

POOLED = {"what": "pooled features of the encoder's last stage"}
DEVICE_INPUT = {"shape": ["b"], "dtype": "int32", "what": "index into `devices`"}
ENCODERS = {"backbone": "", "whole": "whole_"}
"""Names of the encoders in a run's variables, and how names of their outputs begin: `backbone`, and
`whole`, which sees the box where `backbone` sees crops of the body."""


def encoder_exports(config: ConfigDict, manifest: Manifest) -> dict[str, Export]:
    """Exports that every run on vertebrae has: its encoder, for use with a linear probe.

    "encoder" gives embedding f32[B, F] of hu f32[B, D, H, W], of a run that sees the body of hu and
    body bool[B, D, H, W]: the mean over its fixed crops, and then the embedding of the box in a run
    that has an encoder for it. "features" gives the mean over space of every stage as well, stage1
    f32[B, C1], ... (and whole_stage1, ... of the box).
    """
    backbone, sight = build_backbone(config.model, axis_name=None), Sight.of(config, manifest)
    sight = dataclasses.replace(sight, numbers=False)

    def program(stages: bool) -> Callable[..., dict[str, Array]]:
        def encode(variables: Any, hu: Array, body: Array | None = None) -> dict[str, Array]:
            def features(encoder: str, x: Array) -> dict[str, Array]:
                # A backbone without running statistics is absent from those of the projector.
                inner = {kind: trees.get(encoder, {}) for kind, trees in variables.items()}
                image_maps = jnp.zeros(x.shape[0], jnp.int32)
                named: Any = backbone.apply(inner, x, train=False, map_id=image_maps)
                return {ENCODERS[encoder] + name: over_space(v) for name, v in named.items()}

            seen = sight.of_hu(hu, body)
            found: dict[str, Array] = {}
            if sight.crops:
                found |= mean_over_crops(partial(features, "backbone"), seen["crops"])
            if sight.box:
                found |= features("whole" if sight.crops else "backbone", seen["x"])
            pooled = [found.pop(start + "pooled", None) for start in ENCODERS.values()]
            parts = [part for part in pooled if part is not None]
            return {"embedding": jnp.concatenate(parts, axis=-1), **(found if stages else {})}

        return encode

    def describe(name: str) -> dict[str, Any]:
        return (
            POOLED if name == "embedding" else {"what": f"mean over space of the encoder's {name}"}
        )

    return {
        what: Export(
            programs={"program": program(stages)},
            variables=_encoder_variables,
            inputs=describe_inputs(sight, with_device=False),
            describe=describe,
            facts=facts_of(manifest),
        )
        for what, stages in (("encoder", False), ("features", True))
    }


def over_space(features: Array) -> Array:
    """f32[B, C]: the mean of f[B, *space, C] over space."""
    return jnp.mean(features, axis=tuple(range(1, features.ndim - 1)), dtype=jnp.float32)


def mean_over_crops(encode: Callable[[Array], Any], crops_BN: Array) -> Any:
    """The mean over each vertebra's crops of what an encoder gives for a crop.

    Args:
      encode: f32[B * N, *space, 1] -> arrays [B * N, ...].
      crops_BN: f32[B, N, *space, 1]; all go through the encoder in one pass, with common batch
        statistics.

    Returns:
      the same arrays, [B, ...].
    """
    batch, count = crops_BN.shape[:2]
    found = encode(crops_BN.reshape(batch * count, *crops_BN.shape[2:]))
    return jax.tree.map(lambda out: out.reshape(batch, count, *out.shape[1:]).mean(axis=1), found)


def image_statistics(model_state: ModelState) -> Any:
    """Running statistics for images. Pre-training keeps them beside its statistics of all members;
    a fine-tuned model was trained on images only."""
    return model_state.get("image_batch_stats", model_state.get("batch_stats", {}))


def _encoder_variables(params: Params, model_state: ModelState) -> dict[str, Any]:
    variables = {"params": params, "batch_stats": image_statistics(model_state)}
    return {
        kind: {name: tree for name, tree in trees.items() if name in ENCODERS}
        for kind, trees in variables.items()
    }


def facts_of(manifest: Manifest) -> dict[str, Any]:
    """Fields of model.json about the kind of data."""
    return {"kind": KIND, "devices": list(about(manifest).devices), "levels": list(LEVELS)}


def describe_inputs(sight: Sight, with_device: bool) -> dict[str, Any]:
    """`Export.inputs` of a program that takes the HU of vertebrae, their bodies where the run sees
    them, and their DXA scanners."""
    known, image = sight.known, sight.known.maps[0]
    box, shape = BOXES[known.box], ["b", *known.shown]
    centre = "centred on the vertebral body"
    if box.back_mm:
        centre = f"centred {box.back_mm:g} mm behind the middle of the vertebral body"
    scale, shift = _image_affine(sight, sight.box_statistics if sight.box else sight.statistics)
    return {
        "hu": {
            "shape": shape,
            "dtype": "float32",
            "unit": "HU",
            "window": [HU_MIN, HU_MAX],
            "spacing_mm": known.spacing_mm,
            "outside_ct": -1000.0,
            "outside_vertebra": HU_MIN if known.texture.get("domain") == "vertebra" else None,
            "axes": ["inferior to superior", "anterior to posterior", "right to left"],
            "frame": f"{centre}, along the vertebra's own axes",
            **({} if known.box == CUBE else {"box": known.box, "back_mm": box.back_mm}),
        },
        **({"body": _body_input(sight, shape)} if sight.takes_body else {}),
        **({"device": DEVICE_INPUT} if with_device else {}),
        "network_input": {
            "what": "made by the program: scale * clip(floor((hu - offset) / step + 0.5), 0, "
            "codes - 1) + shift; the mid-sagittal slice of it for a model of rank 2",
            "offset_hu": image.offset,
            "step_hu": image.step,
            "codes": image.codes,
            "scale": scale,
            "shift": shift,
        },
        **({"crops": _describe_crops(sight)} if sight.crops else {}),
        **({"numbers": DESCRIBED_NUMBERS} if sight.numbers else {}),
        "label_scheme_of_training_masks": known.label_scheme,
    }


def _image_affine(sight: Sight, region: str) -> tuple[float, float]:
    scale, shift = (float(value) for value in sight.known.map_affine(region)[0])
    return scale, shift


def _body_input(sight: Sight, shape: list[Any]) -> dict[str, Any]:
    """The entry of the body's mask. Keys other than "shape" and "dtype" are for people."""
    uses = ["crops are cut inside it"] if sight.crops else []
    uses += ["numbers are computed from its voxels"] if sight.numbers else []
    what = f"the vertebral body; {' and '.join(uses)}"
    return {"shape": shape, "dtype": "bool", "what": what}


def _describe_crops(sight: Sight) -> dict[str, Any]:
    scale, shift = _image_affine(sight, sight.statistics)
    return {
        "what": "cut by the program: of all places, in C order, where at least body_share of a "
        "crop's voxels are body, those of rank floor((i + 0.5) * places / count); without such a "
        "place the first one of largest share. Network input as above, with this scale and shift",
        "edge_voxels": sight.edge,
        "count": sight.views.readout_crops,
        "body_share": sight.views.body_share,
        "scale": scale,
        "shift": shift,
    }


DESCRIBED_NUMBERS = {
    "what": "computed by the program from hu, clipped to its window, over the voxels of body: mean "
    "(HU), SD (HU), and natural logarithms of the mean square differences (HU^2, at least 1) of "
    "voxels 1, 2 and 3 apart along each axis; z-scored with the tensors numbers.mean and "
    "numbers.std, 0 where there is no such pair; joined to the embedding",
    "names": list(BODY_NUMBERS),
}
