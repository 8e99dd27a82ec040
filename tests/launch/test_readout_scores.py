"""The numbers of a page of readouts, against NumPy and scikit-learn, and from tables alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import mean_absolute_error, roc_auc_score
from statsmodels.stats.multitest import multipletests

from launch.readouts import page, predictions, scores
from launch.readouts.plan import Contrast, Readout, ReadoutStudy
from launch.readouts.predictions import Answers
from launch.readouts.run import page_again
from osteojax.errors import UserError
from tests.launch.stand_in_readouts import study

ROWS = (
    Readout("good", "a", "tp", few=True),
    Readout("poor", "a", "start", few=True),
    Readout("fixed", "b", ceiling="truth"),
)


def plan(**fields: Any) -> ReadoutStudy:
    return study(**{"rows": ROWS, "contrasts": (), "resamples": 400, **fields})


def cases(patients: int = 60) -> pd.DataFrame:
    """Three vertebrae a patient; two have a DXA result."""
    rng = np.random.default_rng(5)
    log_spacing = np.repeat(0.2 * rng.normal(size=patients), 3) + 0.05 * rng.normal(
        size=3 * patients
    )
    measured = np.tile([True, True, False], patients)
    label = pd.array(np.where(log_spacing > 0.05, 1, 0), dtype="Int64")
    label[~measured] = pd.NA
    return pd.DataFrame(
        {
            "case": np.arange(3 * patients),
            "patient_id": np.repeat([f"P{n:02d}" for n in range(patients)], 3),
            "level": np.tile(["L1", "L2", "L3"], patients),
            "log_spacing": log_spacing,
            "osteoporosis": label,
            "bmd_g_cm2": np.where(measured, 0.9 - 0.5 * log_spacing, np.nan),
            "texture_number": np.where(measured, 7 + rng.normal(size=3 * patients), np.nan),
        }
    )


def answers(row: Readout, noise: float, seeds: tuple[int, ...] = (0, 1)) -> Answers:
    tables = {}
    for number, name in enumerate(("main", "new")):
        table = cases()
        for seed in seeds:
            rng = np.random.default_rng([number, seed, int(1000 * noise)])
            read = table["log_spacing"] + noise * rng.normal(size=len(table))
            table[f"spacing_s{seed}"] = read
            table[f"spacing12_s{seed}"] = read + 0.1 * rng.normal(size=len(table))
            table[f"label_s{seed}"] = np.where(
                table["osteoporosis"].isna(), np.nan, 1 / (1 + np.exp(-8 * read))
            )
            table[f"bmd_s{seed}"] = np.where(table["bmd_g_cm2"].isna(), np.nan, 0.9 - 0.5 * read)
            table[f"number_s{seed}"] = 7 + 0.5 * (table["texture_number"].fillna(0) - 7) + read
        tables[name] = table
    return Answers(row, seeds, tables)


def line(found: list[dict], **where: Any) -> dict:
    [only] = [f for f in found if all(f[k] == v for k, v in where.items())]
    return only


def test_a_score_is_the_mean_over_seeds_of_the_plain_metric() -> None:
    good = answers(ROWS[0], 0.1)
    found = scores.scores(good, plan())
    table = good.group("new")
    each = [np.corrcoef(table[f"spacing_s{s}"], table["log_spacing"])[0, 1] for s in (0, 1)]
    r = line(found, group="new", metric="r", patients_fitted=0)
    assert r["estimate"] == pytest.approx(np.mean(each), abs=1e-9)
    assert r["sd"] == pytest.approx(np.std(each, ddof=1), abs=1e-9)
    assert r["low"] < r["estimate"] < r["high"]
    assert (r["n"], r["patients"]) == (180, 60)
    known = table[table["osteoporosis"].notna()]
    label = known["osteoporosis"].astype(int)
    auroc = np.mean([roc_auc_score(label, known[f"label_s{s}"]) for s in (0, 1)])
    found_auroc = line(found, group="new", metric="AUROC", patients_fitted=0)
    assert found_auroc["estimate"] == pytest.approx(auroc, abs=1e-12)
    assert found_auroc["n"] == 120
    error = np.mean([mean_absolute_error(known["bmd_g_cm2"], known[f"bmd_s{s}"]) for s in (0, 1)])
    assert line(found, group="new", metric="MAE")["estimate"] == pytest.approx(error, abs=1e-12)
    few = line(found, group="held", metric="r", patients_fitted=12)
    assert few["estimate"] < line(found, group="held", metric="r", patients_fitted=0)["estimate"]


def test_the_texture_number_is_scored_apart_from_spacing() -> None:
    table = answers(ROWS[0], 0.1).tables["new"]
    found = scores.scores(answers(ROWS[0], 0.1), plan())
    known = table[table["texture_number"].notna()]
    each = [np.corrcoef(known[f"number_s{s}"], known["texture_number"])[0, 1] for s in (0, 1)]
    r = line(found, group="new", metric="r_number")
    assert r["estimate"] == pytest.approx(np.mean(each), abs=1e-9)
    assert r["n"] == 120


def test_tables_without_the_texture_number_have_no_such_score() -> None:
    good = answers(ROWS[0], 0.1)
    earlier = {
        name: table.drop(columns=["texture_number", "number_s0", "number_s1"])
        for name, table in good.tables.items()
    }
    found = scores.scores(Answers(ROWS[0], (0, 1), earlier), plan())
    assert {score["metric"] for score in found} == {"r", "AUROC", "MAE"}


def test_intervals_know_that_vertebrae_of_a_patient_are_alike() -> None:
    """The same predictions, with every vertebra a patient of its own, give a narrower interval."""
    good = answers(ROWS[0], 0.1, seeds=(0,))
    table = good.tables["new"]
    # The error is the patient's.
    table["spacing_s0"] = table["log_spacing"] + np.repeat(
        0.2 * np.random.default_rng(1).normal(size=60), 3
    )
    split = table.assign(patient_id=[f"V{n}" for n in range(len(table))])
    widths = []
    for one in (table, split):
        found = scores.scores(Answers(ROWS[0], (0,), {"new": one}), plan())
        r = line(found, metric="r", patients_fitted=0)
        widths.append(r["high"] - r["low"])
    assert widths[0] > 1.2 * widths[1]


def test_contrasts_are_paired_and_corrected_within_their_family() -> None:
    contrasts = (
        Contrast("good", "poor", primary=True),
        Contrast("poor", "good", primary=True),
        Contrast("good", "poor", "AUROC", group="held"),
        Contrast("good", "poor", "MAE", -1, 0.001),
        Contrast("fixed", "good"),
        Contrast("good", "poor", patients=12),
    )
    both = {
        "good": answers(ROWS[0], 0.1),
        "poor": answers(ROWS[1], 0.5, seeds=(0, 1, 2)),
        "fixed": answers(ROWS[2], 0.01, seeds=(0,)),
    }
    found = scores.contrast_results(plan(contrasts=contrasts), both)
    r = {
        name: np.mean([np.corrcoef(t[f"spacing_s{s}"], t["log_spacing"])[0, 1] for s in (0, 1)])
        for name, t in ((n, both[n].group("new")) for n in ("good", "poor"))
    }
    assert found[0]["difference"] == pytest.approx(r["good"] - r["poor"], abs=1e-9)
    assert found[0]["seeds"] == [0, 1]  # those that both have
    assert found[0]["low"] < found[0]["difference"] < found[0]["high"]
    assert found[1]["difference"] == pytest.approx(-found[0]["difference"])
    assert found[1]["high"] == pytest.approx(-found[0]["low"])
    assert (found[0]["verdict"], found[1]["verdict"]) == ("as expected", "against expectation")
    assert found[3]["difference"] < 0
    assert found[4]["seeds"] == [0, 1]  # a ceiling's one answer stands for every seed
    assert found[5]["patients"] == 12
    for family in (found[:2], found[2:]):
        expected = multipletests([f["p"] for f in family], method="holm")[1]
        np.testing.assert_allclose([f["p_holm"] for f in family], expected)


def test_a_row_against_itself_differs_by_nothing() -> None:
    rows = (ROWS[0], Readout("twin", "a", "tp", few=True))
    both = {row.name: answers(row, 0.1) for row in rows}
    contrasts = (Contrast("good", "twin", expected=0),)
    [found] = scores.contrast_results(plan(rows=rows, contrasts=contrasts), both)
    assert found["difference"] == 0.0
    # Every resample gives 0: there is no interval, and no verdict.
    assert found["verdict"].startswith("not computed")


def test_contrasts_of_rows_that_are_not_there_are_left_out() -> None:
    contrasts = (Contrast("good", "poor"),)
    assert scores.contrast_results(plan(contrasts=contrasts), {"good": answers(ROWS[0], 0.1)}) == []


def write_tables(folder: Path, found: list[Answers]) -> None:
    for name in ("main", "new"):
        predictions.write(folder / "cases" / f"{name}.csv", cases())
    for one in found:
        seeds = {}
        for seed in one.seeds:
            parts = []
            for name, table in one.tables.items():
                own = [c for c in table if str(c).endswith(f"_s{seed}")]
                part = table[["case", *own]].rename(columns={c: c.rpartition("_s")[0] for c in own})
                parts.append(part.assign(cohort=name))
            seeds[seed] = pd.concat(parts)
        path = folder / "rows" / f"{one.row.name}.csv"
        predictions.write(path, predictions.joined(seeds))


def test_tables_are_read_as_they_were_written(tmp_path: Path) -> None:
    good = answers(ROWS[0], 0.1)
    write_tables(tmp_path, [good])
    read = predictions.read(plan(), tmp_path)
    assert set(read) == {"good"}
    assert read["good"].seeds == (0, 1)
    for group in ("held", "new"):
        before, after = good.group(group), read["good"].group(group)
        assert after["osteoporosis"].isna().tolist() == before["osteoporosis"].isna().tolist()
        for column in ("spacing_s0", "spacing12_s1", "label_s0", "bmd_s1", "log_spacing"):
            np.testing.assert_allclose(after[column], before[column], atol=5.1e-5)
    before, after = (scores.scores(a, plan()) for a in (good, read["good"]))
    for one, other in zip(before, after, strict=True):
        assert other["estimate"] == pytest.approx(one["estimate"], abs=2e-3)


def test_a_page_is_equal_whenever_it_is_made(tmp_path: Path) -> None:
    contrasts = (Contrast("good", "poor", primary=True), Contrast("good", "poor", "AUROC"))
    found = [answers(ROWS[0], 0.1), answers(ROWS[1], 0.5), answers(ROWS[2], 0.01, (0,))]
    write_tables(tmp_path / "tables", found)
    made = plan(contrasts=contrasts)
    for name in ("one", "two"):
        page_again(made, tmp_path / "tables", tmp_path / name)
    for file in ("study.md", "scores.csv", "contrasts.csv", "study.json", "readouts.png"):
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()
    text = (tmp_path / "one" / "study.md").read_text()
    assert "### a\n" in text
    assert "### Primary contrasts, fixed before the run" in text
    assert "r, new, 12 patients" in text


def test_cases_that_are_missing_are_told(tmp_path: Path) -> None:
    write_tables(tmp_path, [answers(ROWS[0], 0.1)])
    path = tmp_path / "cases" / "new.csv"
    predictions.write(path, pd.read_csv(path).iloc[1:])
    with pytest.raises(UserError, match=r"not the cases of cases/new\.csv"):
        predictions.read(plan(), tmp_path)
    path.unlink()
    with pytest.raises(UserError, match="is missing: the predictions of new"):
        predictions.read(plan(), tmp_path)


def test_a_table_has_the_columns_that_its_rows_have() -> None:
    found = [answers(ROWS[0], 0.1), answers(ROWS[2], 0.01, (0,))]
    lines = []
    for one in found:
        about = {"part": one.row.part, "row": one.row.name, "seeds": list(one.seeds)}
        lines += [{**about, **entry} for entry in scores.scores(one, plan())]
    first, few, second = page.tables(plan(), page.Results(lines, [], [], [], {}))
    assert "r, held, 12 patients" in few.header
    assert "r, held" in first.header
    assert not any("12 patients" in name for grid in (first, second) for name in grid.header)
    assert [row[:2] for row in first.rows] == [row[:2] for row in few.rows] == [("good", "2")]
    assert [row[:2] for row in second.rows] == [("fixed", "1")]
