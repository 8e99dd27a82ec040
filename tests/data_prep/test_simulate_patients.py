"""The patient and DXA model against the published numbers it was built from; nothing rendered."""

from __future__ import annotations

import collections
import dataclasses

import numpy as np
import pytest

from data_prep.simulate.cohort_writer import cohort_rows, truth_rows
from data_prep.simulate.dxa import (
    DEVICES,
    DXA_LEVELS,
    choose_levels,
    draw_deviations,
    measure_dxa,
)
from data_prep.simulate.patients import Settings, draw_patient, site_of
from data_prep.simulate.people import BONE_LEVELS, draw_bone, draw_person
from osteojax.data.vertebrae import LEVELS

PUBLISHED_DECADES = [
    # sex, ages, mean, SD of Hologic L1-L4, as printed.
    ("F", (51, 60), 0.993, 0.141),
    ("F", (61, 70), 0.952, 0.142),
    ("F", (71, 80), 0.902, 0.167),
    ("M", (51, 60), 1.053, 0.143),
    ("M", (61, 70), 1.070, 0.142),
    ("M", (71, 80), 1.068, 0.177),
    ("F", (31, 40), 1.065, 0.110),
]


def _lumbar_mean(bones) -> float:
    return float(np.mean([bones[level].hologic_bmd_g_cm2 for level in DXA_LEVELS]))


@pytest.mark.parametrize(("sex", "ages", "mean", "deviation"), PUBLISHED_DECADES)
def test_bmd_of_a_decade_is_the_published_one(sex, ages, mean, deviation):
    rng = np.random.default_rng(1)
    drawn = np.array(
        [
            _lumbar_mean(draw_bone(rng, sex, age, 1.0)[0])
            for age in rng.integers(ages[0], ages[1] + 1, 2500)
        ]
    )
    assert drawn.mean() == pytest.approx(mean, abs=0.015)
    assert drawn.std() == pytest.approx(deviation, rel=0.08)


def test_hu_by_age_and_level_are_the_published_ones():
    rng = np.random.default_rng(2)
    young = [draw_bone(rng, "F", 28, 1.0)[0] for _ in range(2500)]
    old = [draw_bone(rng, "F", 90, 1.0)[0] for _ in range(2500)]
    l1 = np.array([b["L1"].trabecular_hu for b in young])
    assert l1.mean() == pytest.approx(226, abs=4)
    assert l1.std() == pytest.approx(44, rel=0.08)
    assert np.mean([b["L1"].trabecular_hu for b in old]) == pytest.approx(89, abs=4)
    by_level = {v: np.mean([b[v].trabecular_hu for b in young]) for v in ("T12", "L1", "L2", "L3")}
    assert by_level["T12"] / by_level["L1"] == pytest.approx(1.02, abs=0.005)
    assert by_level["L2"] / by_level["L1"] == pytest.approx(0.985, abs=0.005)
    assert by_level["L3"] / by_level["L1"] == pytest.approx(0.97, abs=0.005)


def test_level_ratios():
    rng = np.random.default_rng(3)
    people = [draw_bone(rng, "F", 60, 1.0)[0] for _ in range(3000)]
    means = {v: np.mean([b[v].hologic_bmd_g_cm2 for b in people]) for v in DXA_LEVELS}
    overall = np.mean(list(means.values()))
    for level, ratio in {"L1": 0.912, "L2": 1.011, "L3": 1.045, "L4": 1.032}.items():
        assert means[level] / overall == pytest.approx(ratio, abs=0.005)


def test_hu_and_bmd_correlate_as_in_published_cohorts():
    rng = np.random.default_rng(4)
    people = [draw_person(rng, 1.0, referral=False)[2] for _ in range(5000)]
    hu = [b["L1"].trabecular_hu for b in people]
    bmd = [_lumbar_mean(b) for b in people]
    assert np.corrcoef(hu, bmd)[0, 1] == pytest.approx(0.55, abs=0.03)


