from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_writes_and_checks(run_tool, tmp_path):
    models, output = tmp_path / "models", tmp_path / "serving"
    for version in ("1", "2"):
        (models / "dlens" / version).mkdir(parents=True)
        (models / "dlens" / version / "saved_model.pb").touch()  # all that the kit looks at
    where = [f"--models={models}", f"--output={output}"]
    done = run_tool("serving_kit", *where, "--stable=dlens:1")
    assert (done.returncode, done.stderr) == (0, "")
    files = [line.removeprefix(f"wrote {output}/") for line in done.stdout.splitlines()]
    assert sorted(files) == sorted(path.name for path in (ROOT / "serving").iterdir())
    taken = output / "models.config"
    done = run_tool("serving_kit", *where, "--canary=dlens:2")
    message = f"error: {taken} exists and differs; give --replace to replace it\n"
    assert (done.returncode, done.stdout, done.stderr) == (2, "", message)
    done = run_tool("serving_kit", *where, "--canary=dlens:2", "--cpus=2", "--replace")
    assert f"wrote {taken}" in done.stdout.splitlines()
    assert 'version_labels { key: "canary" value: 2 }' in taken.read_text()
    assert "num_batch_threads { value: 2 }" in (output / "batching_parameters.txt").read_text()
    done = run_tool("serving_kit", *where, "--canary=dlens:2", "--check")
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: {output / 'batching_parameters.txt'} is not what")


def test_the_kit_of_this_version_is_up_to_date(run_tool):
    done = run_tool("serving_kit", "--check")
    assert (done.stdout, done.stderr) == ("serving is up to date\n", "")


def test_bad_input_is_one_line(run_tool):
    for arguments, message in [
        (["--models="], "flag --models is missing"),
        (["--models=nowhere"], "there is no folder nowhere"),
        (["--canary=axion_model_i"], "write <model>:<version>"),
        (["--stable=axion:1"], "has no model 'axion'"),
        (["--check", "--replace"], "--check and --replace don't go together"),
    ]:
        done = run_tool("serving_kit", *arguments)
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
        assert message in done.stderr
