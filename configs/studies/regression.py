"""Encoders that are taught numbers of a vertebra, for configs/studies/texture_learning.py.

Variant "maps": mean and SD over the body of each texture map. Variant "spacing": the true
trabecular spacing, so it needs a simulated cohort and, outside a study,
`--config.objective.truth=SIMULATED/truth.csv`. All other fields are those of
configs/simclr_resnet34.py:body, without maps among the views.
"""

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from configs import simclr_resnet34

NAME = "launch.readouts.regression"


def get_config(variant: str = "") -> ConfigDict:
    """The experiment; its variant names the numbers."""
    if variant not in ("maps", "spacing"):
        raise ValueError(f"unknown variant {variant!r} of regression; choose maps or spacing")
    config = simclr_resnet34.get_config("body")
    truth = {"truth": placeholder(str)} if variant == "spacing" else {}
    with config.unlocked():
        config.data.pairs = "image_image"
        config.objective = ConfigDict({"name": NAME, "targets": variant, **truth})
    return config.lock()
