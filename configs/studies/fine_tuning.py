"""Fine-tuning on some of the training patients, for configs/studies/texture_learning.py.

configs/moe_multitask_resnet34.py on crops of the body, with `objective.patients`: how many training
patients teach (0: all), the same ones that readouts of so many patients are fitted on.
"""

from ml_collections import ConfigDict

from configs import moe_multitask_resnet34


def get_config(variant: str = "") -> ConfigDict:
    """The experiment; it has no variants."""
    if variant:
        raise ValueError(f"unknown variant {variant!r} of fine_tuning; it has none")
    config = moe_multitask_resnet34.get_config()
    with config.unlocked():
        config.data.sees = config.data.statistics = "body"
        config.data.unlabelled_too = True  # 12 patients have few labelled vertebrae
        config.objective.name = "launch.readouts.few_patients"
        config.objective.patients = 0
        # Few validation patients may all be of one class, and then there is no AUROC.
        config.checkpoint.best_metric, config.checkpoint.best_mode = "loss", "min"
    return config.lock()
