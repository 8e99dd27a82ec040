"""The whole of SwAV's loss, its gradient and its optimiser against float64 NumPy
(tests/oracles/swav.py)."""

from __future__ import annotations

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec
from ml_collections import ConfigDict

from osteojax.objectives.swav import SwAV
from osteojax.train.optim import adamw_direction
from osteojax.train.parallel import DataParallel
from osteojax.types import AXIS
from tests.oracles import swav as oracle

SETTINGS = ConfigDict(
    {
        "num_prototypes": 5,
        "prototype_dim": 3,
        "projector_dim": 8,
        "temperature": 0.1,
        "sinkhorn_epsilon": 0.05,
        "sinkhorn_iterations": 3,
        "queue_size": 8,
        "freeze_prototypes_steps": 2,
        "diversity_weight": 0.7,
        "unit_prototypes": True,
    }
)
BATCH, QUEUE = 4, 8


def unit(shape: tuple[int, ...], seed: int) -> np.ndarray:
    """Random rows of length 1, the same in float32 and float64."""
    x = np.random.default_rng(seed).normal(size=shape)
    return (x / np.linalg.norm(x, axis=-1, keepdims=True)).astype(np.float32).astype(np.float64)


@functools.cache
def compiled(num_views: int, num_devices: int, queue_start_steps: int = 0) -> Callable:
    """(projection, vectors, carried) -> loss, gradients, queue and metrics of a batch that is
    spread over some devices."""
    settings = SETTINGS.copy_and_resolve_references()
    settings.queue_start_steps = queue_start_steps
    swav = SwAV(settings, BATCH, num_views)
    prototypes = swav.model(None, None).prototypes

    def loss(projection_BVD, vectors_KD, carried):
        params = {"prototypes": {"vectors": vectors_KD}}
        scores = prototypes.apply({"params": params["prototypes"]}, projection_BVD)
        outputs = {"scores": scores, "projection": projection_BVD}
        value, kept, metrics = swav.loss(params, carried, outputs)
        return value, {"loss": value, **kept, **metrics}

    devices, whole, share = (
        DataParallel.create(num_devices=num_devices), PartitionSpec(), PartitionSpec(AXIS)
    )  # fmt: skip
    return jax.jit(
        jax.shard_map(
            jax.grad(loss, argnums=(0, 1), has_aux=True),
            mesh=devices.mesh,
            in_specs=(share, whole, whole),
            out_specs=((share, whole), whole),
        )
    )


def ours(
    num_devices: int, projection, vectors, carried, queue_start_steps: int = 0
) -> dict[str, np.ndarray]:
    arrays = jnp.asarray(projection, jnp.float32), jnp.asarray(vectors, jnp.float32)
    (by_projection, by_vectors), found = compiled(
        projection.shape[1], num_devices, queue_start_steps
    )(*arrays, carried)
    return {"by_projection": by_projection, "by_vectors": by_vectors, **found}


@pytest.mark.parametrize(
    ("num_views", "filled", "num_devices"),
    [(2, QUEUE, 1), (2, 0, 1), (2, QUEUE, 4), (4, QUEUE, 4), (4, 4, 4)],
)
def test_loss_gradients_and_metrics(num_views: int, filled: int, num_devices: int) -> None:
    """With a full queue and with one that is not, whose entries must not be used."""
    projection, vectors = unit((BATCH, num_views, 3), 0), 3.0 * unit((5, 3), 1)
    queue = unit((QUEUE, num_views, 3), 2)
    targets = oracle.targets(projection, vectors, queue if filled == QUEUE else queue[:0], SETTINGS)
    whole = oracle.loss(projection, vectors, targets, SETTINGS)
    share = targets.mean(axis=(0, 1))
    expected = {
        "loss": whole["loss"],
        "swapped_prediction": whole["swapped"] / 2,
        "ln_k": np.log(5),
        "loss_over_flat": whole["swapped"] / 2 / np.log(5),
        "prototype_diversity": whole["diversity"],
        "prototype_perplexity": np.exp(-(share * np.log(share)).sum()),
        "prototypes_used": len(np.unique(np.argmax(projection @ vectors.T, axis=-1))),
        "largest_assignment": targets.max(),
        # Assignments are targets: no gradient flows through them.
        "by_projection": oracle.slope(
            lambda x: oracle.loss(x, vectors, targets, SETTINGS)["loss"], projection
        ),
        "by_vectors": oracle.slope(
            lambda x: oracle.loss(projection, x, targets, SETTINGS)["loss"], vectors
        ),
        "queue": np.concatenate([projection, queue[:-BATCH]]),
        "queue_filled": min(filled + BATCH, QUEUE),
    }
    carried = {"queue": jnp.asarray(queue, jnp.float32), "queue_filled": jnp.int32(filled)}
    found = ours(num_devices, projection, vectors, carried)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=2e-4, atol=1e-4, err_msg=name)


