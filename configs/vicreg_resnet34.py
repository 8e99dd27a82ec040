"""VICReg pre-training of a 3D ResNet34 on the texture pool: a baseline to TP-SwAV.

    osteojax train --config configs/vicreg_resnet34.py --workdir W --data DIR

Hardware: as configs/tp_swav_resnet34.py, whose schedule and augmentation it has.
Hours: not run at full size.
Score: none yet.

It sees crops inside the vertebral body; `:paper` sees whole boxes, and `:smoke` is the same path
with a narrow network: minutes on two CPU cores. Fields marked R are not fixed by
Bardes, Ponce and LeCun, ICLR 2022; configs/shared.py has the fields that are not about the method.
"""

from ml_collections import ConfigDict

from configs import shared


def get_config(variant: str = "") -> ConfigDict:
    """The experiment; variants as `shared.variants_of` has them."""
    variants = shared.variants_of(variant, "vicreg_resnet34")
    config = shared.run(eval_at_start=True)
    config.data = shared.pair_data(variants)
    config.model = shared.resnet34()
    config.objective = ConfigDict(
        {
            "name": "vicreg",
            "projector_dim": 512,  # R: the paper's expander has three layers of 8,192
            "projection_dim": 512,  # R
            "invariance_weight": 25.0,
            "variance_weight": 25.0,
            "covariance_weight": 1.0,
        }
    )
    config.optim = shared.optimiser(  # R: theirs is LARS, with batches of 2,048
        learning_rate=1e-4, train_epochs=300.0, warmup_epochs=100.0
    )
    config.checkpoint = shared.probed_checkpoint(variants)
    if "smoke" in variants:
        shared.use_smoke_schedule(config)
        config.data.labelled_too = True
        config.objective.projector_dim = config.objective.projection_dim = 128
    return config.lock()
