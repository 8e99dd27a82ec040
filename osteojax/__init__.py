"""OsteoJAX: opportunistic osteoporosis diagnosis from CT, on JAX and Flax.

This module has the public names for Python users: `osteojax.voxel_maps`, `osteojax.train_model`
and others (docs/python.md shows how to use them). A name is imported when it is first used, so that
`import osteojax` is fast: it loads neither JAX nor NumPy.
"""

from __future__ import annotations

import difflib
import importlib
from typing import Any

__version__ = "0.3.0"

__all__ = [
    "RadiomicsFeatureExtractor",
    "UserError",
    "VoxelSettings",
    "draw_vertebra",
    "evaluate",
    "export_model",
    "load_config",
    "load_model",
    "load_study",
    "open_cohort",
    "predict_scan",
    "read_predictions",
    "run_study",
    "score_predictions",
    "train_model",
    "voxel_maps",
]

_PLACES = {
    "RadiomicsFeatureExtractor": "data_prep.radiomics_maps.extractor:RadiomicsFeatureExtractor",
    "UserError": "osteojax.errors:UserError",
    "VoxelSettings": "osteojax.ops.texture.voxel_maps:VoxelSettings",
    "draw_vertebra": "launch.inspection.slices:draw_slices",
    "evaluate": "launch.evaluation.run:evaluate",
    "export_model": "osteojax.export.write:export_model",
    "load_config": "launch.configs:load_config",
    "load_model": "osteojax.export.load:ExportedModel",
    "load_study": "launch.studies.plan:load_study",
    "open_cohort": "osteojax.data.cohort:open_cohort",
    "predict_scan": "launch.prediction.scan:predict_scan",
    "read_predictions": "osteojax.evaluation.predictions:read",
    "run_study": "launch.studies.run:run_study",
    "score_predictions": "osteojax.evaluation.scores:score_predictions",
    "train_model": "osteojax.train.loop:train",
    "voxel_maps": "osteojax.ops.texture.voxel_maps:voxel_maps",
}
"""Name -> module:attribute. Only this table may name modules of the layers above this package; type
checkers read the same names in __init__.pyi. A name must differ from those of subpackages
(`osteojax.train`), because importing the subpackage would replace it."""


def __getattr__(name: str) -> Any:
    """Imports a public name when it is first used (PEP 562)."""
    if name not in _PLACES:
        close = difflib.get_close_matches(name, __all__, n=3, cutoff=0.4)
        hint = f"; did you mean {', '.join(close)}?" if close and name[0] != "_" else ""
        raise AttributeError(f"module 'osteojax' has no attribute {name!r}{hint}")
    module, _, attribute = _PLACES[name].partition(":")
    value = globals()[name] = getattr(importlib.import_module(module), attribute)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
