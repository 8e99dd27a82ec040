"""Rows of cohort.csv and dxa.csv that contradict themselves or each other."""

from __future__ import annotations

import datetime
import re
from pathlib import Path

import pytest

from data_prep.csv_input import Row
from data_prep.recipe import Cohort
from data_prep.simulate.patients import Settings, draw_patient
from data_prep.vertebrae.cohort import read_cohort
from data_prep.vertebrae.dxa_doubts import result_doubts
from data_prep.vertebrae.scanners import DEFAULT_DEVICES
from osteojax.errors import UserError
from tests.data_prep.phantom import write_table

SCAN = {"patient_id": "0012", "scan_id": "s1", "site": "A", "ct": "a.nii", "mask": "m.nii",
        "sex": "F"}  # fmt: skip
OTHER = SCAN | {"patient_id": "p2", "scan_id": "s2", "ct": "b.nii", "mask": "n.nii"}
RESULT = {"patient_id": "0012", "level": "L1", "device": "hologic", "bmd_g_cm2": "0.9"}


def read(folder: Path, scans: list[dict], results: list[dict], doubts_fail=False) -> Cohort:
    cohort_csv = write_table(folder / "cohort.csv", scans)
    dxa_csv = write_table(folder / "dxa.csv", results)
    return read_cohort(cohort_csv, dxa_csv, DEFAULT_DEVICES, "verse", doubts_fail=doubts_fail)


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        (
            {"bmd_g_cm2": "1.20", "t_score": "-3.4"},
            "t_score -3.4 does not fit bmd_g_cm2 1.2, .* 2.4",
        ),
        ({"bmd_g_cm2": "0.55", "t_score": "1.5"}, "t_score 1.5 does not fit bmd_g_cm2 0.55"),
        ({"bmd_g_cm2": "1.20", "t_score": "-3.4", "device": "medix"}, "does not fit .* to"),
        ({"bmd_g_cm2": "1.20", "t_score": "-3.4", "device": ""}, "does not fit"),
        (
            {"bmd_g_cm2": "", "t_score": "-3.2", "osteoporosis": "0"},
            "osteoporosis is no, t_score -3.2",
        ),
        ({"bmd_g_cm2": "0.15"}, "bmd_g_cm2 0.15 would be a T-score of -8.0"),
    ],
)
def test_a_doubtful_result_is_kept_or_fails(tmp_path, fields, told):
    cohort = read(tmp_path, [SCAN], [RESULT | {"level": "L2"}, RESULT | fields])
    ((case, reason, remedy),) = cohort.doubts
    assert case == "0012/L1"
    assert reason.startswith("dxa.csv line 3: ")
    assert re.search(told, reason)
    assert remedy
    assert set(cohort.items[0].dxa) == {"L1", "L2"}
    assert not cohort.failures
    failing = read(tmp_path, [SCAN], [RESULT | {"level": "L2"}, RESULT | fields], True)
    assert failing.doubts == []
    assert [(e.case, e.reason, e.remedy) for e in failing.failures] == cohort.doubts
    assert set(failing.items[0].dxa) == {"L2"}


@pytest.mark.parametrize("same_devices", [False, True])
def test_simulated_results_are_not_doubted(same_devices):
    settings = Settings(seed=5, identical_devices=same_devices)
    for number in range(500):
        patient = draw_patient(settings, number)
        for r in patient.dxa:
            values = {"bmdgcm2": str(r.bmd_g_cm2), "tscore": str(r.t_score),
                      "osteoporosis": str(r.osteoporosis)}  # fmt: skip
            for sex in (patient.sex, None):
                row = Row("dxa.csv", 2, "p", values)
                assert result_doubts(row, r.level, r.device, sex, DEFAULT_DEVICES) == []


def test_lost_zeros_are_named_and_other_strangers_listed(tmp_path):
    results = [RESULT | {"patient_id": "12"}, RESULT | {"patient_id": "p2"},
               *(RESULT | {"patient_id": f"x{i}"} for i in range(12))]  # fmt: skip
    cohort = read(tmp_path, [SCAN, OTHER], results)
    assert cohort.doubts == [
        (
            "12",
            "dxa.csv: no scan has patient_id '12', which is nearly that of patient 0012; its "
            "results are not used.",
            "If it is the same patient, write the id the same way; zeros may have been lost.",
        )
    ]
    assert cohort.items[0].dxa == {}
    shown = ", ".join(["12", *(f"x{i}" for i in range(9))])
    assert cohort.notes == [f"13 patients of dxa.csv have no scan: {shown} and 3 more."]
    failing = read(tmp_path, [SCAN, OTHER], results, True)
    assert [failure.case for failure in failing.failures] == ["12"]


