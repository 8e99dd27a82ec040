"""What fine-tuned models see: crops one by one, the box, the numbers, against cutting by hand."""

from __future__ import annotations

import itertools
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest

from launch import cli
from osteojax import objectives
from osteojax.checkpoints import Checkpoints, load_variables
from osteojax.data.cohort import PreparedCohort
from osteojax.data.pipeline import evaluation_batches
from osteojax.data.vertebra_columns import BODY_NUMBERS
from osteojax.errors import UserError
from osteojax.models import build_backbone
from osteojax.objectives.diagnosis import (
    attention_program,
    in_units,
    model_variables,
    predict_program,
)
from osteojax.train import loop
from osteojax.train.parallel import DataParallel
from osteojax.types import TrainState
from tests import tiny_cohort
from tests.small_runs import drawn, fine_tuning, random_state, seeing
from tests.train.test_parallel import check_gradients

SHAPE, MARGIN = (12, 14, 16), 2
EDGE, CROPS = 3, 3
"""Crops of `seeing`, in voxels of 6 mm, and their number."""


def slowly(value: str) -> Any:
    """A parameter of a test that has another, fast one for the same code."""
    return pytest.param(value, marks=pytest.mark.slow)


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> PreparedCohort:
    """Boxes that are no cubes, with a margin; bodies at different heights."""
    shifts, body = itertools.cycle((-1, 0, 1)), tiny_cohort._body
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tiny_cohort, "_body", lambda shape: np.roll(body(shape), next(shifts), 0))
        folder = tmp_path_factory.mktemp("sight") / "pool"
        return PreparedCohort(
            tiny_cohort.write_tiny_cohort(folder, patients=10, shape=SHAPE, margin=MARGIN)
        )


@pytest.fixture(scope="module")
def models(cohort: PreparedCohort):
    """sees -> (objective, params, model state) with random weights, made when first asked for."""
    made: dict[str, Any] = {}

    def of(sees: str) -> Any:
        if sees not in made:
            objective = objectives.load(seeing(sees), cohort)
            made[sees] = objective, *random_state(objective)
        return made[sees]

    return of


def crops_by_hand(codes: np.ndarray, body: np.ndarray) -> list[np.ndarray]:
    """The fixed crops of a vertebra, from trying every place."""
    starts = itertools.product(*(range(n - EDGE + 1) for n in body.shape))
    cubes = [tuple(slice(s, s + EDGE) for s in start) for start in starts]
    places = [cube for cube in cubes if body[cube].all()]
    ranks = [int((i + 0.5) * len(places) / CROPS) for i in range(CROPS)]
    assert len(set(ranks)) == CROPS
    return [codes[places[rank]] for rank in ranks]


def numbers_by_hand(cohort: PreparedCohort, row: int) -> np.ndarray:
    table = cohort.table[list(BODY_NUMBERS)].astype(float).copy()
    table.iloc[:, 2:] = np.log(table.iloc[:, 2:])
    training = table[cohort.table["split"] == "train"]
    return ((table.iloc[row] - training.mean()) / training.std(ddof=0)).to_numpy()


@pytest.mark.parametrize("sees", [slowly("body"), "both"])
def test_an_embedding_is_made_of_its_parts(sees: str, cohort: PreparedCohort, models) -> None:
    """Every crop goes through the encoder alone; the box has its own encoder and z-scores."""
    objective, params, state = models(sees)
    found = objective.predict(params, state, np.arange(3), DataParallel.create(num_devices=1))
    network, spec = build_backbone(seeing(sees).model, None), cohort.about.maps[0]

    @jax.jit
    def apply(part: dict, hu: jax.Array, mean: float, std: float) -> jax.Array:
        return network.apply(part, ((hu - mean) / std)[None, ..., None], train=False)["pooled"][0]

    def encode(name: str, codes: np.ndarray, region: str) -> np.ndarray:
        part = {"params": params[name], "batch_stats": state["batch_stats"][name]}
        mean, std = cohort.about.statistics[region][0]
        hu = spec.offset + spec.step * codes.astype(np.float32)
        return np.asarray(apply(part, hu, mean, std))

    window = cohort.about.window
    for row in range(3):
        codes = cohort.array(row, "image")[window]
        crops = crops_by_hand(codes, cohort.array(row, "mask")[2][window])
        parts = [np.mean([encode("backbone", crop, "body") for crop in crops], axis=0)]
        if sees == "both":
            parts.append(encode("whole", codes, "box"))
        parts.append(numbers_by_hand(cohort, row))
        expected = np.concatenate(parts)
        np.testing.assert_allclose(found["embedding"][row], expected, rtol=1e-4, atol=1e-4)
    width = 4 + 4 * (sees == "both") + len(BODY_NUMBERS)
    assert found["embedding"].shape == (3, width)


