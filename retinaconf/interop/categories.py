"""Which class is which: names and ids, where the weights do not say."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from torchvision.models.detection import RetinaNet_ResNet50_FPN_Weights

from retinaconf.errors import InputError, reason
from retinaconf.files import read_json, read_text


class Categories(NamedTuple):
    """The classes in the order of the network's outputs."""

    names: tuple[str, ...]
    ids: tuple[int, ...]


def coco_categories() -> Categories:
    """COCO's 80, with their ids up to 90."""
    table = RetinaNet_ResNet50_FPN_Weights.COCO_V1.meta["categories"]
    pairs = [(name, number) for number, name in enumerate(table) if name not in ("__background__", "N/A")]
    return Categories(tuple(name for name, _ in pairs), tuple(number for _, number in pairs))


def named(names: tuple[str, ...]) -> Categories:
    """COCO's ids where these are COCO's names, else 1, 2, ..."""
    coco = coco_categories()
    return coco if names == coco.names else Categories(names, tuple(range(1, len(names) + 1)))


def read_categories(path: Path) -> Categories:
    """Those of a COCO JSON file, in the order of their ids, or of a text file with a name a line.

    Raises:
        InputError: the file cannot be read, or names nothing.
    """
    try:
        if path.suffix == ".json":
            records = sorted(read_json(path)["categories"], key=lambda record: record["id"])
            found = Categories(tuple(str(r["name"]) for r in records), tuple(int(r["id"]) for r in records))
        else:
            found = named(tuple(line.strip() for line in read_text(path).splitlines() if line.strip()))
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(
            f"{path}: cannot be read ({reason(error)}); give a COCO JSON, or a text file with a name a line"
        ) from None
    except (ValueError, KeyError, TypeError, OverflowError):
        raise InputError(f"{path}: has no list `categories` with `id` and `name`; give a COCO JSON") from None
    if not found.names or len(set(found.ids)) < len(found.ids):
        raise InputError(
            f"{path}: names no classes, or an id twice; give a COCO JSON, or a text file with a name a line"
        )
    return found
