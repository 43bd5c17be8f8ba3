"""Whether models notice images that are unlike those that they were trained on.

Each model is shown fresh images of its recipe and, case by case, images with something wrong. Its
`ood_score` should be larger for these. A case is measured by the AUROC, the share of pairs in which
the unlike image has the larger score, and by the share of images that are flagged, with a score
above the threshold; of fresh images of the recipe these are the false alarms. Of real lenses there
are few: what counts is how many of them are flagged.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from dlens_tf.benchmarks.report import Report, markdown_table
from scipy import stats
from tqdm import tqdm

from dlens_tf import hub
from dlens_tf.errors import UserError
from dlens_tf.inference.bundle import EXTRA, MANIFEST, Manifest
from dlens_tf.inference.posterior import OOD_THRESHOLD
from dlens_tf.io.files import file_checksum
from dlens_tf.io.npy import read_npy
from dlens_tf.simulation.engines import Engine, make_engine
from dlens_tf.simulation.noise import moments, observe
from dlens_tf.simulation.recipes import Recipe, get_recipe
from dlens_tf.simulation.scene import Scene, draw, noise_generator

WIDER = 1.5
"""Factor on the pixel scale."""
NOISIER = 5.0
"""Factor on the noise."""
SATURATION = 0.3
"""Share of the peak that images are cut at."""
DEAD = 4
"""Columns that saw nothing."""
ALIKE, REAL = "like training", "real lenses"
"""Names of the two kinds of images that are no `CASES`."""
RESUMES = True
"""Rows of an earlier run are kept, if they are of the same model and of as many images."""

_REAL_LENSES = Path(__file__).resolve().parents[1] / "tests" / "data" / "real_lenses"
_NO_THETA_E = 1e-6  # arcsec; engines take its logarithm


@dataclasses.dataclass(frozen=True)
class Options:
    """Which models to ask, and about how many images.

    Attributes:
      models: names or folders of models; () for all that are ready to use.
      images: of each case.
      seed: of the lenses and their noise; no data set should have been simulated with it.
      real_lenses: folder of .npy images [H, W] of real lenses; None for that of a checkout.

    Raises:
      UserError: if there are too few images.
    """

    models: Sequence[str] = ()
    images: int = 200
    seed: int = 10_000
    real_lenses: str | None = None

    def __post_init__(self):
        if self.images < 2:
            raise UserError(f"a standard error needs at least 2 images, not {self.images}")


@dataclasses.dataclass(frozen=True)
class Lenses:
    """Simulated lenses.

    Attributes:
      recipe: that they are of.
      seed: of the noise.
      scenes: N of them.
      images: as observed, float64 [N, H, W, C].
      means: what the images would be on average over their noise, float64 [N, H, W, C].
    """

    recipe: Recipe
    seed: int
    scenes: Sequence[Scene]
    images: np.ndarray
    means: np.ndarray

    @classmethod
    def simulate(cls, recipe: Recipe, scenes: Sequence[Scene], seed: int) -> "Lenses":
        """Renders and observes scenes."""
        return cls.observe(recipe, scenes, seed, _engine(recipe).render(scenes))

    @classmethod
    def observe(
        cls, recipe: Recipe, scenes: Sequence[Scene], seed: int, models: np.ndarray
    ) -> "Lenses":
        """Observes noise-free images [N, H, W, C], with the noise of the scenes."""
        images, means = [], []
        for index, (scene, model) in enumerate(zip(scenes, models, strict=True)):
            seen = observe(model, recipe, noise_generator(recipe, scene.dm_class, seed, index))
            images.append(seen.image)
            means.append(moments(model, recipe, seen.exposure_time)[0])
        return cls(recipe, seed, scenes, np.stack(images), np.stack(means))

    def noise(self) -> np.ndarray:
        """The noise of the images; where the recipe has none, that of its instrument's sky."""
        if self.recipe.has_noise:
            return self.images - self.means
        deviations = [band.background_rms for band in self.recipe.bands]
        return np.random.default_rng(self.seed).normal(size=self.images.shape) * deviations


@functools.lru_cache(maxsize=1)  # compiled for a recipe, which two cases share
def _engine(recipe: Recipe) -> Engine:
    return make_engine("fast", recipe)


def draw_scenes(
    recipe: Recipe, classes: Sequence[str], seed: int, number: int
) -> tuple[Scene, ...]:
    """Draws lenses of classes that take turns."""
    return tuple(draw(recipe, classes[i % len(classes)], seed, i) for i in range(number))