@pytest.mark.parametrize("sees", [slowly("vertebra"), slowly("body"), "both"])
def test_a_program_sees_what_the_run_sees(sees: str, cohort: PreparedCohort, models) -> None:
    """From HU and bodies, without places and table."""
    objective, params, state = models(sees)
    rows = np.arange(5)
    expected = in_units(
        objective.predict(params, state, rows, DataParallel.create(num_devices=1)), cohort.manifest
    )
    window = (..., *cohort.about.window)
    codes = np.stack([cohort.array(row, "image")[window] for row in rows])
    body = np.stack([cohort.array(row, "mask")[2][window] for row in rows])
    inputs = cohort.about.maps[0].decode(codes), body, cohort.labels.device[rows]
    variables = model_variables(params, state)
    found = jax.jit(predict_program(seeing(sees), cohort.manifest))(variables, *inputs)
    assert np.ptp(expected["probability"]) > 1e-3
    for name in ("probability", "bmd_g_cm2", "level_probabilities", "gate", "embedding"):
        np.testing.assert_allclose(found[name], expected[name], rtol=1e-5, atol=1e-5)


def test_attention_of_crops_lies_in_their_places(cohort: PreparedCohort, models) -> None:
    _, params, state = models("body")
    window = (..., *cohort.about.window)
    codes, body = cohort.array(0, "image")[window], cohort.array(0, "mask")[2][window]
    program = jax.jit(attention_program(seeing("body"), cohort.manifest))
    hu = cohort.about.maps[0].decode(codes[None])
    heat = program(model_variables(params, state), hu, body[None], np.zeros(1, np.int32))
    (heat,) = np.asarray(heat["attention"])
    number = np.arange(body.size).reshape(body.shape)
    covered = np.isin(number, np.stack(crops_by_hand(number, body)))
    assert heat.shape == body.shape
    assert (heat[~covered] == 0).all()
    assert heat.max() > 0


@pytest.mark.slow  # compiles two gradients of two encoders; forward only: the test below
def test_gradients_of_one_and_eight_devices_agree(cohort: PreparedCohort) -> None:
    check_gradients(seeing("both"), cohort, [("shard_map", 8), ("pmap", 8)])


def test_both_encoders_learn_their_statistics(cohort: PreparedCohort, models) -> None:
    """The same ones, and the same masked losses, on one device and on eight."""
    objective, params, state = models("both")
    _, batch = next(evaluation_batches(cohort, np.arange(8), objective.view, batch_size=8))

    def forward(_: Any, batch: Any) -> Any:
        loss, (after, _) = objective.loss(params, state, batch, jax.random.key(1), jnp.int32(0))
        return loss, after

    found = []
    for count in (1, 8):
        devices = DataParallel.create(num_devices=count)
        found.append(devices.map_reduce(forward)((), devices.put_whole(batch)))
    (loss, after), (other_loss, other) = jax.device_get(found)
    assert after.keys() == {"batch_stats", "numbers"}
    moved = jax.tree.map(lambda a, b: float(np.abs(a - b).max()), after, jax.device_get(state))
    assert min(jax.tree.leaves(moved["batch_stats"])) > 1e-6
    assert max(jax.tree.leaves(moved["numbers"])) == 0
    assert other_loss == pytest.approx(loss, rel=1e-4)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-3, atol=1e-3), other, after)


