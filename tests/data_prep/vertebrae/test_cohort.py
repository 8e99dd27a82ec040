"""Tables: what stops, what becomes a failure, and which label a vertebra gets."""

from __future__ import annotations

from pathlib import Path

import pytest

from data_prep.recipe import Cohort
from data_prep.vertebrae.cohort import read_cohort
from data_prep.vertebrae.scanners import DEFAULT_DEVICES, read_devices, t_score
from osteojax.errors import UserError
from tests.data_prep.phantom import write_table

SCAN = {"patient_id": "p1", "scan_id": "s1", "site": "A", "ct": "ct.nii", "mask": "mask.nii"}
RESULT = {"patient_id": "p1", "level": "L1", "device": "hologic", "bmd_g_cm2": "0.9"}


def read(folder: Path, scans: list[dict], results: list[dict] | None = None, **options) -> Cohort:
    cohort_csv = write_table(folder / "cohort.csv", scans)
    dxa_csv = write_table(folder / "dxa.csv", results) if results else None
    return read_cohort(cohort_csv, dxa_csv, DEFAULT_DEVICES, "verse", **options)


def test_a_minimal_cohort_and_its_paths(tmp_path):
    cohort = read(tmp_path, [SCAN])
    (scan,) = cohort.items
    assert (scan.index, scan.patient_id, scan.site, scan.label_scheme) == (0, "p1", "A", "verse")
    assert scan.ct == str(tmp_path / "ct.nii")  # relative to the table, not to where we stand
    assert (scan.sex, scan.age, scan.dxa) == (None, None, {})
    assert cohort.failures == cohort.excluded == []


def test_ids_keep_their_leading_zeros(tmp_path):
    cohort = read(tmp_path, [SCAN | {"patient_id": "007"}], [RESULT | {"patient_id": "007"}])
    assert cohort.items[0].patient_id == "007"
    assert "L1" in cohort.items[0].dxa


def test_optional_columns_are_converted(tmp_path):
    row = SCAN | {"sex": "female", "age": "61.5", "label_scheme": "totalsegmentator_v2"}
    (scan,) = read(tmp_path, [row | {"split": "test"}]).items
    assert (scan.sex, scan.age, scan.split) == ("F", 61.5, "test")
    assert scan.label_scheme == "totalsegmentator_v2"


@pytest.mark.parametrize("missing", list(SCAN))
def test_a_missing_column_stops_and_is_named(tmp_path, missing):
    with pytest.raises(UserError, match=rf"cohort.csv: no column {missing}; its columns are"):
        read(tmp_path, [{key: value for key, value in SCAN.items() if key != missing}])


@pytest.mark.parametrize("missing", list(RESULT))
def test_a_missing_dxa_column_stops(tmp_path, missing):
    with pytest.raises(UserError, match=rf"dxa.csv: no column {missing}"):
        read(tmp_path, [SCAN], [{key: v for key, v in RESULT.items() if key != missing}])


def test_duplicate_rows_stop_with_their_lines(tmp_path):
    with pytest.raises(UserError, match=r"lines 2 and 3 are the same result \(scan_id s1\)"):
        read(tmp_path, [SCAN, SCAN])
    with pytest.raises(UserError, match=r"lines 2 and 3 .*patient_id p1, level L1, device hol"):
        read(tmp_path, [SCAN], [RESULT, RESULT | {"bmd_g_cm2": "0.8"}])


@pytest.mark.parametrize("content", ["", "a,b\n1,2,3,4\n", None])
def test_a_broken_or_absent_table_stops(tmp_path, content):
    path = tmp_path / "cohort.csv"
    if content is not None:
        path.write_text(content)
    with pytest.raises(UserError, match=r"cohort.csv"):
        read_cohort(path, None, DEFAULT_DEVICES, "verse")


def test_a_row_with_too_many_fields_is_told_in_one_line(tmp_path):
    (tmp_path / "cohort.csv").write_text("a,b\n1,2\n1,2,3,4\n")
    with pytest.raises(UserError, match=r"row 3 has 4 fields, the header 2") as caught:
        read_cohort(tmp_path / "cohort.csv", None, DEFAULT_DEVICES, "verse")
    assert "\n" not in str(caught.value)


def test_a_table_without_rows_stops(tmp_path):
    (tmp_path / "cohort.csv").write_text(",".join(SCAN) + "\n")
    with pytest.raises(UserError, match="no rows"):
        read_cohort(tmp_path / "cohort.csv", None, DEFAULT_DEVICES, "verse")


