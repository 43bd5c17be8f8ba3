import itertools

import pytest

from dlens_tf.simulation.catalogue import DEFAULT_SIZES
from dlens_tf.simulation.splits import (
    OPTIONAL_SPLIT_START,
    SPLIT_START,
    STREAM_START,
    split_of,
)


def test_ranges_never_meet():
    assert SPLIT_START["train"] == 0
    starts = sorted([*SPLIT_START.values(), *OPTIONAL_SPLIT_START.values(), STREAM_START])
    gaps = [after - before for before, after in itertools.pairwise(starts)]
    assert min(gaps) >= 1000 * max(DEFAULT_SIZES.values())


@pytest.mark.parametrize(
    ("index", "split"),
    [
        (0, "train"),
        (999_999_999, "train"),
        (1_000_000_000, "validation"),
        (1_500_000_000, "validation"),  # calibration has the galaxies of validation
        (1_999_999_999, "validation"),
        (2_000_000_000, "test"),
        (2_999_999_999, "test"),
        (3_000_000_000, "train"),
        (9_000_000_000_000, "train"),
    ],
)
def test_split_of(index, split):
    assert split_of(index) == split
