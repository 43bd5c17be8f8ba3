"""TFDS builder of lenses with populations of dark-matter halos: simulated, not downloaded."""

from etils import epath

from dlens_tf.pipeline.builder import SimulatedBuilder, describe
from dlens_tf.simulation import catalogue


class Builder(SimulatedBuilder):
    """Simulated strong lenses with cold, warm, self-interacting or ultralight dark matter.

    Arguments are those of `SimulatedBuilder`.
    """

    DATASET = catalogue.DATASETS["dark_matter"]
    VERSION, RELEASE_NOTES, BUILDER_CONFIGS = describe(DATASET)
    # TFDS would look below the folder of dlens_tf, where this package is not in a checkout.
    pkg_dir_path = epath.Path(__file__).parent
