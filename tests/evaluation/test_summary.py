"""metrics.json: numbers that agree with the pieces, and honest gaps on degenerate cohorts."""

from __future__ import annotations

import json

import numpy as np
import pytest
from sklearn import metrics as sk

from osteojax.evaluation import predictions, summary
from osteojax.evaluation.statistics import metrics
from tests.evaluation.tables import synthetic, with_baselines

SETTINGS = {"resamples": 100, "seed": 0}


@pytest.fixture(scope="module")
def tables():
    test, valid = with_baselines(synthetic(80, "test", 2, "ABCD"), synthetic(45, "valid", 1))
    return predictions.check(test), predictions.check(valid)


@pytest.fixture(scope="module")
def found(tables):
    test, valid = tables
    return summary.summarise(test, summary.fit_on_validation(valid), **SETTINGS, valid=valid)


def test_json_safe(found):
    text = json.dumps(found, allow_nan=False)
    assert json.loads(text) == found


def test_vertebra_numbers_are_scikit_learns_on_labelled_rows(tables, found):
    test, _ = tables
    rows = test[(test["split"] == "test") & test["osteoporosis"].notna()]
    entry = found["diagnosis"]["vertebra"]["internal"]
    assert (entry["n"], entry["patients"]) == (len(rows), rows["patient_id"].nunique())
    at = entry["at_validation_threshold"]
    called = rows["probability"] >= found["fitted"]["vertebra"]["threshold"]
    truth = rows["osteoporosis"].astype(int)
    assert at["AUROC"] == pytest.approx(sk.roc_auc_score(truth, rows["probability"]))
    assert at["SEN"] == pytest.approx(sk.recall_score(truth, called))
    half = entry["at_0.5"]
    assert half["PPV"] == pytest.approx(sk.precision_score(truth, rows["probability"] >= 0.5))


def test_patient_numbers_by_plain_python(tables, found):
    test, _ = tables
    people: dict[str, list[tuple[float, float]]] = {}
    for row in test.to_dict("records"):
        if row["site"] == "D" and not np.isnan(row["osteoporosis"]):
            people.setdefault(row["patient_id"], []).append(
                (row["osteoporosis"], row["probability"])
            )
    threshold = found["fitted"]["patient"]["threshold"]
    truth = [any(label for label, _ in rows) for rows in people.values()]
    called = [any(p >= threshold for _, p in rows) for rows in people.values()]
    at = found["diagnosis"]["patient"]["external"]["at_validation_threshold"]
    assert at["n"] == len(people)
    assert at["ACC"] == pytest.approx(np.mean([t == c for t, c in zip(truth, called, strict=True)]))
    assert at["TP"] == sum(t and c for t, c in zip(truth, called, strict=True))


def test_thresholds_are_fitted_apart_and_on_validation_only(tables):
    test, valid = tables
    fitted = summary.fit_on_validation(valid)
    known = valid[valid["osteoporosis"].notna()]
    expected = metrics.youden_threshold(
        known["osteoporosis"].to_numpy(int), known["probability"].to_numpy()
    )
    assert fitted["vertebra"]["threshold"] == expected
    assert fitted["patient"]["threshold"] != fitted["vertebra"]["threshold"]
    other = test.assign(probability=1 - test["probability"])
    after = summary.summarise(other, fitted, **SETTINGS)
    at = after["diagnosis"]["vertebra"]["internal"]["at_validation_threshold"]
    assert at["threshold"] == expected


def test_sites_add_up_and_external_is_apart(found):
    groups = found["diagnosis"]["vertebra"]
    assert set(groups["sites"]["internal"]) == {"A", "B", "C"}
    assert set(groups["sites"]["external"]) == {"D"}
    total = sum(entry["n"] for entry in groups["sites"]["internal"].values())
    assert total == groups["internal"]["n"]
    levels = found["subgroups"]["vertebra"]["internal"]["groups"]["level"]
    assert list(levels) == ["L1", "L2", "L3", "L4"]
    assert sum(entry["n"] for entry in levels.values()) == groups["internal"]["n"]
    external = found["subgroups"]["vertebra"]["external"]["groups"]["device"]
    assert {name: entry["n"] for name, entry in external.items()} == {
        "hologic": groups["external"]["n"]
    }
    devices = found["bmd"]["internal"]["devices"]
    assert sum(entry["n"] for entry in devices.values()) == found["bmd"]["internal"]["overall"]["n"]


def test_gate_usage_by_hand(tables):
    test, _ = tables
    usage = summary.gate_usage(test)
    rows = test[test["device"] == "lunar"]
    assert usage["devices"]["lunar"]["mean"] == pytest.approx(
        [rows[f"expert_{i + 1}"].mean() for i in range(3)]
    )
    assert sum(usage["devices"]["lunar"]["mean"]) == pytest.approx(1)
    even = test.assign(expert_1=1 / 3, expert_2=1 / 3, expert_3=1 / 3)
    assert summary.gate_usage(even)["devices"]["lunar"]["entropy"] == pytest.approx(np.log(3))
    none = summary.gate_usage(test.drop(columns=["expert_1", "expert_2", "expert_3"]))
    assert none["experts"] == 0
    assert "no experts" in none["notes"]["gates"]


