"""The data sets that suites read: a given one, or a small one that is simulated for the run."""

import contextlib
import tempfile
from collections.abc import Iterator

from dlens_tf.simulation.catalogue import DATASETS


def dataset_of(config: str) -> str:
    """The data set that has a configuration of this name."""
    return next(name for name, spec in DATASETS.items() if config in spec.configs)


@contextlib.contextmanager
def data_dir(
    given: str | None, config: str, num_examples: int, num_validation: int = 1
) -> Iterator[str]:
    """The given folder, or a temporary one with a new data set.

    Args:
      given: folder under which data sets are kept; None to simulate one.
      config: of the data set.
      num_examples: training images of each class.
      num_validation: validation images of each class.
    """
    if given is not None:
        yield given
        return
    from dlens_tf.pipeline.build import build_dataset

    with tempfile.TemporaryDirectory() as folder:
        sizes = {"train": num_examples, "validation": num_validation, "test": 1}
        with contextlib.redirect_stdout(None):
            build_dataset(dataset_of(config), config, folder, sizes=sizes, workers=2)
        yield folder
