"""Trains on pictures of stripes, in seconds.

osteojax train --config tests/pictures/config.py --workdir run --data prepared
"""

from __future__ import annotations

from ml_collections import ConfigDict

from configs.shared import checkpoint, optimiser, run


def get_config() -> ConfigDict:
    config = run(eval_at_start=False)
    config.batch_size = 8
    config.data = ConfigDict({"placement": "disk"})
    config.model = ConfigDict({"features": 8})
    config.objective = ConfigDict({"name": "tests.pictures.objective"})
    config.optim = optimiser(learning_rate=0.03, train_epochs=1.0, warmup_epochs=0.0)
    config.optim.update({"train_steps": 40, "warmup_steps": 4, "eval_steps": 20, "save_steps": 10})
    config.checkpoint = checkpoint("loss", "min")
    return config
