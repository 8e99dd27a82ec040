"""What an evaluation writes, on whole and on degenerate cohorts."""

from __future__ import annotations

import io
import json
import re

import numpy as np
import pandas as pd
import pytest
import rich.console

from osteojax.errors import UserError
from osteojax.evaluation import baselines, predictions, summary
from osteojax.evaluation.report import cells, examples, page, terminal
from tests.evaluation.tables import synthetic, with_baselines

CONTEXT = {"simulated": True, "version": "0.1.0", "config": {"lr": 1e-4, "sizes": (1, 2)}}
FIGURES = ("roc", "calibration", "decision", "bmd", "levels", "gates")
CASES = ("missed", "false_alarms", "hits")


def blobs(rows):
    """Volumes of some vertebrae: no real ones are needed to lay out a page."""
    hu = np.random.default_rng(0).normal(100, 50, (8, 8, 8)).astype(np.float32)
    mask = np.zeros((8, 8, 8), bool)
    mask[2:6, 2:6, 2:6] = True
    heats = [None, np.zeros_like(hu), np.where(mask, 1.0, 0.0)]
    return [examples.Picture(hu, mask, heats[i % 3], 12.0) for i in range(len(rows))]


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    directory = tmp_path_factory.mktemp("report")
    test, valid = with_baselines(synthetic(60, "test", 2, "ABCD"), synthetic(40, "valid", 1))
    models, _ = baselines.fit(synthetic(60, "train", 99))
    context = CONTEXT | {"baselines": {name: model.as_json() for name, model in models.items()}}
    result = page.write_report(directory, test, valid, context, resamples=50, pictures=blobs)
    return directory, result


def test_everything_is_written_and_nothing_else(written):
    directory, result = written
    files = {path.relative_to(directory).as_posix() for path in directory.rglob("*.*")}
    assert files == {path.relative_to(directory).as_posix() for path in result["paths"].values()}
    assert {"report.html", "metrics.json", "predictions.csv", "roc.png"} <= files
    assert set(predictions.read(directory / "predictions.csv")["split"]) == {
        "valid", "test", "external",
    }  # fmt: skip
    assert json.loads((directory / "metrics.json").read_text()) == result["metrics"]


def test_the_report_stands_alone(written):
    directory, _ = written
    html = (directory / "report.html").read_text()
    links = re.findall(r'(?:src|href)="([^"]{0,40})', html)
    assert all(link.startswith(("data:image/png;base64,", "#")) for link in links)
    assert sum(link.startswith("data:") for link in links) == len(FIGURES + CASES)
    assert "url(" not in html
    assert "<script" not in html
    assert re.search(r"\b(nan|None|inf)\b", re.sub(r"base64,[^\"]+", "", html)) is None


def test_the_report_says_what_it_is_and_is_not(written):
    directory, _ = written
    html = (directory / "report.html").read_text()
    assert "Simulated cohort." in html
    assert "For research only. Not a diagnosis." in html
    assert "What this must not be used for" in html


def test_html_csv_and_json_show_the_same_numbers(written):
    directory, result = written
    entry = result["metrics"]["diagnosis"]["vertebra"]["internal"]["at_validation_threshold"]
    csv = pd.read_csv(directory / "tables" / "diagnosis.csv")
    row = csv[
        (csv["unit"] == "vertebra")
        & (csv["group"] == "all internal")
        & (csv["threshold_kind"] == "validation_threshold")
    ].iloc[0]
    assert row["AUROC"] == pytest.approx(entry["AUROC"], rel=1e-15)
    assert [row["SEN_low"], row["SEN_high"]] == pytest.approx(entry["intervals"]["SEN"])
    low, high = entry["intervals"]["AUROC"]
    html = (directory / "report.html").read_text()
    assert f"{entry['AUROC']:.3f} <span>({low:.3f}–{high:.3f})" in html
    delong = result["metrics"]["diagnosis"]["vertebra"]["internal"]["AUROC_delong"]
    assert row[["AUROC_delong_low", "AUROC_delong_high"]].tolist() == pytest.approx(delong)
    assert re.search(rf"<td>{delong[0]:.3f}–{delong[1]:.3f}\s*</td>", html)


def temperatures(result) -> dict[str, float | None]:
    fitted = result["metrics"]["fitted"]
    return {unit: fitted[unit]["temperature"] for unit in ("vertebra", "patient", "patient_mean")}