def test_cross_calibration_and_thresholds():
    """Genant 1994: Lunar = 1.074 Hologic + 0.054, which takes 0.772 to 0.883 g/cm^2."""
    hologic, lunar, medix = (DEVICES[name] for name in ("hologic", "ge_lunar", "medix"))
    assert lunar.from_hologic(0.772) == pytest.approx(0.883, abs=5e-4)
    assert 0.906 * lunar.from_hologic(1.0) - 0.025 == pytest.approx(1.0, abs=0.01)
    assert abs(medix.slope - 1) <= 0.03
    assert abs(medix.offset_g_cm2) <= 0.03
    for bmd in (0.5, 0.8, 1.2):
        scores = [d.t_score(d.from_hologic(bmd), "L3") for d in (hologic, lunar, medix)]
        assert np.ptp(scores) < 1e-9
    ratios = {"L1": 0.912, "L2": 1.011, "L3": 1.045, "L4": 1.032}
    for level, ratio in ratios.items():
        mean, deviation = hologic.reference(level)
        assert (mean - 2.5 * deviation) / ratio == pytest.approx(0.77, abs=0.005)
        mean, deviation = lunar.reference(level)
        assert 0.88 * ratio == pytest.approx(mean - 2.5 * deviation, abs=0.01)


@pytest.mark.parametrize(("name", "cv"), [("hologic", 1.1), ("ge_lunar", 1.2), ("medix", 1.6)])
def test_precision_and_labels_of_a_measurement(name, cv):
    rng = np.random.default_rng(5)
    hologic, device = {"L1": 0.7, "L2": 0.8, "L3": 0.9, "L4": 0.85}, DEVICES[name]
    results = [
        result
        for _ in range(3000)
        for result in measure_dxa(rng, hologic, device, choose_levels(rng, 2), 0.05)
        if result.level == "L2"
    ]
    bmd = np.array([r.bmd_g_cm2 for r in results])
    true = 1.05 * (device.slope * 0.8 + device.offset_g_cm2)
    assert bmd.mean() == pytest.approx(true, rel=0.003)
    assert 100 * bmd.std() / bmd.mean() == pytest.approx(cv, rel=0.1)
    assert len(results) == pytest.approx(1500, rel=0.08)  # two of four levels
    assert all(r.osteoporosis == (r.t_score <= -2.5) for r in results)


def test_structure_tells_of_bone_state_only_by_the_texture_signal():
    """Given HU, trabecular spacing is uninformative at signal 0 and informative at 1."""
    partial = {}
    for signal in (0.0, 1.0):
        rng = np.random.default_rng(6)
        people = [draw_bone(rng, "F", 70, signal)[0] for _ in range(4000)]
        hu = np.array([b["L1"].trabecular_hu for b in people])
        bmd = np.array([_lumbar_mean(b) for b in people])
        for name in ("trabecular_spacing_mm", "anisotropy"):
            structure = np.log([getattr(b["L1"], name) for b in people])
            residuals = [v - np.polyval(np.polyfit(hu, v, 1), hu) for v in (structure, bmd)]
            partial[name, signal] = np.corrcoef(*residuals)[0, 1]
            if signal == 0:
                assert abs(np.corrcoef(structure, hu)[0, 1]) < 0.05
    for name in ("trabecular_spacing_mm", "anisotropy"):
        assert abs(partial[name, 0.0]) < 0.05
        assert partial[name, 1.0] < -0.5  # denser bone: closer, less oriented trabeculae


def test_sites_follow_table_1_and_a_larger_cohort_begins_with_the_smaller():
    sites = ("A", "B", "C", "D")
    sequence = [site_of(n, sites)[0] for n in range(400)]
    assert collections.Counter(sequence[:8]) == {"A": 2, "B": 2, "C": 2, "D": 2}
    counts = collections.Counter(sequence)
    for site, patients in {"A": 2225, "B": 1120, "C": 359, "D": 193}.items():
        assert counts[site] == pytest.approx(400 * patients / 3897, abs=2)
    assert sequence[:50] == [site_of(n, sites)[0] for n in range(50)]
    assert {site_of(n, ("B", "D"))[0] for n in range(9)} == {"B", "D"}


def test_the_cohort_is_useful_and_like_table_1():
    patients = [draw_patient(Settings(seed=7), n) for n in range(1500)]
    labels = [r.osteoporosis for p in patients for r in p.dxa]
    assert 0.25 <= np.mean(labels) <= 0.40
    means = {"A": 4980 / 2225, "B": 2030 / 1120, "C": 1328 / 359, "D": 271 / 193}
    for site, expected in means.items():
        counts = [len(p.dxa) for p in patients if p.site == site and p.dxa]
        assert np.mean(counts) == pytest.approx(expected, abs=0.12)
    assert {p.device for p in patients if p.site == "D"} == {"hologic"}
    for site, main in {"A": "hologic", "B": "ge_lunar", "C": "medix"}.items():
        share = np.mean([p.device == main for p in patients if p.site == site])
        assert share == pytest.approx(0.9, abs=0.06)
        assert len({p.scanner for p in patients if p.site == site}) == 2
    assert all(50 <= p.age < 90 for p in patients)
    assert all(abs((p.dxa_date - p.ct_date).days) <= 183 for p in patients)
    assert 0.02 < np.mean([not p.dxa for p in patients]) < 0.15
    assert any(p.contrast for p in patients)
    assert any(p.fractured_level for p in patients)