# The cases. Each takes the lenses that are like the training images to unlike images.


def wider_pixels(lenses: Lenses) -> np.ndarray:
    """The same lenses, seen with wider pixels."""
    bands = [
        dataclasses.replace(band, pixel_scale=WIDER * band.pixel_scale)
        for band in lenses.recipe.bands
    ]
    recipe = dataclasses.replace(lenses.recipe, instrument=bands[0], further_bands=tuple(bands[1:]))
    return Lenses.simulate(recipe, lenses.scenes, lenses.seed).images


def no_lens(lenses: Lenses) -> np.ndarray:
    """The sources as they are, and what light the lenses have."""
    nothing = {"theta_E": _NO_THETA_E, "gamma1": 0.0, "gamma2": 0.0}
    scenes = [
        dataclasses.replace(scene.without_substructure(), parameters=scene.parameters | nothing)
        for scene in lenses.scenes
    ]
    return Lenses.simulate(lenses.recipe, scenes, lenses.seed).images


def blank_sky(lenses: Lenses) -> np.ndarray:
    """Nothing but noise."""
    empty = np.zeros_like(lenses.images)
    blank = Lenses.observe(lenses.recipe, lenses.scenes, lenses.seed, empty)
    return blank.means + blank.noise()


def more_noise(lenses: Lenses) -> np.ndarray:
    """The same images with more noise."""
    return lenses.means + NOISIER * lenses.noise()


def saturated(lenses: Lenses) -> np.ndarray:
    """The same images, cut in each channel."""
    return np.minimum(lenses.images, SATURATION * lenses.images.max(axis=(1, 2), keepdims=True))


def dead_columns(lenses: Lenses) -> np.ndarray:
    """The same images, without what columns in their middle saw."""
    images = lenses.images.copy()
    images[:, :, _middle(images.shape[2], DEAD)[0]] = 0.0
    return images


CASES: dict[str, Callable[[Lenses], np.ndarray]] = {
    f"pixels × {WIDER:g}": wider_pixels,
    "no lens": no_lens,
    "blank sky": blank_sky,
    f"noise × {NOISIER:g}": more_noise,
    f"cut at {100 * SATURATION:g} %": saturated,
    f"{DEAD} dead columns": dead_columns,
}
"""By the name that tables have."""


def fitted(image: np.ndarray, shape: tuple[int, int, int], seed: int) -> np.ndarray:
    """The centre of an image in a model's shape.

    Args:
      image: [H, W].
      shape: (height, width, channels).
      seed: of the noise like the border's that is around an image that is too small.

    Returns:
      float64 of that shape, with the image in every channel.
    """
    image = np.asarray(image, np.float64)
    border = np.concatenate([image[[0, -1]].ravel(), image[1:-1, [0, -1]].ravel()])
    scatter = stats.median_abs_deviation(border, scale="normal")
    canvas = np.random.default_rng(seed).normal(np.median(border), scatter, shape[:2])
    parts = [_middle(have, want) for have, want in zip(image.shape, shape[:2], strict=True)]
    canvas[parts[0][1], parts[1][1]] = image[parts[0][0], parts[1][0]]
    return np.repeat(canvas[..., np.newaxis], shape[2], axis=2)


