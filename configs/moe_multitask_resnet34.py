"""Fine-tuning: experts, three heads, weighted loss; the paper's settings.

    osteojax train --config configs/moe_multitask_resnet34.py --workdir W2 --data DIR \
        --config.init_from=W

Hardware: the paper's run, 400 epochs of vertebrae of 96^3, is for GPUs.
Hours: not run at full size.
Score: none at full size. At 32^3 on simulated patients: README.md and benchmarks/paper_ladder.md.

It sees crops inside the vertebral body and the box, with an encoder each. `:paper` sees whole
boxes, as the paper describes; `:smoke` is the same path with a narrow network: minutes on two CPU
cores. Fields marked R are not fixed by the paper; configs/shared.py has the fields that are not
about the method.
"""

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from configs import shared


def get_config(variant: str = "") -> ConfigDict:
    """The experiment; variants as `shared.variants_of` has them."""
    variants = shared.variants_of(variant, "moe_multitask_resnet34")
    region = shared.region_of(variants)
    config = shared.run(eval_at_start=False)
    config.init_from = placeholder(str)  # workdir of a pre-training run; empty trains from scratch
    config.data = shared.data(
        unlabelled_too=False,  # R: unlabelled ones for the position head
        # R: crops of the vertebral body, the box ("vertebra"), or both with an encoder each
        sees="both" if region == "body" else "vertebra",
        views=shared.readout(),  # of "body" and "both"
        # R: voxels that z-scores are of, as in pre-training: box, vertebra, body. With "both" they
        # are those of the crops; the box then has its own.
        statistics=region,
        numbers=False,  # R: joins the 11 numbers of the body to the embedding
    )
    config.model = shared.resnet34()
    config.moe = ConfigDict(
        {
            "num_experts": 3,
            "gate_dim": 128,  # R
            "expert_dim": 256,  # R
            "use_device": True,  # False drops the device embedding from eq. 2
            "decoder": "experts",  # controls: concatenated, affine (models/device_heads.py)
        }
    )
    config.objective = ConfigDict(
        {
            "name": "multitask",
            "diagnosis_weight": 1.0,
            "bmd_weight": 1.0,
            "position_weight": 0.5,
            "device_dropout": 0.1,  # R: trains the unknown device
            "gate_balance_weight": 0.0,  # R: 0.01 balances the experts' importance
        }
    )
    config.optim = shared.optimiser(learning_rate=1e-5, train_epochs=400.0, warmup_epochs=150.0)
    config.checkpoint = shared.checkpoint("auroc", "max")
    if "smoke" in variants:
        shared.use_smoke_schedule(config)
        config.optim.train_epochs, config.optim.warmup_epochs = 20.0, 2.0
        config.optim.eval_epochs = config.optim.save_epochs = 5.0
        config.data.unlabelled_too = True
        config.checkpoint.best_metric, config.checkpoint.best_mode = "loss", "min"
    return config.lock()
