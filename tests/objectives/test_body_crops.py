"""Pre-training on crops inside the body: what the network sees, and that runs are reproducible."""

from __future__ import annotations

import json
import logging
import shutil
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from data_prep.vertebrae.texture import TextureSettings
from osteojax import objectives
from osteojax.checkpoints import load_variables
from osteojax.data.cohort import PreparedCohort
from osteojax.data.places import find_places, fixed_ranks
from osteojax.data.vertebrae import IMAGE_ONLY, POOL
from osteojax.errors import UserError
from osteojax.objectives.pair_input import PairInput
from osteojax.train import loop
from osteojax.train.parallel import DataParallel
from tests.small_runs import on_devices, small
from tests.tiny_cohort import STATISTICS, write_tiny_cohort
from tests.train.test_parallel import check_gradients

EDGE = 4  # 24 mm at 6 mm: the patch of the tiny backbone


def config(*overrides: str) -> ConfigDict:
    """The shipped recipe with crops of four voxels and a backbone that compiles fast."""
    given = small(
        "tp_swav_resnet34:body", "--config.objective.queue_size=16",
        "--config.objective.num_prototypes=8", "--config.objective.freeze_prototypes_steps=2",
        "--config.data.views.edge_mm=24", "--config.data.views.readout_crops=3",
        "--config.optim.train_steps=4", "--config.optim.eval_steps=4",
        "--config.optim.save_steps=2", "--config.eval_at_start=false", *overrides,
    )  # fmt: skip
    with given.unlocked():
        given.model = ConfigDict({"name": "tests.tiny_backbone", "width": 4, "rank": 3})
    return given.lock()


@pytest.fixture(scope="module")
def cohort(tiny_pool: Path) -> PreparedCohort:
    return PreparedCohort(tiny_pool)


def log_of(workdir: Path) -> list[dict]:
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    timed = ("img/s/device", "data_wait_share", "_s", "_gib")
    return [{k: v for k, v in row.items() if not k.endswith(timed)} for row in rows]


