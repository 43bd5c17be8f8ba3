"""Real galaxies as sources: catalogues in GalSim's real-galaxy layout, cleaned for lensing.

The layout (Mandelbaum et al. 2012, arXiv:1107.4629; 2014, arXiv:1308.4982) is a FITS table
with a row per galaxy, whose GAL_FILENAME and GAL_HDU say where its picture is. Ten COSMOS
galaxies come with the package (`data/cosmos_f814w_10/`, see the README.md there); the public
samples of 56,062 (F814W < 23.5) and 87,798 (< 25.2) galaxies have the same layout.

A picture has sky, noise and neighbours, all of which would be lensed into arcs of their own.
`clean` takes them out: see its docstring for the method.
"""

import functools
import hashlib
import math
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from dlens_tf.errors import UserError, choose
from dlens_tf.io.files import check_readable, one_line

BUNDLED = Path(__file__).parent / "data" / "cosmos_f814w_10"
SPLITS = ("train", "validation", "test")
MAX_SIDE = 127
"""Pixels per side of the largest cleaned picture; larger ones are binned. Sides are odd."""

_COLUMNS = ("IDENT", "GAL_FILENAME", "GAL_HDU", "PIXEL_SCALE", "NOISE_MEAN")
_HELD_OUT = 0.15  # fraction of the galaxies in validation, and in test
_LARGE = 200  # galaxies from which on no split can come out empty
_CACHED = 1024  # cleaned pictures that are kept, 64 MB at most
_VERSION = 1  # of the cleaning: changes whenever the same file would give other pixels

_SCALES = (0.0, 1.5, 3.0)  # sigma of the smoothings, pixels
_TRUSTED = 3.0  # signal-to-noise from which on a scale is trusted
_THRESHOLD = 2.5  # of detection, in standard deviations of the smoothed sky
_OPENING = 4  # radius of what must fit into the galaxy, pixels
_MARGIN = 3  # pixels around the detected galaxy that are kept whole
_TAPER = 8  # pixels over which the picture then falls to zero


class Galaxy(NamedTuple):
    """A cleaned picture of a galaxy.

    Attributes:
      pixels: float32 [n, n], n odd and at most `MAX_SIDE`, >= 0, sum 1, zero along the border,
        its centroid in the middle; x is the second axis, y the first.
      scale: arcsec per pixel.
      name: the galaxy's IDENT.
    """

    pixels: np.ndarray
    scale: float
    name: str


class GalaxyStack(NamedTuple):
    """Galaxies of one size.

    Attributes:
      pixels: float32 [G, n, n], each as in `Galaxy`, with zeros around.
      scales: float32 [G], arcsec per pixel.
    """

    pixels: np.ndarray
    scales: np.ndarray


