"""Index ranges of the splits: which examples belong to training, validation, test, calibration.

Ranges never meet, however large a split is made, so an example's index alone says what it may
be used for.
"""

SPLIT_START = {"train": 0, "validation": 1_000_000_000, "test": 2_000_000_000}
OPTIONAL_SPLIT_START = {"calibration": 1_500_000_000}
"""Splits that only data sets which ask for them have.

What is learnt from the calibration split is a correction of a trained model, so it shares nothing
with training or test: it has the far half of validation's range, and with it validation's galaxies.
"""
STREAM_START = 3_000_000_000
"""First index of lenses that are simulated during training; no stored split has them."""


def split_of(index: int) -> str:
    """The split whose galaxies example `index` may have.

    That is the split it belongs to, "train" for examples simulated in training, and "validation"
    for calibration.
    """
    if index >= STREAM_START:
        return "train"
    return max(SPLIT_START, key=lambda name: (index >= SPLIT_START[name], SPLIT_START[name]))
