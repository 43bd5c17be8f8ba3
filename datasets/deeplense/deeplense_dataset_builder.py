"""TFDS builder of the DeepLense data sets: simulated here, nothing is downloaded."""

from etils import epath

from dlens_tf.pipeline.builder import SimulatedBuilder, describe
from dlens_tf.simulation import catalogue


class Builder(SimulatedBuilder):
    """Simulated strong lenses with axion vortices, CDM subhalos or no substructure.

    Arguments are those of `SimulatedBuilder`. The default sizes are the published 30,000 and
    5,000, and 3,000 for validation.
    """

    DATASET = catalogue.DATASETS["deeplense"]
    VERSION, RELEASE_NOTES, BUILDER_CONFIGS = describe(DATASET)
    # TFDS would look below the folder of dlens_tf, where this package is not in a checkout.
    pkg_dir_path = epath.Path(__file__).parent