@pytest.mark.parametrize("name", ["12", "12.0", "'0012", "012", "00-12", "0012 "])
def test_an_id_that_nearly_is_the_patient_s(tmp_path, name):
    results = [RESULT | {"patient_id": name}, RESULT | {"patient_id": "p2"}]
    cohort = read(tmp_path, [SCAN, OTHER], results)
    found = bool(cohort.items[0].dxa)
    assert found == (name.strip() == "0012")  # spaces are taken away
    assert bool(cohort.doubts) == (not found)


def test_an_id_with_a_zero_width_space_is_the_patient_s(tmp_path):
    cohort = read(tmp_path, [SCAN], [RESULT | {"patient_id": "0012\u200b"}])
    assert set(cohort.items[0].dxa) == {"L1"}
    assert cohort.doubts == cohort.notes == []


def test_near_ids_are_named_where_no_patient_matches(tmp_path):
    with pytest.raises(UserError, match=r"none of its patients .* 12 may be 0012\."):
        read(tmp_path, [SCAN], [RESULT | {"patient_id": "12"}])


def test_an_id_that_lost_its_zeros_in_one_row_only(tmp_path):
    cohort = read(tmp_path, [SCAN], [RESULT, RESULT | {"patient_id": "12", "level": "L2"}])
    assert [case for case, _, _ in cohort.doubts] == ["12"]


def test_similar_ids_that_both_have_results_are_no_doubt(tmp_path):
    scans = [SCAN | {"patient_id": "1-1"}]
    results = [RESULT | {"patient_id": name} for name in ("1-1", "11")]
    assert read(tmp_path, scans, results).doubts == []


@pytest.mark.parametrize(
    ("device", "meant"),
    [
        ("Lunar iDXA", "ge_lunar"),
        ("GE Healthcare Lunar Prodigy", "ge_lunar"),
        ("gelunar", "ge_lunar"),
        ("GE", "ge_lunar"),
        ("Hologic Discovery A", "hologic"),
        ("HologicQDR4500", "hologic"),
        ("Holgic", "hologic"),
        ("Medix DR", "medix"),
    ],
)
def test_a_spelling_of_a_known_device_is_refused_and_named(tmp_path, device, meant):
    cohort = read(tmp_path, [SCAN], [RESULT | {"device": device}])
    (failure,) = cohort.failures
    assert f"device is '{device}'" in failure.reason
    assert f"Is it {meant}? Then write that." in failure.remedy


@pytest.mark.parametrize("device", ["GE-Lunar", "ge lunar", " GE_LUNAR", "ge\u00a0lunar"])
def test_case_spaces_and_hyphens_of_a_device_do_not_matter(tmp_path, device):
    cohort = read(tmp_path, [SCAN], [RESULT | {"device": device}])
    assert cohort.items[0].dxa["L1"].device == "ge_lunar"


def test_a_device_like_no_other_is_not_likened(tmp_path):
    (failure,) = read(tmp_path, [SCAN], [RESULT | {"device": "Norland XR-46"}]).failures
    assert failure.remedy.startswith("Known: hologic")


@pytest.mark.parametrize("level", ["l1", " L1", "L 1", "L1\u200b"])
def test_levels_in_other_spellings_are_taken(tmp_path, level):
    cohort = read(tmp_path, [SCAN], [RESULT | {"level": level}])
    assert set(cohort.items[0].dxa) == {"L1"}


@pytest.mark.parametrize("level", ["L1-L4", "L2-4", "l1 to l4", "Total", "L1–L4", "Total hip"])
def test_totals_are_told_to_be_left_out(tmp_path, level):
    cohort = read(tmp_path, [SCAN], [RESULT | {"level": level}, RESULT])
    (failure,) = cohort.failures
    assert "Leave totals of several vertebrae out" in failure.remedy
    assert set(cohort.items[0].dxa) == {"L1"}


TOMORROW = (datetime.date.today() + datetime.timedelta(days=1)).isoformat()


@pytest.mark.parametrize(
    ("scan", "result", "told"),
    [
        ({}, {"dxa_date": TOMORROW}, f"dxa_date is {TOMORROW}, after today"),
        ({}, {"dxa_date": "1900-01-01"}, "before there was such a scanner"),
        (
            {"age": "30", "ct_date": "2020-06-01"},
            {"dxa_date": "1989-05-01"},
            "before the patient's birth: .* give 1989-0[56]-[0-9]* at the earliest",
        ),
        ({"ct_date": TOMORROW}, {}, f"cohort.csv line 2: ct_date is {TOMORROW}, after today"),
        ({"ct_date": "1905-06-12"}, {}, "ct_date is 1905-06-12, before there was such a scanner"),
    ],
)
def test_dates_that_cannot_be(tmp_path, scan, result, told):
    cohort = read(tmp_path, [SCAN | scan], [RESULT | result])
    (failure,) = cohort.failures
    assert re.search(told, failure.reason)
    assert failure.remedy


