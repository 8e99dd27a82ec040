"""Mapped axes that arrays vary over, inside `jax.shard_map`."""

from __future__ import annotations

import jax
from jax import lax


def same_varying_axes(*arrays: jax.Array) -> tuple[jax.Array, ...]:
    """Marks each array as varying over every mapped axis that any of them varies over.

    Inside `shard_map(check_vma=True)` parameters are replicated and activations are sharded. A
    custom gradient must return cotangents that vary over the same axes as the primals. Because the
    cast comes before the custom function, its transpose sums a parameter's cotangent over the
    devices, as for any other operation.
    """
    axes = frozenset().union(*(_varying_axes(array) for array in arrays))
    return tuple(
        lax.pcast(array, tuple(sorted(axes - _varying_axes(array))), to="varying")
        if axes - _varying_axes(array)
        else array
        for array in arrays
    )


def _varying_axes(array: jax.Array) -> frozenset[str]:
    aval = jax.typeof(array)
    # jax 0.10 keeps the axes in manual_axis_type, other versions in vma.
    kinds = getattr(aval, "manual_axis_type", None)
    return kinds.varying if kinds is not None else aval.vma
