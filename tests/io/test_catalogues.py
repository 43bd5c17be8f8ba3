import csv
import errno
import os

import h5py
import numpy as np
import pytest
from astropy import units
from astropy.table import Table

from dlens_tf.errors import UserError
from dlens_tf.io.catalogues import Column, check_catalogue_path, write_catalogue

MASS = np.array([-22.1, -23.456789], np.float32)
WIDTH = np.array([0.1, 0.25], np.float32)
COLUMNS = [
    Column("file", ["a.npy", "dir/bé, c.npy"]),
    Column("index", np.array([0, 3])),
    Column("log10_m_axion_mean", MASS, "log10(eV)"),
    Column("log10_m_axion_stddev", WIDTH, "log10"),
    Column("theta_E_mean", np.array([1.0, 1.5], np.float32), "arcsec"),
    Column("e1_mean", np.array([0.0, -0.1], np.float32)),
]


@pytest.mark.parametrize(("suffix", "options"), [(".ecsv", {}), (".h5", {"path": "predictions"})])
def test_round_trip_with_units(tmp_path, suffix, options):
    path = tmp_path / f"out{suffix}"
    write_catalogue(path, COLUMNS, meta={"recipe": "model_ii", "git_commit": None})
    if suffix == ".h5":
        options = {**options, "character_as_bytes": False}
    table = Table.read(path, **options)
    assert table.colnames == [c.name for c in COLUMNS]
    for name, values, _ in COLUMNS:
        assert list(table[name]) == list(values)
    assert table["index"].dtype.kind == "i"
    assert table["log10_m_axion_mean"].dtype == np.float32
    assert table["theta_E_mean"].unit == units.arcsec
    assert table["e1_mean"].unit is None
    # astropy knows the logarithm: 10^-22.1 eV, and a width in dex.
    mass = table["log10_m_axion_mean"].quantity
    np.testing.assert_allclose(mass.to(units.eV).value, 10.0 ** MASS.astype(float), rtol=1e-5)
    assert table["log10_m_axion_stddev"].unit == units.dex
    assert table.meta["recipe"] == "model_ii"


def test_csv_gives_the_same_float32(tmp_path):
    path = tmp_path / "out.csv"
    write_catalogue(path, COLUMNS)
    with open(path, newline="", encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    assert [row["file"] for row in rows] == COLUMNS[0].values
    assert [row["log10_m_axion_mean"] for row in rows] == ["-22.1", "-23.456789"]
    np.testing.assert_array_equal([np.float32(r["log10_m_axion_stddev"]) for r in rows], WIDTH)


def test_plain_h5py_reads_it(tmp_path):
    write_catalogue(tmp_path / "out.h5", COLUMNS)
    with h5py.File(tmp_path / "out.h5") as file:
        np.testing.assert_array_equal(file["predictions"]["log10_m_axion_mean"], MASS)


@pytest.mark.parametrize("suffix", [".csv", ".ecsv", ".h5"])
def test_replaces_and_leaves_nothing_else(tmp_path, suffix):
    path = tmp_path / f"out{suffix}"
    path.write_text("old")
    write_catalogue(path, COLUMNS)
    assert list(tmp_path.iterdir()) == [path]
    assert path.read_bytes() != b"old"


@pytest.mark.parametrize("suffix", [".csv", ".ecsv", ".h5"])
def test_full_disk(tmp_path, suffix, monkeypatch):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(UserError, match=r"can't write .*: No space left on device"):
        write_catalogue(tmp_path / f"out{suffix}", COLUMNS)
    assert list(tmp_path.iterdir()) == []


def test_bad_paths(tmp_path):
    for name in ("out.txt", "out", "out.fits"):
        with pytest.raises(UserError, match=r"unknown kind of catalogue; valid: .csv, .ecsv, .h5"):
            check_catalogue_path(tmp_path / name)
    with pytest.raises(UserError, match="there is no folder"):
        write_catalogue(tmp_path / "none" / "out.csv", COLUMNS)
    (tmp_path / "dir.csv").mkdir()
    with pytest.raises(UserError, match="it is a folder"):
        check_catalogue_path(tmp_path / "dir.csv")
    assert check_catalogue_path(tmp_path / "OUT.CSV").name == "OUT.CSV"
