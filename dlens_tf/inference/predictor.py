"""Posteriors for images, by an exported model.

Example:
    >>> predictor = Predictor.load("runs/first/export")
    >>> predictor.predict(images).quantiles()          # [N, P, Q], in physical units
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import tensorflow as tf
from tqdm import tqdm

from dlens_tf.errors import UserError
from dlens_tf.evaluation.recalibration import RecalibratedPosterior, Recalibration
from dlens_tf.inference.bundle import CARD, Manifest, find_bundle
from dlens_tf.inference.posterior import Posterior

SIGNATURE = "serve_density"


class Predictor:
    """An exported model and its manifest. Made by `load`.

    Attributes:
      bundle: the bundle's folder.
      manifest: what the model answers.
    """

    def __init__(self, bundle: Path, manifest: Manifest, saved_model):
        self.bundle = bundle
        self.manifest = manifest
        # The signature holds no reference to its variables: they live as long as this object.
        self._saved_model = saved_model
        self._signature = saved_model.signatures[SIGNATURE]

    @classmethod
    def load(cls, path: str | Path) -> "Predictor":
        """Loads a bundle.

        Args:
          path: a bundle, or a base folder, of which the highest version is taken.

        Raises:
          UserError: if there is none, or its files are not as they were exported.
        """
        bundle = find_bundle(path)
        manifest = Manifest.read(bundle)
        manifest.verify(bundle)
        return cls(bundle, manifest, tf.saved_model.load(str(bundle)))

    @property
    def card(self) -> str:
        """The model card that lies beside the bundle, Markdown.

        Raises:
          UserError: if there is none, as with a model that was exported but not published.
        """
        path = self.bundle.parent / CARD
        if not path.is_file():
            raise UserError(f"{path} does not exist; tools/publish.py writes a model card")
        return path.read_text(encoding="utf-8")

    def predict(
        self,
        images: np.ndarray,
        batch_size: int = 64,
        progress: bool = False,
        names: Sequence[str] | None = None,
    ) -> Posterior:
        """Posterior of each image.

        Args:
          images: real numbers, [N, H, W, C], or as `ImageContract.arrange` takes them; raw
            flux in the unit of the model's instrument.
          batch_size: images that go through the network together.
          progress: whether to show a bar on a terminal.
          names: what messages call each image; None takes "image 0" and so on.

        Raises:
          UserError: if type, shape or values of the images do not fit the model, or the model
            has no finite answer for one.
        """
        if batch_size < 1:
            raise UserError(f"batch size must be at least 1, not {batch_size}")
        images = self.manifest.image.arrange(np.asarray(images), "images")
        batches = []
        hide = None if progress else True  # None hides it where there is no terminal
        with tqdm(total=len(images), desc="predict", unit="image", disable=hide) as bar:
            for start in range(0, len(images), batch_size):
                batch = images[start : start + batch_size]
                outputs = self._signature(image=tf.constant(batch))
                outputs = {name: value.numpy() for name, value in outputs.items()}
                check_outputs(outputs, start, names)
                batches.append(outputs)
                bar.update(len(batch))
        outputs = {name: np.concatenate([b[name] for b in batches]) for name in batches[0]}
        return posterior_from_outputs(self.manifest, outputs)


def posterior_from_outputs(manifest: Manifest, outputs: Mapping[str, np.ndarray]) -> Posterior:
    """The posterior that a bundle's answers tell.

    Args:
      manifest: the bundle's.
      outputs: of its signature serve_density, [N, …] by name.
    """
    posterior = Posterior.from_outputs(manifest.parameters, manifest.head, outputs)
    if manifest.recalibration is None:
        return posterior
    return RecalibratedPosterior(posterior, Recalibration.from_dict(manifest.recalibration))


def check_outputs(outputs: dict[str, np.ndarray], start: int, names: Sequence[str] | None) -> None:
    """Raises a `UserError` naming the first image whose posterior is none."""
    for output in ("mean", "stddev", "density"):
        values = outputs.get(output)
        if values is None:
            continue
        good = np.isfinite(values) & (values > 0.0 if output == "stddev" else True)
        if not good.all():
            row = int(np.argmin(good.all(axis=-1)))
            name = f"image {start + row}" if names is None else names[start + row]
            raise UserError(
                f"{name}: the model's {output} is {values[row][~good[row]][0]}; the image is "
                "unlike those that it was trained on, leave it out"
            )