def _middle(have: int, want: int) -> tuple[slice, slice]:
    """The part of an axis that is taken, and where it is put."""
    size = min(have, want)
    return tuple(slice((n - size) // 2, (n - size) // 2 + size) for n in (have, want))


def read_real_lenses(folder: Path) -> list[np.ndarray]:
    """Images [H, W] of real lenses, in the order of their files' names.

    Raises:
      UserError: if there are none.
    """
    paths = sorted(folder.glob("*.npy"))
    if not paths:
        raise UserError(
            f"{folder} has no .npy images of real lenses; name a folder that has with --real_lenses"
        )
    images = [read_npy(path, pickled=False).array for path in paths]
    for path, image in zip(paths, images, strict=True):
        if image.ndim != 2:
            raise UserError(f"{path}: an image of a real lens must be [H, W], not {image.shape}")
    return images


def auroc(unlike: Sequence[float], alike: Sequence[float]) -> tuple[float, float]:
    """How well scores tell unlike images from others.

    Returns:
      The share of pairs in which the unlike image has the larger score, ties counting half, and
      its standard error (DeLong et al. 1988, doi:10.2307/2531595).
    """
    ranks = stats.rankdata(np.concatenate([unlike, alike]))
    above = (ranks[: len(unlike)] - stats.rankdata(unlike)) / len(alike)
    below = 1.0 - (ranks[len(unlike) :] - stats.rankdata(alike)) / len(unlike)
    variance = above.var(ddof=1) / len(above) + below.var(ddof=1) / len(below)
    return float(above.mean()), math.sqrt(variance)


def run(options: Options, done: Sequence[dict[str, Any]] = ()) -> Iterator[dict[str, Any]]:
    """A row for each model and case that is not among those that are done.

    Yields:
      model, manifest_sha256, case, scores of its images.

    Raises:
      UserError: if a model is unknown or has no score, or there are no images of real lenses.
    """
    real = read_real_lenses(Path(options.real_lenses or _REAL_LENSES))
    numbers = {ALIKE: options.images, **dict.fromkeys(CASES, options.images), REAL: len(real)}
    bundles = {name: hub.find_model(name) for name in options.models or hub.model_names()}
    for name, bundle in bundles.items():
        if Manifest.read(bundle).ood is None:
            raise UserError(
                f"model {name} has no out-of-distribution score; evaluate its run with "
                "tools/evaluate.py and export it again"
            )
    known = {(r["model"], r["manifest_sha256"], r["case"], len(r["scores"])) for r in done}
    with tqdm(total=len(numbers) * len(bundles), desc="measure", unit="case") as progress:
        for name, bundle in bundles.items():
            checksum = file_checksum(bundle / EXTRA / MANIFEST)
            missing = [c for c, n in numbers.items() if (name, checksum, c, n) not in known]
            progress.update(len(numbers) - len(missing))
            if not missing:
                continue
            predictor = hub.load(bundle)
            manifest = predictor.manifest
            recipe = get_recipe(manifest.recipe)
            scenes = draw_scenes(recipe, manifest.dataset["classes"], options.seed, options.images)
            lenses = Lenses.simulate(recipe, scenes, options.seed)
            for case in missing:
                progress.set_postfix_str(f"{name}, {case}")
                if case == REAL:
                    images = [fitted(image, manifest.image.shape, options.seed) for image in real]
                else:
                    images = lenses.images if case == ALIKE else CASES[case](lenses)
                scores = predictor.predict(np.asarray(images, np.float32)).ood_score
                progress.update()
                yield {
                    "model": name,
                    "manifest_sha256": checksum,
                    "case": case,
                    "scores": [float(f"{score:.5g}") for score in scores],
                }


def table(report: Report) -> str:
    """The AUROC of each model and case, and the share of images that are flagged."""
    # A later row of the same model and case is of the model as it is now, or of more images.
    scores = {(row["model"], row["case"]): row["scores"] for row in report.rows}
    curves, shares = [], []
    for model in dict.fromkeys(model for model, _ in scores):
        alike, real = scores.get((model, ALIKE)), scores.get((model, REAL))
        unlike = [scores.get((model, case)) for case in CASES]
        curves.append([f"`{model}`", *(_auroc_cell(found, alike) for found in unlike)])
        real_cell = f"{_flagged(real)} of {len(real)}" if real else "–"
        shares.append([f"`{model}`", *map(_share_cell, (alike, *unlike)), real_cell])
    settings = report.settings
    return "\n\n".join(
        [
            "AUROC of the score, against images like the training ones "
            f"({settings['images']} of each kind, seed {settings['seed']})",
            markdown_table(["model", *CASES], curves),
            f"Images that are flagged, with a score above {OOD_THRESHOLD:g}: false alarms where "
            "they are like the training ones",
            markdown_table(["model", ALIKE, *CASES, REAL], shares),
        ]
    )


def _flagged(scores: Sequence[float]) -> int:
    return sum(score > OOD_THRESHOLD for score in scores)


def _share_cell(scores: Sequence[float] | None) -> str:
    return f"{100.0 * _flagged(scores) / len(scores):.1f} %" if scores else "–"


def _auroc_cell(unlike: Sequence[float] | None, alike: Sequence[float] | None) -> str:
    if not unlike or not alike:
        return "–"
    value, error = auroc(unlike, alike)
    return f"{value:.3f} ± {error:.3f}"
