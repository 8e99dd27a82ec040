"""PyRadiomics' `RadiomicsFeatureExtractor` for voxel maps, on OsteoJAX's texture engine.

    extractor = RadiomicsFeatureExtractor("parameters.yaml", binWidth=25)
    result = extractor.execute("ct.nii.gz", "mask.nii.gz", label=20, voxelBased=True)
    sitk.WriteImage(result["original_glcm_Contrast"], "contrast.nrrd")

Names of methods and arguments are PyRadiomics', so that a script needs only another import line.

van Griethuysen et al., Cancer Res 77:e104, 2017 (PyRadiomics 3.0.1).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import SimpleITK as sitk

from data_prep.radiomics_maps import region
from data_prep.radiomics_maps.diagnostics import diagnostics
from data_prep.radiomics_maps.parameters import SHAPE_CLASSES, Source, from_source
from data_prep.radiomics_maps.settings import OF_THE_ENGINE
from osteojax.errors import UserError
from osteojax.ops.texture.voxel_maps import VoxelSettings, voxel_maps


class RadiomicsFeatureExtractor:
    """Voxel maps of an image inside a mask.

    Attributes:
      settings: name -> value; may be changed between calls.
      enabledImagetypes: "Original" -> its own settings.
      enabledFeatures: feature class -> names. None, the default without parameters, enables all.
    """

    def __init__(self, parameters: Source | None = None, **settings: Any) -> None:
        """Reads parameters and checks them.

        Args:
          parameters: a parameter file (YAML or JSON), or a dictionary with its sections. None
            enables everything, as in PyRadiomics; then call `disableAllFeatures` and enable
            supported features before `execute`.
          settings: by name; they override those of `parameters`.

        Raises:
          UserError: the parameters cannot be read, or ask for something unsupported. The message
            lists all of it, and the lines of a parameter file that is supported.
        """
        self._parameters = from_source(parameters, settings)
        if parameters is not None:
            self._parameters.check()

    @property
    def settings(self) -> dict[str, Any]:
        return self._parameters.settings

    @property
    def enabledImagetypes(self) -> dict[str, dict[str, Any]]:
        return self._parameters.image_types

    @property
    def enabledFeatures(self) -> dict[str, Sequence[str] | None] | None:
        return self._parameters.features

    def disableAllFeatures(self) -> None:
        self._parameters.features = {}

    def enableFeaturesByName(self, **features: Sequence[str] | None) -> None:
        """Feature class -> names, e.g. glcm=["Contrast"]; other classes are unchanged."""
        self._parameters.features = {**(self._parameters.features or {}), **features}

    def enableFeatureClassByName(self, featureClass: str, enabled: bool = True) -> None:
        """All features of a class, or none of it."""
        others = {k: v for k, v in (self.enabledFeatures or {}).items() if k != featureClass}
        self._parameters.features = {**others, featureClass: []} if enabled else others

    def disableAllImageTypes(self) -> None:
        self._parameters.image_types = {}

    def enableImageTypeByName(
        self, imageType: str, enabled: bool = True, customArgs: dict[str, Any] | None = None
    ) -> None:
        others = {k: v for k, v in self.enabledImagetypes.items() if k != imageType}
        self._parameters.image_types = (
            {**others, imageType: dict(customArgs or {})} if enabled else others
        )

    def addProvenance(self, provenance_on: bool = True) -> None:
        """Whether results have `diagnostics_*` entries."""
        self.settings["additionalInfo"] = provenance_on

    def execute(
        self,
        imageFilepath: Any,
        maskFilepath: Any,
        label: int | None = None,
        label_channel: int | None = None,
        voxelBased: bool = False,
    ) -> dict[str, Any]:
        """Maps of every enabled feature.

        Args:
          imageFilepath, maskFilepath: files, or SimpleITK images of three axes and one geometry.
          label: of the region in the mask; None takes the setting (1 by default).
          label_channel: channel of a mask with several values per voxel.
          voxelBased: must be True; one number per region is not supported.

        Returns:
          `diagnostics_*` entries (see `diagnostics.diagnostics`), then original_CLASS_FEATURE ->
          float64 SimpleITK image, in the order in which they are enabled. Maps cover the region's
          box and kernelRadius voxels around it; initValue (0) is outside the region. Equal to
          PyRadiomics but for the differences that docs/data.md names.

        Raises:
          UserError: a setting or feature is not supported (checked before any work), or image or
            mask is unusable.
        """
        if not voxelBased:
            raise UserError(
                "voxelBased=False: one number per region is not supported, only maps. Call "
                "execute(image, mask, voxelBased=True), or use PyRadiomics."
            )
        given = {"label": label, "label_channel": label_channel}
        settings = {**self.settings, **{k: v for k, v in given.items() if v is not None}}
        settings.setdefault("label", 1)
        dataclasses.replace(self._parameters, settings=settings).check()
        image = region.scalar_image(region.read_image(imageFilepath, "image"))
        mask = region.label_mask(region.read_image(maskFilepath, "mask"), settings)
        box = region.bounding_box(image, mask, settings)
        result: dict[str, Any] = {}
        if settings.get("additionalInfo", False):
            used = {**settings, "voxelBased": True}
            result |= diagnostics(image, mask, settings["label"], used, self.enabledImagetypes)
        pad = settings.get("kernelRadius", 1)
        if settings.get("preCrop", False):
            pad = min(pad, settings.get("padDistance", 0))
        image, mask = region.crop(image, box, pad), region.crop(mask, box, pad)
        return result | self._maps(image, mask, settings)

    def _maps(
        self, image: sitk.Image, mask: sitk.Image, settings: dict[str, Any]
    ) -> dict[str, sitk.Image]:
        """The maps of a cropped image by key, with its geometry."""
        own = {**settings, **self.enabledImagetypes["Original"]}
        engine = {name: own[name] for name in OF_THE_ENGINE if name in own}
        features = {
            name: tuple(dict.fromkeys(wanted or ()))
            for name, wanted in (self.enabledFeatures or {}).items()
            if name not in SHAPE_CLASSES
        }
        try:
            maps = voxel_maps(
                sitk.GetArrayFromImage(image),
                sitk.GetArrayFromImage(mask) == settings["label"],
                features,
                VoxelSettings.from_dict(engine),
                spacing_mm=image.GetSpacing()[::-1],
                dtype=np.float64,
            )
        except ValueError as error:  # for values of the image: NaN, too many levels, overflow
            raise UserError(str(error)) from error
        found = {}
        for name, wanted in features.items():
            for feature in wanted:
                values = sitk.GetImageFromArray(np.asarray(maps[f"{name}_{feature}"]))
                values.CopyInformation(image)
                found[f"original_{name}_{feature}"] = values
        return found