def test_a_queue_that_begins_late() -> None:
    """`queue_start_steps` batches pass before the queue counts, and nothing else differs."""
    projection, vectors = unit((BATCH, 2, 3), 0), 3.0 * unit((5, 3), 1)
    queue = unit((QUEUE, 2, 3), 2)
    for seen, entries in ((QUEUE, queue[:0]), (19, queue[:0]), (20, queue)):
        targets = oracle.targets(projection, vectors, entries, SETTINGS)
        carried = {"queue": jnp.asarray(queue, jnp.float32), "queue_filled": jnp.int32(seen)}
        found = ours(1, projection, vectors, carried, queue_start_steps=5)
        expected = oracle.loss(projection, vectors, targets, SETTINGS)["loss"]
        np.testing.assert_allclose(found["loss"], expected, rtol=2e-4, err_msg=str(seen))
        np.testing.assert_allclose(found["queue"], np.concatenate([projection, queue[:-BATCH]]))
        assert found["queue_filled"] == min(seen + BATCH, 5 * BATCH)


def test_used_prototypes_are_counted_over_all_devices() -> None:
    """Each device's example is nearest to a prototype of its own."""
    vectors = np.array([[1, 0, 0], [0, 1, 0], [0, 0, 1], [-1, 0, 0], [0, -1, 0]])
    projection = np.repeat(vectors[:4, None], 2, axis=1)
    carried = SwAV(SETTINGS, BATCH).carried()
    assert float(ours(4, projection, vectors, carried)["prototypes_used"]) == 4


@pytest.mark.parametrize("freeze", [0, 2])
@pytest.mark.parametrize("unit_prototypes", [False, True])
def test_the_prototypes_way(freeze: int, unit_prototypes: bool) -> None:
    """AdamW with and without a freeze, of vectors that are and are not kept at unit length."""
    settings = SETTINGS.copy_and_resolve_references()
    settings.update(freeze_prototypes_steps=freeze, unit_prototypes=unit_prototypes)
    optim = ConfigDict({"beta1": 0.9, "beta2": 0.999, "weight_decay": 0.1})
    swav, rate = SwAV(settings, BATCH), 0.05
    direction = swav.optimizer(adamw_direction(ConfigDict({"optim": optim})))
    chain = optax.chain(direction, optax.scale_by_learning_rate(rate))
    optimizer = swav.constrain(chain)
    vectors = 3.0 * unit((5, 4), 3)
    gradients = [np.random.default_rng(seed).normal(size=(5, 4)) for seed in range(5)]
    expected = oracle.trained_prototypes(vectors, gradients, rate, optim, settings)
    params = {
        "backbone": jnp.full(3, 2.0),
        "prototypes": {"vectors": jnp.asarray(vectors, jnp.float32)},
    }
    state = optimizer.init(params)
    alone = optax.chain(adamw_direction(ConfigDict({"optim": optim})), optax.scale(-rate))
    backbone, alone_state = params["backbone"], alone.init(params["backbone"])
    for gradient, after in zip(gradients, expected, strict=True):
        given = {
            "backbone": jnp.asarray(gradient[0, :3], jnp.float32),
            "prototypes": {"vectors": jnp.asarray(gradient, jnp.float32)},
        }
        updates, state = optimizer.update(given, state, params)
        params = optax.apply_updates(params, updates)
        np.testing.assert_allclose(params["prototypes"]["vectors"], after, rtol=1e-4, atol=1e-5)
        moved, alone_state = alone.update(given["backbone"], alone_state, backbone)
        backbone = optax.apply_updates(backbone, moved)
        np.testing.assert_array_equal(params["backbone"], backbone)  # nothing else is touched
    # A checkpoint has the same arrays with and without it.
    structures = {jax.tree.structure(o.init(params)) for o in (optimizer, chain)}
    assert len(structures) == 1
