"""Index ranges of the splits: which examples belong to training, validation and test.

Ranges never meet, however large a split is made, so an example's index alone says what it may
be used for.
"""

SPLIT_START = {"train": 0, "validation": 1_000_000_000, "test": 2_000_000_000}
STREAM_START = 3_000_000_000
"""First index of lenses that are simulated during training; no stored split has them."""


def split_of(index: int) -> str:
    """The split that example `index` belongs to; examples simulated in training are "train"."""
    if index >= STREAM_START:
        return "train"
    return max(SPLIT_START, key=lambda name: (index >= SPLIT_START[name], SPLIT_START[name]))
