from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_adds_prints_and_checks(run_tool, evaluated_run, tmp_path):
    document = tmp_path / "results.md"
    document.write_text("<!-- results: model_ii_instrument -->\n<!-- end of results -->\n")
    (tmp_path / "images").mkdir()
    where = [f"--results={tmp_path / 'results'}", f"--document={document}"]
    done = run_tool("results", f"--add={evaluated_run}", "--as=model_ii_instrument/tiny", *where)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == [
        f"wrote {tmp_path / 'results' / 'model_ii_instrument' / 'tiny.json'}",
        f"wrote {document}",
        f"wrote {tmp_path / 'images' / 'cost_model_ii_instrument.png'}",
    ]
    assert run_tool("results", "--check", *where).stdout == f"{document} is up to date\n"
    document.write_text(document.read_text().replace("`tiny`", "`tinny`"))
    done = run_tool("results", "--check", *where)
    assert done.returncode == 2
    assert done.stderr == (
        f"error: {document} is not what {tmp_path / 'results'} says; run python tools/results.py\n"
    )


def test_the_document_of_this_version_is_up_to_date(run_tool):
    done = run_tool("results", "--check")
    assert (done.stdout, done.stderr) == ("docs/results.md is up to date\n", "")
    pictures = {path.name for path in (ROOT / "docs" / "images").glob("cost_*.png")}
    text = (ROOT / "docs" / "results.md").read_text()
    assert pictures == {name for name in pictures if f"(images/{name})" in text}


def test_bad_input_is_one_line(run_tool):
    for arguments, message in [
        (["--add=runs/a"], "--add and --as belong together"),
        (["--as=a/b"], "--add and --as belong together"),
        (["--add=runs/a", "--as=a/b", "--check"], "--check and --add don't go together"),
        (["--add=runs/a", "--as=a/b"], "runs/a is not a run folder"),
        (["--results=nowhere"], "nowhere holds no results"),
        (["--document="], "flag --document is missing"),
    ]:
        done = run_tool("results", *arguments)
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
        assert message in done.stderr
