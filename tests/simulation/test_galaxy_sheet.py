import pytest

from dlens_tf.errors import UserError
from dlens_tf.simulation.galaxies import GalaxyCatalogue
from dlens_tf.simulation.galaxy_sheet import draw_galaxy_sheet, save_galaxy_sheet


def test_every_galaxy_is_shown_before_and_after():
    galaxies = GalaxyCatalogue.open(None)
    figure = draw_galaxy_sheet(galaxies, num=7)
    shown = [axes for axes in figure.axes if axes.images]
    assert len(shown) == 14
    titles = [axes.get_title() for axes in shown if axes.get_title()]
    assert sorted(titles) == sorted(galaxies.names[:7])


def test_sheet_is_written(tmp_path):
    save_galaxy_sheet(None, tmp_path / "new" / "sheet.png", num=1)
    assert (tmp_path / "new" / "sheet.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(UserError, match="no such file"):
        save_galaxy_sheet(tmp_path / "missing", tmp_path / "sheet.png")
    assert not (tmp_path / "sheet.png").exists()
