import json
from pathlib import Path
from typing import ClassVar

import lenstronomy
import numpy as np
import pytest
import scipy
import tensorflow_datasets as tfds
from dlens_tf.datasets.deeplense import Builder, deeplense_dataset_builder

from dlens_tf import __version__
from dlens_tf.errors import UserError
from dlens_tf.parameters import ParameterSet
from dlens_tf.simulation import catalogue
from dlens_tf.simulation.recipes import CLASSES, get_recipe
from dlens_tf.simulation.simulator import SIMULATOR_VERSION, Simulator
from dlens_tf.simulation.splits import SPLIT_START

CONFIG = "model_ii_instrument"
SIZES = {"train": 24, "validation": 8, "test": 8}


@pytest.fixture(scope="module")
def examples(tiny_data_dir):
    """Every example of the tiny data set, by split."""
    splits = tfds.load(f"deeplense/{CONFIG}", data_dir=tiny_data_dir, download=False)
    return {name: list(tfds.as_numpy(split)) for name, split in splits.items()}


class DeepLenseTest(tfds.testing.DatasetBuilderTestCase):
    """TFDS's own checks, on a configuration with one class of substructure."""

    DATASET_CLASS = Builder
    BUILDER_CONFIG_NAMES_TO_TEST: ClassVar = ["model_iii_legacy"]
    SPLITS: ClassVar = {"train": 4, "validation": 2, "test": 3}
    EXAMPLE_DIR = str(Path(deeplense_dataset_builder.__file__).parent / "dummy_data")

    def setUp(self):
        patch = pytest.MonkeyPatch()
        self.addCleanup(patch.undo)
        patch.setattr(catalogue, "DEFAULT_SIZES", {"train": 4, "validation": 2, "test": 3})
        super().setUp()


class DeepLenseClassesTest(DeepLenseTest):
    """The same on a configuration with all three."""

    BUILDER_CONFIG_NAMES_TO_TEST: ClassVar = ["model_iii_instrument_classes"]
    SPLITS: ClassVar = {"train": 12, "validation": 6, "test": 9}


def test_load_gives_the_sizes_asked_for(examples):
    assert {name: len(split) for name, split in examples.items()} == SIZES


def test_examples_are_what_simulate_gives(examples):
    """Any example can be made again alone from the seed and index that it carries."""
    simulator = Simulator(get_recipe(CONFIG))
    for split, some in examples.items():
        for example in some[:2]:
            index = int(example["metadata"]["index"])
            lens = simulator.simulate("axion", int(example["metadata"]["seed"]), index)
            np.testing.assert_array_equal(example["image"], lens.image)
            assert CLASSES[example["label"]] == "axion"
            assert set(example["parameters"]) == set(lens.parameters)
            for name, value in lens.parameters.items():
                assert example["parameters"][name] == np.float32(value)
            for name, value in lens.metadata.items():
                assert example["metadata"][name] == example["metadata"][name].dtype.type(value)
            start = SPLIT_START[split]
            assert start <= index < start + SIZES[split]


def test_splits_are_disjoint_and_without_repeats(examples):
    images = [example["image"].tobytes() for split in examples.values() for example in split]
    assert len(set(images)) == len(images) == sum(SIZES.values())


def test_features_keep_the_contract(tiny_data_dir):
    builder = tfds.builder(f"deeplense/{CONFIG}", data_dir=tiny_data_dir)
    features = builder.info.features
    assert set(features) == {"image", "label", "parameters", "metadata"}
    assert features["image"].shape == (64, 64, 1) and features["image"].np_dtype == np.float32
    assert features["label"].names == ["no_sub", "axion", "cdm"]
    parameters = get_recipe(CONFIG).class_parameters("axion")
    assert set(features["parameters"]) == set(parameters.names)
    for parameter in parameters:
        feature = features["parameters"][parameter.name]
        assert feature.shape == () and feature.np_dtype == np.float32
        assert (parameter.unit or "dimensionless") in feature.doc.desc
    assert set(features["metadata"]) == {
        "pixel_scale", "exposure_time", "background_rms", "z_lens", "z_source", "seed", "index",
        "snr",
    }  # fmt: skip


def test_images_are_stored_as_bytes(tiny_data_dir):
    """So that reading is fast: 4 bytes a pixel in the record."""
    import tensorflow as tf

    path = next((tiny_data_dir / "deeplense" / CONFIG / "1.0.0").glob("*train*"))
    record = next(iter(tf.data.TFRecordDataset(str(path)).as_numpy_iterator()))
    features = tf.train.Example.FromString(record).features.feature
    (value,) = features["image"].bytes_list.value
    assert len(value) == 4 * 64 * 64


def test_provenance(tiny_data_dir):
    path = tiny_data_dir / "deeplense" / CONFIG / "1.0.0" / "metadata.json"
    metadata = json.loads(path.read_text())
    expected = {
        "recipe": CONFIG, "classes": ["axion"], "seed": 0, "sizes_per_class": SIZES,
        "simulator_version": SIMULATOR_VERSION, "engine": "lenstronomy",
        "instrument": "euclid_vis_2021", "pixel_scale": 0.101, "noise": "instrument",
        "symmetry": "rot180", "dlens_tf_version": __version__,
    }  # fmt: skip
    assert expected.items() <= metadata.items()
    assert metadata["library_versions"] == {
        "lenstronomy": lenstronomy.__version__, "numpy": np.__version__, "scipy": scipy.__version__,
    }  # fmt: skip
    parameters = ParameterSet.from_dicts(metadata["parameters"])
    assert parameters == get_recipe(CONFIG).class_parameters("axion")


def test_default_sizes_are_the_published_ones(tmp_path):
    builder = Builder(config=CONFIG, data_dir=tmp_path)
    assert builder.provenance["sizes_per_class"] == {
        "train": 30_000, "validation": 3_000, "test": 5_000,
    }  # fmt: skip


def test_only_recipes_with_noise_have_a_signal_to_noise(tmp_path):
    for config, has_noise in [("model_ii_legacy", False), ("model_ii", True)]:
        metadata = Builder(config=config, data_dir=tmp_path).info.features["metadata"]
        assert ("snr" in metadata) == has_noise


@pytest.mark.parametrize(
    ("arguments", "message"),
    [({"seed": 1}, "exists with seed 0, not 1"), ({"sizes": {"train": 25}}, "sizes_per_class")],
)
def test_another_data_set_in_the_same_place_is_noticed(tiny_data_dir, arguments, message):
    arguments = {"sizes": SIZES, **arguments}
    arguments["sizes"] = {**SIZES, **arguments["sizes"]}
    builder = Builder(config=CONFIG, data_dir=tiny_data_dir, **arguments)
    with pytest.raises(UserError, match=message):
        builder.check_matches()


def test_nothing_but_the_data_set_is_left(tiny_data_dir):
    assert [path.name for path in tiny_data_dir.iterdir()] == ["deeplense"]
