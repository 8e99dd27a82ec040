"""AdamW with linear warm-up and cosine decay, with the paper's values as defaults."""

from __future__ import annotations

from typing import TYPE_CHECKING

import optax

from osteojax.errors import UserError

if TYPE_CHECKING:
    from ml_collections import ConfigDict


def duration_steps(config: ConfigDict, name: str, num_examples: int) -> int:
    """Steps of `config.optim.<name>_steps`, or of `<name>_epochs` where no steps are given.

    An epoch is a number of examples; a batch may belong to two epochs.
    """
    optim = config.optim
    epochs, steps = optim[f"{name}_epochs"], optim[f"{name}_steps"]
    if steps is None:
        steps = round(epochs * num_examples / config.batch_size)
    return max(1, int(steps))


def schedule(config: ConfigDict, num_examples: int) -> optax.Schedule:
    """Step -> learning rate: linear from 0 over the warm-up, then cosine to 0.

    The paper gives rate, warm-up and length, but not the decay (docs/method.md).
    """
    total = duration_steps(config, "train", num_examples)
    warmup = duration_steps(config, "warmup", num_examples)
    if warmup >= total:
        raise UserError(
            f"the warm-up of {warmup} steps does not end before the run of {total} steps. Lower "
            "optim.warmup_epochs (or warmup_steps)."
        )
    return optax.warmup_cosine_decay_schedule(0.0, config.optim.learning_rate, warmup, total)


def adamw_direction(config: ConfigDict) -> optax.GradientTransformation:
    """AdamW without the learning rate. Weight decay applies to every parameter, which is the
    default of the paper's framework."""
    optim = config.optim
    return optax.chain(
        optax.scale_by_adam(b1=optim.beta1, b2=optim.beta2),
        optax.add_decayed_weights(optim.weight_decay),
    )
