"""The numbers of a study's table, against scikit-learn, statsmodels and arithmetic."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import roc_auc_score
from statsmodels.stats.multitest import multipletests

from launch.studies import plots, scores
from launch.studies.ceilings import ceiling_predictions, mean_features, true_values
from launch.studies.plan import Contrast, Row
from launch.studies.predictions import Stored, keep, true_bmd
from launch.studies.runs import Runs
from osteojax.data.cohort import PreparedCohort
from osteojax.data.vertebrae import POOL
from osteojax.errors import UserError
from osteojax.evaluation.statistics.metrics import youden_threshold
from osteojax.files import write_json
from tests.launch.stand_in_study import stand_in_cohort, study, truth


def predictions(skill: float, seed: int, patients: int = 60) -> pd.DataFrame:
    """Two vertebrae a patient; the same people for every skill and seed."""
    people = np.random.default_rng(0)
    splits = ("valid", "test", "test", "external")
    bone = people.normal(size=patients)
    noise = np.random.default_rng([1, seed, int(100 * skill)])
    rows = []
    for patient in range(patients):
        for level in ("L1", "L2"):
            bmd = 0.9 + 0.1 * bone[patient] + 0.01 * people.normal()
            logit = -skill * (bmd - 0.85) * 10 + noise.normal()
            rows.append(
                {
                    "patient_id": f"P{patient:03d}", "scan_id": f"S{patient:03d}", "level": level,
                    "site": "AB"[patient % 2], "device": ("hologic", "medix")[patient % 2],
                    "split": splits[patient % 4 if patient % 3 else 1],
                    "sex": "F", "age": 60.0, "osteoporosis": float(bmd < 0.85), "bmd_g_cm2": bmd,
                    "probability": 1 / (1 + np.exp(-logit)),
                    "bmd_pred_g_cm2": bmd + 0.05 * noise.normal() / max(skill, 0.1),
                }
            )  # fmt: skip
    return pd.DataFrame(rows)


def answers(name: str, skill: float, seeds: tuple[int, ...] = (0, 1)) -> scores.Answers:
    return scores.Answers(name, seeds, [predictions(skill, seed) for seed in seeds])


def line(found: list[dict], **where: str) -> dict:
    [only] = [f for f in found if all(f[k] == v for k, v in where.items())]
    return only


def test_a_row_is_scored_as_the_mean_over_its_seeds() -> None:
    found = scores.scores(answers("a", 2.0), resamples=200)
    tables = [predictions(2.0, seed) for seed in (0, 1)]
    test = [table[table["split"] == "test"] for table in tables]
    expected = np.mean([roc_auc_score(t["osteoporosis"], t["probability"]) for t in test])
    got = line(found, unit="vertebra", group="internal", metric="AUROC")
    assert got["estimate"] == pytest.approx(expected, abs=1e-12)
    assert got["low"] < expected < got["high"]
    assert (got["n"], got["patients"]) == (len(test[0]), test[0]["patient_id"].nunique())
    errors = [(t["bmd_g_cm2"] - t["bmd_pred_g_cm2"]).abs().mean() for t in test]
    got = line(found, unit="vertebra", group="internal", metric="MAE")
    assert got["estimate"] == pytest.approx(np.mean(errors), abs=1e-12)


def test_a_bmd_head_that_was_not_trained_has_no_error() -> None:
    row = scores.Answers("a", (0,), [predictions(2.0, 0)], trains_bmd=False)
    assert {f["metric"] for f in scores.scores(row, resamples=20)}.isdisjoint({"MAE", "bias"})


def test_patients_are_called_by_the_threshold_of_validation() -> None:
    found = scores.scores(answers("a", 2.0), resamples=50)
    hits = []
    for seed in (0, 1):
        table = predictions(2.0, seed)
        people = table.groupby(["split", "patient_id"])[["osteoporosis", "probability"]].max()
        valid, test = people.loc["valid"], people.loc["test"]
        cut = youden_threshold(valid["osteoporosis"].to_numpy(np.int64), valid["probability"].to_numpy())  # fmt: skip  # noqa: E501
        ill = test[test["osteoporosis"] == 1]
        hits.append((ill["probability"] >= cut).mean())
    got = line(found, unit="patient", group="internal", metric="SEN")
    assert got["estimate"] == pytest.approx(np.mean(hits), abs=1e-12)


def test_groups_are_the_test_split_its_sites_and_the_external_one() -> None:
    row = answers("a", 1.0)
    assert row.groups() == ["internal", "A", "B", "external"]
    parts = [row.measured(group)["truth"].size for group in ("A", "B")]
    assert row.measured("internal")["truth"].size == sum(parts)


def test_contrasts_are_paired_and_corrected() -> None:
    rows = {name: answers(name, skill) for name, skill in (("good", 3.0), ("bad", 0.1))}
    rows["ceiling"] = scores.Answers("ceiling", (0,), [predictions(2.9, 0)], fixed=True)
    rows["one"] = answers("one", 2.8, seeds=(1,))
    wanted = (
        Contrast("good", "bad", "AUROC", +1, 0.02),
        Contrast("good", "bad", "MAE", +1, 0.005),
        Contrast("good", "ceiling", "AUROC", 0, 0.2),
        Contrast("good", "absent", "AUROC", +1, 0.02),
        Contrast("good", "one", "AUROC", 0, 0.2),
        Contrast("one", "ceiling", "F1", 0, 0.3),
    )
    found = scores.contrast_results(wanted, rows, resamples=300)
    assert [f["verdict"] for f in found] == [
        "as expected", "against expectation", *["as expected (no difference that matters)"] * 3,
    ]  # fmt: skip
    better = [line(scores.scores(rows[n], 50), unit="vertebra", group="internal", metric="AUROC")
              for n in ("good", "bad")]  # fmt: skip
    gap = better[0]["estimate"] - better[1]["estimate"]
    assert found[0]["difference"] == pytest.approx(gap, abs=1e-12)
    adjusted = multipletests([f["p"] for f in found], method="holm")[1]
    np.testing.assert_allclose([f["p_holm"] for f in found], adjusted)
    # A ceiling stands beside every seed; trained rows meet in the seeds that both have.
    assert [f["seeds"] for f in found] == [[0, 1], [0, 1], [0, 1], [1], [1]]
    [seed_one] = [scores.scores(answers("good", 3.0, (1,)), 50)]
    [other] = [scores.scores(rows["one"], 50)]
    gap = [line(f, unit="vertebra", group="internal", metric="AUROC")["estimate"]
           for f in (seed_one, other)]  # fmt: skip
    assert found[3]["difference"] == pytest.approx(gap[0] - gap[1], abs=1e-12)


def test_the_smallest_p_after_holms_correction_is_the_studys() -> None:
    """Of contrasts that every resample answers alike."""
    rows = {name: answers(name, skill) for name, skill in (("good", 9.0), ("bad", 0.1))}
    sure = (Contrast("bad", "good", "MAE", +1, 0.005),) * 3
    small = study(contrasts=sure)
    found = scores.contrast_results(sure, rows, small.contrast_resamples)
    assert [f["p_holm"] for f in found] == pytest.approx([small.smallest_p] * 3)
    many = dataclasses.replace(small, contrasts=sure * 9, contrast_resamples=10_000)
    assert many.smallest_p == pytest.approx(0.0054, rel=1e-3)


def test_rows_of_other_cases_are_not_compared() -> None:
    other = predictions(1.0, 0).replace({"patient_id": {"P001": "P999"}, "scan_id": {"S001": "Z"}})
    rows = {"a": answers("a", 1.0), "b": scores.Answers("b", (0,), [other])}
    with pytest.raises(UserError, match="predict different cases"):
        scores.contrast_results([Contrast("a", "b", "AUROC", 1, 0.02)], rows, resamples=20)
    with pytest.raises(UserError, match="the seeds predicted different vertebrae"):
        scores.Answers("a", (0, 1), [predictions(1.0, 0), other])


@pytest.mark.parametrize(
    ("low", "high", "p", "expected", "verdict"),
    [
        (-0.05, 0.04, 0.9, +1, "inconclusive"),
        (-0.05, 0.04, 0.9, 0, "inconclusive"),
        (-0.01, 0.01, 0.9, +1, "no difference that matters"),
        (0.001, 0.01, 0.01, +1, "no difference that matters"),
        (-0.01, 0.01, 0.9, 0, "as expected (no difference that matters)"),
        (0.01, 0.05, 0.01, +1, "as expected"),
        (0.01, 0.05, 0.01, -1, "against expectation"),
        (0.01, 0.05, 0.01, 0, "against expectation"),
        (0.01, 0.05, 0.2, +1, "not shown"),
        (-0.01, 0.05, 0.2, +1, "not shown"),
    ],
)
def test_verdicts(low: float, high: float, p: float, expected: int, verdict: str) -> None:
    entry = {
        "low": low, "high": high, "p_holm": p, "expected": expected, "matters": 0.02,
        "difference": (low + high) / 2, "note": "",
    }  # fmt: skip
    assert scores.verdict(entry) == verdict


def test_the_picture_shows_every_contrast_that_has_an_interval() -> None:
    base = {
        "first": "a", "second": "b", "metric": "AUROC", "unit": "patient", "group": "internal",
        "expected": -1, "matters": 0.02, "difference": 0.01, "low": -0.01, "high": 0.05,
        "verdict": "not shown",
    }  # fmt: skip
    mae = {**base, "metric": "MAE", "unit": "vertebra", "expected": 0, "verdict": "inconclusive"}
    absent = {**base, "low": None, "verdict": "not computed: one class"}
    figure = plots.contrasts([base, mae, absent])
    assert figure is not None
    shown = [[text.get_text() for text in axis.get_yticklabels()] for axis in figure.axes]
    assert shown == [["a − b (patient)"], ["a − b"]]
    assert figure.axes[0].get_xlim()[1] > 0.05
    assert plots.contrasts([absent]) is None


def test_device_swap_is_against_the_true_change() -> None:
    """A model that follows half of the true change, on one device the wrong way."""
    line_of = {"hologic": 0.0, "ge_lunar": 0.12, "medix": 0.04}
    rows = []
    for patient in range(24):
        own = ("hologic", "medix")[patient % 2]
        for told, shift in line_of.items():
            change = shift - line_of[own]
            said = -change if told == "ge_lunar" else change / 2
            rows.append(
                {
                    "scan_id": f"S{patient}", "patient_id": f"P{patient}", "level": "L1",
                    "device": own, "told": told, "bmd_pred_g_cm2": 0.8 + 0.001 * patient + said,
                }
            )  # fmt: skip
    told = pd.DataFrame(rows).sample(frac=1, random_state=0)

    def truth_of(table: pd.DataFrame) -> np.ndarray:
        return 0.9 + table["told"].map(line_of).to_numpy()

    found = {(f["from"], f["to"]): f for f in scores.device_swap([told, told], truth_of, 50)}
    assert set(found) == {
        ("hologic", "ge_lunar"), ("hologic", "medix"), ("medix", "hologic"), ("medix", "ge_lunar"),
    }  # fmt: skip
    half = found["hologic", "medix"]
    assert half["n"] == half["patients"] == 12
    assert half["true_change"] == pytest.approx(0.04)
    assert half["predicted_change"] == pytest.approx(0.02)
    assert half["error"] == pytest.approx(0.02)
    assert half["error_of_no_change"] == pytest.approx(0.04)
    assert found["medix", "ge_lunar"]["error"] == pytest.approx(0.16)


def test_ceilings(tiny_pool: Path) -> None:
    cohort, known = PreparedCohort(tiny_pool), truth(tiny_pool)
    rows = cohort.rows("test", labelled=True)
    label = cohort.labels.osteoporosis[rows]
    oracle = ceiling_predictions("oracle", cohort, known, rows)
    assert roc_auc_score(label, oracle["probability"]) == 1.0
    np.testing.assert_allclose(oracle["bmd_pred_g_cm2"], cohort.labels.bmd_g_cm2[rows], rtol=1e-6)
    hu = ceiling_predictions("hu", cohort, known, rows)
    # mean_hu is 200 BMD there: the line is exact.
    np.testing.assert_allclose(hu["bmd_pred_g_cm2"], cohort.labels.bmd_g_cm2[rows], atol=1e-5)
    glcm = ceiling_predictions("glcm", cohort, known, rows)
    assert roc_auc_score(label, glcm["probability"]) > 0.9


def test_mean_features_are_of_the_vertebras_voxels(tiny_pool: Path) -> None:
    cohort = PreparedCohort(tiny_pool)
    mask, codes = cohort.array(5, "mask")[0], cohort.members(5, list(POOL[1:]))
    expected = []
    for spec, volume in zip(cohort.about.maps[1:], codes, strict=True):
        values = spec.offset + spec.step * volume[mask].astype(np.float64)
        expected.append(np.mean(np.expm1(values) if spec.transform == "log1p" else values))
    np.testing.assert_allclose(mean_features(cohort, 5), expected, rtol=1e-5)


def test_truth_is_looked_up_by_vertebra_and_device(tiny_pool: Path) -> None:
    known = truth(tiny_pool)
    rows = known.iloc[[7, 4]]
    devices = pd.Series(["medix", "unknown"])
    got = true_values(known, rows["scan_id"], rows["level"], devices, "bmd_g_cm2")
    assert got[0] == known["bmd_g_cm2_medix"].iloc[7]
    assert np.isnan(got[1])


def test_the_wrong_device_is_the_next_and_thresholds_are_the_own_ones(
    tiny_pool: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stand_in_cohort(tmp_path, tiny_pool)
    runs = Runs(study(), tmp_path)
    # The true BMD on the unknown scanner is none.
    truth_of = lambda t: np.where(t["told"] == "unknown", np.nan, t["bmd_g_cm2"])  # noqa: E731
    monkeypatch.setattr(runs, "true_bmd", lambda row: truth_of)
    row = runs.study.row("experts")
    folder = runs.folder(row, 0)
    folder.mkdir(parents=True)
    table = predictions(1.0, 0).assign(level_class=20)
    table.to_csv(folder / "predictions.csv", index=False)
    reported = table[table["split"] != "valid"]
    names = ("hologic", "ge_lunar", "medix", "unknown")
    told = [reported.assign(told=n, probability=k / 10) for k, n in enumerate(names)]
    pd.concat(told).to_csv(folder / "told.csv", index=False)
    write_json(folder / "done.json", {"made_with": runs._identity(row, 0), "seconds": 1.5})
    keep(runs, tmp_path / "kept")
    stored = Stored(runs.study, tmp_path / "kept")
    assert stored.seeds(row) == [0]
    assert stored.seconds(row, 0) == 1.5
    swapped = stored.told(row, 0)
    np.testing.assert_allclose(true_bmd(swapped), truth_of(swapped), rtol=1e-5)
    wrong = stored.predictions(runs.study.row("experts, wrong"), 0)
    by_device = wrong[wrong["split"] == "test"].groupby("device")["probability"].unique()
    assert by_device["hologic"].tolist() == [0.1]  # told ge_lunar
    assert by_device["medix"].tolist() == [0.0]  # told hologic
    valid = wrong[wrong["split"] == "valid"]["probability"].to_numpy()
    np.testing.assert_allclose(
        valid, table.loc[table["split"] == "valid", "probability"], rtol=1e-8
    )
    unknown = stored.predictions(Row("u", like="experts", told="unknown"), 0)
    assert (unknown.loc[unknown["split"] == "test", "probability"] == 0.3).all()
    assert len(unknown) == len(wrong) == len(table)