@pytest.mark.parametrize(
    ("field", "value", "remedy"),
    [
        ("sex", "x", "F or M"),
        ("age", "old", "a number"),
        ("age", "610", "0 to 120"),
        ("age", "-1", "0 to 120"),
        ("ct_date", "12/05/2020", "YYYY-MM-DD"),
        ("split", "training", "train, valid, test, external"),
        ("contrast", "perhaps", "yes, no"),
        ("label_scheme", "verse2020", "totalsegmentator_v1"),
        ("ct", "", "Fill it in"),
        ("patient_id", "", "Fill it in"),
        ("site", "", "Fill it in"),
    ],
)
def test_a_bad_row_fails_alone_and_says_where(tmp_path, field, value, remedy):
    good = SCAN | {"scan_id": "good"}
    cohort = read(tmp_path, [SCAN | {field: value}, good])
    assert [scan.scan_id for scan in cohort.items] == ["good"]
    (failure,) = cohort.failures
    assert failure.case == "s1"
    assert remedy in failure.remedy
    if field != "label_scheme":
        assert f"cohort.csv line 2: {field}" in failure.reason
    assert value in failure.reason


@pytest.mark.parametrize(
    ("fields", "column", "remedy"),
    [
        ({"device": "toshiba"}, "device", "hologic, ge_lunar, medix"),
        ({"bmd_g_cm2": "950"}, "bmd_g_cm2", "mg/cm^2"),
        ({"bmd_g_cm2": "0.01"}, "bmd_g_cm2", "0.1 to 3"),
        ({"bmd_g_cm2": "0,95"}, "bmd_g_cm2", "a number"),
        ({"bmd_g_cm2": ""}, "bmd_g_cm2", "Give BMD"),
        ({"level": "L1-L4"}, "level", "totals"),
        ({"level": "C7"}, "level", "T1-T12"),
        ({"t_score": "-25"}, "t_score", "-10 to 10"),
        ({"osteoporosis": "osteopenia"}, "osteoporosis", "yes, no"),
        ({"dxa_date": "2020"}, "dxa_date", "YYYY-MM-DD"),
    ],
)
def test_a_bad_dxa_row_fails_alone(tmp_path, fields, column, remedy):
    cohort = read(tmp_path, [SCAN], [RESULT | fields, RESULT | {"level": "L2"}])
    assert list(cohort.items[0].dxa) == ["L2"]
    (failure,) = cohort.failures
    assert failure.case.startswith("p1/")
    assert f"dxa.csv line 2: {column}" in failure.reason
    assert remedy in failure.remedy


@pytest.mark.parametrize(
    ("fields", "sex", "label"),
    [
        # a given label wins over a T-score, a T-score over the reference
        ({"osteoporosis": "0", "t_score": "-3.0"}, "F", 0),
        ({"osteoporosis": "yes", "t_score": "0"}, "F", 1),
        ({"t_score": "-2.5", "bmd_g_cm2": "1.2"}, "F", 1),
        ({"t_score": "-2.49", "bmd_g_cm2": "0.4"}, "F", 0),
        # Hologic, women: T = -2.5 at 0.772 for L1-L4, 0.704 at L1, 0.807 at L3
        ({"bmd_g_cm2": "0.703"}, "F", 1),
        ({"bmd_g_cm2": "0.705"}, "F", 0),
        ({"level": "L3", "bmd_g_cm2": "0.806"}, "F", 1),
        ({"level": "L3", "bmd_g_cm2": "0.808"}, "F", 0),
        # GE Lunar: 0.880 for L1-L4, 0.890 at L2
        ({"device": "GE Lunar", "level": "L2", "bmd_g_cm2": "0.889"}, "F", 1),
        ({"device": "GE Lunar", "level": "L2", "bmd_g_cm2": "0.891"}, "F", 0),
        # no reference: no label
        ({"device": "medix", "bmd_g_cm2": "0.5"}, "F", None),
        ({"device": "", "bmd_g_cm2": "0.5"}, "F", None),
        ({"bmd_g_cm2": "0.5"}, "", None),
        ({"level": "T12", "bmd_g_cm2": "0.5"}, "F", None),
        ({"device": "medix", "t_score": "-3"}, "F", 1),
    ],
)
def test_label_rule(tmp_path, fields, sex, label):
    cohort = read(tmp_path, [SCAN | {"sex": sex}], [RESULT | fields])
    (result,) = cohort.items[0].dxa.values()
    assert result.osteoporosis == label
    assert bool(cohort.notes) == (label is None)


def test_t_score_of_the_default_reference():
    # (0.9 - 0.912 * 1.047) / (0.912 * 0.110), by hand
    assert t_score(DEFAULT_DEVICES, "hologic", "L1", "F", 0.9) == pytest.approx(-0.54689, abs=1e-4)
    assert t_score(DEFAULT_DEVICES, "hologic", "L5", "F", 0.9) is None