@pytest.mark.parametrize("seed", range(4))
def test_the_smallest_cohort_has_both_classes_at_every_site(seed):
    patients = [draw_patient(Settings(seed=seed), n) for n in range(8)]
    for site in "ABCD":
        ill = [any(r.osteoporosis for r in p.dxa) for p in patients if p.site == site]
        assert sorted(ill) == [False, True]
    assert not any(p.contrast or p.fractured_level or p.cut_top for p in patients)


def test_a_patient_depends_on_settings_and_number_only():
    first = draw_patient(Settings(seed=3), 21)
    draw_patient(Settings(seed=4), 5)
    assert draw_patient(Settings(seed=3), 21) == first
    assert draw_patient(dataclasses.replace(Settings(), seed=4), 21) != first


def test_two_devices_differ_by_4_percent_after_standardisation():
    """Each result taken back to Hologic by the device's own line; both precision errors count."""
    rng = np.random.default_rng(8)
    for name in ("ge_lunar", "medix"):
        differences = []
        for true in rng.uniform(0.6, 1.2, 3000):
            deviation = draw_deviations(rng, DEVICES)
            assert deviation["hologic"] == 0
            bmd = {}
            for device in (DEVICES["hologic"], DEVICES[name]):
                own = deviation[device.name]
                result = measure_dxa(rng, {"L3": true}, device, ("L3",), own)[0]
                bmd[device.name] = result.bmd_g_cm2
            standard = (bmd[name] - DEVICES[name].offset_g_cm2) / DEVICES[name].slope
            differences.append(standard / bmd["hologic"] - 1)
        # The line's offset is a share of the BMD: the deviation weighs a little more after it.
        assert np.std(differences) == pytest.approx(0.04, rel=0.07)
        assert abs(np.mean(differences)) < 0.003


def test_truth_is_what_a_device_measures_without_error():
    """Results over truth.csv's value of their device scatter by the precision error alone."""
    settings = Settings(seed=9, levels=DXA_LEVELS)
    ratios: dict[str, list[float]] = collections.defaultdict(list)
    for number in range(500):
        patient = draw_patient(settings, number)
        truth = {row["level"]: row for row in truth_rows(patient, settings)}
        for result in patient.dxa:
            true = float(truth[result.level][f"bmd_g_cm2_{result.device}"])
            ratios[result.device].append(result.bmd_g_cm2 / true)
            score = float(truth[result.level][f"t_score_{result.device}"])
            assert score == pytest.approx(
                DEVICES[result.device].t_score(true, result.level), abs=2e-3
            )
    for name, values in ratios.items():
        assert np.mean(values) == pytest.approx(1, abs=0.003)
        assert np.std(values) == pytest.approx(DEVICES[name].precision_cv, rel=0.2)


def test_identical_devices_tell_nothing_and_change_nothing_else():
    settings = Settings(seed=3, levels=DXA_LEVELS)
    control = dataclasses.replace(settings, identical_devices=True)
    devices = set()
    for number in range(8, 60):  # the first two of a site are drawn until their label fits
        usual, patient = draw_patient(settings, number), draw_patient(control, number)
        devices.add(patient.device)
        changed = {"dxa": patient.dxa, "device_deviations": patient.device_deviations}
        assert dataclasses.replace(usual, **changed) == patient
        for row in truth_rows(patient, control):
            assert row["bmd_g_cm2_hologic"] == row["bmd_g_cm2_ge_lunar"] == row["bmd_g_cm2_medix"]
            assert row["t_score_hologic"] == row["t_score_ge_lunar"] == row["t_score_medix"]
    assert devices == set(DEVICES)


