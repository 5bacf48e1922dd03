"""`dotdo init`: writes a small working application, out of the folder `starter`."""

from importlib import resources
from pathlib import Path

import click

from dotdo.cli.output import mark, say

# The file in `starter` for each that is written; a .gitignore there would hide files of this repository.
FILES = {
    "app.py": "app.py",
    "dotdo.toml": "dotdo.toml",
    "templates/letter.txt": "templates/letter.txt",
    ".gitignore": "gitignore",
}


@click.command()
@click.argument("folder", type=click.Path(path_type=Path, file_okay=False), default=".")
def init(folder: Path) -> None:
    """Write a small working application into FOLDER (default: this one). Files that exist are never overwritten."""
    present = [name for name in FILES if (folder / name).exists()]
    if present:
        what = " and ".join(filter(None, [", ".join(present[:-1]), present[-1]]))
        raise click.UsageError(
            f"{what} exist{'s' if len(present) == 1 else ''} in {folder.absolute()}; nothing was written."
        )
    starter = resources.files("dotdo.cli").joinpath("starter")
    try:
        for name, source in FILES.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(starter.joinpath(source).read_text(encoding="utf-8"), encoding="utf-8")
            say(f"{mark('✓', '+')} {folder / name}")
    except OSError as error:
        raise click.UsageError(f"{folder.absolute()} cannot be written: {error.strerror}.") from None
    inside = "" if folder.resolve() == Path.cwd() else f"cd {folder} && "
    say(f"\nNow: {inside}dotdo run hello name=Ada")
