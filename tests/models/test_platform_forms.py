"""The network as a GPU and a TPU run it, run on the CPU, beside the CPU's own form."""

from __future__ import annotations

import contextlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from osteojax.models.resnet import ResNet
from tests.platform_forms import traced_as_on

ACCELERATORS = ("cuda", "tpu")
FORMS = ("cpu", *ACCELERATORS)


def network(dtype=jnp.float32, **fields):
    own = {"stage_sizes": (1, 1), "width": 8, "shortcut": "average", "lowering": "cpu"}
    return ResNet(**{**own, "dtype": dtype, **fields})


def volumes(seed, size=16):
    return jnp.asarray(np.random.default_rng(seed).standard_normal((8, *[size] * 3, 1)))


def forms_of(form):
    return contextlib.nullcontext() if form == "cpu" else traced_as_on(form)


def run(form, function, *inputs):
    """`function(*inputs)`, jitted, with the forms of a platform."""
    with forms_of(form):
        return jax.jit(lambda *a: function(*a))(*inputs)


def started(seed, zero=False, **fields):
    """Variables, with scales and biases of either sign, and a scale of zero if asked for."""
    variables = network(**fields).init(jax.random.key(seed), volumes(seed), train=False)
    rng = np.random.default_rng(seed + 1)

    def moved(leaf):
        if leaf.ndim > 1:
            return leaf
        noise = jnp.asarray(rng.standard_normal(leaf.shape), jnp.float32)
        moved = leaf + 0.7 * noise
        return moved.at[0].set(0.0) if zero else moved

    return {**variables, "params": jax.tree.map(moved, variables["params"])}


def drawn_for(seed):
    """Volumes and a target."""
    return volumes(seed), jnp.asarray(np.random.default_rng(seed + 2).standard_normal((8, 16)))


def loss_of(dtype, variables, x, target, **fields):
    def loss(params):
        own = {**variables, "params": params}
        features, _ = network(dtype, **fields).apply(
            own, x, train=True, map_id=jnp.arange(8) % 3, mutable=["batch_stats"]
        )
        return jnp.square(features["pooled"] - target).mean()

    return loss


@pytest.mark.parametrize("form", ACCELERATORS)
@pytest.mark.parametrize("norm", ["batch", "per_map"])
def test_what_is_computed_stays(norm, form):
    """Forward to the bit; float32 gradients to rounding."""
    variables = started(0, zero=True, norm=norm)
    loss = loss_of(jnp.float32, variables, *drawn_for(0), norm=norm)
    of_loss = jax.value_and_grad(loss)
    cpu, other = (run(name, of_loss, variables["params"]) for name in ("cpu", form))
    np.testing.assert_allclose(cpu[0], other[0], rtol=1e-6)
    for a, b in zip(jax.tree.leaves(cpu[1]), jax.tree.leaves(other[1]), strict=True):
        free = np.ones(a.shape, bool)
        if a.ndim == 1:
            free[0] = False  # at a scale of zero the max-pool has no one gradient
        scale = float(jnp.abs(a).max())
        np.testing.assert_allclose(a[free], b[free], rtol=0, atol=5e-5 * scale)


def norm_of(a, b):
    return float(jnp.sqrt(sum(jnp.square(x - y).sum() for x, y in zip(a, b, strict=True))))


def test_the_gradient_in_bfloat16_is_no_further_from_float32():
    errors = {form: [] for form in FORMS}
    for seed in range(3):
        variables = started(seed)
        exact = run(
            "cpu", jax.grad(loss_of(jnp.float32, variables, *drawn_for(seed))), variables["params"]
        )
        exact = jax.tree.leaves(exact)
        for form in FORMS:
            loss = loss_of(jnp.bfloat16, variables, *drawn_for(seed))
            found = jax.tree.leaves(run(form, jax.grad(loss), variables["params"]))
            zero = [jnp.zeros_like(leaf) for leaf in exact]
            errors[form].append(norm_of(found, exact) / norm_of(exact, zero))
    print(errors)
    for form in ACCELERATORS:
        assert np.mean(errors[form]) <= 1.01 * np.mean(errors["cpu"])


@pytest.mark.slow
def test_the_losses_of_20_steps_are_no_further_from_float32():
    """In 12 networks, because the distance of one differs by a factor of three from another's."""
    far = {form: [] for form in FORMS}
    exact = twenty_steps("cpu", jnp.float32)
    found = {form: twenty_steps(form, jnp.bfloat16) for form in FORMS}
    for seed in range(12):
        drawn = started(seed), *drawn_for(seed)
        truth = exact(*drawn)
        for form in FORMS:
            far[form].append(float(jnp.abs(found[form](*drawn) - truth).mean()))
    print(far)
    for form in ACCELERATORS:
        assert np.mean(far[form]) <= 1.1 * np.mean(far["cpu"])


def twenty_steps(form, dtype):
    """(variables, volumes, target) -> the losses of 20 steps of gradient descent, f32[20]."""

    @jax.jit
    def losses(variables, x, target):
        gradient = jax.value_and_grad(loss_of(dtype, variables, x, target))

        def step(params, _):
            loss, gradients = gradient(params)
            return jax.tree.map(lambda p, g: p - 0.05 * g, params, gradients), loss

        return jax.lax.scan(step, variables["params"], None, length=20)[1]

    def run_as_on_the_platform(*inputs):
        with forms_of(form):  # the first call traces
            return losses(*inputs)

    return run_as_on_the_platform
