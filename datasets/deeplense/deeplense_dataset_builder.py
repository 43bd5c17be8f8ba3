"""TFDS builder of the DeepLense data sets: simulated here, nothing is downloaded."""

import contextlib
import shutil
import time
from collections.abc import Iterator, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import tensorflow_datasets as tfds
from etils import epath

from dlens_tf import __version__
from dlens_tf.errors import UserError
from dlens_tf.simulation import catalogue, generate
from dlens_tf.simulation.recipes import CLASSES
from dlens_tf.simulation.simulator import SIMULATOR_VERSION

# Another version of these may round otherwise.
_LIBRARIES = ("lenstronomy", "numpy", "scipy")


class DeepLenseConfig(tfds.core.BuilderConfig):
    """One recipe and its classes of substructure."""

    def __init__(self, spec: catalogue.ConfigSpec):
        super().__init__(
            name=spec.name,
            version=tfds.core.Version(catalogue.VERSION),
            release_notes=catalogue.RELEASE_NOTES,
            description=spec.description,
        )
        self.spec = spec


class Builder(tfds.core.GeneratorBasedBuilder):
    """Simulated strong lenses with axion vortices, CDM subhalos or no substructure.

    Args:
      sizes: examples per class of each split ("train", "validation", "test"); the defaults are
        the published 30,000 and 5,000, and 3,000 for validation.
      seed: seed of the simulation.
      workers: processes that simulate.
      progress: called with (examples done, examples in all, examples a second).
      **kwargs: those of `tfds.core.GeneratorBasedBuilder`.

    A configuration with one class has that class's parameters as features; one with several has
    those that all of them share.
    """

    VERSION = tfds.core.Version(catalogue.VERSION)
    RELEASE_NOTES = catalogue.RELEASE_NOTES
    # TFDS would look below the folder of dlens_tf, where this package is not in a checkout.
    pkg_dir_path = epath.Path(__file__).parent
    BUILDER_CONFIGS: ClassVar = [DeepLenseConfig(spec) for spec in catalogue.CONFIGS.values()]

    def __init__(
        self,
        *,
        sizes: Mapping[str, int] | None = None,
        seed: int = 0,
        workers: int = 1,
        progress=None,
        **kwargs: Any,
    ):
        self._sizes = {**catalogue.DEFAULT_SIZES, **(sizes or {})}
        self._seed = seed
        self._workers = workers
        self._progress = progress
        super().__init__(**kwargs)

    @property
    def spec(self) -> catalogue.ConfigSpec:
        return self.builder_config.spec

    @property
    def provenance(self) -> dict[str, Any]:
        """What determines the bytes of the data set, kept in its metadata.json."""
        recipe = self.spec.recipe
        return {
            "recipe": recipe.name,
            "classes": list(self.spec.classes),
            "seed": self._seed,
            "sizes_per_class": self._sizes,
            "simulator_version": SIMULATOR_VERSION,
            "engine": "lenstronomy",
            "parameters": self.spec.parameters.to_dicts(),
            "instrument": recipe.instrument.name,
            "pixel_scale": recipe.instrument.pixel_scale,
            "noise": recipe.noise,
            "symmetry": recipe.symmetry,
        }

    def _info(self) -> tfds.core.DatasetInfo:
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
        features = tfds.features.FeaturesDict(
            {
                "image": tfds.features.Tensor(
                    shape=recipe.image_shape,
                    dtype=np.float32,
                    encoding=tfds.features.Encoding.BYTES,
                    doc=doc(desc="flux per pixel, never stretched"),
                ),
                "label": tfds.features.ClassLabel(names=list(CLASSES)),
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
        )
        return self.dataset_info_from_configs(
            features=features,
            homepage="https://github.com/ML4SCI/DeepLense",
            metadata=tfds.core.MetadataDict(
                {
                    **self.provenance,
                    "dlens_tf_version": __version__,
                    "library_versions": {name: version(name) for name in _LIBRARIES},
                }
            ),
        )

    def _split_generators(self, dl_manager):
        blocks = {
            split: generate.plan(
                self.spec.recipe.name, self.spec.classes, self._seed, start, self._sizes[split]
            )
            for split, start in catalogue.SPLIT_START.items()
        }
        self._simulate([block for split in blocks.values() for block in split])
        return {split: self._examples(of_split) for split, of_split in blocks.items()}

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

    def _examples(self, blocks: list[generate.Block]) -> Iterator[tuple[str, dict[str, Any]]]:
        for block in blocks:
            arrays = generate.read_block(block, self.blocks_dir)
            for i in range(len(block)):
                example: dict[str, Any] = {"parameters": {}, "metadata": {}}
                for key, values in arrays.items():
                    group, _, name = key.rpartition("/")
                    if not group:
                        example[name] = values[i]
                    elif group == "metadata" or name in self.spec.parameters:
                        example[group][name] = values[i]
                yield f"{block.dm_class}_{block.start + i}", example

    def _generate_examples(self, blocks):
        return self._examples(blocks)

    def download_and_prepare(self, **kwargs: Any) -> None:
        """Simulates and writes the data set, then discards the block files."""
        super().download_and_prepare(**kwargs)
        shutil.rmtree(self.blocks_dir, ignore_errors=True)
        for folder in self.blocks_dir.parents[:2]:  # .dlens_blocks/deeplense/<config>
            if folder.exists() and not any(folder.iterdir()):
                folder.rmdir()

    def check_matches(self) -> None:
        """Checks that the data set on disk is the one that this builder would make.

        Raises:
          UserError: if it was made with another seed, size or simulator.
        """
        built = self.info.metadata or {}
        for key in ("seed", "sizes_per_class", "simulator_version"):
            if key in built and built[key] != self.provenance[key]:
                raise UserError(
                    f"{self.data_dir} exists with {key} {built[key]}, not {self.provenance[key]}; "
                    "choose another --data_dir or add --overwrite"
                )
