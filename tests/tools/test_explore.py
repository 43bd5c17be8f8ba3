import subprocess
import sys

import pytest


def test_writes_the_picture(run_tool, tmp_path):
    output = tmp_path / "new" / "gallery.png"
    done = run_tool("explore", "--recipe=model_iii_instrument", f"--output={output}", "--num=1")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"wrote {output}\n"
    data = output.read_bytes()
    assert data.startswith(b"\x89PNG\r\n\x1a\n")
    width, height = (int.from_bytes(data[at : at + 4]) for at in (16, 20))
    assert width > 800 and height > 700
    assert [path.name for path in output.parent.iterdir()] == ["gallery.png"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "flag --recipe is missing"),
        (["--recipe=model_v"], "should be one of <cdm|cdm_hst|"),
        (["--recipe=model_i", "--num=0"], "--num=0"),
        (["--recipe=model_i", "--engine=slow"], "should be one of <lenstronomy|fast>"),
        (["--recipe=model_i", "--classes=axion,wdm"], "'wdm'; valid: no_sub, axion, cdm"),
        (["--recipe=model_i", "--galaxies=x"], "--galaxies is of no use to model_i"),
        (["--recipe=model_iv", "--galaxies=/nowhere"], "/nowhere"),
        (["--recipe=model_i", "--output=a"], "unknown picture format ''; valid: .png"),
        (["--recipe=model_i", "--output=a.jpg"], "'.jpg'; valid: .png, .pdf, .svg"),
        (
            ["--recipe=model_iii", "--num=1", "--output=/dev/null/a.png"],
            "can't make the folder /dev/null",
        ),
    ],
)
def test_bad_input_gives_one_line(run_tool, arguments, message):
    done = run_tool("explore", *arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_galaxies_can_be_drawn(run_tool, tmp_path):
    picture = tmp_path / "galaxies.png"
    done = run_tool("explore", "--galaxy_sheet", "--num=2", f"--output={picture}")
    assert (done.returncode, done.stdout) == (0, f"wrote {picture}\n"), done.stderr
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_nothing_heavy_is_imported_for_help():
    code = (
        "import sys, dlens_tf.tools.explore\n"
        "heavy = {'tensorflow', 'lenstronomy', 'matplotlib', 'astropy'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
