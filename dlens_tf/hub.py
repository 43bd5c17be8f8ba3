"""The ready-to-use models that come with the package: `dlens_tf.load("axion_model_i")`.

Each is a folder of `saved_models/`, written by tools/publish.py:

    <name>/
        1/               the served bundle, see `inference.bundle`
        model.keras      the same model for Keras
        README.md        the model card
        evaluation.json  all about its test, with plots beside it
        flags.cfg        the flagfile that it was trained with; of ensembles member0.cfg, …,
                         and start.cfg of the network that a lens_fit starts from, initial.cfg
                         of the one whose weights training began with
        SHA256SUMS       checksums, as `sha256sum -c SHA256SUMS` takes them

Imports no TensorFlow before a model is loaded.

Example:
    >>> dlens_tf.available_models()
    >>> posterior = dlens_tf.load("axion_model_i").predict(images)
"""

import dataclasses
import os
from pathlib import Path
from typing import TYPE_CHECKING

from dlens_tf.errors import UserError
from dlens_tf.inference.bundle import CARD, Manifest, find_bundle, versions
from dlens_tf.io.files import file_checksum

if TYPE_CHECKING:
    from dlens_tf.inference.predictor import Predictor

CHECKSUMS = "SHA256SUMS"
EVALUATION = "evaluation.json"
FLAGS = "flags.cfg"
WEIGHTS = "model.keras"
# Inside the package where it is installed, beside it in a checkout.
_FOLDERS = tuple(p / "saved_models" for p in (Path(__file__).parent, Path(__file__).parents[1]))


@dataclasses.dataclass(frozen=True)
class ReadyModel:
    """One of the ready-to-use models.

    Attributes:
      name: what `load` takes.
      folder: where it is.
      manifest: what it answers and where it comes from.
    """

    name: str
    folder: Path
    manifest: Manifest

    @property
    def targets(self) -> tuple[str, ...]:
        """Names of the inferred parameters."""
        return tuple(self.manifest.parameters.names)

    @property
    def recipe(self) -> str:
        """Simulation recipe of the images that it was trained on."""
        return self.manifest.recipe

    @property
    def instrument(self) -> str:
        """Instrument of these images."""
        return self.manifest.instrument

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Height, width and channels of an image."""
        return self.manifest.image.shape

    @property
    def test_mae(self) -> dict[str, dict[str, float | None]]:
        """Mean absolute test error of each parameter, {"value", "standard_error"}."""
        metrics = self.manifest.metrics or {"parameters": {}}
        return {name: entry["mae"] for name, entry in metrics["parameters"].items()}

    @property
    def card(self) -> str:
        """The model card, Markdown."""
        return (self.folder / CARD).read_text(encoding="utf-8")

    @property
    def description(self) -> str:
        """One line: what it infers from which images."""
        height, width, _ = self.image_shape
        return (
            f"{', '.join(self.targets)} from {height}×{width} images at "
            f"{self.manifest.image.pixel_scale:g} arcsec per pixel, recipe {self.recipe}"
        )

    def __repr__(self) -> str:
        units = {p.name: p.unit for p in self.manifest.parameters}
        errors = [
            f"{name} {mae['value']:.3f}" + (" dex" if units[name].startswith("log10(") else "")
            for name, mae in self.test_mae.items()
        ]
        tested = f"; test MAE {', '.join(errors)}" if errors else ""
        return f"{self.name}: {self.description}{tested}"


def models_folder() -> Path:
    """The folder of the ready-to-use models.

    Raises:
      UserError: if this installation has none.
    """
    for folder in _FOLDERS:
        if folder.is_dir():
            return folder
    raise UserError(
        "this installation of dlens_tf has no saved_models; install a wheel or from a checkout"
    )


def model_names(folder: Path | None = None) -> list[str]:
    """Names of the ready-to-use models, sorted.

    Args:
      folder: where to look; None takes those of the package.
    """
    folder = models_folder() if folder is None else folder
    return sorted(p.name for p in folder.iterdir() if p.name[0] not in "._" and versions(p))


def available_models(folder: Path | None = None) -> dict[str, ReadyModel]:
    """The ready-to-use models by name.

    Args:
      folder: where to look; None takes those of the package.

    Raises:
      UserError: if a manifest is damaged.
    """
    folder = models_folder() if folder is None else folder
    return {
        name: ReadyModel(name, folder / name, Manifest.read(find_bundle(folder / name)))
        for name in model_names(folder)
    }


def find_model(model: str | Path) -> Path:
    """The bundle of a ready-to-use model, or of an exported one.

    Args:
      model: a ready-to-use model's name, or the path of a bundle or of the folder of its
        versions. A path that exists wins over a name.

    Raises:
      UserError: if there is no such model.
    """
    text = os.fspath(model)
    if os.path.exists(text) or os.path.basename(text) != text or isinstance(model, os.PathLike):
        return find_bundle(model)
    names = model_names()
    if text not in names:
        raise UserError(
            f"unknown model '{text}'; ready to use are {', '.join(names)}; one of your own is "
            "exported by tools/export.py, and named by its folder"
        )
    folder = models_folder() / text
    verify_checksums(folder)
    return find_bundle(folder)


def load(model: str | Path) -> "Predictor":
    """Loads a ready-to-use model, or one of your own.

    Args:
      model: see `find_model`.

    Returns:
      A predictor: `predict(images)` gives their `Posterior`; `manifest` and `card` tell what it
      can be asked.

    Raises:
      UserError: if there is no such model, or its files are not as they were published.

    Example:
        >>> posterior = dlens_tf.load("axion_model_i").predict(images)     # [N, 150, 150]
        >>> posterior.median, posterior.interval(0.68)                     # [N, P], [N, P, 2]
    """
    bundle = find_model(model)

    from dlens_tf.inference.predictor import Predictor

    return Predictor.load(bundle)


def write_checksums(folder: Path) -> None:
    """Writes SHA256SUMS of a model's folder: of all but the card and pictures."""
    paths = sorted(p for p in folder.rglob("*") if p.is_file() and p.suffix not in (".md", ".png"))
    lines = [
        f"{file_checksum(path)}  {path.relative_to(folder).as_posix()}\n"
        for path in paths
        if path.name != CHECKSUMS
    ]
    (folder / CHECKSUMS).write_text("".join(lines), encoding="utf-8")


def verify_checksums(folder: Path) -> None:
    """Raises a `UserError` unless a model's files are those that SHA256SUMS lists."""
    path = folder / CHECKSUMS
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
        listed = dict(line.split("  ", 1)[::-1] for line in lines)
    except FileNotFoundError as error:
        raise UserError(f"{path} is missing; install dlens_tf again") from error
    except ValueError as error:
        raise UserError(f"{path} is damaged; install dlens_tf again") from error
    for name, checksum in listed.items():
        if not (folder / name).is_file():
            raise UserError(f"{folder / name} is missing; install dlens_tf again")
        if file_checksum(folder / name) != checksum:
            raise UserError(
                f"{folder / name} is damaged (its sha256 differs from {CHECKSUMS}'s); install "
                "dlens_tf again"
            )
