"""The largest batch that fits on a chip."""

from __future__ import annotations

from collections.abc import Callable

from launch.compiled.figures import Figures, OutOfMemory
from osteojax.errors import UserError

MOST = 2**20
FINEST = 64


def largest_batch(
    compile_one: Callable[[int], tuple[Figures, str]],
    start: int,
    devices: int,
    say: Callable[[str], None],
) -> tuple[int, Figures, str]:
    """The largest batch whose step the compiler finds room for, to a multiple of the devices and
    to 1/64 of itself.

    A trial is where the line through the two nearest that fit says that the room ends; where one
    that far did not fit, it is in the middle, since compilers find room when they must.

    Args:
      compile_one: batch -> figures and text; raises `OutOfMemory`.
      start: first batch to try.
      say: prints the outcome of each trial.

    Returns:
      the batch, its figures and text.

    Raises:
      UserError: not even one vertebra a device fits.
    """
    fitting: list[tuple[int, Figures, str]] = []
    too_large = MOST
    trial = max(devices, start - start % devices)
    while True:
        try:
            figures, text = compile_one(trial)
            fitting.append((trial, figures, text))
            fitting.sort(key=lambda found: found[0])
            say(f"batch {trial}: {figures['peak_bytes'] / 1e9:.1f} GB")
        except OutOfMemory:
            too_large = min(too_large, trial)
            say(f"batch {trial}: does not fit")
            if trial == devices:
                raise UserError(f"not even a batch of {devices} fits.") from None
        largest = fitting[-1][0] if fitting else 0
        if too_large - largest <= max(devices, largest // FINEST):
            return fitting[-1]
        trial = _next(fitting, too_large, devices)


def _next(fitting: list[tuple[int, Figures, str]], too_large: int, devices: int) -> int:
    """The next batch to try: strictly between the largest that fits and the smallest that does
    not."""
    if not fitting:
        guess, low = too_large // 2, devices
    else:
        largest, figures, _ = fitting[-1]
        before, least = 0, figures["argument_bytes"]  # the state needs its room without a batch
        if len(fitting) > 1:
            before, least = fitting[-2][0], fitting[-2][1]["peak_bytes"]
        each = max((figures["peak_bytes"] - least) / (largest - before), 1.0)
        guess = largest + int((figures["room_bytes"] - figures["peak_bytes"]) / each)
        low = largest + devices
    if guess >= too_large:
        guess = (low + too_large) // 2
    return max(guess - guess % devices, low)
