"""What has to hold before a run starts, each with one clear line."""

from __future__ import annotations

import json
import logging
import shutil
from itertools import islice
from pathlib import Path

import pytest
from ml_collections import ConfigDict

from osteojax.data.cohort import PreparedCohort
from osteojax.data.pipeline import training_batches
from osteojax.data.views import Supervised
from osteojax.errors import UserError
from osteojax.train.workdir import claim
from tests.small_runs import fine_tuning, pretraining


@pytest.mark.parametrize(("name", "text"), [("config.json", '{"config'), ("config.json", "{}"),
                                            ("manifest.json", None)])  # fmt: skip
def test_a_workdir_that_cannot_be_read_is_refused(tiny_pool, tmp_path, name, text) -> None:
    cohort = PreparedCohort(tiny_pool)
    claim(tmp_path, fine_tuning(), cohort)
    claim(tmp_path, fine_tuning(), cohort)
    if text is None:
        (tmp_path / name).unlink()
    else:
        (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match="cannot be read"):
        claim(tmp_path, fine_tuning(), cohort)


def test_a_run_of_an_earlier_version_goes_on_without_fields_that_it_lacks(
    tiny_pool: Path, tmp_path: Path, caplog
) -> None:
    cohort, config = PreparedCohort(tiny_pool), fine_tuning()
    with config.unlocked():
        config.objective.added, config.added = 0.5, ConfigDict({"field": 1})
        config.data.placement = "disk"
    began = claim(tmp_path, fine_tuning(), cohort)
    written = json.loads((tmp_path / "config.json").read_text())
    for where in ("placement", "unlabelled_too"):  # one that may differ, and one that may not
        del written["config"]["data"][where]
    (tmp_path / "config.json").write_text(json.dumps(written))
    with caplog.at_level(logging.WARNING):
        found = claim(tmp_path, config, cohort)
    expected = json.loads(began.to_json())
    del expected["data"]["unlabelled_too"]
    expected["data"]["placement"] = "disk"
    assert json.loads(found.to_json()) == expected
    assert found.is_locked
    assert "objective.added = 0.5 is new since this run began" in caplog.text
    assert config.objective.added == 0.5  # the caller's is as it was


def test_a_value_that_differs_is_told_with_the_way_to_resume(tiny_pool: Path, tmp_path) -> None:
    cohort = PreparedCohort(tiny_pool)
    claim(tmp_path, fine_tuning("--config.objective.device_dropout=0.5"), cohort)
    with pytest.raises(UserError, match=r"dropout was 0\.5, is 0\.1\. .*--config\.FIELD=VALUE"):
        claim(tmp_path, fine_tuning(), cohort)


def test_an_encoder_of_another_form_is_refused_before_the_workdir_is_taken(
    tiny_pool: Path, tmp_path: Path
) -> None:
    """0.2 had strided shortcuts, whose weights have the same shapes as those of average ones."""
    cohort, source, new = PreparedCohort(tiny_pool), tmp_path / "source", tmp_path / "new"
    claim(source, pretraining(), cohort)
    written = json.loads((source / "config.json").read_text())
    del written["config"]["model"]["shortcut"], written["config"]["model"]["stem_stride"]
    (source / "config.json").write_text(json.dumps(written))
    start = f"--config.init_from={source}"
    with pytest.raises(
        UserError, match=r"model\.shortcut=strided.*Add --config\.model\.shortcut=st"
    ):
        claim(new, fine_tuning(start), cohort)
    same = "--config.model.shortcut=strided"
    config = fine_tuning(start, same, "--config.model.stem_stride=1")
    with pytest.raises(UserError, match=r"stem_stride=2, and this run has 1"):
        claim(new, config, cohort)
    assert not new.exists()
    claim(new, fine_tuning(start, same, "--config.model.remat=true"), cohort)


def test_an_encoder_of_other_z_scores_is_refused(tiny_pool: Path, tmp_path: Path) -> None:
    """Boxes or crops may differ; a run of an earlier version had z-scores of boxes."""
    cohort, source, new = PreparedCohort(tiny_pool), tmp_path / "source", tmp_path / "new"
    region, statistics = "--config.data.views.region=body", "--config.data.statistics=body"
    claim(source, pretraining(region, statistics), cohort)
    start = f"--config.init_from={source}"
    with pytest.raises(UserError, match=r"statistics=body, and this run has box.*Add --config"):
        claim(new, fine_tuning(start), cohort)
    assert not new.exists()
    claim(new, fine_tuning(start, statistics), cohort)
    written = json.loads((source / "config.json").read_text())
    del written["config"]["data"]["statistics"]
    (source / "config.json").write_text(json.dumps(written))
    claim(tmp_path / "box", fine_tuning(start, "--config.data.sees=body"), cohort)


def test_a_record_that_is_damaged_stops_the_run(tiny_pool: Path, tmp_path: Path) -> None:
    """It is met in one of Grain's threads."""
    pool = tmp_path / "pool"
    shutil.copytree(tiny_pool, pool)
    (shard,) = (pool / "shards").iterdir()
    data = bytearray(shard.read_bytes())
    row = len(data) // len(PreparedCohort(pool))  # nearly
    for place in range(10 * row, 14 * row, 500):  # patients 3 and 4 train
        data[place] ^= 255
    shard.write_bytes(data)
    cohort = PreparedCohort(pool)
    batches = training_batches(cohort, cohort.rows("train"), Supervised(), batch_size=8, seed=0)
    with pytest.raises(UserError, match=r"row (9|1[0-4]), .*the shard is damaged"):
        list(islice(batches, 10))  # more than an epoch