class GalaxyCatalogue:
    """A catalogue of galaxies, read when asked for; make one with `GalaxyCatalogue.open`.

    Example:
        >>> galaxies = GalaxyCatalogue.open(None)
        >>> galaxies.image(galaxies.split("train")[0]).pixels.shape
    """

    def __init__(self, path: Path):
        self._path = path
        table = _read_table(path)
        self._files = [path.parent / name for name in table["GAL_FILENAME"]]
        self._hdus = table["GAL_HDU"]
        self._scales = table["PIXEL_SCALE"]
        self._skies = table["NOISE_MEAN"]
        self.names: tuple[str, ...] = table["IDENT"]
        for file in dict.fromkeys(self._files):
            check_readable(file)
        self._splits = _split(self.names)
        # The cache is the object's own, so that it goes with it.
        self._cached = functools.lru_cache(maxsize=_CACHED)(self._read)

    def __reduce__(self):
        return GalaxyCatalogue.open, (self._path,)

    @classmethod
    def open(cls, path: str | Path | None) -> "GalaxyCatalogue":
        """Opens a catalogue; the same path gives the same object.

        Args:
          path: a catalogue file, its folder, or None for the ten bundled galaxies.

        Raises:
          UserError: if there is no catalogue, it hasn't got GalSim's layout, a file of pictures
            is missing, or there are fewer galaxies than splits.
        """
        return _open(_catalogue_file(Path(path) if path else BUNDLED).resolve())

    @property
    def title(self) -> str:
        """The catalogue's file without its ending."""
        return self._path.stem

    def __len__(self) -> int:
        return len(self.names)

    @functools.cached_property
    def content_id(self) -> str:
        """Twelve hexadecimal digits that change whenever a cleaned picture could.

        Of large files of pictures only size, beginning and end are looked at.
        """
        digest = hashlib.sha256(f"{_VERSION}".encode())
        files = [file.name for file in self._files]
        rows = zip(self.names, files, self._hdus, self._scales, self._skies, strict=True)
        for row in rows:
            digest.update(f"{row};".encode())
        chunk = 1 << 20
        for path in dict.fromkeys(self._files):
            with open(path, "rb") as file:
                size = path.stat().st_size
                digest.update(f"{size}".encode() + file.read(chunk))
                file.seek(max(size - chunk, 0))
                digest.update(file.read())
        return digest.hexdigest()[:12]

    def split(self, name: str) -> np.ndarray:
        """Row numbers of the galaxies of a split, ascending, int64.

        Splits never share a galaxy. In catalogues of 200 galaxies or more, a galaxy's IDENT
        alone decides; in smaller ones its rank among the others, so that no split is empty.

        Raises:
          UserError: if `name` is not "train", "validation" or "test".
        """
        return self._splits[choose("split", name, SPLITS)]

    def image(self, row: int) -> Galaxy:
        """The cleaned picture of a galaxy.

        Raises:
          UserError: if the picture is missing, or no galaxy is in it.
        """
        return self._cached(int(row))

    def stack(self, rows: Iterable[int] | None = None, side: int | None = None) -> GalaxyStack:
        """Cleaned pictures of one size, for batched engines.

        Args:
          rows: row numbers; None for all, which takes 64 kB a galaxy at most.
          side: pixels per side, odd; None for those of the largest of the rows. `MAX_SIDE` has
            room for every galaxy.

        Raises:
          UserError: if a picture is missing, or no galaxy is in it.
        """
        galaxies = [self.image(row) for row in (range(len(self)) if rows is None else rows)]
        if side is None:
            side = max(galaxy.pixels.shape[0] for galaxy in galaxies)
        pixels = np.zeros((len(galaxies), side, side), np.float32)
        for target, galaxy in zip(pixels, galaxies, strict=True):
            n = galaxy.pixels.shape[0]
            pad = (side - n) // 2
            target[pad : pad + n, pad : pad + n] = galaxy.pixels
        return GalaxyStack(pixels, np.array([galaxy.scale for galaxy in galaxies], np.float32))

    def raw(self, row: int) -> tuple[np.ndarray, float]:
        """A galaxy's picture as it is stored, without its sky, and its arcsec per pixel.

        Raises:
          UserError: if the picture is missing or broken.
        """
        picture = _read_picture(self._files[row], self._hdus[row], self._where(row))
        return picture - self._skies[row], self._scales[row]

    def _where(self, row: int) -> str:
        return f"galaxy {self.names[row]} of {self._path}"

    def _read(self, row: int) -> Galaxy:
        pixels, binning = clean(self.raw(row)[0], self._where(row))
        pixels.flags.writeable = False
        return Galaxy(pixels, self._scales[row] * binning, self.names[row])


@functools.lru_cache(maxsize=4)
def _open(path: Path) -> GalaxyCatalogue:
    return GalaxyCatalogue(path)


def _catalogue_file(path: Path) -> Path:
    """The catalogue in a folder, or the file itself."""
    if not path.is_dir():
        check_readable(path)
        return path
    extras = ("_fits", "_selection")  # GalSim's tables that go with a catalogue
    files = sorted(
        file for file in path.glob("real_galaxy_catalog*.fits") if not file.stem.endswith(extras)
    )
    if not files:
        raise UserError(f"{path} has no real_galaxy_catalog*.fits; name a catalogue's file")
    if len(files) > 1:
        names = ", ".join(file.name for file in files)
        raise UserError(f"{path} has several catalogues ({names}); name one of the files")
    return files[0]


def _read_table(path: Path) -> dict[str, list]:
    """The needed columns of a catalogue, as lists of Python values."""
    from astropy.io import fits

    try:
        with fits.open(path) as hdus:
            table = hdus[1].data if len(hdus) > 1 else None
            names = table.names if isinstance(table, fits.FITS_rec) else []
            missing = [column for column in _COLUMNS if column not in names]
            if missing:
                raise UserError(
                    f"{path} is not a catalogue of real galaxies in GalSim's layout: no column "
                    f"{' nor '.join(missing)}"
                )
            columns = {column: np.array(table[column]).tolist() for column in _COLUMNS}
    except (OSError, ValueError, TypeError) as error:
        raise UserError(f"{path} is not a FITS file: {one_line(error)}") from error
    columns["IDENT"] = tuple(str(name).strip() for name in columns["IDENT"])
    columns["GAL_FILENAME"] = [name.strip() for name in columns["GAL_FILENAME"]]
    idents = len(set(columns["IDENT"]))
    if idents < len(SPLITS):
        raise UserError(
            f"{path} has {idents or 'no'} galaxies; at least {len(SPLITS)} are needed, one each "
            f"for {', '.join(SPLITS)}"
        )
    for row, name in enumerate(columns["IDENT"]):
        scale, sky = columns["PIXEL_SCALE"][row], columns["NOISE_MEAN"][row]
        if not 0.0 < scale < np.inf:
            raise UserError(f"galaxy {name} of {path} has PIXEL_SCALE {scale}; it must be > 0")
        if not np.isfinite(sky):
            raise UserError(f"galaxy {name} of {path} has NOISE_MEAN {sky}")
    return columns


