"""The table of CTs to predict on, as spreadsheets write it."""

from __future__ import annotations

from pathlib import Path

import pytest

from launch.prediction.cases import Request, table_cases
from osteojax.errors import CaseError, UserError


def cases(folder: Path, text: str):
    path = folder / "scans.csv"
    path.write_text(text, encoding="utf-8")
    devices = ["hologic", "ge_lunar", "unknown"]
    return table_cases(
        path, Request(devices, None, "verse", "unknown", False, False, False, folder / "out")
    )


def test_columns_and_separators_of_a_spreadsheet(tmp_path):
    text = "\ufeffScan ID;CT;Mask;Device;Contrast\n\u200b007;a b.nii;m.nii;GE Lunar;1\n;;;;\n"
    (case,), failures = cases(tmp_path, text)
    assert failures == []
    assert (case.name, case.ct, case.device) == ("007", tmp_path / "a b.nii", "ge_lunar")
    assert [flag.text for flag in case.stated] == ["contrast, says the table"]


def test_what_is_refused(tmp_path):
    with pytest.raises(UserError, match="row 2 has 4 fields, the header 3"):
        cases(tmp_path, "scan_id,ct,mask\ns1,a,b,\n")
    found, failures = cases(
        tmp_path, "scan_id,ct,mask,device\n1.2E+11,a,b,\ns2,a,b,Lunar iDXA\ns3,a,b,\n"
    )
    assert [case.name for case in found] == ["s3"]
    assert all(isinstance(failure, CaseError) for failure in failures)
    assert "as text" in failures[0].remedy
    assert failures[1].remedy.startswith("Is it ge_lunar? Then write that. The model knows hologic")