@pytest.mark.parametrize(("hu_signal", "texture_signal"), [(0.0, 1.0), (0.0, 0.0)])
def test_without_hu_signal_only_texture_tells_of_the_label(hu_signal, texture_signal):
    settings = Settings(seed=4, hu_signal=hu_signal, texture_signal=texture_signal)
    patients = [p for p in (draw_patient(settings, n) for n in range(8, 1000)) if p.dxa]
    label = [any(r.osteoporosis for r in p.dxa) for p in patients]
    told = {
        "hu": [p.bones["L2"].trabecular_hu for p in patients],
        "age": [p.age for p in patients],
        "sex": [p.sex == "F" for p in patients],
        "size": [p.size_z for p in patients],
        "cortex": [p.cortex_z for p in patients],
    }
    for name, values in told.items():
        assert abs(np.corrcoef(values, label)[0, 1]) < 0.1, name
    structure = np.log([p.bones["L2"].trabecular_spacing_mm for p in patients])
    correlation = np.corrcoef(structure, label)[0, 1]
    assert correlation > 0.4 if texture_signal else abs(correlation) < 0.1
    assert 0.2 < np.mean(label) < 0.6


def test_full_hu_signal_is_the_published_population():
    drawn = [draw_bone(np.random.default_rng(1), "M", 63, 0.5, s)[0] for s in (1.0, 0.0)]
    assert drawn[0] == draw_bone(np.random.default_rng(1), "M", 63, 0.5)[0]
    assert drawn[0]["L1"].hologic_bmd_g_cm2 != drawn[1]["L1"].hologic_bmd_g_cm2


def test_complete_labels_are_outside_training_and_change_nothing_else():
    settings = Settings(seed=6)
    complete = dataclasses.replace(settings, complete_labels=(0.1, 0.3))
    patients = [draw_patient(complete, n) for n in range(300)]
    counts = collections.Counter((p.site, p.split) for p in patients)
    for site in "ABC":
        total = sum(counts[site, split] for split in ("train", "valid", "test"))
        for split, share in {"train": 0.6, "valid": 0.1, "test": 0.3}.items():
            assert counts[site, split] == pytest.approx(share * total, abs=1.01)
    assert {p.split for p in patients if p.site == "D"} == {"external"}
    for patient in patients:
        usual = draw_patient(settings, patient.number)
        assert usual.split == ""
        if patient.number >= 8:
            assert dataclasses.replace(patient, split="", dxa=usual.dxa) == usual
            assert set(usual.dxa) <= set(patient.dxa)
        levels = tuple(r.level for r in patient.dxa)
        if patient.split == "train" and patient.number >= 8:
            assert patient.dxa == usual.dxa
        elif patient.split != "train":
            assert levels == DXA_LEVELS
    assert cohort_rows(patients[9], complete)[0]["split"] == patients[9].split
    assert "split" not in cohort_rows(patients[9], settings)[0]
    # A larger cohort begins with the smaller one, and a site's first patients train.
    assert [p.split for p in patients[:3]] == ["train"] * 3


def test_implants_join_lumbar_neighbours_in_a_few_scans():
    patients = [draw_patient(Settings(seed=2), n) for n in range(900)]
    screwed = [p for p in patients if p.screwed_levels]
    assert 0.008 < len(screwed) / len(patients) < 0.035
    for patient in screwed:
        assert patient.number >= 8
        first = LEVELS.index(patient.screwed_levels[0])
        assert patient.screwed_levels == LEVELS[first : first + len(patient.screwed_levels)]
        assert 2 <= len(patient.screwed_levels) <= 3
        assert cohort_rows(patient, Settings(seed=2))[0]["implant"] == 1


def test_upper_levels_come_by_themselves():
    """T1-L5 have bone, denser upwards as published; asking for more changes nobody."""
    assert LEVELS[:17] == BONE_LEVELS
    for number in (8, 21):
        upper = Settings(seed=3, levels=BONE_LEVELS)
        more, usual = (draw_patient(s, number) for s in (upper, Settings(seed=3)))
        assert dataclasses.replace(more, fractured_level=None, screwed_levels=()) == (
            dataclasses.replace(usual, fractured_level=None, screwed_levels=())
        )
        assert len(truth_rows(more, upper)) == 17
    rng = np.random.default_rng(3)
    people = [draw_bone(rng, "F", 70, 1.0)[0] for _ in range(1500)]
    mean = {v: np.mean([b[v].trabecular_hu for b in people]) for v in ("T1", "T6", "L1")}
    assert mean["T1"] / mean["L1"] == pytest.approx(1.24, abs=0.01)
    assert mean["T6"] / mean["L1"] == pytest.approx(1.14, abs=0.01)
