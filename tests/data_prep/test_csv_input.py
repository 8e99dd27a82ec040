"""Tables as spreadsheets write them: read as the clean table, or refused with the place."""

from __future__ import annotations

from pathlib import Path

import pytest

from data_prep.csv_input import Row, read_table, refuse_duplicates, unknown_columns
from osteojax.errors import CaseError, UserError

CLEAN = "patient_id,bmd,ct_date,note\n007,0.95,2020-01-31,\np2,1.20,,x\n"


def read(folder: Path, content: str | bytes) -> list[Row]:
    path = folder / "table.csv"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return read_table(path, ("patient_id", "bmd"), ("patient_id",))


def values(rows: list[Row]) -> list[tuple]:
    return [
        (
            row.case,
            row.identifier("patient_id"),
            row.number("bmd", 0, 3, "In g/cm^2."),
            row.date("ct_date"),
            row.text("note"),
        )
        for row in rows
    ]


@pytest.mark.parametrize(
    "content",
    [
        CLEAN.replace("\n", "\r\n"),
        CLEAN.replace("\n", "\r"),
        "\ufeff" + CLEAN,
        CLEAN.encode("utf-16"),
        b"\xfe\xff" + CLEAN.encode("utf-16-be"),
        CLEAN.replace(",", ";"),
        CLEAN.replace(",", "\t"),
        CLEAN.replace(",", ";").replace("0.95", "0,95").replace("1.20", "1,20"),
        "sep=;\n" + CLEAN.replace(",", ";"),
        "\n,,,\n" + CLEAN + ",,,\n\n",
        CLEAN.replace("\n", ",,\n"),  # empty columns without a name
        CLEAN.replace("patient_id", "Patient ID ").replace("ct_date", "CT-Date"),
        CLEAN.replace("patient_id", "pati\u200bent\u00a0id").replace("bmd", "\ufeffBMD"),
        CLEAN.replace("007", "\u00a0007\u200b").replace("p2", "\u2060p2\u202f"),
        CLEAN.replace("007", '="007"'),
        CLEAN.replace("007", '"007"').replace("0.95", '" 0.95 "'),
        CLEAN.replace("0.95", "9.5E-01"),
    ],
)
def test_the_same_table_in_other_forms(tmp_path, content):
    assert values(read(tmp_path, content)) == values(read(tmp_path, CLEAN))


def test_rows_have_the_numbers_of_their_lines(tmp_path):
    rows = read(tmp_path, 'patient_id,bmd\n\n,\n"p\n1",0.9\np2,0.9\n')
    assert [(row.line, row.case) for row in rows] == [(4, "p 1"), (6, "p2")]
    with pytest.raises(CaseError, match=r"table.csv line 6: bmd is '0.9'"):
        rows[1].number("bmd", 1, 2, "In g/cm^2.")


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (CLEAN.replace("31,", "31,,").replace("x\n", "x,\n"), "row 2 has 5 fields, the header 4"),
        (CLEAN.replace("0.95", "0,95"), "row 2 has 5 fields, the header 4.* with a point"),
        (CLEAN.replace(",,x", ",x"), "row 3 has 3 fields, the header 4"),
        (CLEAN.replace("\n", ",\n").replace("31,,", "31,,z"), "row 2 has 'z' in column 5"),
        (CLEAN.replace("note", "BMD "), "'bmd' and 'BMD' have the same name"),
        (CLEAN.replace(",", ";").replace("0.95", "0,95"), "'1.20' in row 3 and '0,95' in row 2"),
        (CLEAN.replace("007", '"007'), "not a CSV table"),
        (CLEAN.replace("007", '"007').replace("x\n", 'x"\n'), "not a CSV table"),
        (CLEAN.replace("x", "\u00fc").encode("cp1252"), "not a CSV table in UTF-8"),
        (CLEAN.encode("utf-16-le"), "NUL"),
        (CLEAN.replace(",", "|"), "no column patient_id, bmd"),
        ("", "empty"),
        ("\n,,\n", "empty"),
        (CLEAN.splitlines()[0], "no rows"),
    ],
)
def test_what_is_refused(tmp_path, content, told):
    with pytest.raises(UserError, match=told) as caught:
        read(tmp_path, content)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("value", ["0_95", "inf", "1e999", "0,95", "1.2.3", "#N/A", "٠.٩", "0x1"])
def test_what_is_no_number(tmp_path, value):
    row = read(tmp_path, CLEAN.replace("0.95", f'"{value}"'))[0]
    with pytest.raises(CaseError):
        row.number("bmd", 0, float("inf") if value != "1e999" else 1e6, "In g/cm^2.")


def test_a_minus_of_a_word_processor(tmp_path):
    row = read(tmp_path, CLEAN.replace("0.95", "\N{MINUS SIGN}0.95"))[0]
    assert row.number("bmd", -1, 1, "") == -0.95


@pytest.mark.parametrize("name", ["1.23457E+11", "1,23457E+11", "2E+05", "#REF!", "#N/A"])
def test_an_id_that_a_spreadsheet_has_replaced(tmp_path, name):
    row = read(tmp_path, CLEAN.replace("007", f'"{name}"'))[0]
    with pytest.raises(CaseError, match="as text"):
        row.identifier("patient_id")


def test_unknown_columns_are_named_once(tmp_path):
    rows = read(tmp_path, "patient_id,bmd,Contrasts,colour\np1,1,1,red\np2,1,0,blue\n")
    assert unknown_columns(rows, ("patient_id", "bmd", "contrast", "sex")) == [
        "table.csv: these columns are not read: Contrasts (is it contrast?), colour."
    ]
    assert unknown_columns(rows, ("patient_id", "BMD", "contrasts", "Colour")) == []


def test_ids_that_differ_by_punctuation_are_two(tmp_path):
    rows = read(tmp_path, "patient_id,bmd\n1-1,1\n11,1\n1.1,1\n")
    refuse_duplicates(rows, ("patient_id",))
    with pytest.raises(UserError, match="lines 2 and 3"):
        refuse_duplicates(read(tmp_path, "patient_id,bmd\nA,1\na,1\n"), ("patient_id",))