def test_a_dxa_of_the_day_of_birth_is_possible(tmp_path):
    """30 completed years on 2020-06-01: born from 1989-06-02 to 1990-06-01."""
    scan = SCAN | {"age": "30", "ct_date": "2020-06-01"}
    assert not read(tmp_path, [scan], [RESULT | {"dxa_date": "1989-06-02"}]).failures


def test_the_same_result_twice_is_refused_whatever_its_spelling(tmp_path):
    twin = {"device": "Hologic", "level": "l1", "dxa_date": "20200101", "bmd_g_cm2": "0.8"}
    with pytest.raises(UserError, match=r"lines 2 and 3 are the same result"):
        read(tmp_path, [SCAN], [RESULT | {"dxa_date": "2020-01-01"}, RESULT | twin])


def test_results_of_other_labels_that_no_date_orders_are_a_doubt(tmp_path):
    results = [RESULT, RESULT | {"bmd_g_cm2": "0.6", "dxa_date": "2020-01-01"}]
    cohort = read(tmp_path, [SCAN], results)
    ((case, reason, _),) = cohort.doubts
    assert case == "s1/L1"
    assert "several DXA results of L1 with different labels" in reason
    assert cohort.items[0].dxa["L1"].bmd_g_cm2 == 0.9
    failing = read(tmp_path, [SCAN], results, True)
    assert failing.items[0].dxa == {}
    assert [failure.case for failure in failing.failures] == ["s1/L1"]
    # A CT's date says which is the nearest, and equal labels need no choice.
    assert not read(tmp_path, [SCAN | {"ct_date": "2020-02-01"}], results).doubts
    assert not read(tmp_path, [SCAN], [RESULT, results[1] | {"bmd_g_cm2": "0.95"}]).doubts


def test_a_patient_of_two_sexes_and_a_ct_of_two_scans_are_doubts(tmp_path):
    scans = [SCAN, SCAN | {"scan_id": "s3", "sex": "M", "ct": "c.nii"}, OTHER | {"ct": "a.nii"}]
    cohort = read(tmp_path, scans, [RESULT])
    assert [(case, reason) for case, reason, _ in cohort.doubts] == [
        ("s1", "the sex of patient 0012 is F in scan s1 and M in scan s3."),
        ("s3", "the sex of patient 0012 is F in scan s1 and M in scan s3."),
        ("s2", "the scan has the CT of scan s1."),
    ]
    assert [scan.scan_id for scan in cohort.items] == ["s1", "s3", "s2"]
    cohort = read(
        tmp_path, [*scans, OTHER | {"scan_id": "s4"}], [RESULT | {"patient_id": "p2"}], True
    )
    assert [(scan.index, scan.scan_id) for scan in cohort.items] == [(0, "s4")]


def test_a_mask_of_two_patients_is_a_doubt(tmp_path):
    scans = [SCAN, SCAN | {"scan_id": "s3", "ct": "c.nii"}, OTHER | {"mask": "m.nii"}]
    cohort = read(tmp_path, scans, [RESULT])
    assert [(case, reason) for case, reason, _ in cohort.doubts] == [
        ("s2", "the scan has the mask of scan s1, of another patient."),
    ]


def test_columns_of_another_case_are_read(tmp_path):
    """Contrast, gap and T-score count whatever the case of their columns."""
    scans = [SCAN | {"CT_date": "2020-06-01", "Contrast": "0"}, OTHER | {"Contrast": "1"}]
    results = [RESULT | {"T_score": "-2.8", "DXA_date": "2020-06-01"},
               RESULT | {"level": "L2", "DXA_date": "2010-06-01"}]  # fmt: skip
    cohort = read(tmp_path, scans, results)
    assert [scan.scan_id for scan in cohort.items] == ["s1"]
    assert cohort.excluded == [("s2", "p2", "contrast")]
    assert set(cohort.items[0].dxa) == {"L1"}
    assert cohort.items[0].dxa["L1"].osteoporosis == 1
    assert cohort.notes == ["1 DXA results more than six months from the CT were not used."]


def test_columns_that_are_not_read_are_listed(tmp_path):
    cohort = read(tmp_path, [SCAN | {"contrast_agent": "1"}], [RESULT | {"operator": "x"}])
    assert cohort.notes == [
        "cohort.csv: these columns are not read: contrast_agent (is it contrast?).",
        "dxa.csv: these columns are not read: operator.",
    ]
