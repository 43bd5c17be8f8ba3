def test_publishes(run_tool, evaluated_run, tmp_path):
    arguments = [f"--run_dir={evaluated_run}", "--name=tiny", f"--output={tmp_path}"]
    done = run_tool("publish", *arguments)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"wrote {tmp_path / 'tiny'}\n"
    assert (tmp_path / "tiny" / "1" / "saved_model.pb").is_file()
    again = run_tool("publish", *arguments)
    assert again.returncode == 2
    assert again.stderr.endswith("tiny exists; give --replace to replace it, or another --name\n")


def test_bad_input_is_one_line(run_tool, evaluated_run, tmp_path):
    for arguments, message in [
        ([], "flag --run_dir is missing"),
        ([f"--run_dir={evaluated_run}"], "flag --name is missing"),
        ([f"--run_dir={tmp_path}", "--name=tiny"], "is not a run folder"),
    ]:
        done = run_tool("publish", *arguments)
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
        assert message in done.stderr
