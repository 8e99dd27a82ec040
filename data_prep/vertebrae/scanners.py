"""DXA scanners and their reference values, by which BMD becomes a T-score.

The default table can be replaced by a TOML file with one table per scanner and, where known, a
reference per sex (young adults, mean of L1-L4):

    [hologic.F]
    mean_g_cm2 = 1.047
    sd_g_cm2 = 0.110

    [medix]          # no reference: labels need t_score or osteoporosis in the DXA table
"""

from __future__ import annotations

import dataclasses
import tomllib
from pathlib import Path

from osteojax.data.devices import device_name
from osteojax.data.vertebrae import UNKNOWN_DEVICE
from osteojax.errors import UserError

T_SCORE_OSTEOPOROSIS = -2.5

LEVEL_RATIOS = {"L1": 0.912, "L2": 1.011, "L3": 1.045, "L4": 1.032}
"""BMD of a level divided by the mean of L1-L4 (docs/method.md). Without it, T-scores of L1 would be
too low."""


@dataclasses.dataclass(frozen=True)
class Reference:
    """Mean and SD of young adults of one sex, for the mean of L1-L4, in g/cm^2."""

    mean_g_cm2: float
    sd_g_cm2: float


DeviceTable = dict[str, dict[str, Reference]]
"""Scanner name -> sex ("F", "M") -> reference; the order is the device index of the manifest."""

DEFAULT_DEVICES: DeviceTable = {
    # Women: T = -2.5 is at 0.772 (Hologic) and 0.880 (Lunar). Men: the third decade of the same
    # tables (docs/method.md), for Lunar by the conversion 1.074 Hologic + 0.054.
    "hologic": {"F": Reference(1.047, 0.110), "M": Reference(1.057, 0.110)},
    "ge_lunar": {"F": Reference(1.180, 0.120), "M": Reference(1.189, 0.120)},
    "medix": {},  # no published reference
}


def t_score(
    devices: DeviceTable, device: str, level: str, sex: str | None, bmd_g_cm2: float
) -> float | None:
    """T-score of one vertebra for a scanner, level and sex; None where there is no reference.

    Mean and SD of a level's reference are those of L1-L4 times the level's ratio.
    """
    reference = devices.get(device, {}).get(sex or "")
    ratio = LEVEL_RATIOS.get(level)
    if reference is None or ratio is None:
        return None
    return (bmd_g_cm2 - ratio * reference.mean_g_cm2) / (ratio * reference.sd_g_cm2)


def read_devices(path: str | Path | None) -> DeviceTable:
    """The scanner table of a TOML file, or the default one. Raises UserError."""
    if path is None:
        return DEFAULT_DEVICES
    path = Path(path)
    try:
        entries = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: no such file. Give a TOML table of DXA devices.") from None
    except (tomllib.TOMLDecodeError, UnicodeError) as error:
        raise UserError(f"{path}: not a TOML file ({error}).") from error
    devices = {device_name(name): _references(path, name, sexes) for name, sexes in entries.items()}
    if not devices or UNKNOWN_DEVICE in devices:
        raise UserError(
            f"{path}: names {'no device' if not devices else repr(UNKNOWN_DEVICE)}. List every "
            "device by its own name; an empty device in the DXA table means unknown."
        )
    return devices


def _references(path: Path, name: str, sexes: object) -> dict[str, Reference]:
    problem = UserError(
        f"{path}: [{name}] must hold nothing, or [{name}.F] and [{name}.M] with mean_g_cm2 and "
        "sd_g_cm2 in g/cm^2 (mean 0.3 to 3, sd above 0)."
    )
    if not isinstance(sexes, dict) or not set(sexes) <= {"F", "M"}:
        raise problem
    references = {}
    for sex, fields in sexes.items():
        if not isinstance(fields, dict) or set(fields) != {"mean_g_cm2", "sd_g_cm2"}:
            raise problem
        if not all(isinstance(value, int | float) for value in fields.values()):
            raise problem
        reference = Reference(float(fields["mean_g_cm2"]), float(fields["sd_g_cm2"]))
        if not (0.3 <= reference.mean_g_cm2 <= 3 and 0 < reference.sd_g_cm2 < 1):
            raise problem
        references[sex] = reference
    return references