@functools.lru_cache(maxsize=128)
def _places(file: Path) -> tuple[tuple[int, tuple[int, ...], np.dtype] | None, ...]:
    """Where each HDU's picture is: offset in bytes, shape, data type; None where not plain.

    A file has a thousand HDUs, and only by reading all headers before it can one be found.
    """
    from astropy.io import fits

    places = []
    with fits.open(file) as hdus:
        for hdu in hdus:
            header = hdu.header
            plain = (
                isinstance(hdu, fits.PrimaryHDU | fits.ImageHDU)
                and (header.get("BSCALE", 1), header.get("BZERO", 0)) == (1, 0)
                and "BLANK" not in header
            )
            kind = np.dtype(fits.hdu.image.BITPIX2DTYPE[header["BITPIX"]]).newbyteorder(">")
            offset = hdu.fileinfo()["datLoc"]
            places.append((offset, tuple(hdu.shape), kind) if plain else None)
    return tuple(places)


def _read_picture(file: Path, hdu: int, where: str) -> np.ndarray:
    from astropy.io import fits

    try:
        places = _places(file)
        if not 0 <= hdu < len(places):
            raise UserError(f"{where}: {file.name} has no HDU {hdu}")
        if places[hdu] is None:
            picture = fits.getdata(file, hdu)
        else:
            offset, shape, kind = places[hdu]
            picture = np.fromfile(file, kind, math.prod(shape), offset=offset).reshape(shape)
    except (OSError, ValueError) as error:
        raise UserError(f"{where}: can't read {file}: {one_line(error)}") from error
    if picture is None or picture.ndim != 2 or picture.dtype.kind not in "fiu":
        raise UserError(f"{where}: HDU {hdu} of {file.name} is not a picture")
    picture = picture.astype(np.float64)
    if not np.isfinite(picture).all():
        raise UserError(f"{where}: its picture has pixels that are not finite numbers")
    return picture


def _split(names: tuple[str, ...]) -> dict[str, np.ndarray]:
    """Row numbers by split."""
    # The hash as a number in [0, 1): the same on every machine and in every release.
    place = {
        name: int(hashlib.sha256(name.encode()).hexdigest()[:12], 16) / 16**12 for name in names
    }
    test, validation = _HELD_OUT, 2 * _HELD_OUT
    if len(place) < _LARGE:
        place = {name: rank for rank, name in enumerate(sorted(place, key=place.get))}
        held_out = max(round(_HELD_OUT * len(place)), 1)
        test, validation = held_out, 2 * held_out
    places = np.array([place[name] for name in names])
    return {
        "train": np.flatnonzero(places >= validation),
        "validation": np.flatnonzero((places >= test) & (places < validation)),
        "test": np.flatnonzero(places < test),
    }


def clean(picture: np.ndarray, where: str) -> tuple[np.ndarray, int]:
    """Leaves of a picture the galaxy in its middle: no sky, no neighbours, hardly any noise.

    1. The noise, at any smoothing, is the clipped deviation of the picture's outer frame. The
       sky level is the catalogue's (the frame of a tight picture has galaxy in it).
    2. The galaxy is what lies above 2.5 deviations of the sky in the picture smoothed by 3 pixels,
       hangs together with its brightest part near the middle, and is not thinner than 9 pixels
       (a morphological opening).
    3. What is kept is the galaxy with 3 pixels around it, falling to zero over 8 more, and
       towards the picture's own border.
    4. Noise is suppressed where it rules. The picture is taken apart into what smoothing by 3
       pixels leaves, what smoothing by 1.5 adds, and what the pixels themselves add; each
       addition counts with the weight s² / (s² + 9), where s is the signal-to-noise at its
       scale of the picture without it.
    5. Negative pixels are set to zero, the centroid is shifted to the middle (cubic splines),
       and pictures of more than `MAX_SIDE` pixels are binned.

    Args:
      picture: [h, w] without its sky, the galaxy near the middle.
      where: what errors call it.

    Returns:
      (float32 [n, n] pixels as in `Galaxy`, pixels of the picture per pixel and axis).

    Raises:
      UserError: if there is no galaxy.
    """
    from scipy import ndimage

    levels = [ndimage.gaussian_filter(picture, sigma) for sigma in _SCALES]
    noises = [_clipped_deviation(_frame(level)) for level in levels]
    galaxy = levels[-1]
    for fine, coarse, noise in zip(levels[-2::-1], levels[:0:-1], noises[-2::-1], strict=True):
        signal = np.maximum(coarse, 0.0) ** 2
        weight = signal / (signal + _TRUSTED**2 * noise**2 + np.finfo(float).tiny)
        galaxy = galaxy + weight * (fine - coarse)
    return _centred(np.maximum(galaxy * _window(levels[-1], noises[-1], where), 0.0))