def test_calibration_and_what_was_fitted_are_tables_too(written):
    directory, result = written
    csv = pd.read_csv(directory / "tables" / "calibration.csv")
    csv = csv.set_index(["unit", "group", "probabilities"])
    html = (directory / "report.html").read_text()
    scaled = set()
    for unit, temperature in temperatures(result).items():
        row = csv.loc[(unit, "external, site D", "after temperature")]
        entry = result["metrics"]["diagnosis"][unit]["external"]["calibration_after_temperature"]
        scaled.add(temperature is not None)
        if temperature is None:
            assert entry is None
            assert "so probabilities stay as they are" in html
            continue
        for name in ("Brier", "ECE", "slope", "intercept"):
            value = entry[name]
            assert row[name] == pytest.approx(np.nan if value is None else value, nan_ok=True)
    assert scaled == {True, False}
    fitted = pd.read_csv(directory / "tables" / "fitted.csv").set_index("what")
    known = result["metrics"]["fitted"]
    assert fitted.loc["vertebra", "threshold"] == pytest.approx(known["vertebra"]["threshold"])
    residual = fitted.loc["measured - predicted BMD, quantile 0.95", "g_cm2"]
    assert residual == pytest.approx(known["bmd_residual_g_cm2"]["quantiles"]["0.95"])


def test_the_comparison_with_baselines_is_the_same_everywhere(written):
    directory, result = written
    entry = result["metrics"]["baselines"]["hu"]["internal"]["patient"]
    area, test = entry["against_model"]["difference"]["AUROC"], entry["against_model"]["delong"]
    csv = pd.read_csv(directory / "tables" / "baselines.csv").set_index(
        ["baseline", "part", "unit"]
    )
    row = csv.loc[("hu", "internal", "patient")]
    assert row["AUROC"] == pytest.approx(area["second"])
    assert row["model_minus_baseline_AUROC"] == pytest.approx(area["difference"])
    assert [row["delong_p"], row["delong_p_holm"]] == pytest.approx([test["p"], test["p_holm"]])
    assert row["mcnemar_p"] == pytest.approx(entry["against_model"]["mcnemar"]["p"])
    html = (directory / "report.html").read_text()
    sentence = f"AUROC {area['first']:.3f} against {area['second']:.3f}"
    assert f"Patients of the internal test, against HU threshold: {sentence}" in html
    net = pd.read_csv(directory / "tables" / "net_benefit_vertebra.csv")
    rows = result["metrics"]["net_benefit"]["vertebra"]["rows"]
    np.testing.assert_allclose(net["model"], [row["model"] for row in rows])


def test_the_threshold_in_hu_decides_as_the_baseline_does(written):
    directory, result = written
    html = (directory / "report.html").read_text()
    [at_hu] = re.findall(r"positive at or below (\d+) HU", html)
    table = predictions.read(directory / "predictions.csv")
    threshold = result["metrics"]["baselines"]["hu"]["fitted"]["vertebra"]["threshold"]
    clear = (table["mean_hu"] - float(at_hu)).abs() > 0.5  # it is shown in whole HU
    called = table["baseline_hu"] >= threshold
    assert (called == (table["mean_hu"] < float(at_hu)))[clear].all()


def test_pictured_vertebrae_are_the_kinds_they_claim(written):
    directory, result = written
    table = predictions.read(directory / "predictions.csv")
    fitted = result["metrics"]["fitted"]
    chosen = examples.chosen(table[table["split"] != "valid"], fitted)
    called = chosen["probability"] >= fitted["vertebra"]["threshold"]
    sick = chosen["osteoporosis"] == 1
    assert (chosen["kind"] == np.select([sick & ~called, ~sick & called], CASES[:2], "hits")).all()
    assert chosen["kind"].value_counts().to_dict() == dict.fromkeys(CASES, examples.PICTURED)
    assert not chosen.duplicated(["kind", "patient_id"]).any()
    hits = table[(table["split"] != "valid") & (table["osteoporosis"] == 1)]
    assert chosen.loc[chosen["kind"] == "hits", "probability"].max() == hits["probability"].max()
    figure = examples.draw(chosen.head(3), blobs(chosen.head(3)), "title")
    texts = [text.get_text() for axis in figure.axes for text in axis.texts]
    for row in chosen.head(3).to_dict("records"):
        assert any(f"{row['scan_id']}, {row['level']}" in text for text in texts)
        assert any(f"probability {row['probability']:.3f}" in text for text in texts)
    assert any("nothing raises" in text for text in texts)


def test_terminal_tables_fit_80_columns(written):
    _, result = written
    stream = io.StringIO()
    console = rich.console.Console(file=stream, width=80)
    for table in terminal.main_tables(result["metrics"]):
        console.print(terminal.rendered(table))
    text = stream.getvalue()
    assert "…" not in text
    auroc = result["metrics"]["diagnosis"]["vertebra"]["internal"]["at_0.5"]["AUROC"]
    assert f"{auroc:.3f}" in text


def test_terminal_prints_names_as_they_are():
    stream = io.StringIO()
    table = cells.Shown("t", ("group",), (("site [red]A",),), ("site [b]: no AUROC: one class.",))
    rich.console.Console(file=stream, width=80).print(terminal.rendered(table))
    assert "site [red]A" in stream.getvalue()
    assert "site [b]:" in stream.getvalue()


