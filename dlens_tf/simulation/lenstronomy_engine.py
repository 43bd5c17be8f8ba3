"""Noise-free images by lenstronomy: the reference engine.

Conventions are lenstronomy's: x to the right (second image axis), y upwards (first axis),
the image centred on the origin, e1/e2 and gamma1/gamma2 in Cartesian components.
"""

import functools
import warnings
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from scipy import ndimage

from dlens_tf.simulation.cosmology import flat_lambda_cdm
from dlens_tf.simulation.recipes import Recipe
from dlens_tf.simulation.substructure import PointMasses


@functools.lru_cache(maxsize=8)
def _sim_api(recipe: Recipe, num_points: int):
    """(image model, magnitude-to-amplitude function) of a recipe with so many point masses."""
    from lenstronomy.SimulationAPI.sim_api import SimAPI

    lens_models = ["SIE", "SHEAR"] + ["POINT_MASS"] * num_points
    kwargs_model = {
        "lens_model_list": lens_models,
        "source_light_model_list": ["SERSIC_ELLIPSE"],
    }
    if recipe.deflection_convention is not None:
        *cosmology, z_convention = recipe.deflection_convention
        kwargs_model |= {
            "lens_redshift_list": [recipe.z_lens] * len(lens_models),
            "source_redshift_list": [recipe.z_source],
            "z_source": recipe.z_source,
            "z_source_convention": z_convention,
            "cosmo": flat_lambda_cdm(*cosmology),
        }
    numerics = {
        "supersampling_factor": recipe.supersampling,
        "supersampling_convolution": recipe.supersampling > 1,
    }
    with warnings.catch_warnings():
        # SimAPI itself hands the cosmology to both classes that this warns about.
        warnings.filterwarnings("ignore", message="Cosmology is provided")
        sim = SimAPI(recipe.num_pix, recipe.instrument.single_band_kwargs(), kwargs_model)
        return sim.image_model_class(numerics), sim.magnitude2amplitude


def lens_kwargs(parameters: Mapping[str, float], points: PointMasses) -> list[dict[str, float]]:
    """lenstronomy keyword arguments of SIE, shear and point masses, in this order."""
    center = {"center_x": parameters["center_x"], "center_y": parameters["center_y"]}
    main = {"theta_E": parameters["theta_E"], "e1": parameters["e1"], "e2": parameters["e2"]}
    shear = {"gamma1": parameters["gamma1"], "gamma2": parameters["gamma2"]}
    beads = [
        {"theta_E": t, "center_x": x, "center_y": y}
        for t, x, y in zip(points.theta_E, points.x, points.y, strict=True)
    ]
    return [main | center, shear, *beads]


def source_kwargs(parameters: Mapping[str, float]) -> dict[str, float]:
    """lenstronomy keyword arguments of the Sersic source, without its brightness."""
    return {
        "R_sersic": parameters["source_R_sersic"],
        "n_sersic": parameters["source_n_sersic"],
        "e1": parameters["source_e1"],
        "e2": parameters["source_e2"],
        "center_x": parameters["source_x"],
        "center_y": parameters["source_y"],
    }


def render(recipe: Recipe, parameters: Mapping[str, float], points: PointMasses) -> np.ndarray:
    """The noise-free image of one lens.

    Args:
      recipe: instrument, conventions and supersampling.
      parameters: values of the recipe's shared parameters.
      points: substructure.

    Returns:
      float64 [num_pix, num_pix], e-/s per pixel (Model I: its own amplitude unit).
    """
    image_model, magnitude2amplitude = _sim_api(recipe, len(points))
    source = source_kwargs(parameters)
    if recipe.source_amplitude is None:
        source["magnitude"] = parameters["source_magnitude"]
        _, (source,), _ = magnitude2amplitude(kwargs_source_mag=[source])
    else:
        source["amp"] = recipe.source_amplitude
    return image_model.image(lens_kwargs(parameters, points), [source])


def inverse_magnification(
    recipe: Recipe,
    parameters: Mapping[str, float],
    points: PointMasses,
    x: np.ndarray,
    y: np.ndarray,
) -> np.ndarray:
    """Determinant of the lens mapping at image positions; critical curves are where it is 0.

    Args:
      recipe: conventions.
      parameters: values of the recipe's shared parameters.
      points: substructure.
      x: positions in arcsec, any shape.
      y: the same.

    Returns:
      1 / magnification, with its sign, the shape of `x`.
    """
    image_model, _ = _sim_api(recipe, len(points))
    kwargs = lens_kwargs(parameters, points)
    return 1.0 / image_model.LensModel.magnification(x.ravel(), y.ravel(), kwargs).reshape(x.shape)


class SmoothOptics(NamedTuple):
    """What a fixed macro-model does to any source.

    Attributes:
      beta_x: unlensed x of each pixel centre, [num_pix, num_pix], arcsec.
      beta_y: unlensed y.
      psf: one-dimensional kernel of the separable PSF, odd length, sum 1, pixel resolution.
      amplitude: flux of a pixel at the source's R_sersic, before the PSF.
    """

    beta_x: np.ndarray
    beta_y: np.ndarray
    psf: np.ndarray
    amplitude: float


def smooth_optics(recipe: Recipe) -> SmoothOptics:
    """Ray-shoots the macro-model of a recipe that fixes it, without supersampling."""
    image_model, magnitude2amplitude = _sim_api(recipe, 0)
    fixed = {p.name: p.prior.mean for p in recipe.shared_parameters}
    x, y = image_model.Data.pixel_coordinates
    beta = image_model.LensModel.ray_shooting(
        x.ravel(), y.ravel(), lens_kwargs(fixed, PointMasses.none())
    )
    # lenstronomy convolves Gaussian PSFs with the same truncated filter.
    radius = int(recipe.instrument.psf_truncation * _psf_sigma_pixels(recipe) + 0.5)
    delta = np.zeros(2 * radius + 1)
    delta[radius] = 1.0
    psf = ndimage.gaussian_filter1d(
        delta, _psf_sigma_pixels(recipe), truncate=recipe.instrument.psf_truncation
    )
    amplitude = recipe.source_amplitude
    if amplitude is None:
        source = source_kwargs(fixed) | {"magnitude": fixed["source_magnitude"]}
        _, (source,), _ = magnitude2amplitude(kwargs_source_mag=[source])
        amplitude = source["amp"]
    return SmoothOptics(
        beta[0].reshape(x.shape),
        beta[1].reshape(x.shape),
        psf,
        amplitude * recipe.instrument.pixel_scale**2,
    )


def _psf_sigma_pixels(recipe: Recipe) -> float:
    fwhm_per_sigma = 2.0 * np.sqrt(2.0 * np.log(2.0))
    return recipe.instrument.psf_fwhm / fwhm_per_sigma / recipe.instrument.pixel_scale