def test_a_run_from_memory_resumes_from_disk_to_the_bit(tiny_pool: Path, tmp_path: Path) -> None:
    """Two devices hold the volumes. The pairs are those of the recipe; the texture probe is
    logged."""
    straight, workdir = tmp_path / "straight", tmp_path / "resumed"
    resident = config("--config.data.placement=resident", "--config.steps_per_dispatch=2")
    with on_devices(2):
        loop.train(resident, straight, tiny_pool)
        shutil.copytree(straight, workdir)
        shutil.rmtree(workdir / "checkpoints" / "4")
        loop.train(config("--config.data.placement=disk"), workdir, tiny_pool)
    rows = log_of(straight)
    valid = [row for row in rows if "valid/ln_k" in row]
    assert [row["step"] for row in valid] == [4]
    assert all(-1 <= row["valid/texture_probe_r"] <= 1 for row in valid)
    shown = {key for row in valid for key in row if key.startswith("valid/pair/")}
    assert shown
    assert not any(key.endswith("Contrast+DifferenceAverage") for key in shown)  # cross_group
    assert [row for row in log_of(workdir) if len(row) > 1] == [r for r in rows if len(r) > 1]
    (step, expected), (other_step, found) = (load_variables(w, "last") for w in (straight, workdir))
    assert step == other_step == 4
    for a, b in zip(jax.tree.leaves(expected), jax.tree.leaves(found), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.slow  # the loss of four views on four devices: test_swav_oracle; crops on eight: below
def test_four_devices_are_one_with_four_views(cohort: PreparedCohort) -> None:
    check_gradients(config("--config.data.views.count=4"), cohort, [("shard_map", 4)])


def test_bodies_without_a_place_are_left_out(cohort: PreparedCohort, monkeypatch, caplog) -> None:
    given = config("--config.data.views.edge_mm=18")
    everyone = objectives.load(given, cohort).training_rows()
    np.testing.assert_array_equal(everyone, cohort.rows("train"))
    table = cohort.table.copy()
    table.loc[everyone[:3], "body_places"] = 0
    monkeypatch.setattr(cohort, "table", table)
    with caplog.at_level(logging.WARNING):
        rows = objectives.load(given, cohort).training_rows()
    np.testing.assert_array_equal(rows, everyone[3:])
    assert f"3 of {len(everyone)} training vertebrae are left out" in caplog.text


def test_an_embedding_is_the_mean_over_the_fixed_crops(cohort, tmp_path: Path) -> None:
    """Z-scored by the statistics of bodies in the run's own manifest, of another cohort too."""
    other = PreparedCohort(write_tiny_cohort(tmp_path / "other", 4, seed=3))
    other.manifest.about["statistics"]["body"] = [[9.0, 9.0]] * len(POOL)
    objective = objectives.load(config(), cohort)
    batch = {k: v[None].repeat(2, 0) for k, v in objective.view(cohort, 0, rng()).items()}
    params, state = objective.init(jax.random.key(0), batch)
    devices = DataParallel.create(num_devices=2)
    mean, std = STATISTICS[0]
    for source, given in ((cohort, None), (other, other)):
        rows = np.array([5, 2, 7])
        found = objective.embeddings(params, state["image_batch_stats"], rows, devices, given)
        for row, embedding in zip(rows.tolist(), found, strict=True):
            places, _ = find_places(source.array(row, "mask")[2], EDGE, 1.0)
            image = source.array(row, "image").astype(np.float32)
            spec = source.about.maps[0]
            z = (spec.offset + spec.step * image - mean) / std
            crops = [
                z[tuple(slice(n, n + EDGE) for n in corner)]
                for corner in places[fixed_ranks(len(places), 3)]
            ]
            variables = {"params": params, "batch_stats": state["batch_stats"]}
            expected = objective.model.apply(
                variables, jnp.stack(crops)[..., None], jnp.zeros(3, jnp.int32), train=False
            )["embedding"]
            np.testing.assert_allclose(embedding, np.mean(expected, axis=0), rtol=1e-4, atol=1e-5)
    exported = objective.exports()["encoder"]
    images = np.stack([other.array(row, "image") for row in rows])
    hu, body = spec.decode(images), np.stack([other.array(row, "mask")[2] for row in rows])
    program = exported.programs["program"](exported.variables(params, state), hu, body)
    np.testing.assert_allclose(program["embedding"], found, rtol=1e-4, atol=1e-5)
    smaller = PreparedCohort(write_tiny_cohort(tmp_path / "smaller", 1, size=8))
    with pytest.raises(UserError, match=r"spacing_mm is 12.*same --size and --box"):
        objective.embeddings(params, state["image_batch_stats"], rows, devices, smaller)


def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def stacked(examples: list[dict]) -> dict[str, np.ndarray]:
    return {key: np.stack([example[key] for example in examples]) for key in examples[0]}


def test_crops_of_computed_maps_are_those_of_whole_maps(tmp_path: Path) -> None:
    """To the bit, on eight devices, at the borders of a box that is not wider than a crop with its
    windows; and, but for rounding ties, those that a folder with all maps stores."""
    shape, margin, edge = (16, 20, 18), 1, 13
    texture = TextureSettings(kernel_radius=2)
    folder = partial(write_tiny_cohort, patients=4, texture=texture, shape=shape, margin=margin)
    pool = PreparedCohort(folder(tmp_path / "pool"))
    image = PreparedCohort(folder(tmp_path / "image", stored=IMAGE_ONLY))
    assert shape[0] < edge + 2 * texture.kernel_radius < shape[2]
    edge_mm = f"--config.data.views.edge_mm={6 * edge}"
    offline = PairInput(config(edge_mm), pool)
    online = PairInput(config(edge_mm, "--config.data.textures=online"), image)
    assert online._online is not None
    computed = online._online
    last = np.array(shape) - 2 * margin - edge
    corners = np.random.default_rng(0).integers(0, last + 1, (8, 2, 3)).astype(np.int32)
    corners[0], corners[1] = 0, last
    batches = []
    for source, cohort in ((offline, pool), (online, image)):
        examples = [source.view(cohort, row, np.random.default_rng(row)) for row in range(8)]
        batches.append(stacked(examples) | {"corners": corners})
    devices = DataParallel.create(num_devices=8)

    def see(_, batch):
        whole = computed.members(batch["image"], batch["map_ids"])
        return {"crops": online.seen(batch), "whole": whole}

    found = devices.map_forward(see)({}, devices.put(batches[1]))
    at_B = [[tuple(slice(n + 1, n + 1 + edge) for n in c) for c in own] for own in corners]
    whole = np.array([[found["whole"][b, v][at_B[b][v]] for v in (0, 1)] for b in range(8)])
    np.testing.assert_array_equal(found["crops"], whole)
    stored = np.asarray(offline.seen(batches[0]))
    assert stored.shape == (8, 2, edge, edge, edge)
    assert (found["crops"] != stored).sum() <= 4
    np.testing.assert_array_equal(batches[0]["map_ids"], batches[1]["map_ids"])


def test_crops_are_flipped_and_not_shifted(cohort: PreparedCohort) -> None:
    both = set()
    source = PairInput(config("--config.data.augment.max_shift_voxels=6"), cohort)
    batch = stacked([source.view(cohort, row, rng()) for row in range(8)])
    seen, augmented = (np.asarray(x) for x in (source.seen(batch), source.augmented(batch, KEY)))
    for b, v in np.ndindex(8, 2):
        as_is = np.array_equal(augmented[b, v], seen[b, v])
        flipped = np.array_equal(augmented[b, v], seen[b, v][..., ::-1])
        assert as_is != flipped
        both.add(flipped)
    assert both == {True, False}
    with pytest.raises(UserError, match=r"affine and crop_min_volume are for whole boxes"):
        PairInput(config("--config.data.augment.affine=true"), cohort)


KEY = jax.random.key(0)


def test_a_shift_within_the_margin_shows_what_is_there(tmp_path: Path) -> None:
    shape, margin = (8, 10, 12), 2
    folder = write_tiny_cohort(tmp_path / "pool", 2, shape=shape, margin=margin)
    cohort = PreparedCohort(folder)
    given = config(
        "--config.data.views.region=box", "--config.data.augment.flip_probability=0",
        f"--config.data.augment.max_shift_voxels={margin}",
    )  # fmt: skip
    source = PairInput(given, cohort)
    batch = stacked([source.view(cohort, row, rng()) for row in range(4)])
    shown = tuple(n - 2 * margin for n in shape)
    plain, augmented = source.seen(batch), np.asarray(source.augmented(batch, KEY))
    assert plain.shape == augmented.shape == (4, 2, *shown)
    middle = tuple(slice(margin, -margin) for _ in shape)
    np.testing.assert_array_equal(plain, batch["codes"][(..., *middle)])
    shifts = set()
    for b, v in np.ndindex(4, 2):
        stored = batch["codes"][b, v]
        (found,) = [
            start
            for start in np.ndindex(*(2 * margin + 1,) * 3)
            if np.array_equal(
                augmented[b, v],
                stored[tuple(slice(a, a + n) for a, n in zip(start, shown, strict=True))],
            )
        ]
        shifts.add(found)
    assert len(shifts) > 5


def test_folders_without_what_is_asked_are_refused(tmp_path: Path) -> None:
    old = PreparedCohort(write_tiny_cohort(tmp_path / "old", 2, body=False))
    with pytest.raises(UserError, match="no masks of vertebral bodies"):
        objectives.load(config(), old)
    with pytest.raises(UserError, match=r"data\.statistics=body: .*FILE\.py:paper"):
        objectives.load(config("--config.data.views.region=box"), old)
    PairInput(config("--config.data.views.region=box", "--config.data.statistics=box"), old)
