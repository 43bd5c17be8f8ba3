import numpy as np
import pytest
from scipy.interpolate import RegularGridInterpolator

from dlens_tf.simulation.grids import Grid2D

X, Y = np.linspace(-1.0, 2.0, 7), np.linspace(3.0, 4.0, 5)


@pytest.mark.parametrize("channels", [(), (2,)])
def test_matches_scipy(channels):
    rng = np.random.default_rng(0)
    values = rng.normal(size=(7, 5, *channels))
    x, y = rng.uniform(-1.0, 2.0, 100), rng.uniform(3.0, 4.0, 100)
    grid = Grid2D(-1.0, 2.0, 3.0, 4.0, values)
    expected = RegularGridInterpolator((X, Y), values)(np.stack([x, y], axis=-1))
    np.testing.assert_allclose(grid(x, y), expected, atol=1e-12)


def test_is_held_at_the_edges():
    values = np.arange(35.0).reshape(7, 5)
    grid = Grid2D(-1.0, 2.0, 3.0, 4.0, values)
    x, y = np.array([-9.0, 9.0, 2.0]), np.array([-9.0, 9.0, 4.0])
    np.testing.assert_array_equal(grid(x, y), [values[0, 0], values[-1, -1], values[-1, -1]])