def one_class(table):
    return table.assign(osteoporosis=table["osteoporosis"].where(table["osteoporosis"].isna(), 0.0))


def unlabelled(table):
    return table.assign(osteoporosis=np.nan, bmd_g_cm2=np.nan, t_score=np.nan, device="")


def no_experts(table):
    return table.drop(columns=["expert_1", "expert_2", "expert_3"])


@pytest.mark.parametrize(
    ("patients", "change_test", "change_valid", "said"),
    [
        (12, one_class, None, ["no AUROC: one class only"]),
        (12, unlabelled, unlabelled, ["no labelled cases"]),
        (
            3,
            no_experts,
            lambda table: no_experts(one_class(table)),
            [
                "Internal, vertebrae: 3 patients only; no interval",
                "Internal, site A, vertebrae: 1 patient only; no interval",
                "Internal, site B, vertebrae: no AUROC: one class only (0 positive of 2)",
                "no threshold could be fitted: one class only",
                "the model has no experts",
                "DXA device lunar (2 vertebrae) was never seen in training",
            ],
        ),
    ],
)
def test_degenerate_cohorts_still_get_a_report(tmp_path, patients, change_test, change_valid, said):
    test, valid = change_test(synthetic(patients, "test", 2)), synthetic(12, "valid", 1)
    valid = change_valid(valid) if change_valid else valid
    context = {**CONTEXT, "training_devices": ["hologic"]}
    result = page.write_report(tmp_path, test, valid, context, resamples=20, pictures=blobs)
    html = (tmp_path / "report.html").read_text()
    assert [text for text in said if text not in html] == []
    assert re.search(r"\bnan\b", re.sub(r"base64,[^\"]+", "", html)) is None
    assert all(result["paths"][name].stat().st_size > 1000 for name in FIGURES)


def test_one_bad_row_does_not_cost_the_report_of_a_real_cohort(tmp_path):
    test = synthetic(30, "test", 2)
    test["site"] = test["site"].replace("A", "<b>St. Mary & Co</b>")
    spoilt = pd.concat([test, test.iloc[[4]]], ignore_index=True)
    spoilt.loc[1, "probability"] = np.nan
    valid = synthetic(30, "valid", 1)
    (tmp_path / "missed.png").write_text("of an earlier evaluation")
    context = {**CONTEXT, "simulated": False}
    result = page.write_report(tmp_path, spoilt, valid, context, resamples=20)
    known, clean = predictions.check(valid), predictions.check(test.drop(index=1))
    fitted = summary.fit_on_validation(known)
    expected = summary.summarise(clean, fitted, None, 20, valid=known)
    assert result["metrics"]["diagnosis"] == expected["diagnosis"]
    left_out = pd.read_csv(tmp_path / "tables" / "left_out.csv")
    assert left_out["reason"].tolist() == ["probability is nan", "a copy of another row"]
    assert left_out["level"].tolist() == ["L1", "L4"]
    html = (tmp_path / "report.html").read_text()
    assert "test-A0000-ct/L1 left out of every number (probability is nan)" in html
    assert re.search(r"\bnan\b", re.sub(r"base64,[^\"]+|is nan", "", html)) is None
    assert not (tmp_path / "missed.png").exists()
    assert "No pictures: the volumes could not be read" in html
    assert "No baseline could be computed." in html
    assert "simulated" not in html.replace(".banner.simulated", "")
    assert "<b>St. Mary" not in html
    assert "&lt;b&gt;St. Mary &amp; Co" in html


@pytest.mark.parametrize(
    ("spoil", "expected"),
    [
        (lambda t: t.assign(probability=np.nan), "none of 30 vertebrae .*probability is nan"),
        (lambda t: t.assign(patient_id="valid-A0000"), "in the test and in the validation"),
        (no_experts, "0 experts, the validation predictions 3"),
    ],
)
def test_unusable_predictions_are_refused_before_anything_is_written(tmp_path, spoil, expected):
    out = tmp_path / "out"
    with pytest.raises(UserError, match=expected):
        page.write_report(
            out, spoil(synthetic(6, "test", 2)), synthetic(6, "valid", 1), CONTEXT, resamples=20
        )
    assert not out.exists()


def test_context_must_say_whether_the_cohort_is_simulated(tmp_path):
    with pytest.raises(ValueError, match="simulated"):
        page.write_report(
            tmp_path,
            synthetic(6, "test", 2),
            synthetic(6, "valid", 1),
            {"version": "", "config": 1},
        )


def test_largest_errors_are_wrong_and_sorted(written):
    directory, result = written
    errors = pd.read_csv(directory / "tables" / "largest_errors.csv")
    threshold = result["metrics"]["fitted"]["vertebra"]["threshold"]
    assert ((errors["probability"] >= threshold) != (errors["osteoporosis"] == 1)).all()
    distance = (errors["osteoporosis"] - errors["probability"]).abs()
    assert distance.is_monotonic_decreasing
