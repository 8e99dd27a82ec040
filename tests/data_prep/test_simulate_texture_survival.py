"""The effect of structure against closed forms, and one vertebra of each kind through a scanner."""

from __future__ import annotations

import json

import numpy as np
import pytest
from scipy import stats

from data_prep.simulate.people import draw_bone, structure_of
from data_prep.simulate.texture_survival import FEATURES, Sampling, effect, vertebra_features
from launch.benchmarks.texture_survival import verdicts
from launch.cli import main


def test_effect_against_the_t_and_u_statistics():
    rng = np.random.default_rng(0)
    coarse, fine = rng.normal(1.0, 2.0, 60), rng.normal(0.0, 1.5, 60)
    told = effect(coarse, fine)
    t = stats.ttest_ind(coarse, fine).statistic
    assert told["d"] == pytest.approx(t * np.sqrt(2 / 60), rel=1e-12)
    u = stats.mannwhitneyu(coarse, fine).statistic
    assert told["auroc"] == pytest.approx(u / 60**2, rel=1e-12)
    assert told["d_low"] < told["d"] < told["d_high"]
    # A large-sample standard error of d (Hedges and Olkin 1985).
    error = np.sqrt(2 / 60 + told["d"] ** 2 / (4 * 60))
    assert told["d_high"] - told["d_low"] == pytest.approx(2 * 1.96 * error, rel=0.25)


def test_an_interval_of_nothing_holds_zero_nineteen_times_of_twenty():
    rng = np.random.default_rng(1)
    told = [effect(*rng.normal(0, 1, (2, 40))) for _ in range(60)]
    held = np.mean([e["d_low"] <= 0 <= e["d_high"] for e in told])
    assert 0.85 <= held <= 1.0


def test_r_is_the_correlation_in_the_population_that_the_pairs_stand_for():
    rng = np.random.default_rng(2)
    z = rng.standard_normal(200_000)
    feature = -0.7 * z + rng.standard_normal(len(z))
    pairs = [-0.7 * side + rng.standard_normal(100_000) for side in (-1, 1)]
    assert effect(pairs[0][:2000], pairs[1][:2000])["r"] == pytest.approx(
        -np.corrcoef(feature, z)[0, 1], abs=0.03
    )


def test_structures_are_those_of_the_population():
    """One SD up and down are the 16th and 84th percentiles of patients' trabecular spacing."""
    rng = np.random.default_rng(3)
    spacing = [draw_bone(rng, "F", 70, 1.0)[0]["L2"].trabecular_spacing_mm for _ in range(2000)]
    fine, coarse = structure_of(1.0)[0], structure_of(-1.0)[0]
    assert np.percentile(spacing, [16, 84]) == pytest.approx([fine, coarse], rel=0.02)


@pytest.mark.slow  # compiles the masked texture maps
def test_the_command_tells_what_is_left(tmp_path, capsys):
    """Coarse structure leaves more contrast at the same mean HU; noise adds to both."""
    path = tmp_path / "survival.json"
    sampling = ["--slice-mm", "2", "--spacing-mm", "1.5", "--roi-mm", "3"]
    command = ["benchmark", "texture_survival", "--pairs", "8", *sampling, "--json", str(path)]
    assert main(command) == 0
    assert "Cohen" in capsys.readouterr().out
    noisy, clean = json.loads(path.read_text())["rows"]
    assert (noisy["noise_hu"], clean["noise_hu"]) == (pytest.approx(22 * np.sqrt(1.5 / 2)), 0)
    for row in (noisy, clean):
        assert row["hu_mean_coarse"] == pytest.approx(row["hu_mean_fine"], abs=4)
        assert row["Contrast_d"] > 1
        assert row["DifferenceAverage_r"] > 0.5
    assert noisy["hu_sd_fine"] > clean["hu_sd_fine"]
    written = path.with_suffix(".md").read_text()
    assert "8 pairs" in written
    assert "| 1.5 | 3 | 2 | 19 | " in written
    again = vertebra_features(Sampling(2.0, 1.5), (3.0,), 0, 0, 1.0)
    assert np.shape(again) == (1, 2, len(FEATURES))
    assert main(["benchmark", "texture_survival", "--pairs", "7"]) == 1
    assert "at least 8" in capsys.readouterr().err
    assert main([*command, "--roi-mm", "9"]) == 1


def test_the_verdict_is_of_the_thickest_slices_with_noise():
    row = {"spacing_mm": 1.5, "roi_mm": 3.0, "Contrast_d": 2.0, "Contrast_d_low": 1.0}
    row["Contrast_d_high"] = 3.0
    rows = [{**row, "slice_mm": 0.7, "noise_hu": 32.0}, {**row, "slice_mm": 5.0, "noise_hu": 0.0}]
    none = {**row, "slice_mm": 5.0, "noise_hu": 12.0, "Contrast_d": 0.2, "Contrast_d_low": -0.3}
    (line,) = verdicts([*rows, none])
    assert "5 mm slices the signal is not to be told from none, d 0.20 against 2.00" in line
    (line,) = verdicts([*rows, {**none, "Contrast_d_low": 0.1}])
    assert "is there" in line
