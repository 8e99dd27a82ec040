"""Figures draw the numbers they claim."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from osteojax.evaluation import predictions, summary
from osteojax.evaluation.report import plots
from tests.evaluation.tables import synthetic


@pytest.fixture(scope="module")
def tables():
    test = predictions.check(synthetic(60, "test", 2, "ABCD"))
    return test, summary.fit_on_validation(predictions.check(synthetic(40, "valid", 1)))


def test_the_drawn_roc_curve_encloses_the_auroc_of_its_legend(tables):
    test, _ = tables
    axis = plots.roc(test).axes[0]
    lines = {line.get_label(): line for line in axis.get_lines() if "n = " in line.get_label()}
    assert len(lines) == 5  # all internal, A, B, C, D external
    for label, line in lines.items():
        area = np.trapezoid(line.get_ydata(), line.get_xdata())
        assert f": {area:.3f} (" in label
    assert axis.get_legend().get_title().get_text() == "AUROC, 95% interval of DeLong"
    rows = test[(test["site"] == "D") & test["osteoporosis"].notna()]
    [external] = [label for label in lines if "external" in label]
    assert f"{roc_auc_score(rows['osteoporosis'], rows['probability']):.3f}" in external


def test_bmd_points_and_limits(tables):
    test, _ = tables
    scatter, difference = plots.bmd(test).axes
    measured = test["bmd_g_cm2"].notna()
    drawn = np.concatenate([points.get_offsets() for points in scatter.collections])
    assert len(drawn) == measured.sum()
    gap = (test["bmd_pred_g_cm2"] - test["bmd_g_cm2"])[measured]
    dashed = [
        line.get_ydata()[0] for line in difference.get_lines() if line.get_linestyle() == "--"
    ]
    reach = 1.96 * gap.std(ddof=1)
    assert sorted(dashed) == pytest.approx([gap.mean() - reach, gap.mean(), gap.mean() + reach])


def test_heat_maps_hold_the_counts(tables):
    test, _ = tables
    axis = plots.gates(test).axes[0]
    assert [text.get_text() for text in axis.get_xticklabels()] == [f"expert {i}" for i in "123"]
    gates = axis.images[0].get_array()
    np.testing.assert_allclose(gates.sum(axis=1), 1, rtol=1e-9)
    levels = plots.levels(test).axes[0]
    assert sum(int(text.get_text()) for text in levels.texts) == len(test)


def test_reliability_and_decision_have_both_units(tables):
    test, fitted = tables
    figure = plots.reliability(test, fitted)
    labels = [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
    assert any(label.startswith("temperature") for label in labels)
    assert [axis.get_title() for axis in plots.decision_curve(test, fitted).axes] == [
        title for _, title in plots._PANELS
    ]
