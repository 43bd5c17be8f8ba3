import errno
import os

import pytest

from dlens_tf.errors import UserError
from dlens_tf.io.files import (
    atomic_write,
    check_not_input,
    check_readable,
    expand_patterns,
    file_checksum,
)


@pytest.fixture
def folder(tmp_path):
    for name in ("b.npy", "a.npy", "c[1].npy", "deep/d.npy"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    return tmp_path


def names(folder, *patterns):
    found = expand_patterns([str(folder / p) for p in patterns])
    return [str(path.relative_to(folder)) for path in found]


def test_patterns_are_sorted_and_files_come_once(folder):
    assert names(folder, "[ab].npy") == ["a.npy", "b.npy"]
    assert names(folder, "b.npy", "[ab].npy") == ["b.npy", "a.npy"]
    assert names(folder, "**/d.npy") == ["deep/d.npy"]


def test_existing_name_is_no_pattern(folder):
    assert names(folder, "c[1].npy") == ["c[1].npy"]


def test_what_matches_nothing_is_an_error(folder):
    with pytest.raises(UserError, match=r"no file matches the pattern '.*z\*\.npy'"):
        names(folder, "a.npy", "z*.npy")
    with pytest.raises(UserError, match=r"z\.npy: no such file"):
        names(folder, "a.npy", "z.npy")


def test_unreadable(folder):
    with pytest.raises(UserError, match="is a folder; name its files"):
        check_readable(folder / "deep")
    with pytest.raises(UserError, match="no such file"):
        check_readable(folder / "z.npy")
    check_readable(folder / "a.npy")


def test_checksum(tmp_path):
    (tmp_path / "abc").write_bytes(b"abc")
    # FIPS 180-2, appendix B.1
    assert file_checksum(tmp_path / "abc") == (
        "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    )


def test_output_is_no_input(folder):
    (folder / "link").symlink_to(folder / "a.npy")
    for path in ("a.npy", "deep/../a.npy", "link"):
        with pytest.raises(UserError, match=r"can't write .*: it is one of the inputs"):
            check_not_input(folder / path, [folder / "b.npy", folder / "a.npy"])
    check_not_input(folder / "a.npy", [folder / "b.npy"])
    check_not_input(folder / "new.npy", [folder / "a.npy"])


def test_atomic_write_replaces(tmp_path):
    target = tmp_path / "out.txt"
    target.write_text("old")
    with atomic_write(target) as partial:
        partial.write_text("new")
        assert target.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["out.txt"]
    assert target.read_text() == "new"


def test_full_disk_keeps_the_old_file_and_leaves_nothing(tmp_path):
    target = tmp_path / "out.txt"
    target.write_text("old")
    message = r"can't write .*out\.txt: No space left on device"
    with pytest.raises(UserError, match=message), atomic_write(target) as partial:
        partial.write_text("half")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert [p.name for p in tmp_path.iterdir()] == ["out.txt"]
    assert target.read_text() == "old"


def test_unwritable(tmp_path):
    for target, message in [
        (tmp_path, "it is a folder; name a file"),
        (tmp_path / "none" / "out.txt", "there is no folder .*none"),
    ]:
        with pytest.raises(UserError, match=message), atomic_write(target):
            pass


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_no_permission(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(UserError, match="no permission"), atomic_write(tmp_path / "out.txt"):
        pass
