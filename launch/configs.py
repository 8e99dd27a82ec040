"""Loads training configs: files with `get_config(variant)`, with changes to fields applied."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from absl import flags
from ml_collections import ConfigDict, config_flags

from osteojax.errors import UserError

SHIPPED = Path(__file__).resolve().parents[1]
"""The folder that holds `configs/`: the repository, or where the package is installed."""


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> ConfigDict:
    """The config of a file, with some fields changed; names and types of fields are checked.

    Args:
      path: FILE.py, or FILE.py:smoke for a variant. If the current folder has no such file,
        `configs/...` is looked up in the installed package.
      overrides: texts `--config.FIELD=VALUE`, as on the command line of `osteojax train`. If a
        field is set twice, the last value is used.

    Raises:
      UserError: no such file or variant, a field that the config lacks, a value of another type.
    """
    file, colon, variant = str(path).partition(":")
    place = given_or_shipped(file)
    if not place.is_file():
        raise UserError(f"--config {file}: no such file. The configs are in {SHIPPED / 'configs'}.")
    values = flags.FlagValues()
    argv = ["osteojax", f"--config={place}{colon}{variant}", *_last_of_each(overrides)]
    config_flags.DEFINE_config_file("config", flag_values=values, sys_argv=argv)
    try:
        rest = values(argv)
    except (flags.Error, AttributeError, KeyError, TypeError, ValueError) as error:
        raise UserError(str(error).strip().splitlines()[0]) from error
    if rest[1:]:
        raise UserError(f"unknown arguments: {' '.join(rest[1:])}")
    return values.config


def given_or_shipped(file: str) -> Path:
    """The file; of `configs/...` that the current folder lacks, the installed package's."""
    place = Path(file)
    shipped = place.parts[:1] == ("configs",) and not place.is_file()
    return SHIPPED / place if shipped else place


def _last_of_each(overrides: Sequence[str]) -> list[str]:
    """Keeps only the last setting of each field, because absl would join tuples set twice."""
    last = {text.partition("=")[0]: place for place, text in enumerate(overrides)}
    return [
        text
        for place, text in enumerate(overrides)
        if "=" not in text or last[text.partition("=")[0]] == place
    ]
