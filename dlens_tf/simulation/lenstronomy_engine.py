"""Noise-free images by lenstronomy: the reference engine.

Conventions are lenstronomy's: x to the right (second image axis), y upwards (first axis),
the image centred on the origin, e1/e2 and gamma1/gamma2 in Cartesian components.
"""

import functools
import warnings
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from dlens_tf.simulation.cosmology import flat_lambda_cdm
from dlens_tf.simulation.galaxies import GalaxyCatalogue
from dlens_tf.simulation.psf import gaussian_taps
from dlens_tf.simulation.recipes import Recipe
from dlens_tf.simulation.scene import Scene
from dlens_tf.simulation.substructure import Halos, PointMasses


def _halo_models(halos: Halos) -> list[str]:
    return ["TNFWC" if core > 0.0 else "TNFW" for core in halos.r_core]


def lens_models(recipe: Recipe, scene: Scene) -> list[str]:
    """lenstronomy's names of the deflectors: main lens, shear, then the substructure."""
    main = "EPL" if "gamma_epl" in recipe.priors else "SIE"
    sheet = ["CONVERGENCE"] if scene.halos.kappa_sheet else []
    points = ["POINT_MASS"] * len(scene.points)
    return [main, "SHEAR", *points, *_halo_models(scene.halos), *sheet]


def _halo_kwargs(halos: Halos) -> list[dict[str, float]]:
    columns = zip(
        halos.x, halos.y, halos.Rs, halos.alpha_Rs, halos.r_trunc, halos.r_core, strict=True
    )
    return [
        {"center_x": x, "center_y": y, "Rs": Rs, "alpha_Rs": alpha_Rs, "r_trunc": r_trunc}
        | ({"r_core": r_core} if r_core > 0.0 else {})
        for x, y, Rs, alpha_Rs, r_trunc, r_core in columns
    ]


def lens_kwargs(recipe: Recipe, scene: Scene) -> list[dict[str, float]]:
    """lenstronomy keyword arguments of `lens_models`, in this order."""
    parameters, points = scene.parameters, scene.points
    center = {"center_x": parameters["center_x"], "center_y": parameters["center_y"]}
    main = {"theta_E": parameters["theta_E"], "e1": parameters["e1"], "e2": parameters["e2"]}
    if "gamma_epl" in recipe.priors:
        main["gamma"] = parameters["gamma_epl"]
    shear = {"gamma1": parameters["gamma1"], "gamma2": parameters["gamma2"]}
    masses = [
        {"theta_E": t, "center_x": x, "center_y": y}
        for t, x, y in zip(points.theta_E, points.x, points.y, strict=True)
    ]
    kappa = scene.halos.kappa_sheet
    sheet = [{"kappa": kappa, "ra_0": center["center_x"], "dec_0": center["center_y"]}]
    return [main | center, shear, *masses, *_halo_kwargs(scene.halos), *(sheet if kappa else [])]


def convergence_profiles(halos: Halos, radii: np.ndarray) -> np.ndarray:
    """Convergence of each halo at some distances from its own centre.

    Args:
      halos: N of them.
      radii: [R], arcsec, above 0.

    Returns:
      [N, R].
    """
    from lenstronomy.LensModel.lens_model import LensModel

    profiles = np.empty((len(halos), len(radii)))
    models = {name: LensModel([name]) for name in set(_halo_models(halos))}
    rows = zip(_halo_models(halos), _halo_kwargs(halos), profiles, strict=True)
    for name, kwargs, profile in rows:
        centred = kwargs | {"center_x": 0.0, "center_y": 0.0}
        profile[:] = models[name].kappa(radii, np.zeros_like(radii), [centred])
    return profiles


def band_magnitude(parameters: Mapping[str, float], who: str, band: int) -> float:
    """Magnitude of "source" or "lens" in a band, counted from 0."""
    color = parameters[f"{who}_color_{band + 1}"] if band else 0.0
    return parameters[f"{who}_magnitude"] - color


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


def lens_light_kwargs(parameters: Mapping[str, float]) -> dict[str, float]:
    """lenstronomy keyword arguments of the lens's Sersic light, without its brightness."""
    return {
        "R_sersic": parameters["lens_R_sersic"],
        "n_sersic": parameters["lens_n_sersic"],
        "e1": parameters["e1"],
        "e2": parameters["e2"],
        "center_x": parameters["center_x"],
        "center_y": parameters["center_y"],
    }


@functools.lru_cache(maxsize=16)
def _sim_api(recipe: Recipe, band: int, models: tuple[str, ...]):
    """(image model, magnitude-to-amplitude function) of a recipe with these deflectors."""
    from lenstronomy.SimulationAPI.sim_api import SimAPI

    kwargs_model = {
        "lens_model_list": list(models),
        "source_light_model_list": ["INTERPOL" if recipe.has_galaxies else "SERSIC_ELLIPSE"],
    }
    if "lens_magnitude" in recipe.priors:
        kwargs_model["lens_light_model_list"] = ["SERSIC_ELLIPSE"]
    if recipe.deflection_convention is not None:
        *cosmology, z_convention = recipe.deflection_convention
        kwargs_model |= {
            "lens_redshift_list": [recipe.z_lens] * len(models),
            "source_redshift_list": [recipe.z_source],
            "z_source": recipe.z_source,
            "z_source_convention": z_convention,
            "cosmo": flat_lambda_cdm(*cosmology),
        }
    numerics = {
        "supersampling_factor": recipe.supersampling,
        "supersampling_convolution": recipe.supersampling > 1,
        "supersampling_kernel_size": None,  # all of a PSF kernel, not only its core
    }
    with warnings.catch_warnings():
        # SimAPI itself hands the cosmology to both classes that this warns about.
        warnings.filterwarnings("ignore", message="Cosmology is provided")
        instrument = recipe.bands[band].single_band_kwargs()
        sim = SimAPI(recipe.num_pix, instrument, kwargs_model)
        return sim.image_model_class(numerics), sim.magnitude2amplitude


