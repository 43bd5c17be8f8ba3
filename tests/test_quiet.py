import os
import subprocess
import sys


def test_failing_import_shows_what_it_wrote(tmp_path):
    (tmp_path / "noisy.py").write_text(
        "import os\nos.write(2, b'from C++\\n')\nraise ImportError('broken')\n"
    )
    code = (
        "import sys; from dlens_tf.quiet import SilentImport\n"
        "sys.meta_path.insert(0, SilentImport('noisy'))\nimport noisy\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
    )
    assert done.returncode == 1
    assert "from C++" in done.stderr and "ImportError: broken" in done.stderr