def test_a_given_scanner_changes_nothing_else(cohort: PreparedCohort, models) -> None:
    objective, *_ = models("both")
    own = objective.view(cohort, 4, np.random.default_rng(0))
    told = objective._sight.view(np.full(len(cohort), 2, np.int32))
    found = told(cohort, 4, np.random.default_rng(0))
    assert found.pop("device") == 2
    assert own.pop("device") != 2
    assert own.keys() == found.keys() >= {"corners", "numbers"}
    jax.tree.map(np.testing.assert_array_equal, own, found)


def test_a_warm_start_fills_the_encoder_of_the_crops(models, tmp_path: Path) -> None:
    """With the statistics of images of a pre-training; the encoder of the box is new."""
    _, params, state = models("both")
    own = {"backbone": state["batch_stats"]["backbone"]}
    source = {"backbone": drawn(params["backbone"], seed=7), "prototypes": jnp.zeros(3)}
    kept = {"batch_stats": own, "image_batch_stats": drawn(own, seed=8)}
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save_best(TrainState(jnp.int32(1), source, kept, ()), {"loss": 1.0})
    checkpoints.close()
    found, after = loop._take_encoder(str(tmp_path), params, state)
    same = partial(jax.tree.map, np.testing.assert_array_equal)
    same(found, {**params, "backbone": source["backbone"]})
    same(after, {**state, "batch_stats": {**state["batch_stats"], **kept["image_batch_stats"]}})
    assert np.abs(found["backbone"]["stem"]["kernel"] - params["backbone"]["stem"]["kernel"]).max()


@pytest.mark.slow
def test_it_trains_resumes_and_is_evaluated(body_pool: Path, tmp_path: Path) -> None:
    """To the end, and with a report whose pictures are of the shown window."""
    steps = {"train": 4, "eval": 2, "save": 2, "warmup": 1}
    config = seeing("both", *[f"--config.optim.{name}_steps={n}" for name, n in steps.items()])
    workdir = tmp_path / "run"
    loop.train(config, workdir, body_pool)
    whole = load_variables(workdir, "last")[1]
    shutil.rmtree(workdir / "checkpoints" / "4")
    loop.train(config, workdir, body_pool)
    jax.tree.map(np.testing.assert_array_equal, load_variables(workdir, "last")[1], whole)
    assert cli.main(["evaluate", "--workdir", str(workdir), "--data", str(body_pool)]) == 0
    written = pd.read_csv(workdir / "evaluation" / "predictions.csv")
    assert (written["body_share"] == 1).all()
    assert (workdir / "evaluation" / "report.html").stat().st_size > 10_000


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("--config.data.sees=bone",), "data.sees is 'bone'; choose one of vertebra, body, both"),
        (("--config.data.sees=body",), "no masks of vertebral bodies.*Prepare the cohort again"),
        (("--config.data.numbers=true",), "no masks of vertebral bodies.*without numbers"),
        (("--config.data.statistics=body",), "statistics of box only"),
    ],
)
def test_what_an_old_folder_lacks_is_one_line(
    overrides: tuple[str, ...], message: str, old_cohort: PreparedCohort
) -> None:
    with pytest.raises(UserError, match=message) as refused:
        objectives.load(fine_tuning(*overrides), old_cohort)
    assert "\n" not in str(refused.value)


@pytest.fixture(scope="module")
def old_cohort(tmp_path_factory: pytest.TempPathFactory) -> PreparedCohort:
    folder = tmp_path_factory.mktemp("old") / "pool"
    return PreparedCohort(tiny_cohort.write_tiny_cohort(folder, patients=10, size=8, body=False))


def test_crops_are_flipped_and_not_deformed(cohort: PreparedCohort) -> None:
    with pytest.raises(UserError, match="affine and crop_min_volume are for boxes"):
        objectives.load(seeing("body", "--config.data.augment.affine=true"), cohort)
