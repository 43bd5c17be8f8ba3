"""The served bundle on disk: where things are, and the manifest that says what it answers.

    <base>/<integer version>/
        saved_model.pb, variables/
        assets.extra/dlens_manifest.json
        assets.extra/tf_serving_warmup_requests
        assets.extra/golden.npz
    <base>/README.md    the model card, of a published model

Needs no TensorFlow, so that input can be checked before a model is loaded.
"""

import dataclasses
import json
from pathlib import Path
from typing import Any

from dlens_tf.errors import UserError
from dlens_tf.io.contract import ImageContract
from dlens_tf.io.files import file_checksum
from dlens_tf.parameters import ParameterSet

SAVED_MODEL = "saved_model.pb"
EXTRA = "assets.extra"
MANIFEST = "dlens_manifest.json"
WARMUP_REQUESTS = "tf_serving_warmup_requests"
GOLDEN = "golden.npz"
CARD = "README.md"
WARMUP_BATCH_SIZES = (1, 8, 32)
"""Those that a server is to form, all of them warmed up."""
MANIFEST_FORMAT = 3
_NOT_SERVED = {"signatures": {}, "metrics": None, "sha256": {}}
"""What the manifest in the graph can't have, or no client needs; and what stands for it."""


@dataclasses.dataclass(frozen=True)
class Manifest:
    """What a bundle answers and where it comes from.

    Attributes:
      parameters: the inferred parameters with their priors, in the order of the outputs.
      quantile_levels: levels of the output `quantiles`; empty for a point head.
      head: {"kind": …, **options}, as `Posterior.from_outputs` takes it.
      recalibration: maps that the served quantiles, means and deviations went through, None
        without; see `evaluation.recalibration`. The output `density` is as the network gives it.
      ood: what the output `ood_score` means, see `out_of_distribution.Detector.describe`; None if
        there is no such output.
      tolerance: largest difference between a bundle's answers and the model's, in units of the
        width of a parameter's prior.
      image: what the model asks of an image.
      instrument: name of the instrument it was trained for.
      recipe: name of the simulation recipe.
      dataset: data set, as {"name", "config", "version", "classes"}.
      model: architecture, as in the run's run.json, with "head" and "num_parameters".
      git_commit: commit of the training, None if unknown.
      dlens_tf_version: version that exported the bundle.
      signatures: {name: {"inputs" | "outputs": {key: {"dtype", "shape"}}}}.
      metrics: the run's test metrics, None if it was not evaluated.
      sha256: checksum of each other file of the bundle, by path inside it.
    """

    parameters: ParameterSet
    quantile_levels: tuple[float, ...]
    head: dict[str, Any]
    recalibration: dict[str, Any] | None
    ood: dict[str, Any] | None
    tolerance: float
    image: ImageContract
    instrument: str
    recipe: str
    dataset: dict[str, Any]
    model: dict[str, Any]
    git_commit: str | None
    dlens_tf_version: str
    signatures: dict[str, Any]
    metrics: dict[str, Any] | None
    sha256: dict[str, str]

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready contents, the inverse of `from_dict`."""
        config = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        config["parameters"] = self.parameters.to_dicts()
        config["quantile_levels"] = list(self.quantile_levels)
        config["image"] = {
            "shape": list(self.image.shape),
            "dtype": "float32",
            "pixel_scale": self.image.pixel_scale,
            "pixel_scale_unit": "arcsec",
        }
        return {"format": MANIFEST_FORMAT, **config}

    @classmethod
    def from_dict(cls, config: dict[str, Any]) -> "Manifest":
        """Builds a manifest from `to_dict`'s result."""
        values = {f.name: config[f.name] for f in dataclasses.fields(cls)}
        values["parameters"] = ParameterSet.from_dicts(config["parameters"])
        values["quantile_levels"] = tuple(config["quantile_levels"])
        image = config["image"]
        values["image"] = ImageContract(tuple(image["shape"]), float(image["pixel_scale"]))
        return cls(**values)

    def to_served(self) -> str:
        """JSON for the signature serve_manifest: without what is known only of a whole bundle."""
        config = self.to_dict()
        return json.dumps({key: v for key, v in config.items() if key not in _NOT_SERVED})

    @classmethod
    def from_served(cls, text: str | bytes) -> "Manifest":
        """What the signature serve_manifest gives.

        Its signatures, metrics and checksums are empty.

        Raises:
          UserError: if it is damaged or of another format.
        """
        return cls._parse(text, "the model's served manifest", _NOT_SERVED)

    @classmethod
    def _parse(cls, text: str | bytes, where: str, missing: dict[str, Any]) -> "Manifest":
        try:
            config = missing | json.loads(text)
            if config["format"] != MANIFEST_FORMAT:
                raise UserError(
                    f"{where} is of format {config['format']}, this version of dlens_tf reads "
                    f"{MANIFEST_FORMAT}; export the model again with tools/export.py"
                )
            return cls.from_dict(config)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(f"{where} is damaged; export the model again") from error

    def write(self, bundle: Path) -> None:
        """Writes the manifest into a bundle."""
        folder = bundle / EXTRA
        folder.mkdir(exist_ok=True)
        text = json.dumps(self.to_dict(), indent=2, ensure_ascii=False, allow_nan=False)
        (folder / MANIFEST).write_text(text + "\n", encoding="utf-8")

    @classmethod
    def read(cls, bundle: Path) -> "Manifest":
        """Reads a bundle's manifest.

        Raises:
          UserError: if there is none, or it is damaged or of another format.
        """
        path = bundle / EXTRA / MANIFEST
        try:
            text = path.read_bytes()
        except FileNotFoundError as error:
            raise UserError(
                f"{bundle} has no {EXTRA}/{MANIFEST}; a model is exported by tools/export.py"
            ) from error
        return cls._parse(text, str(path), {})

    def verify(self, bundle: Path) -> None:
        """Raises a `UserError` if a file of the bundle is missing or not as exported."""
        for name, checksum in self.sha256.items():
            path = bundle / name
            if not path.is_file():
                raise UserError(f"{path} is missing; copy the bundle again, or export it again")
            if file_checksum(path) != checksum:
                raise UserError(
                    f"{path} is damaged (its sha256 differs from the manifest's); copy the "
                    "bundle again, or export it again"
                )


def versions(base: Path) -> dict[int, Path]:
    """The folders inside a base folder whose name is an integer, as TF Serving finds versions."""
    if not base.is_dir():
        return {}
    return {int(p.name): p for p in base.iterdir() if p.name.isascii() and p.name.isdigit()}


def find_bundle(path: str | Path) -> Path:
    """The bundle at `path`, or the highest version under it.

    Raises:
      UserError: if there is none.
    """
    path = Path(path)
    if (path / SAVED_MODEL).is_file():
        return path
    if path.suffix == ".keras" or (path / "run.json").is_file():
        run = path if path.is_dir() else path.parent
        raise UserError(
            f"{path} is not an exported model; run tools/export.py --run_dir={run} and give the "
            f"folder it writes ({run / 'export'})"
        )
    found = {n: p for n, p in versions(path).items() if (p / SAVED_MODEL).is_file()}
    if found:
        return found[max(found)]
    state = "holds no exported model" if path.exists() else "does not exist"
    raise UserError(f"{path} {state}; a model is exported by tools/export.py")
