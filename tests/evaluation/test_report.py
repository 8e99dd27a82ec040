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
from osteojax.evaluation import predictions, report, tables
from tests.evaluation.tables import synthetic

CONTEXT = {"simulated": True, "version": "0.1.0", "config": {"lr": 1e-4, "sizes": (1, 2)}}
FIGURES = ("roc", "calibration", "decision", "bmd", "levels", "gates")


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    directory = tmp_path_factory.mktemp("report")
    test, valid = synthetic(60, "test", 2, "ABCD"), synthetic(40, "valid", 1)
    return directory, report.write_report(directory, test, valid, CONTEXT, resamples=50)


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
    assert sum(link.startswith("data:") for link in links) == len(FIGURES)
    assert "url(" not in html
    assert "<script" not in html
    assert re.search(r"\b(nan|None|inf)\b", re.sub(r"base64,[^\"]+", "", html)) is None


def test_the_report_says_what_it_is_and_is_not(written):
    directory, _ = written
    html = (directory / "report.html").read_text()
    assert "Simulated cohort." in html
    assert "For research only. Not a diagnosis." in html
    assert "What this must not be used for" in html


def test_a_real_cohort_has_no_simulated_banner_and_its_names_are_escaped(tmp_path):
    test = synthetic(12, "test", 2).assign(site="<b>St. Mary & Co</b>")
    context = {**CONTEXT, "simulated": False}
    report.write_report(tmp_path, test, synthetic(12, "valid", 1), context, resamples=20)
    html = (tmp_path / "report.html").read_text()
    assert "simulated" not in html.replace(".banner.simulated", "")
    assert "<b>St. Mary" not in html
    assert "&lt;b&gt;St. Mary &amp; Co" in html


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


def test_terminal_tables_fit_80_columns(written):
    _, result = written
    stream = io.StringIO()
    console = rich.console.Console(file=stream, width=80)
    for shown in tables.main_tables(result["metrics"]):
        console.print(tables.terminal(shown))
    text = stream.getvalue()
    assert "…" not in text
    auroc = result["metrics"]["diagnosis"]["vertebra"]["internal"]["at_0.5"]["AUROC"]
    assert f"{auroc:.3f}" in text


def test_terminal_prints_names_as_they_are():
    stream = io.StringIO()
    shown = tables.Shown("t", ("group",), (("site [red]A",),), ("site [b]: no AUROC: one class.",))
    rich.console.Console(file=stream, width=80).print(tables.terminal(shown))
    assert "site [red]A" in stream.getvalue()
    assert "site [b]:" in stream.getvalue()


def one_class(table):
    return table.assign(osteoporosis=table["osteoporosis"].where(table["osteoporosis"].isna(), 0.0))


def unlabelled(table):
    return table.assign(osteoporosis=np.nan, bmd_g_cm2=np.nan, t_score=np.nan, device="")


def no_experts(table):
    return table.drop(columns=["gate_0", "gate_1", "gate_2"])


@pytest.mark.parametrize(
    ("change_test", "change_valid", "said"),
    [
        (one_class, None, "no AUROC: one class only"),
        (None, one_class, "no threshold could be fitted: one class only"),
        (unlabelled, unlabelled, "no labelled cases"),
        (no_experts, no_experts, "the model has no experts"),
    ],
)
def test_degenerate_cohorts_still_get_a_report(tmp_path, change_test, change_valid, said):
    test, valid = synthetic(12, "test", 2), synthetic(12, "valid", 1)
    test = change_test(test) if change_test else test
    valid = change_valid(valid) if change_valid else valid
    result = report.write_report(tmp_path, test, valid, CONTEXT, resamples=20)
    html = (tmp_path / "report.html").read_text()
    assert said in html
    assert re.search(r"\bnan\b", re.sub(r"base64,[^\"]+", "", html)) is None
    assert all(result["paths"][name].stat().st_size > 1000 for name in FIGURES)


def test_three_patients_and_an_unseen_device(tmp_path):
    context = {**CONTEXT, "training_devices": ["hologic"]}
    report.write_report(
        tmp_path, synthetic(3, "test", 2), synthetic(12, "valid", 1), context, resamples=20
    )
    html = (tmp_path / "report.html").read_text()
    assert "3 patients only; no interval" in html or "one class only" in html
    assert "DXA device lunar" in html
    assert "was never seen in training" in html


@pytest.mark.parametrize(
    ("spoil", "expected"),
    [
        (lambda t: t.assign(probability=np.nan), "test predictions: row 2 .*probability is nan"),
        (lambda t: pd.concat([t, t]), "the same scan and level"),
        (lambda t: t.assign(patient_id="valid-A0000"), "in the test and in the validation"),
        (no_experts, "0 experts, the validation predictions 3"),
    ],
)
def test_unusable_predictions_are_refused_before_anything_is_written(tmp_path, spoil, expected):
    out = tmp_path / "out"
    with pytest.raises(UserError, match=expected):
        report.write_report(
            out, spoil(synthetic(6, "test", 2)), synthetic(6, "valid", 1), CONTEXT, resamples=20
        )
    assert not out.exists()


def test_context_must_say_whether_the_cohort_is_simulated(tmp_path):
    with pytest.raises(ValueError, match="simulated"):
        report.write_report(
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
