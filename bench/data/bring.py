"""Finding a data set on this machine, and bringing it to a folder: whole and verified, or not at all."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from tqdm import tqdm

from bench.data import idx, sets
from bench.data.sets import DataSet
from bench.data.sources import NotHad, Source


def within(folder: Path, dataset: DataSet) -> Path:
    """The folder of the set's files, where `folder` is that or torchvision's root."""
    below = folder / dataset.folder
    return below if below.is_dir() else folder


def places(dataset: DataSet) -> Iterator[Path]:
    """Where its files may lie: below torchvision's usual roots, and where Debian installs them."""
    yield from (root / dataset.folder for root in sets.ROOTS)
    if dataset.installed:
        yield Path(dataset.installed)


def find(dataset: DataSet, folders: Sequence[Path] | None = None) -> tuple[Path, dict[str, bytes]] | None:
    """The first of the folders, by default of `places`, that has all files, and their content; None: there is none.

    One with files that are damaged is passed over, and stderr says so."""
    for folder in places(dataset) if folders is None else folders:
        if any(idx.find(folder, name) for name in dataset.files):
            try:
                return folder, idx.read(folder, dataset)
            except (ValueError, OSError) as error:
                print(f"passed over: {error}", file=sys.stderr)
    return None


def bring(dataset: DataSet, root: Path, sources: Sequence[Source]) -> tuple[Path, str]:
    """(the folder below `root` with the set's files, the source that they are from): the first that has them.

    Raises:
        NotHad: none has; the message tells what came of each.
        OSError: `root` cannot be written, or is full.
    """
    root.mkdir(parents=True, exist_ok=True)
    tried = []
    # In the root, so that what is whole is moved and not copied; gone in the end, whatever ends it.
    with tempfile.TemporaryDirectory(prefix=".bringing-", dir=root) as scratch:
        for index, source in enumerate(sources):
            own = Path(scratch) / str(index)
            own.mkdir()
            with tqdm(desc=f"{dataset.title}: {source.name}", unit="B", unit_scale=True, leave=False) as bar:
                try:
                    found = source.fetch(dataset, own, bar)
                    contents = {name: idx.verified(found[name], name, dataset, source.name) for name in dataset.files}
                except (NotHad, ValueError) as error:
                    tried.append(f"{source.name}: {error}")
                    continue
            return _keep(contents, Path(scratch), root / dataset.folder), source.name
    raise NotHad("\n".join(tried))


def _keep(contents: dict[str, bytes], scratch: Path, target: Path) -> Path:
    """All files are whole on the disk before the first takes its place."""
    for name, content in contents.items():
        with (scratch / name).open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
    target.mkdir(parents=True, exist_ok=True)
    for name in contents:
        os.replace(scratch / name, target / name)
        (target / f"{name}.gz").unlink(missing_ok=True)  # one that may be damaged
    return target
