"""Exports functions as StableHLO programs.

The first argument of every program is the weights by name (`flat_weights`), so that programs are
small and weights can be read separately.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from osteojax.export.card import input_entries

PLATFORMS = ("cpu", "cuda", "tpu")

Weights = dict[str, Any]
Function = Callable[..., Any]


def flat_weights(variables: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """{"params": ..., "batch_stats": ...} -> {"params.backbone.stem.kernel": array, ...}."""
    flat = flatten_dict(dict(variables), sep=".")
    return {name: np.ascontiguousarray(leaf) for name, leaf in flat.items()}


def tree_weights(weights: Weights) -> dict[str, Any]:
    """Inverse of `flat_weights`: {"params": ..., "batch_stats": ...}, Flax's variables."""
    return unflatten_dict(weights, sep=".")


def on_weights(function: Function) -> Function:
    """Converts a function of (variables, *inputs) to one of (weights by name, *inputs)."""

    def called(weights: Weights, *inputs: Any) -> Any:
        return function(tree_weights(weights), *inputs)

    called.__name__ = function.__name__  # the program's name
    return called


def arguments(weights: Weights, inputs: Mapping[str, Any], batch: Any) -> tuple[Any, ...]:
    """Shapes and dtypes of a program's arguments.

    Args:
      inputs: `Export.inputs`.
      batch: its size, a number or a symbol.
    """
    shapes = {name: jax.ShapeDtypeStruct(w.shape, w.dtype) for name, w in weights.items()}
    return shapes, *(
        jax.ShapeDtypeStruct((batch, *entry["shape"][1:]), np.dtype(entry["dtype"]))
        for entry in input_entries(inputs).values()
    )


def output_shapes(function: Function, called_with: tuple[Any, ...]) -> dict[str, Any]:
    """Shape of every output with "b" for the batch, and its dtype; nothing is computed."""
    outputs = jax.eval_shape(on_weights(function), *called_with)
    return {
        name: {"shape": ["b", *out.shape[1:]], "dtype": out.dtype.name}
        for name, out in outputs.items()
    }


def serialise(function: Function, weights: Weights, inputs: Mapping[str, Any]) -> bytes:
    """One program for CPU, CUDA and TPU and any batch size.

    Products are computed in float32. By default GPUs would round their inputs to TF32 and TPUs to
    bfloat16, and the exported model's outputs would differ from the evaluated ones.
    """
    (batch,) = jax.export.symbolic_shape("b")
    called_with = arguments(weights, inputs, batch)
    with jax.default_matmul_precision("highest"):
        exported = jax.export.export(jax.jit(on_weights(function)), platforms=PLATFORMS)(
            *called_with
        )
    return bytes(exported.serialize())
