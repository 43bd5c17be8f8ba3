import json


def test_exports_and_counts_versions(run_tool, write_run, tmp_path):
    run = write_run(tmp_path / "run")
    done = run_tool("export", f"--run_dir={run}", f"--output={tmp_path / 'base'}")
    assert done.stderr == ""
    assert done.stdout == f"wrote {tmp_path / 'base' / '1'}\n"
    manifest = tmp_path / "base" / "1" / "assets.extra" / "dlens_manifest.json"
    assert json.loads(manifest.read_text())["recipe"] == "model_ii_instrument"


def test_bad_input_is_one_line(run_tool, tmp_path):
    for arguments, message in [
        ([], "error: flag --run_dir is missing; see --help"),
        ([f"--run_dir={tmp_path}"], f"error: {tmp_path} is not a run folder"),
    ]:
        done = run_tool("export", *arguments)
        assert done.returncode == 2
        assert done.stdout == ""
        assert done.stderr.startswith(message) and done.stderr.count("\n") == 1
