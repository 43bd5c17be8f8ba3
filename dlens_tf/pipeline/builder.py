"""What the TFDS builders of simulated data sets share: nothing is downloaded, all is simulated.

A data set is a `catalogue.DatasetSpec`; its builder is a thin subclass:

    class Builder(SimulatedBuilder):
        DATASET = catalogue.DATASETS["deeplense"]
        VERSION, RELEASE_NOTES, BUILDER_CONFIGS = describe(DATASET)
        pkg_dir_path = epath.Path(__file__).parent
"""

import contextlib
import shutil
import time
from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import tensorflow as tf
import tensorflow_datasets as tfds
from tensorflow_datasets.core.writer import ExampleWriter

from dlens_tf import __version__
from dlens_tf.errors import UserError, choose
from dlens_tf.parameters import Choice
from dlens_tf.pipeline import on_beam
from dlens_tf.simulation import catalogue, generate
from dlens_tf.simulation.engines import ENGINE_VERSIONS, ENGINES
from dlens_tf.simulation.simulator import SIMULATOR_VERSION
from dlens_tf.simulation.splits import OPTIONAL_SPLIT_START, SPLIT_START

# Another version of these may round otherwise.
_LIBRARIES = {
    "lenstronomy": ("lenstronomy", "numpy", "scipy"),
    "fast": ("numpy", "scipy", "tensorflow"),
}
_IDENTITY = (
    "seed", "sizes_per_class", "simulator_version", "engine", "engine_version", "galaxies",
)  # fmt: skip


class SimulatedConfig(tfds.core.BuilderConfig):
    """One recipe and its classes of substructure."""

    def __init__(self, dataset: catalogue.DatasetSpec, spec: catalogue.ConfigSpec):
        super().__init__(
            name=spec.name,
            version=tfds.core.Version(dataset.version),
            release_notes=dict(dataset.release_notes),
            description=spec.description,
        )
        self.spec = spec


def describe(
    dataset: catalogue.DatasetSpec,
) -> tuple[tfds.core.Version, dict[str, str], list[SimulatedConfig]]:
    """A builder's VERSION, RELEASE_NOTES and BUILDER_CONFIGS."""
    configs = [SimulatedConfig(dataset, spec) for spec in dataset.configs.values()]
    return tfds.core.Version(dataset.version), dict(dataset.release_notes), configs


class _CanonicalWriter(ExampleWriter):
    """Writes records with their features in order of name.

    Protobuf leaves the order open, and each process has its own.
    """

    def write(self, path, examples):
        return super().write(path, ((key, _canonical(record)) for key, record in examples))


def _canonical(record: bytes) -> bytes:
    return tf.train.Example.FromString(record).SerializeToString(deterministic=True)


