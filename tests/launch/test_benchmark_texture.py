"""The texture benchmark: rows that other programs read, peers named where they are absent."""

from __future__ import annotations

import json
import sys

import pytest

from launch import cli


@pytest.mark.slow
def test_rows_and_an_absent_peer(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "flash_radiomics", None)
    out = tmp_path / "texture.json"
    argv = "benchmark texture --sizes 10 --radii 1 --repeats 2 --peers pyradiomics,flash-radiomics"
    assert cli.main([*argv.split(), "--json", str(out)]) == 0
    found = json.loads(out.read_text())
    assert found["environment"]["copy_bytes_per_second"] > 0
    for row in found["rows"]:
        assert set(row) >= {
            "engine", "shape", "kernel_radius", "voxels_per_second", "max_rel_error",
        }  # fmt: skip
        if row["engine"] == "flash-radiomics":
            assert row["voxels_per_second"] is None
            assert "absent" in row["note"]
        else:
            assert row["voxels_per_second"] > 0
    own = [r for r in found["rows"] if r["engine"] == "osteojax" and r["max_rel_error"] is not None]
    assert own
    assert max(row["max_rel_error"] for row in own) < 1e-5
    assert "absent" in capsys.readouterr().out


def test_sizes_that_cannot_be(capsys):
    assert cli.main(["benchmark", "texture", "--sizes", "0"]) == 1
    assert "--sizes 0" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        cli.main(["benchmark", "texture", "--peers", "radiomix"])
    assert "no peer named radiomix" in capsys.readouterr().err
