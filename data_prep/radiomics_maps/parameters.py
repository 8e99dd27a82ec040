"""Reads PyRadiomics' parameter files, checks them, and suggests a supported file if they are not.

A parameter file is YAML or JSON with the sections imageType, featureClass, setting and
voxelSetting. Supported is the image type Original with features of
`osteojax.ops.texture.voxel_maps.CLASSES`.
"""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePath
from typing import Any

import yaml

from data_prep.radiomics_maps import settings as names
from osteojax.errors import UserError
from osteojax.ops.texture.voxel_maps import CLASSES

SECTIONS = ("imageType", "featureClass", "setting", "voxelSetting")
SHAPE_CLASSES = ("shape", "shape2D")
"""Feature classes of which PyRadiomics makes no maps either; it ignores them for voxel maps."""

Source = str | PurePath | Mapping[str, Any]


@dataclasses.dataclass
class Parameters:
    """Enabled image types, features and settings, in PyRadiomics' terms.

    Attributes:
      image_types: name -> its own settings.
      features: class -> feature names; an empty list or None is all of them.
      settings: `settings.DEFAULTS` and what the user changed.
      source: name of the parameters in messages.
    """

    image_types: dict[str, dict[str, Any]]
    features: dict[str, Sequence[str] | None] | None
    settings: dict[str, Any]
    source: str = "the extractor"

    def check(self) -> None:
        """Raises UserError with everything unsupported, and the lines of a supported file."""
        if found := self.faults():
            lines = "".join(f"  - {line}\n" for line in found)
            raise UserError(
                f"{self.source} asks for unsupported features or settings:\n{lines}"
                f"This file would be supported:\n{self.covered()}"
            )

    def faults(self) -> list[str]:
        """Everything that is not supported, one line each."""
        return [
            *self._image_type_faults(),
            *self._feature_faults(),
            *(line for name in self.settings if (line := names.fault(name, self.settings))),
        ]

    def _image_type_faults(self) -> list[str]:
        found = []
        for name, own in self.image_types.items():
            if name != "Original":
                found.append(f"imageType {name}: only Original is supported, no filtered images")
                continue
            allowed = (*names.OF_AN_IMAGE_TYPE, *names.WITHOUT_EFFECT)
            for setting in own:
                if setting not in allowed:
                    found.append(f"imageType Original changes {setting}: set it under setting")
                elif line := names.fault(setting, own):
                    found.append(f"imageType Original: {line}")
        if not self.image_types:
            found.append("no imageType is enabled")
        return found

    def _feature_faults(self) -> list[str]:
        if self.features is None:
            return ["no featureClass: PyRadiomics then makes all features of all classes"]
        found = []
        for name, wanted in self.features.items():
            if name in SHAPE_CLASSES:
                continue
            if name not in CLASSES:
                found.append(
                    f"featureClass {name}: not supported, only {' and '.join(CLASSES)} are"
                )
            elif not wanted:
                number = len(CLASSES[name])
                found.append(
                    f"featureClass {name}: all features are enabled, {number} are supported"
                )
            elif isinstance(wanted, str) or not all(isinstance(n, str) for n in wanted):
                found.append(f"featureClass {name}: it must be a list of names, not {wanted!r}")
            else:
                absent = [feature for feature in wanted if feature not in CLASSES[name]]
                found += [_absent(name, feature) for feature in absent]
        return found

    def covered(self) -> str:
        """The supported part of these parameters, as a parameter file in YAML."""
        features = {}
        for name, made in CLASSES.items():
            wanted = (self.features or {}).get(name, ())
            if self.features is None or (name in self.features and not wanted):
                features[name] = list(made)
            elif kept := [feature for feature in wanted or () if feature in made]:
                features[name] = kept
        own = self.image_types.get("Original", {})
        good = {
            name: value
            for name, value in self.settings.items()
            if not names.fault(name, self.settings) and value != names.DEFAULTS.get(name)
        }
        sections = {
            "imageType": {
                "Original": {
                    name: value
                    for name, value in own.items()
                    if name in names.OF_AN_IMAGE_TYPE and not names.fault(name, own)
                }
            },
            "featureClass": features or {name: list(made) for name, made in CLASSES.items()},
            "setting": {name: value for name, value in good.items() if name not in names.VOXEL},
            "voxelSetting": {name: value for name, value in good.items() if name in names.VOXEL},
        }
        kept_sections = {name: section for name, section in sections.items() if section}
        return yaml.safe_dump(kept_sections, sort_keys=False, default_flow_style=None, width=96)


def _absent(name: str, feature: str) -> str:
    close = difflib.get_close_matches(feature, CLASSES[name], n=1, cutoff=0.8)
    hint = f"; did you mean {close[0]}?" if close else ""
    return f"featureClass {name}: {feature} is not supported{hint}"


def from_source(source: Source | None, changes: Mapping[str, Any]) -> Parameters:
    """Parameters of a file or dictionary, or PyRadiomics' defaults, with some settings changed.

    Raises:
      UserError: no such file, not YAML, or sections that a parameter file does not have.
    """
    if source is None:
        return Parameters({"Original": {}}, None, {**names.DEFAULTS, **changes})
    described = "the dictionary" if isinstance(source, Mapping) else str(source)
    sections = source if isinstance(source, Mapping) else _read(Path(source))
    _check_sections(sections, described)
    image_types = {name: dict(own or {}) for name, own in (sections.get("imageType") or {}).items()}
    settings = {
        **names.DEFAULTS,
        **(sections.get("setting") or {}),
        **(sections.get("voxelSetting") or {}),
        **changes,
    }
    return Parameters(
        image_types or {"Original": {}},
        dict(sections.get("featureClass") or {}) or None,
        {name: _plain(value) for name, value in settings.items()},
        described,
    )


def _read(path: Path) -> Any:
    if not path.is_file():
        raise UserError(f"parameter file {path}: no such file.")
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"parameter file {path}: not YAML ({reason}).") from error


def _check_sections(sections: Any, described: str) -> None:
    if not isinstance(sections, Mapping):
        raise UserError(f"{described}: no sections; a parameter file has {', '.join(SECTIONS)}.")
    for name, section in sections.items():
        if name not in SECTIONS:
            raise UserError(f"{described}: no section {name!r}; there are {', '.join(SECTIONS)}.")
        if section is not None and not isinstance(section, Mapping):
            raise UserError(f"{described}: section {name} must hold names with values.")
    for name, own in (sections.get("imageType") or {}).items():
        if own is not None and not isinstance(own, Mapping):
            raise UserError(f"{described}: imageType {name} must hold settings, or {{}}.")


def _plain(value: Any) -> Any:
    """Converts text such as `1e-3` to a number: YAML 1.1 reads it as text, PyRadiomics as a
    number."""
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            return value
    return value