class LenstronomyEngine:
    """Renders a recipe with lenstronomy, one lens after the other.

    Args:
      recipe: instrument, conventions and supersampling.
      galaxies: of the recipe's sources; None for the bundled ones.
    """

    def __init__(self, recipe: Recipe, galaxies: GalaxyCatalogue | None = None):
        self._recipe = recipe
        self._galaxies = galaxies
        if recipe.has_galaxies and galaxies is None:
            self._galaxies = GalaxyCatalogue.open(None)

    def _models(self, scene: Scene, band: int = 0):
        return _sim_api(self._recipe, band, tuple(lens_models(self._recipe, scene)))

    def _source(self, scene: Scene, band: int, magnitude2amplitude) -> dict:
        recipe, parameters = self._recipe, scene.parameters
        if recipe.has_galaxies:
            galaxy = self._galaxies.image(scene.galaxy)
            scale = galaxy.scale * parameters["source_scale"]
            magnitude = band_magnitude(parameters, "source", band)
            zero_point = recipe.bands[band].magnitude_zero_point
            flux = 10.0 ** (-0.4 * (magnitude - zero_point))
            return {
                # lenstronomy wants surface brightness; the picture's flux is 1.
                "image": np.asarray(galaxy.pixels, np.float64) / scale**2,
                "amp": flux,
                "center_x": parameters["source_x"],
                "center_y": parameters["source_y"],
                "phi_G": parameters["source_phi"],
                "scale": scale,
            }
        source = source_kwargs(parameters)
        if recipe.source_amplitude is not None:
            return source | {"amp": recipe.source_amplitude}
        source["magnitude"] = band_magnitude(parameters, "source", band)
        _, (source,), _ = magnitude2amplitude(kwargs_source_mag=[source])
        return source

    def _render(self, scene: Scene, band: int) -> np.ndarray:
        image_model, magnitude2amplitude = self._models(scene, band)
        source = self._source(scene, band, magnitude2amplitude)
        light = None
        if "lens_magnitude" in self._recipe.priors:
            lens = lens_light_kwargs(scene.parameters)
            lens["magnitude"] = band_magnitude(scene.parameters, "lens", band)
            light, _, _ = magnitude2amplitude(kwargs_lens_light_mag=[lens])
        if self._recipe.has_galaxies:
            # lenstronomy keeps the first picture that it was given.
            image_model.SourceModel.delete_interpol_caches()
        return image_model.image(lens_kwargs(self._recipe, scene), [source], light)

    def render(self, scenes: Sequence[Scene]) -> np.ndarray:
        """Noise-free images, float64 [N, H, W, C], e-/s per pixel (Model I: its own unit)."""
        bands = range(len(self._recipe.bands))
        return np.stack(
            [np.stack([self._render(scene, band) for band in bands], axis=-1) for scene in scenes]
        )

    def source_brightness(self, scene: Scene, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        """Unlensed surface brightness of the source, e-/s per square arcsec, [..., C].

        Args:
          scene: the lens.
          x: positions in the source plane, arcsec, any shape.
          y: the same.
        """
        images = []
        for band in range(len(self._recipe.bands)):
            image_model, magnitude2amplitude = self._models(scene, band)
            source = self._source(scene, band, magnitude2amplitude)
            model = image_model.SourceModel
            if self._recipe.has_galaxies:
                model.delete_interpol_caches()
            images.append(model.surface_brightness(x.ravel(), y.ravel(), [source]))
        return np.stack(images, axis=-1).reshape(*x.shape, -1)

    def ray_shooting(self, scene: Scene, x: np.ndarray, y: np.ndarray):
        """Source-plane positions (x, y) of image-plane positions, arcsec, of their shape."""
        image_model, _ = self._models(scene)
        kwargs = lens_kwargs(self._recipe, scene)
        beta = image_model.LensModel.ray_shooting(x.ravel(), y.ravel(), kwargs)
        return tuple(b.reshape(x.shape) for b in beta)

    def inverse_magnification(self, scene: Scene, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        """Determinant of the lens mapping; critical curves are where it is 0.

        Args:
          scene: the lens.
          x: positions in arcsec, any shape.
          y: the same.

        Returns:
          1 / magnification, with its sign, the shape of `x`.
        """
        image_model, _ = self._models(scene)
        kwargs = lens_kwargs(self._recipe, scene)
        return 1.0 / image_model.LensModel.magnification(x.ravel(), y.ravel(), kwargs).reshape(
            x.shape
        )


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
    fixed = {p.name: p.prior.mean for p in recipe.shared_parameters}
    scene = Scene("no_sub", fixed, PointMasses.none(), Halos.none())
    engine = LenstronomyEngine(recipe)
    image_model, magnitude2amplitude = engine._models(scene)
    beta_x, beta_y = engine.ray_shooting(scene, *image_model.Data.pixel_coordinates)
    amplitude = engine._source(scene, 0, magnitude2amplitude)["amp"]
    return SmoothOptics(
        beta_x,
        beta_y,
        gaussian_taps(recipe.instrument, 1),
        amplitude * recipe.instrument.pixel_scale**2,
    )