def test_an_empty_device_is_unknown(tmp_path):
    cohort = read(tmp_path, [SCAN], [RESULT | {"device": ""}])
    assert cohort.items[0].dxa["L1"].device == "unknown"


def test_the_result_nearest_to_the_ct_is_taken_and_old_ones_are_dropped(tmp_path):
    scan = SCAN | {"ct_date": "2020-06-01"}
    results = [
        RESULT | {"dxa_date": "2020-01-01", "bmd_g_cm2": "0.8"},
        RESULT | {"dxa_date": "2020-07-01", "bmd_g_cm2": "0.9"},
        RESULT | {"level": "L2", "dxa_date": "2019-11-30"},  # 184 days
        RESULT | {"level": "L3", "dxa_date": "2019-12-01"},  # 183 days
        RESULT | {"level": "L4", "bmd_g_cm2": "1.0"},
        RESULT | {"level": "L4", "bmd_g_cm2": "1.1", "device": "medix"},  # no dates: the first
    ]
    cohort = read(tmp_path, [scan], results)
    found = {level: result.bmd_g_cm2 for level, result in cohort.items[0].dxa.items()}
    assert found == {"L1": 0.9, "L3": 0.9, "L4": 1.0}
    assert "1 DXA results more than six months" in cohort.notes[0]


def test_flagged_scans_are_excluded_unless_included(tmp_path):
    scans = [
        SCAN,
        SCAN | {"scan_id": "s2", "contrast": "1"},
        SCAN | {"scan_id": "s3", "fracture": "yes", "contrast": "true"},
        SCAN | {"scan_id": "s4", "poor_quality": "1", "contrast": "0"},
    ]
    cohort = read(tmp_path, scans)
    assert [scan.scan_id for scan in cohort.items] == ["s1"]
    assert [(case, reason) for case, _, reason in cohort.excluded] == [
        ("s2", "contrast"),
        ("s3", "contrast, fracture"),
        ("s4", "poor_quality"),
    ]
    assert cohort.failures == []
    kept = read(tmp_path, scans, include=frozenset(["contrast"]))
    assert [scan.scan_id for scan in kept.items] == ["s1", "s2"]
    assert [scan.index for scan in kept.items] == [0, 1]


def test_a_patient_in_two_splits_stops(tmp_path):
    rows = [SCAN | {"split": "train"}, SCAN | {"scan_id": "s2", "split": "test"}]
    with pytest.raises(UserError, match="p1 is in the splits test and train"):
        read(tmp_path, rows)


def test_all_scans_of_a_patient_share_a_made_split(tmp_path):
    rows = [SCAN | {"patient_id": f"p{i // 3}", "scan_id": f"s{i}"} for i in range(60)]
    scans = read(tmp_path, rows).items
    for i in range(20):
        assert len({scan.split for scan in scans if scan.patient_id == f"p{i}"}) == 1
    assert {scan.split for scan in scans} == {"train", "valid", "test"}


def test_dxa_of_strangers_only_stops(tmp_path):
    with pytest.raises(UserError, match="none of its patients"):
        read(tmp_path, [SCAN], [RESULT | {"patient_id": "1"}])


def test_a_device_table_of_one_s_own(tmp_path):
    path = tmp_path / "devices.toml"
    path.write_text("[norland.F]\nmean_g_cm2 = 1.1\nsd_g_cm2 = 0.12\n[Other]\n")
    devices = read_devices(path)
    assert list(devices) == ["norland", "other"]
    assert t_score(devices, "norland", "L2", "F", 1.011 * 1.1) == pytest.approx(0)
    cohort_csv = write_table(tmp_path / "cohort.csv", [SCAN])
    dxa_csv = write_table(tmp_path / "dxa.csv", [RESULT])
    cohort = read_cohort(cohort_csv, dxa_csv, devices, "verse")
    assert "norland, other" in cohort.failures[0].remedy  # hologic is no longer known


@pytest.mark.parametrize(
    "content",
    ["", "[unknown]", "[x", "[x.F]\nmean = 1", "[x.Q]\n", "[x.F]\nmean_g_cm2=900\nsd_g_cm2=110"],
)
def test_a_bad_device_table_stops(tmp_path, content):
    path = tmp_path / "devices.toml"
    path.write_text(content)
    with pytest.raises(UserError, match=r"devices\.toml"):
        read_devices(path)


def test_digest_follows_both_tables(tmp_path):
    one = read(tmp_path, [SCAN], [RESULT]).digest
    assert one == read(tmp_path, [SCAN], [RESULT]).digest
    assert one != read(tmp_path, [SCAN], [RESULT | {"bmd_g_cm2": "0.91"}]).digest
    assert one != read(tmp_path, [SCAN | {"age": "60"}], [RESULT]).digest
