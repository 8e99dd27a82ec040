"""Mapped axes that arrays vary over, inside `jax.shard_map`."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax


def same_varying_axes(*arrays: jax.Array) -> tuple[jax.Array, ...]:
    """Marks each array as varying over every mapped axis that any of them varies over.

    Inside `shard_map(check_vma=True)` parameters are replicated and activations are sharded. A
    custom gradient must return cotangents that vary over the same axes as the primals. Because the
    cast comes before the custom function, its transpose sums a parameter's cotangent over the
    devices, as for any other operation.
    """
    axes = frozenset().union(*(_varying_axes(array) for array in arrays))
    result = list(arrays)
    for places in _alike([(a.shape, a.dtype, axes - _varying_axes(a)) for a in arrays]):
        missing = tuple(sorted(axes - _varying_axes(arrays[places[0]])))
        if missing:
            # One cast for all that are alike, whose transpose is one sum for all of them.
            cast = lax.pcast(jnp.stack([arrays[p] for p in places]), missing, to="varying")
            for place, array in zip(places, cast, strict=True):
                result[place] = array
    return tuple(result)


def _alike(kinds: list[Any]) -> list[list[int]]:
    """The places of equal entries, together."""
    found: dict[Any, list[int]] = {}
    for place, kind in enumerate(kinds):
        found.setdefault(kind, []).append(place)
    return list(found.values())


def _varying_axes(array: jax.Array) -> frozenset[str]:
    aval = jax.typeof(array)
    # jax 0.10 keeps the axes in manual_axis_type, other versions in vma.
    kinds = getattr(aval, "manual_axis_type", None)
    return kinds.varying if kinds is not None else aval.vma
