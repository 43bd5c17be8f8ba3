"""A run folder small enough to evaluate in a second."""

import json
import types

import numpy as np
import pytest
from scipy import stats

from dlens_tf.inference.posterior import Posterior
from dlens_tf.parameters import ParameterSet, Uniform


class ScipyPosterior(Posterior):
    """Independent marginals that SciPy knows all about: one frozen distribution a parameter."""

    def __init__(self, parameters, laws):
        self.parameters, self._laws = parameters, laws
        self.mean, self.stddev = (
            np.stack([getattr(law, name)() for law in laws], axis=-1) for name in ("mean", "std")
        )

    def _each(self, name, values):
        columns = [getattr(law, name)(values[..., p]) for p, law in enumerate(self._laws)]
        return np.stack(columns, axis=-1)

    def quantiles(self, levels):
        levels = np.asarray(levels)[:, np.newaxis]
        return np.stack([law.ppf(levels).T for law in self._laws], axis=1)

    def cdf(self, values):
        return self._each("cdf", values)

    def log_prob(self, values):
        return self._each("logpdf", values)

    def joint_log_prob(self, values):
        return self.log_prob(values).sum(axis=-1)

    def samples(self, num_samples, seed):
        rng = np.random.default_rng(seed)
        return self._each("ppf", rng.uniform(size=(num_samples, *self.mean.shape)))


@pytest.fixture(scope="session")
def scipy_posterior():
    return ScipyPosterior


@pytest.fixture(scope="session")
def problem():
    """Makes images of two parameters with a known posterior: `problem(num, seed, spread, shift)`.

    The posteriors are Gaussians whose deviation differs from image to image. `spread` is the factor
    by which the deviation they claim is too large, `shift` their bias in true deviations.

    Returns parameters, posterior and truth.
    """

    def make(num, seed, spread=1.0, shift=0.0):
        parameters = ParameterSet.from_priors(
            {"theta_E": Uniform(-10.0, 10.0), "gamma1": Uniform(-20.0, 20.0)}
        )
        rng = np.random.default_rng(seed)
        mean = rng.uniform(-5.0, 5.0, (num, 2))
        stddev = rng.uniform(0.3, 2.0, (num, 2))
        truth = mean + stddev * rng.standard_normal((num, 2))
        laws = [
            stats.norm(mean[:, p] + shift * stddev[:, p], spread * stddev[:, p]) for p in (0, 1)
        ]
        return parameters, ScipyPosterior(parameters, laws), truth

    return make


@pytest.fixture
def make_run(tmp_path, tiny_data_dir):
    """Makes a run folder with an untrained model: `make_run(head="gaussian", **run_json)`."""

    def make(head: str = "gaussian", **changes) -> types.SimpleNamespace:
        import keras

        from dlens_tf.models import HEADS
        from dlens_tf.simulation.recipes import get_recipe

        recipe = get_recipe("model_ii_instrument")
        targets = recipe.class_parameters("axion").select(["log10_m_axion", "source_x"])
        loss = "nll" if head == "gaussian" else "mae"
        image = keras.Input(recipe.image_shape, name="image")
        features = keras.layers.Flatten()(keras.layers.AveragePooling2D(16)(image))
        keras.utils.set_random_seed(0)
        outputs = HEADS[head].for_targets(targets, loss, name="head")(features)
        model = keras.Model(image, outputs)
        path = tmp_path / "a_run"
        path.mkdir()
        model.save(path / "model.keras")
        config = {
            "dataset": "deeplense",
            "config": "model_ii_instrument",
            "data_dir": str(tiny_data_dir),
            "dataset_version": "1.0.0",
            "classes": ["axion"],
            "targets": targets.to_dicts(),
            "image_shape": list(recipe.image_shape),
            "pixel_scale": 0.101,
            "instrument": "euclid_vis_2021",
            "recipe": "model_ii_instrument",
            "model": {"backbone": "resnet", "front_end": "flux", "options": {}},
            "head": head,
            "seed": 0,
            "git_commit": None,
            "dlens_tf_version": "0.1.0",
            "num_parameters": model.count_params(),
            **changes,
        }
        (path / "run.json").write_text(json.dumps(config))
        return types.SimpleNamespace(path=path, model=model, targets=targets)

    return make
