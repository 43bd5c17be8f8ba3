import json
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import tensorflow_datasets as tfds
from dlens_tf.datasets.dark_matter import Builder, dark_matter_dataset_builder

from dlens_tf.errors import UserError
from dlens_tf.parameters import ParameterSet
from dlens_tf.pipeline.build import build_dataset
from dlens_tf.simulation import catalogue, generate
from dlens_tf.simulation.engines import ENGINE_VERSIONS
from dlens_tf.simulation.galaxies import GalaxyCatalogue
from dlens_tf.simulation.recipes import CLASSES, get_recipe
from dlens_tf.simulation.simulator import Simulator

SIZES = {"train": 3, "validation": 1, "test": 2}


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The mass cut-off set by the fast engine, tiny: its folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(generate, "BLOCK_SIZE", 3)
        data_dir = tmp_path_factory.mktemp("data")
        return build_dataset(
            "dark_matter", "mass_cutoff", data_dir, sizes=SIZES, num_shards=2, engine="fast"
        )


class DarkMatterTest(tfds.testing.DatasetBuilderTestCase):
    """TFDS's own checks, on the configuration with a class of its own."""

    DATASET_CLASS = Builder
    BUILDER_CONFIG_NAMES_TO_TEST: ClassVar = ["mass_cutoff"]
    SPLITS: ClassVar = {"train": 2, "validation": 1, "test": 1}
    EXAMPLE_DIR = str(Path(dark_matter_dataset_builder.__file__).parent / "dummy_data")

    def setUp(self):
        patch = pytest.MonkeyPatch()
        self.addCleanup(patch.undo)
        patch.setattr(catalogue, "DEFAULT_SIZES", self.SPLITS)
        super().setUp()


def test_examples_are_what_the_reference_engine_gives(built):
    """Same lens, same noise; the image to the accuracy that the fast engine has."""
    simulator = Simulator(get_recipe("mass_cutoff"))
    values = simulator.recipe.class_parameters("cdm")["log10_m_cut"].prior.values
    examples = tfds.builder_from_directory(built).as_dataset("test")
    for example in tfds.as_numpy(examples):
        lens = simulator.simulate("cdm", 0, int(example["metadata"]["index"]))
        peak = np.abs(lens.model).max()
        np.testing.assert_allclose(example["image"], lens.image, rtol=0.0, atol=2e-4 * peak)
        assert CLASSES[example["label"]] == "cdm"
        assert set(example["parameters"]) == set(lens.parameters)
        for name, value in lens.parameters.items():
            assert example["parameters"][name] == np.float32(value)
        cut = example["classes"]["log10_m_cut"]
        assert values[cut] == lens.parameters["log10_m_cut"]


def test_cut_offs_are_seven_classes(built):
    features = tfds.builder_from_directory(built).info.features
    assert features["classes"]["log10_m_cut"].names == [
        "6.0", "6.5", "7.0", "7.5", "8.0", "8.5", "9.0",
    ]  # fmt: skip
    assert features["label"].names == list(CLASSES)


def test_provenance(built):
    metadata = json.loads((built / "metadata.json").read_text())
    assert (metadata["engine"], metadata["engine_version"]) == ("fast", ENGINE_VERSIONS["fast"])
    assert "tensorflow" in metadata["library_versions"]
    assert "galaxies" not in metadata
    parameters = ParameterSet.from_dicts(metadata["parameters"])
    assert parameters == get_recipe("mass_cutoff").class_parameters("cdm")


def test_other_engine_in_the_same_place_is_noticed(built):
    builder = Builder(
        config="mass_cutoff", data_dir=built.parents[2], sizes=SIZES, engine="lenstronomy"
    )
    with pytest.raises(UserError, match="exists with engine fast, not lenstronomy"):
        builder.check_matches()


def test_galaxies_are_part_of_the_provenance(tmp_path):
    builder = Builder(config="cdm_hst_cosmos", data_dir=tmp_path)
    assert builder.provenance["galaxies"] == GalaxyCatalogue.open(None).content_id


def test_bands_are_part_of_the_provenance(tmp_path):
    builder = Builder(config="model_iv", data_dir=tmp_path)
    assert builder.provenance["bands"] == [b.name for b in get_recipe("model_iv").bands]
    assert builder.info.features["image"].shape == (64, 64, 3)
    assert "classes" not in builder.info.features


def test_only_choices_have_classes(tmp_path):
    for name, config in catalogue.DATASETS["dark_matter"].configs.items():
        features = Builder(config=name, data_dir=tmp_path).info.features
        assert ("classes" in features) == (name == "mass_cutoff")
        assert set(features["parameters"]) == set(config.parameters.names)
