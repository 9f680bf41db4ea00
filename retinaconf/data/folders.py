"""Files of a data set that are not where they usually are, found by what they hold."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from retinaconf.errors import InputError

JUDGED = 100  # files by which a folder is judged
ANNOTATION_SUFFIXES = {".json", ".txt", ".xml"}
IMAGE_SUFFIXES = {".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"}


def see_inside(roots: Sequence[Path], images: Path, names: Iterable[str], source: str) -> None:
    """See that names of images lead into the data set. Links in it may lead anywhere: its owner has made them.

    Args:
        roots: folders of the data set.
        images: the folder that the names are relative to.
        names: as an annotation file has them.
        source: that file.

    Raises:
        InputError: one leads elsewhere.
    """
    wholes = [os.path.abspath(root) for root in roots]
    for name in names:
        if ".." in name or os.path.isabs(name):
            place = Path(os.path.abspath(images / name))
            if not any(place.is_relative_to(whole) for whole in wholes):
                raise InputError(
                    f"{source}: names {name}, which is not in {roots[0]}; move the file there, and correct the name"
                )


def folders_in(root: Path, depth: int) -> list[Path]:
    """The folder `root` and those in it, down to `depth`, without hidden ones."""
    found, level = [root], [root]
    for _ in range(depth):
        inside = [one for folder in level for one in os.scandir(folder) if os.path.isdir(one) and one.name[0] != "."]
        level = sorted(Path(one.path) for one in inside)
        found += level
    return found


def the_only(root: Path, places: Iterable[Path], holds: Callable[[Path], bool], what: str, usual: str) -> Path | None:
    """The only one of `places` that holds what is looked for; None where none does.

    Args:
        root: the data set's folder.
        places: files or folders in it.
        holds: whether a place holds what is looked for.
        what: that, as a message names it, in the plural.
        usual: the usual name of the place.

    Raises:
        InputError: several places hold it. The message names them.
    """
    found = [place for place in places if holds(place)]
    if len(found) > 1:
        names = " and ".join(str(place.relative_to(root)) for place in found)
        raise InputError(
            f"{root}: {what} are in {names}; give the right place its usual name, {usual}, or move the others away"
        )
    return found[0] if found else None


def find_images(root: Path, usual: Sequence[Path], names: Sequence[str], any_suffix: bool = False) -> Path:
    """The folder that holds the images: the first of `usual` that has some, or the only other one in `root` that does.

    Of several others one that has all images is taken before those that have some.

    Args:
        root: the data set's folder; others are looked for two levels deep.
        usual: folders with the usual names; where no folder has an image, the first.
        names: of the images, as the annotations have them; the first hundred are looked for.
        any_suffix: take images with other suffixes, too, where no folder has all names as they are.

    Raises:
        InputError: several folders without a usual name have the images. The message names them.
    """
    judged = names[:JUDGED]

    def same(folder: Path) -> int:
        return sum(os.path.isfile(folder / name) for name in judged)  # false also for names that are too long

    def alike(folder: Path) -> int:
        if not any_suffix or not folder.is_dir():
            return same(folder)
        there = {path.stem for path in folder.iterdir() if path.suffix not in ANNOTATION_SUFFIXES}
        return sum(Path(name).stem in there for name in judged)

    for folder in usual:
        if alike(folder):
            return folder
    for folder in usual:  # whose images are missing; others with their names may be masks
        if folder != root and folder.is_dir() and any(one.is_file() for one in folder.iterdir()):
            return folder
    others = folders_in(root, 2)
    for holds in (
        lambda folder: same(folder) == len(judged) > 0,
        lambda folder: alike(folder) == len(judged) > 0,
        lambda folder: alike(folder) > 0,
    ):
        found = the_only(root, others, holds, "images with the annotated names", usual[0].name)
        if found is not None:
            return found
    return usual[0]


def taken(root: Path, **places: tuple[Path, Sequence[Path]]) -> tuple[str, ...]:
    """A few words on each of `places` that is not one of its usual ones: `images from imgs`."""
    return tuple(
        f"{what} from {place.relative_to(root)}" for what, (place, usual) in places.items() if place not in usual
    )
