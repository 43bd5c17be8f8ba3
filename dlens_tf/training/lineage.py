"""What a run comes from: other runs, whose networks or weights it was given.

run.json holds their folders, and the checksums of the models that they had:

    start_run    its network gives the values that fits of a lens_fit front end start from
    initial_run  its weights are those that training began with
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from dlens_tf.errors import UserError
from dlens_tf.io.files import file_checksum
from dlens_tf.training.run_folder import RunFolder, read_flags

LINKS = ("start_run", "initial_run")
"""Entries of run.json that name another run."""


def _checksum_key(link: str) -> str:
    return f"{link.removesuffix('_run')}_model_sha256"


def describe(folders: Mapping[str, str | None]) -> dict[str, str | None]:
    """What run.json says of the runs that one comes from.

    Args:
      folders: of these runs, by link; None without. Each has a model.keras.
    """
    entries: dict[str, str | None] = {}
    for link in LINKS:
        folder = folders[link]
        entries[link] = folder
        entries[_checksum_key(link)] = (
            file_checksum(RunFolder(folder).model_path) if folder else None
        )
    return entries


def check_unchanged(run: RunFolder, entries: Mapping[str, Any]) -> None:
    """Raises a `UserError` if an existing run came from other models than `entries` describe."""
    if not run.config_path.is_file():
        return
    for link in LINKS:
        key = _checksum_key(link)
        now = entries[key]
        before = run.config.get(key, now)  # runs of older versions lack some
        if before != now:
            raise UserError(
                f"the model of --{link}={entries[link]} is not the one that {run.path} came from "
                f"({key} {before}, not {now}): put that back, or choose another --run_dir"
            )


def earlier_runs(runs: Iterable[RunFolder], links: Sequence[str] = LINKS) -> list[RunFolder]:
    """The runs that others come from, directly or through further ones.

    Args:
      runs: the others; none of these is in the answer.
      links: what is followed, of `LINKS`, and "members" for the runs that one is combined from.

    Returns:
      Each once, in an order in which they could be trained. Folders need not be there any more.
    """
    runs = list(runs)
    seen = {run.path.resolve() for run in runs}
    found: list[RunFolder] = []

    def visit(run: RunFolder) -> None:
        for folder in _folders(run, links):
            earlier = RunFolder(folder)
            if earlier.path.resolve() not in seen:
                seen.add(earlier.path.resolve())
                visit(earlier)
                found.append(earlier)

    for run in runs:
        visit(run)
    return found


def _folders(run: RunFolder, links: Sequence[str]) -> list[str]:
    config = run.config if run.config_path.is_file() else {}
    flags = read_flags(run.flags_path) if run.flags_path.is_file() else {}
    folders = []
    for link in links:
        if link == "members":
            folders += [member["run"] for member in config.get(link, [])]
        elif link in config:
            folders += [config[link]] if config[link] else []
        else:
            folders += flags.get(link, [])  # run.json of older versions does not say
    return folders
