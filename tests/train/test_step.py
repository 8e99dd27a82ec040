"""What a step computes in which precision, how often, and with how much of the network at once."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.extend import core

from osteojax import objectives
from osteojax.data.cohort import PreparedCohort
from osteojax.data.pipeline import evaluation_batches
from osteojax.ops import conv3d
from osteojax.train.optim import adamw_direction
from osteojax.train.parallel import DataParallel
from osteojax.train.step import make_step
from osteojax.types import TrainState
from tests.small_runs import fine_tuning, pretraining

CONFIGS = {"swav": pretraining, "multitask": fine_tuning}
BATCH = 8


def prepared(config, cohort: PreparedCohort) -> tuple[Any, tuple]:
    """(objective, arguments of its step on two devices, as shapes)."""
    objective = objectives.load(config, cohort)
    rows = objective.training_rows()
    _, batch = next(evaluation_batches(cohort, rows, objective.view, batch_size=BATCH))
    optimizer = objective.optimizer(adamw_direction(config), optax.constant_schedule(1e-2))

    def state() -> TrainState:
        params, model_state = objective.init(jax.random.key(0), batch)
        return TrainState(jnp.int32(0), params, model_state, optimizer.init(params), params)

    step = make_step(objective.loss, optimizer, DataParallel.create(num_devices=2), 0.9)
    return objective, (step, jax.eval_shape(state), batch, jax.random.key(0))


def equations(jaxpr: core.Jaxpr) -> Iterator[Any]:
    """Every equation of a program and of the programs inside it."""
    for equation in jaxpr.eqns:
        yield equation
        for inner in jax.tree.leaves(
            list(equation.params.values()),
            is_leaf=lambda p: isinstance(p, core.Jaxpr | core.ClosedJaxpr),
        ):
            if isinstance(inner, core.ClosedJaxpr):
                yield from equations(inner.jaxpr)
            elif isinstance(inner, core.Jaxpr):
                yield from equations(inner)


def dtypes(variables: list) -> set[np.dtype]:
    return {v.aval.dtype for v in variables if jnp.issubdtype(v.aval.dtype, jnp.floating)}


@pytest.mark.parametrize("name", CONFIGS)
def test_bfloat16_is_for_the_convolutions(tiny_pool, monkeypatch, name: str) -> None:
    """Parameters, statistics, exponentials (losses, Sinkhorn), sums over devices: float32."""
    # CPUs have no bfloat16: their lowering computes in float32 and rounds.
    monkeypatch.setattr(conv3d, "_conv_platform", conv3d._conv_accelerator)
    config = CONFIGS[name]("--config.model.dtype=bfloat16", "--config.model.rank=2")
    _, (step, *arguments) = prepared(config, PreparedCohort(tiny_pool))
    result = jax.eval_shape(step, *arguments)
    kinds = {leaf.dtype for leaf in jax.tree.leaves(result)}
    assert kinds == {jnp.dtype("float32"), jnp.dtype("int32")}
    half = jnp.dtype("bfloat16")
    seen = dict.fromkeys(("conv_general_dilated", "exp", "log", "rsqrt", "psum"), 0)
    for equation in equations(jax.make_jaxpr(step)(*arguments).jaxpr):
        primitive = equation.primitive.name
        primitive = "psum" if primitive.startswith("psum") else primitive
        if primitive not in seen or not dtypes(equation.invars):
            continue
        seen[primitive] += 1
        assert dtypes(equation.invars) == {
            half if primitive == "conv_general_dilated" else jnp.dtype("float32")
        }, equation
    assert seen["conv_general_dilated"] >= 3 * 5  # five layers, forward and two gradients
    assert min(seen.values()) >= (0 if name == "multitask" else 1)
    assert seen["psum"] > 10


def test_both_views_go_through_the_network_at_once(tiny_pool) -> None:
    _, (step, *arguments) = prepared(pretraining(), PreparedCohort(tiny_pool))
    shapes = []

    def seen(call, args, options, context):
        if (context.module.name, context.method_name) == ("backbone", "__call__"):
            shapes.append(args[0].shape)
        return call(*args, **options)

    with nn.intercept_methods(seen):
        jax.eval_shape(step, *arguments)
    assert shapes == [(BATCH // 2 * 2, 16, 16, 16, 1)]  # this device's half of the batch, twice