class SimulatedBuilder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """Base of the builders of simulated data sets.

    Args:
      sizes: examples per class of each split ("train", "validation", "test" and, if the data set
        is to have it, "calibration"); what is not named has `catalogue.DEFAULT_SIZES`.
      seed: seed of the simulation.
      engine: one of `engines.ENGINES`; None for the data set's own.
      galaxies: path of the catalogue that real sources are taken from; None for the bundled one.
      workers: processes that simulate.
      progress: called with (examples done, examples in all, examples a second).
      **kwargs: those of `tfds.core.GeneratorBasedBuilder`.

    Raises:
      UserError: if the engine is unknown, the galaxy catalogue can't be used, or the recipe has
        no use for one.

    A configuration with one class has that class's parameters as features; one with several has
    those that all of them share. With a `beam_runner` or `beam_options` in the `DownloadConfig`
    the data set is generated on Apache Beam: the same examples in the same order, though the
    files may be cut between other examples.
    """

    DATASET: ClassVar[catalogue.DatasetSpec]

    def __init__(
        self,
        *,
        sizes: Mapping[str, int] | None = None,
        seed: int = 0,
        engine: str | None = None,
        galaxies: str | Path | None = None,
        workers: int = 1,
        progress: Callable[[int, int, float], None] | None = None,
        **kwargs: Any,
    ):
        self._sizes = {**catalogue.DEFAULT_SIZES, **(sizes or {})}
        self._seed = seed
        self._engine = choose("engine", engine or self.DATASET.engine, ENGINES)
        self._galaxies = str(galaxies) if galaxies else None
        self._workers = workers
        self._progress = progress
        self._on_beam = False
        super().__init__(**kwargs)

    @property
    def spec(self) -> catalogue.ConfigSpec:
        return self.builder_config.spec

    @property
    def provenance(self) -> dict[str, Any]:
        """What determines the bytes of the data set, kept in its metadata.json."""
        recipe = self.spec.recipe
        provenance = {
            "recipe": recipe.name,
            "classes": list(self.spec.classes),
            "seed": self._seed,
            "sizes_per_class": self._sizes,
            "simulator_version": SIMULATOR_VERSION,
            "engine": self._engine,
            "parameters": self.spec.parameters.to_dicts(),
            "instrument": recipe.instrument.name,
            "pixel_scale": recipe.instrument.pixel_scale,
            "noise": recipe.noise,
            "symmetry": recipe.symmetry,
        }
        if self._engine != "lenstronomy":
            provenance["engine_version"] = ENGINE_VERSIONS[self._engine]
        if recipe.further_bands:
            provenance["bands"] = [band.name for band in recipe.bands]
        galaxies = generate.source_galaxies(recipe, self._galaxies)
        if galaxies is not None:
            provenance["galaxies"] = galaxies.content_id
        return provenance

    def _features(self) -> tfds.features.FeaturesDict:
        recipe = self.spec.recipe
        scalar = tfds.features.Scalar
        doc = tfds.features.Documentation
        metadata = {
            "pixel_scale": scalar(np.float32, doc=doc(desc="arcsec per pixel")),
            "exposure_time": scalar(np.float32, doc=doc(desc="total exposure time, s")),
            "background_rms": scalar(
                np.float32, doc=doc(desc="noise of an empty pixel, in the image's unit")
            ),
            "z_lens": scalar(np.float32, doc=doc(desc="redshift of the lens")),
            "z_source": scalar(np.float32, doc=doc(desc="redshift of the source")),
            "seed": scalar(np.int64, doc=doc(desc="seed of the simulation")),
            "index": scalar(np.int64, doc=doc(desc="index of the example in its class")),
        }
        if recipe.has_noise:
            metadata["snr"] = scalar(np.float32, doc=doc(desc="matched-filter signal-to-noise"))
        features = {
            "image": tfds.features.Tensor(
                shape=recipe.image_shape,
                dtype=np.float32,
                encoding=tfds.features.Encoding.BYTES,
                doc=doc(desc="flux per pixel, never stretched"),
            ),
            "label": tfds.features.ClassLabel(names=list(self.DATASET.labels)),
            "parameters": {
                p.name: scalar(
                    np.float32,
                    doc=doc(
                        desc=f"{p.description} [{p.unit or 'dimensionless'}]",
                        value_range=str(p.prior.support),
                    ),
                )
                for p in self.spec.parameters
            },
            "metadata": metadata,
        }
        classes = {
            p.name: tfds.features.ClassLabel(names=[str(value) for value in p.prior.values])
            for p in self.spec.parameters
            if isinstance(p.prior, Choice)
        }
        if classes:
            features["classes"] = classes
        return tfds.features.FeaturesDict(features)

    def _info(self) -> tfds.core.DatasetInfo:
        return self.dataset_info_from_configs(
            features=self._features(),
            homepage="https://github.com/ML4SCI/DeepLense",
            metadata=tfds.core.MetadataDict(
                {
                    **self.provenance,
                    "dlens_tf_version": __version__,
                    "library_versions": {name: version(name) for name in _LIBRARIES[self._engine]},
                }
            ),
        )

    def _example_writer(self) -> ExampleWriter:
        return _CanonicalWriter(file_format=self.info.file_format)

    def _split_generators(self, dl_manager):
        blocks = {
            split: generate.plan(
                self.spec.recipe.name,
                self.spec.classes,
                self._seed,
                start,
                self._sizes[split],
                self._engine,
                self._galaxies,
            )
            for split, start in (SPLIT_START | OPTIONAL_SPLIT_START).items()
            if split in self._sizes
        }
        if not self._on_beam:
            self._simulate([block for split in blocks.values() for block in split])
        return {split: self._generate_examples(of_split) for split, of_split in blocks.items()}

    @property
    def blocks_dir(self) -> Path:
        """Where finished blocks wait until the whole data set is written."""
        return Path(self._data_dir_root) / ".dlens_blocks" / self.name / self.spec.name

    def _simulate(self, blocks: list[generate.Block]) -> None:
        """One pool for all splits; blocks of an interrupted run are not simulated again."""
        total = sum(len(block) for block in blocks)
        done, start = 0, time.monotonic()
        run = generate.run_blocks(blocks, self.blocks_dir, self._workers)
        with contextlib.closing(run) as sizes:
            for size in sizes:
                done += size
                if self._progress is not None:
                    self._progress(done, total, done / max(time.monotonic() - start, 1e-9))

    def _generate_examples(self, blocks: list[generate.Block]):
        """A generator of (key, example), or a `beam.PTransform` that gives the same."""
        parameters = self.spec.parameters
        if self._on_beam:
            return on_beam.examples(blocks, parameters)
        return (
            example
            for block in blocks
            for example in generate.block_examples(
                block, generate.read_block(block, self.blocks_dir), parameters
            )
        )

    def download_and_prepare(self, *, download_config=None, **kwargs: Any) -> None:
        """Simulates and writes the data set, then discards the block files.

        Args:
          download_config: a `tfds.download.DownloadConfig`; its `beam_runner` or `beam_options`
            choose Apache Beam.
          **kwargs: those of `tfds.core.DatasetBuilder.download_and_prepare`.
        """
        if download_config is not None:
            self._on_beam = bool(download_config.beam_runner or download_config.beam_options)
        try:
            super().download_and_prepare(download_config=download_config, **kwargs)
        finally:
            if self._on_beam:
                on_beam.end_processes()
        shutil.rmtree(self.blocks_dir, ignore_errors=True)
        for folder in self.blocks_dir.parents[:2]:  # .dlens_blocks/<data set>/<config>
            if folder.exists() and not any(folder.iterdir()):
                folder.rmdir()

    def check_matches(self) -> None:
        """Checks that the data set on disk is the one that this builder would make.

        Raises:
          UserError: if it was made with another seed, size, simulator, engine or galaxies.
        """
        built, wanted = self.info.metadata or {}, self.provenance
        for key in _IDENTITY:
            if key in built and built[key] != wanted.get(key):
                raise UserError(
                    f"{self.data_dir} exists with {key} {built[key]}, not {wanted.get(key)}; "
                    "choose another --data_dir or add --overwrite"
                )
