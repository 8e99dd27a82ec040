"""SimCLR pre-training of a 3D ResNet34 on the texture pool: a baseline to TP-SwAV.

    osteojax train --config configs/simclr_resnet34.py --workdir W --data DIR

Hardware: as configs/tp_swav_resnet34.py, whose schedule and augmentation it has.
Hours: not run at full size.
Score: none yet.

It sees crops inside the vertebral body; `:paper` sees whole boxes, and `:smoke` is the same path
with a narrow network: minutes on two CPU cores. Fields marked R are not fixed by
Chen et al. 2020; configs/shared.py has the fields that are not about the method.
"""

from ml_collections import ConfigDict

from configs import shared


def get_config(variant: str = "") -> ConfigDict:
    """The experiment; variants as `shared.variants_of` has them."""
    variants = shared.variants_of(variant, "simclr_resnet34")
    config = shared.run(eval_at_start=True)
    config.data = shared.pair_data(variants)
    config.model = shared.resnet34()
    config.objective = ConfigDict(
        {
            "name": "simclr",
            "projector_dim": 512,  # that of the embedding, as in section 2.1
            "projection_dim": 128,
            "temperature": 0.1,  # the best of their table 5
        }
    )
    config.optim = shared.optimiser(  # R: theirs is LARS, with batches of 4,096
        learning_rate=1e-4, train_epochs=300.0, warmup_epochs=100.0
    )
    config.checkpoint = shared.probed_checkpoint(variants)
    if "smoke" in variants:
        shared.use_smoke_schedule(config)
        config.data.labelled_too = True
    return config.lock()
