"""Casts of replicated arrays inside shard_map."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec as P

from osteojax.ops.varying import same_varying_axes


def test_alike_parameters_are_cast_together_and_their_gradients_are_summed_at_once():
    mesh = jax.make_mesh((8,), ("data",), (jax.sharding.AxisType.Auto,))
    x = jnp.asarray(np.random.default_rng(0).standard_normal((16, 3)), jnp.float32)
    parameters = tuple(jnp.full(shape, 2.0) for shape in ((3,), (3,), (1,), (3,)))

    def loss(parameters, x):
        a, b, c, d, x = same_varying_axes(*parameters, x)
        return jax.lax.pmean(jnp.sum((a * x + b) ** 2 * c - d * x), "data")

    sharded = jax.jit(
        jax.shard_map(jax.grad(loss), mesh=mesh, in_specs=(P(), P("data")), out_specs=P())
    )

    def plain(parameters):
        a, b, c, d = parameters
        return jnp.sum((a * x + b) ** 2 * c - d * x) / 8

    expected = jax.grad(plain)(parameters)
    for found, one in zip(sharded(parameters, x), expected, strict=True):
        np.testing.assert_allclose(found, one, rtol=1e-5)
    # One sum for each shape
    assert sharded.lower(parameters, x).as_text().count("stablehlo.all_reduce") == 2
