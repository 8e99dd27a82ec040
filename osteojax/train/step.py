"""One update of the parameters and of their moving average, for any objective."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jax.experimental.layout import Layout, with_layout_constraint

from osteojax.train.parallel import DataParallel
from osteojax.types import Batch, Metrics, TrainState


def make_step(
    loss: Callable,
    optimizer: optax.GradientTransformation,
    devices: DataParallel,
    ema_decay: float | None,
) -> Callable[[TrainState, Batch, jax.Array], tuple[TrainState, Metrics]]:
    """The jitted, device-mapped step.

    Args:
      loss: `(params, model_state, batch, key, step) -> (loss, (model_state, metrics))`, reduced
        over the device axis.
      optimizer: gradient -> update.
      devices: how it is mapped.
      ema_decay: of the moving average of the parameters; None keeps no average.

    Returns:
      (state, global batch, run key) -> (state, metrics). The state passed in is donated. The key of
      a step is the run's key folded with the step number, so that a resumed run draws the same.
    """
    return devices.map_step(_update(loss, optimizer, devices, ema_decay))


def make_steps(
    loss: Callable,
    optimizer: optax.GradientTransformation,
    devices: DataParallel,
    ema_decay: float | None,
    gather: Callable[[jax.Array, Batch], Batch],
) -> Callable[[TrainState, jax.Array, Batch, jax.Array], tuple[TrainState, Metrics]]:
    """Several steps in one dispatch, from data that the devices hold.

    Args:
      gather: (a device's share of the data, its share of one step's draws) -> its share of the
        batch (`data/resident.py`). The rest is as for `make_step`.

    Returns:
      (state, data, draws of K steps, run key) -> (state, metrics [K]). The state passed in is
      donated; each K is compiled separately. On CPU the results are equal to the bit for every K
      and for data on disk or in memory (tested); those of `make_step` are equal to rounding.
    """
    update = _update(loss, optimizer, devices, ema_decay)

    def steps(
        state: TrainState, data: jax.Array, draws_K: Batch, key: jax.Array
    ) -> tuple[TrainState, Metrics]:
        def one(state: TrainState, draws: Batch) -> tuple[TrainState, Metrics]:
            return update(state, gather(data, draws), key)

        return lax.scan(one, state, draws_K)  # for one step XLA removes the loop

    return devices.map_steps(steps)


def _update(
    loss: Callable,
    optimizer: optax.GradientTransformation,
    devices: DataParallel,
    ema_decay: float | None,
) -> Callable[[TrainState, Batch, jax.Array], tuple[TrainState, Metrics]]:
    """One device's part of a step."""

    def step(state: TrainState, batch: Batch, key: jax.Array) -> tuple[TrainState, Metrics]:
        step_key = jax.random.fold_in(key, state.step)
        gradient_of = jax.value_and_grad(loss, has_aux=True)
        (value, (model_state, metrics)), gradients = gradient_of(
            state.params, state.model_state, batch, step_key, state.step
        )
        gradients = _in_place(devices.mean_gradients(gradients))
        updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        new_state = TrainState(
            step=state.step + 1,
            params=params,
            model_state=model_state,
            opt_state=opt_state,
            ema_params=_averaged(state, params, ema_decay),
        )
        metrics = {**metrics, "loss": value, "gradient_norm": optax.tree.norm(gradients)}
        return new_state, metrics

    return step


def _in_place(gradients):
    """The gradients; on an NVIDIA GPU those of convolutions in the layout of their parameters.

    cuDNN gives a kernel's gradient transposed. XLA would transpose it in the optimiser's own pass,
    which then cannot write in place and copies parameters and moments.
    """

    def laid_out(*leaves):
        plain = (with_layout_constraint(x, Layout(tuple(range(x.ndim)))) for x in leaves)
        return tuple(lax.optimization_barrier(x) for x in plain)

    leaves = jax.tree.leaves(gradients)
    leaves = lax.platform_dependent(*leaves, cuda=laid_out, default=lambda *leaves: leaves)
    return jax.tree.unflatten(jax.tree.structure(gradients), leaves)


def _averaged(state: TrainState, params, decay: float | None):
    if decay is None:
        return None
    # At first the average decays faster, so that it forgets the initial parameters.
    early = (1.0 + state.step) / (10.0 + state.step)
    rate = jnp.minimum(decay, early)
    return jax.tree.map(lambda a, p: rate * a + (1.0 - rate) * p, state.ema_params, params)
