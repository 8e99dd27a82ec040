"""Export of a run's encoder, and the image of a vertebra as the input of exported programs."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import jax.numpy as jnp
from jax import Array

from osteojax.data.augment import network_input
from osteojax.data.vertebrae import HU_MAX, HU_MIN, KIND, LEVELS, about
from osteojax.models import build_backbone
from osteojax.types import Export, ModelState, Params

if TYPE_CHECKING:
    from ml_collections import ConfigDict

    from osteojax.data.schema import Manifest

POOLED = {"what": "pooled features of the encoder's last stage"}
DEVICE_INPUT = {"shape": ["b"], "dtype": "int32", "what": "index into `devices`"}


def encoder_exports(config: ConfigDict, manifest: Manifest) -> dict[str, Export]:
    """Exports that every run on vertebrae has: its encoder, for use with a linear probe.

    "encoder" gives embedding f32[B, F] of hu f32[B, D, H, W]; "features" the mean over space of
    every stage as well, stage1 f32[B, C1], ... (the last one is the embedding).
    """
    backbone = build_backbone(config.model, axis_name=None)
    see = network_input_of(config, manifest)

    def program(stages: bool) -> Callable[..., dict[str, Array]]:
        def encode(variables: Any, hu: Array) -> dict[str, Array]:
            inner = {kind: variables[kind]["backbone"] for kind in variables}
            image_maps = jnp.zeros(hu.shape[0], jnp.int32)
            features: Any = backbone.apply(inner, see(hu), train=False, map_id=image_maps)
            means = {
                name: jnp.mean(value, axis=tuple(range(1, value.ndim - 1)), dtype=jnp.float32)
                for name, value in features.items()
                if stages and name != "pooled"
            }
            return {"embedding": features["pooled"], **means}

        return encode

    def describe(name: str) -> dict[str, Any]:
        return (
            POOLED if name == "embedding" else {"what": f"mean over space of the encoder's {name}"}
        )

    return {
        what: Export(
            programs={"program": program(stages)},
            variables=_encoder_variables,
            inputs=describe_inputs(manifest, with_device=False),
            describe=describe,
            facts=facts_of(manifest),
        )
        for what, stages in (("encoder", False), ("features", True))
    }


def image_statistics(model_state: ModelState) -> Any:
    """Running statistics for images. Pre-training keeps them beside its statistics of all members;
    a fine-tuned model was trained on images only."""
    return model_state.get("image_batch_stats", model_state.get("batch_stats", {}))


def _encoder_variables(params: Params, model_state: ModelState) -> dict[str, Any]:
    variables = {"params": params, "batch_stats": image_statistics(model_state)}
    return {
        kind: {name: tree for name, tree in trees.items() if name == "backbone"}
        for kind, trees in variables.items()
    }


def facts_of(manifest: Manifest) -> dict[str, Any]:
    """Fields of model.json about the kind of data."""
    return {"kind": KIND, "devices": list(about(manifest).devices), "levels": list(LEVELS)}


def network_input_of(config: ConfigDict, manifest: Manifest) -> Callable[[Array], Array]:
    """A function f32[B, D, H, W] HU -> the network's input. HU are quantised as in the shards, so
    that an exported model gets the same input as in training."""
    known = about(manifest)
    image, map_affine = known.maps[0], jnp.asarray(known.map_affine())

    def see(hu: Array) -> Array:
        codes = jnp.floor((hu - image.offset) / image.step + 0.5)
        codes = jnp.clip(codes, 0, image.codes - 1)
        image_maps = jnp.zeros(hu.shape[0], jnp.int32)
        return network_input(codes, image_maps, map_affine, config.model.rank)

    return see


def describe_inputs(manifest: Manifest, with_device: bool) -> dict[str, Any]:
    """`Export.inputs` of a program that takes the HU of vertebrae, and their DXA scanners."""
    known = about(manifest)
    edge, image = known.size, known.maps[0]
    scale, shift = (float(value) for value in known.map_affine()[0])
    return {
        "hu": {
            "shape": ["b", edge, edge, edge],
            "dtype": "float32",
            "unit": "HU",
            "window": [HU_MIN, HU_MAX],
            "spacing_mm": known.spacing_mm,
            "outside_ct": -1000.0,
            "outside_vertebra": HU_MIN if known.texture.get("domain") == "vertebra" else None,
            "axes": ["inferior to superior", "anterior to posterior", "right to left"],
            "frame": "centred on the vertebral body, along the vertebra's own axes",
        },
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
        "label_scheme_of_training_masks": known.label_scheme,
    }