def _frame(picture: np.ndarray) -> np.ndarray:
    """Pixels of the outer frame, a twentieth of the picture wide."""
    width = max(min(picture.shape) // 20, 2)
    inner = np.zeros(picture.shape, bool)
    inner[width:-width, width:-width] = True
    return picture[~inner]


def _clipped_deviation(values: np.ndarray) -> float:
    """Standard deviation without values beyond three deviations of the median."""
    for _ in range(5):
        middle = np.median(values)
        deviation = 1.4826 * np.median(np.abs(values - middle))
        inside = values[np.abs(values - middle) <= 3.0 * deviation]
        if inside.size == values.size:
            break
        values = inside
    return float(values.std())


def _window(smooth: np.ndarray, noise: float, where: str) -> np.ndarray:
    """What of a picture is kept, from 0 to 1, its shape."""
    from scipy import ndimage

    y, x = np.indices(smooth.shape, float)
    y -= 0.5 * (smooth.shape[0] - 1)
    x -= 0.5 * (smooth.shape[1] - 1)
    middle = np.hypot(x, y) <= max(0.15 * min(smooth.shape), 3.0)
    peak = np.where(middle, smooth, -np.inf)
    brightest = np.unravel_index(peak.argmax(), peak.shape)
    if not smooth[brightest] > 0.0:
        raise UserError(f"{where}: its picture shows no galaxy")
    # A galaxy too faint to be detected is still what stands out in the middle.
    threshold = min(_THRESHOLD * noise, 0.5 * smooth[brightest])
    labels, _ = ndimage.label(smooth > threshold)
    segment = labels == labels[brightest]
    radius = np.hypot(*np.mgrid[-_OPENING : _OPENING + 1, -_OPENING : _OPENING + 1])
    opened = ndimage.binary_opening(segment, radius <= _OPENING + 0.5)
    labels, _ = ndimage.label(opened)
    if labels[brightest]:  # else it is too small for that
        segment = labels == labels[brightest]
    outside = np.maximum(ndimage.distance_transform_edt(~segment) - _MARGIN, 0.0)
    # Distance to the first pixel beyond the picture.
    border = np.pad(np.ones(smooth.shape), 1)
    border = ndimage.distance_transform_edt(border)[1:-1, 1:-1] - 1.0
    return _smooth_step(1.0 - outside / _TAPER) * _smooth_step(border / _TAPER)


def _smooth_step(t: np.ndarray) -> np.ndarray:
    """From 0 (t <= 0) to 1 (t >= 1), level at both ends."""
    t = np.clip(t, 0.0, 1.0)
    return t * t * (3.0 - 2.0 * t)


def _centroid(picture: np.ndarray) -> np.ndarray:
    """Centroid (y, x) of the flux, pixels."""
    grid = np.indices(picture.shape).reshape(2, -1)
    return grid @ picture.ravel() / picture.sum()


def _centred(galaxy: np.ndarray) -> tuple[np.ndarray, int]:
    """Square, centroid in the middle, sum 1, with the binning that it took."""
    from scipy import ndimage

    centre = _centroid(galaxy)
    lit = np.argwhere(galaxy > 0.0)
    half = int(np.ceil(np.abs(lit - centre).max())) + 1
    binning = -(-(2 * half + 1) // MAX_SIDE)
    # The side is an odd number of bins.
    bins = -(-(2 * half + 1) // binning) | 1
    side = bins * binning
    middle = 0.5 * (side - 1)
    grid = np.indices((side, side), float) - middle + centre[:, None, None]
    square = ndimage.map_coordinates(galaxy, grid, order=3, mode="constant")
    square = square.reshape(bins, binning, bins, binning).sum(axis=(1, 3))
    square = np.maximum(square, 0.0)
    square[[0, -1]] = 0.0
    square[:, [0, -1]] = 0.0
    return (square / square.sum()).astype(np.float32), binning
