"""The public names for editors and type checkers; __init__.py imports them on first use."""

from data_prep.radiomics_maps.extractor import RadiomicsFeatureExtractor
from launch.configs import load_config
from launch.evaluation.run import evaluate
from launch.inspection.slices import draw_slices as draw_vertebra
from launch.prediction.scan import predict_scan
from launch.studies.plan import load_study
from launch.studies.run import run_study
from osteojax.data.cohort import open_cohort
from osteojax.errors import UserError
from osteojax.evaluation.predictions import read as read_predictions
from osteojax.evaluation.scores import score_predictions
from osteojax.export.load import ExportedModel as load_model
from osteojax.export.write import export_model
from osteojax.ops.texture.voxel_maps import VoxelSettings, voxel_maps
from osteojax.train.loop import train as train_model

__version__: str

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
