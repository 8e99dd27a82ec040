"""TP-SwAV pre-training of a 3D ResNet34 on crops inside the vertebral body.

    osteojax train --config configs/tp_swav_resnet34.py --workdir W --data DIR

Hardware: the paper's run, 300 epochs of 30,256 vertebrae of 96^3, is for GPUs.
Hours: not run at full size; two CPU cores would need 232 days (docs/benchmarks.md).
Score: none at full size. At 32^3 on simulated patients: benchmarks/paper_ladder.md.

It has the paper's settings, and ours where it gives none (marked R) or where a study found better
ones. `:paper` sees whole boxes, as the paper describes; `:smoke` is the same path with a narrow
network: minutes on two CPU cores. configs/shared.py has the fields that are not about the method.
"""

from ml_collections import ConfigDict

from configs import shared


def get_config(variant: str = "") -> ConfigDict:
    """The experiment; variants as `shared.variants_of` has them."""
    variants = shared.variants_of(variant, "tp_swav_resnet34")
    config = shared.run(eval_at_start=True)
    config.data = shared.pair_data(variants)
    config.model = shared.resnet34()
    config.objective = ConfigDict(
        {
            "name": "swav",
            "projector_dim": 512,  # R
            "prototype_dim": 128,  # R
            "num_prototypes": 128,  # R
            "unit_prototypes": True,  # R: of length 1 after every update; 0.1 had False
            "temperature": 0.1,  # R
            "sinkhorn_epsilon": 0.02,  # R: 0.1 had 0.05, with which assignments are flat
            "sinkhorn_iterations": 3,  # R
            "queue_size": 1024,  # R, per view; unused where batch_size >= 8 num_prototypes
            # R: the queue waits so many steps; 15 epochs of the paper's cohort, as Caron et al.
            "queue_start_steps": 14_175,
            "freeze_prototypes_steps": 945,  # R: one epoch of the paper's cohort
            "diversity_weight": 0.1,  # R
        }
    )
    config.optim = shared.optimiser(learning_rate=1e-4, train_epochs=300.0, warmup_epochs=100.0)
    config.checkpoint = shared.probed_checkpoint(variants)
    if "smoke" in variants:
        shared.use_smoke_schedule(config)
        config.data.labelled_too = True
        # For about 1,000 vertebrae (docs/method.md)
        config.objective.num_prototypes = 64
        config.objective.queue_size = config.objective.queue_start_steps = 0
        config.objective.freeze_prototypes_steps = 10
    return config.lock()