def test_residual_quantiles_for_prediction_intervals(tables):
    _, valid = tables
    found = summary.fit_on_validation(valid)["bmd_residual_g_cm2"]
    residual = (valid["bmd_g_cm2"] - valid["bmd_pred_g_cm2"]).dropna()
    inside = residual.between(found["quantiles"]["0.05"], found["quantiles"]["0.95"]).mean()
    assert inside == pytest.approx(0.9, abs=0.03)


def test_one_class_validation_keeps_half_and_says_so(tables):
    test, valid = tables
    one = valid.assign(osteoporosis=valid["osteoporosis"].where(valid["osteoporosis"].isna(), 0.0))
    fitted = summary.fit_on_validation(one)
    assert fitted["vertebra"]["threshold"] is None
    found = summary.summarise(test, fitted, **SETTINGS)
    entry = found["diagnosis"]["vertebra"]["internal"]
    assert entry["at_validation_threshold"]["SEN"] is None
    assert entry["at_validation_threshold"]["AUROC"] is not None
    assert entry["at_0.5"]["SEN"] is not None
    assert any("no threshold could be fitted: one class only" in w for w in found["warnings"])


def test_unlabelled_validation_and_test_stand(tables):
    test, valid = tables
    empty = {"osteoporosis": np.nan, "bmd_g_cm2": np.nan, "t_score": np.nan, "device": ""}
    fitted = summary.fit_on_validation(valid.assign(**empty))
    found = summary.summarise(test.assign(**empty), fitted, **SETTINGS)
    json.dumps(found, allow_nan=False)
    assert found["bmd"]["internal"]["overall"]["MAE"] is None
    assert found["position"]["internal"]["accuracy"] > 0.5
    assert any("no AUROC: no labelled cases" in warning for warning in found["warnings"])


def test_a_site_with_three_patients_gets_numbers_without_intervals(tables):
    _, valid = tables
    tiny = predictions.check(synthetic(3, "test", 4, "A"))
    found = summary.summarise(tiny, summary.fit_on_validation(valid), **SETTINGS)
    at = found["diagnosis"]["vertebra"]["sites"]["internal"]["A"]["at_0.5"]
    assert at["ACC"] is not None
    assert set(at["intervals"].values()) == {None}
    assert any(w.startswith("Internal, site A") for w in found["warnings"])


def test_unseen_device_is_named(tables):
    test, valid = tables
    fitted = summary.fit_on_validation(valid)
    found = summary.summarise(test, fitted, ["hologic", "lunar", "unknown"], **SETTINGS)
    [warning] = [w for w in found["warnings"] if "never seen" in w]
    assert "medix (40 vertebrae)" in warning
    assert not any(
        "never seen" in w
        for w in summary.summarise(test, fitted, ["hologic", "lunar", "medix"], **SETTINGS)[
            "warnings"
        ]
    )


def test_slices_are_a_subgroup_where_the_folder_has_them(tables, found):
    test, valid = tables
    rows = test[(test["split"] == "test") & test["osteoporosis"].notna()]
    groups = found["subgroups"]["vertebra"]["internal"]["groups"]["slice thickness"]
    assert {name: entry["n"] for name, entry in groups.items()} == {
        "up to 1.25 mm": (rows["slice_mm"] == 1).sum(),
        "2.5-5 mm": (rows["slice_mm"] == 3).sum(),
        "over 5 mm": (rows["slice_mm"] == 6).sum(),
    }
    old = summary.summarise(
        test.assign(slice_mm=np.nan), summary.fit_on_validation(valid), **SETTINGS
    )
    part = old["subgroups"]["patient"]["internal"]
    assert "slice thickness" not in part["groups"]
    assert "prepare the cohort again" in part["notes"]["slice thickness"]


def test_net_benefit_is_the_curve_of_scaled_probabilities(tables, found):
    test, _ = tables
    rows = test[(test["split"] == "test") & test["osteoporosis"].notna()]
    scores = np.log(rows["probability"] / (1 - rows["probability"]))
    scaled = 1 / (1 + np.exp(-scores / found["fitted"]["vertebra"]["temperature"]))
    [row] = [r for r in found["net_benefit"]["vertebra"]["rows"] if r["threshold"] == 0.2]
    called, sick = scaled >= 0.2, rows["osteoporosis"] == 1
    expected = (called & sick).mean() - (called & ~sick).mean() * 0.25
    assert row["model"] == pytest.approx(expected)


def test_vertebrae_far_from_training_are_counted(tables):
    test, valid = tables
    far = np.where(test["site"] == "D", 99.5, 50.0)
    table = test.assign(ood_distance=1.0, ood_percentile=far)
    found = summary.summarise(table, summary.fit_on_validation(valid), **SETTINGS)
    assert found["unlike_training"]["internal"]["unusual"] == 0
    external = found["unlike_training"]["external"]
    assert external["unusual"] == external["n"] == (test["site"] == "D").sum()
    without = summary.summarise(test, summary.fit_on_validation(valid), **SETTINGS)
    assert without["unlike_training"]["internal"]["unusual"] is None
