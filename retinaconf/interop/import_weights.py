"""A RetinaNet of another library into a run folder: what `retinaconf import` does."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from retinaconf.config import Config
from retinaconf.errors import InputError, reason
from retinaconf.interop import detectron2, mmdetection, torchvision
from retinaconf.interop.categories import Categories, coco_categories, read_categories
from retinaconf.interop.imported import Imported, classes_of, head_settings
from retinaconf.model.retinanet import RetinaNet
from retinaconf.model.weights_file import read_weights_file
from retinaconf.run_folder import CONFIG, MODEL, write_config, write_weights


class ImportedRun(NamedTuple):
    """What was found in the file, and where it is now."""

    run: Path
    family: str
    config: Config
    classes: tuple[str, ...]


def import_weights(path: Path, run: Path, classes: Path | None = None, quality: str | None = None) -> ImportedRun:
    """Write a run folder, usable like a trained one, whose detections are those of the source.

    The family is seen from the names of the tensors. `classes` is a COCO JSON or a list of names, for files that do not
    name theirs; `quality` the tower that carries the quality branch, for files that do not tell.

    Raises:
        InputError: the file cannot be read, is no RetinaNet of a family that is known, or does not fit; or `run` holds
            something already or cannot be written.
    """
    if run.exists() and (not run.is_dir() or any(run.iterdir())):
        raise InputError(f"{run}: is there already; choose another --out")
    file = read_weights_file(path)
    given = read_categories(classes) if classes is not None else None
    try:
        if torchvision.recognises(file):
            imported = torchvision.convert(file, given)
        elif mmdetection.recognises(file):
            imported = mmdetection.convert(file, given, quality)
        elif detectron2.recognises(file):
            imported = detectron2.convert(file, given)
        else:
            raise InputError(
                f"no RetinaNet of torchvision, MMDetection or Detectron2 (it begins with {min(file.tensors)!r})"
            )
        config = Config().changed(**{"model.weights": "none"} | head_settings(imported.state) | imported.settings)
        categories = _categories(imported, config.model.cell_anchors.count)
        state = _checked(imported, config, len(categories.names))
    except KeyError as error:
        raise InputError(f"{path}: lacks what becomes {error}; is the file whole?") from None
    except (IndexError, TypeError) as error:  # such as a number where a tensor with channels is due
        raise InputError(f"{path}: its tensors have other shapes than a RetinaNet's ({reason(error)})") from None
    except InputError as error:
        raise InputError(str(error) if str(error).startswith(str(path)) else f"{path}: {error}") from None
    try:
        run.mkdir(parents=True, exist_ok=True)
        write_weights(run / MODEL, state, config, categories.names, categories.ids)
        write_config(run / CONFIG, config)
    except OSError as error:
        raise InputError(f"{run}: cannot be written ({reason(error)}); choose another --out") from None
    return ImportedRun(run, imported.family, config, categories.names)


def _categories(imported: Imported, anchors: int) -> Categories:
    """The classes: as given, COCO's where there are 80, else numbered."""
    number = classes_of(imported.state, anchors)
    categories = imported.categories
    if categories is None:
        coco = coco_categories()
        numbers = tuple(range(1, number + 1))
        categories = coco if number == len(coco.names) else Categories(tuple(f"class {n}" for n in numbers), numbers)
    if len(categories.names) != number:
        raise InputError(
            f"the weights have {number} classes, and {len(categories.names)} are named; name them with --classes"
        )
    return categories


def _checked(imported: Imported, config: Config, classes: int) -> dict[str, Tensor]:
    """The tensors that our network has, all of them and of its shapes."""
    with torch.device("meta"):
        wanted = RetinaNet(config.model, classes).state_dict()
    state = imported.state
    # Frozen norms, as ours are by default, count no batches.
    unknown = sorted(name for name in set(state) - set(wanted) if not name.endswith("num_batches_tracked"))
    if unknown:
        raise InputError(f"holds {len(unknown)} tensors that a RetinaNet of ours does not have, such as {unknown[0]!r}")
    for name, tensor in wanted.items():
        if name.endswith("num_batches_tracked"):
            state.setdefault(name, torch.zeros((), dtype=torch.int64))
        if name not in state:
            raise InputError(f"lacks what becomes {name!r}; is the file whole?")
        if state[name].shape != tensor.shape:
            raise InputError(f"{name} is {tuple(state[name].shape)} and should be {tuple(tensor.shape)}")
    return {name: state[name].to(tensor.dtype) for name, tensor in wanted.items()}
