"""The command line: one thin function a command. Exit codes: 0 done, 1 failed with one clear line, 2 wrong usage."""

from __future__ import annotations

import functools
import json as jsonlib
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from tyro.conf import Positional

from retinaconf import __version__
from retinaconf.config import Config
from retinaconf.errors import InputError, Interrupted, reason
from retinaconf.files import write_aside
from retinaconf.options import UsageError, parse
from retinaconf.outputs import check_outputs
from retinaconf.recipes import RECIPES, paper_recipe

Device = Literal["auto", "cpu", "cuda", "mps"]
LayoutKey = Literal["coco", "flat", "roboflow", "voc", "yolo"]


@dataclass
class TrainOptions:
    """Train a detector into a run folder."""

    recipe: Positional[str]
    """A named set-up: {retinanet,iou-aware,joint,conf}-{r50,r101}-{1x,2x}, or one of the four with -lite0."""
    data: Path
    """The data set's folder."""
    out: Path
    """The run folder."""
    resume: bool = False
    """Go on with the run in --out where it stopped."""
    max_steps: int | None = None
    """Stop after this many steps in all; within the first epoch, without validation."""
    device: Device = "auto"
    """Where to compute."""
    config: Annotated[Config, tyro.conf.arg(name="")] = RECIPES["conf-r50-1x"]
    """Any field of the recipe."""


def train(args: Sequence[str]) -> None:
    """Train a detector into a run folder."""
    options = _with_defaults_of_its_recipe(args)
    if options.max_steps is not None and options.max_steps < 1:
        raise UsageError(f"--max-steps {options.max_steps}: give at least 1")

    from retinaconf.training.run import train_run

    train_run(options.config, options.data, options.out, options.resume, options.max_steps, options.device)


def _with_defaults_of_its_recipe(args: Sequence[str]) -> TrainOptions:
    """The options of `train`. The recipe, which may stand anywhere, decides the defaults of the others."""
    for name in dict.fromkeys([*(word for word in args if word in RECIPES), "conf-r50-1x"]):
        default: Any = TrainOptions(tyro.MISSING, tyro.MISSING, tyro.MISSING, config=RECIPES[name])
        description = f"Train a detector into a run folder. The defaults below are those of {name}."
        options: TrainOptions = parse(TrainOptions, args, "train", default=default, description=description)
        if options.recipe == name:  # and it is not a folder that has the name of a recipe
            return options
    raise UsageError(f"no recipe {options.recipe!r}; there are {', '.join(RECIPES)}")


def demo(out: Path = Path("demo"), device: Device = "auto") -> None:
    """Train, evaluate and look at a detector on built-in scenes, in minutes, without a download.

    Args:
        out: folder for data, run, numbers and pictures.
        device: where to compute.
    """
    from retinaconf.demo import run_demo

    run_demo(out, device)


def evaluate(
    run: Positional[Path],
    /,
    data: Path,
    split: str = "val",
    alpha: float | None = None,
    sweep: bool = False,
    json: Path | None = None,
    detections: Path | None = None,
    layout: LayoutKey | None = None,
    val_fraction: float | None = None,
    device: Device = "auto",
) -> None:
    """COCO's ten numbers of a run on a split, overall and by class.

    Args:
        run: the run folder.
        data: the data set's folder.
        split: train, val or test.
        alpha: exponent of the quality in the joint score, instead of the run's own.
        sweep: every alpha from 0.0 to 0.9 and every joint method, from one pass of the network.
        json: also write the numbers to this file.
        detections: also write the detections to this file, as COCO results with the data set's image ids.
        layout: of the data set's folder; without it, found by looking.
        val_fraction: share of images that is val where neither data set nor run says which; by default the run's.
        device: where to compute.
    """
    check_outputs([json, detections], [run, data, data / f"{split}.json"])
    from retinaconf.inference.evaluate import evaluate_run, print_report

    report = evaluate_run(run, data, split, alpha, sweep, layout, device, detections, val_fraction)
    print_report(report)
    if json is not None:
        _write_json(json, report)


def predict(
    run: Positional[Path],
    images: Positional[tuple[str, ...]],
    /,
    out: Path,
    alpha: float | None = None,
    score_threshold: float = 0.3,
    device: Device = "auto",
) -> None:
    """Annotated pictures and detections.json (COCO results) of images, folders of images, and videos.

    Files that cannot be read are skipped and listed at the end; the exit code is then 1.

    Args:
        run: the run folder.
        images: images, folders of images, videos, or patterns such as 'photos/**/*.jpg'.
        out: folder for the pictures and detections.json.
        alpha: exponent of the quality in the joint score, instead of the run's own.
        score_threshold: boxes with a joint score above this are drawn; detections.json holds all.
        device: where to compute.
    """
    from retinaconf.inference.predict import predict_files

    done, skipped = predict_files(run, images, out, alpha, score_threshold, device)
    print(f"{done:,} images: {out / 'detections.json'} and the pictures beside it")
    for fault in skipped:
        print(f"skipped: {fault}")
    if skipped:
        raise InputError(f"files skipped because they cannot be read: {len(skipped):,}; the first: {skipped[0]}")


def diagnose(
    run: Positional[Path | None] = None,
    /,
    data: Path | None = None,
    split: str = "val",
    detections: tuple[Path, ...] = (),
    candidates: tuple[Path, ...] = (),
    ground_truth: Path | None = None,
    images: Path | None = None,
    report: Path | None = None,
    json: Path | None = None,
    figures: Path | None = None,
    alpha: float | None = None,
    nms_iou: float | None = None,
    score_threshold: float | None = None,
    layout: LayoutKey | None = None,
    val_fraction: float | None = None,
    device: Device = "auto",
) -> None:
    """Where a detector's score and its boxes disagree, what NMS loses by it, and what mending it is worth.

    Either of a run on a data set (RUN --data ROOT), or of any detector from files (--detections DT --ground-truth GT).

    Args:
        run: a run folder; its candidates are made on the spot.
        data: the data set's folder, for a run.
        split: split of the data set, for a run.
        detections: COCO results of a detector after NMS; two files compare two detectors.
        candidates: boxes before NMS, COCO results or .npz; two files compare two detectors.
        ground_truth: COCO ground truth that the files are about.
        images: folder of the images, for the report's pictures.
        report: write a self-contained HTML report to this file.
        json: write every number to this file.
        figures: write the figures as PNG and SVG to this folder.
        alpha: for a run, exponent of the quality in the joint score, instead of its own.
        nms_iou: for files, IoU above which NMS removes a box; 0.5 where it is not given.
        score_threshold: for files, score that a candidate must exceed; 0 where it is not given.
        layout: of the data set's folder; without it, found by looking.
        val_fraction: share of images that is val where neither data set nor run says which; by default the run's.
        device: where to compute, for a run.
    """
    check_outputs([json, report], [run, data, ground_truth, *detections, *candidates, images])
    from_files = bool(detections or candidates)
    if (run is not None) == from_files:
        raise UsageError("diagnose: give either RUN --data ROOT, or --detections or --candidates with --ground-truth")
    of_runs = {"--data": data, "--alpha": alpha, "--layout": layout}
    of_files = {
        "--ground-truth": ground_truth,
        "--images": images,
        "--nms-iou": nms_iou,
        "--score-threshold": score_threshold,
    }
    for option, value in (of_runs if from_files else of_files).items():
        if value is not None:
            only, here = ("a run", "files") if from_files else ("files", "a run")
            raise UsageError(f"{option}: it is for the diagnosis of {only}, and this is one of {here}; leave it out")
    if run is not None:
        if data is None:
            raise UsageError("diagnose RUN: give the data set with --data ROOT")
        from retinaconf.inference.diagnose import diagnose_run

        diagnoses = [diagnose_run(run, data, split, alpha, layout=layout, device=device, val_fraction=val_fraction)]
    else:
        if ground_truth is None:
            raise UsageError("diagnose --detections: give the ground truth with --ground-truth GT")
        from retinaconf.diagnosis.diagnose import diagnose_files
        from retinaconf.diagnosis.post_processing import PostProcessing

        process = PostProcessing(
            PostProcessing.score_threshold if score_threshold is None else score_threshold,
            PostProcessing.nms_iou if nms_iou is None else nms_iou,
        )
        diagnoses = diagnose_files(ground_truth, detections, candidates, images, process)
    for diagnosis in diagnoses:
        notes = (f"note: {note}" for note in diagnosis.notes)
        print("\n".join([*diagnosis.summary(), *notes, "What to do:", *(f"- {line}" for line in diagnosis.advice())]))
    if json is not None:
        documents = [diagnosis.to_json() for diagnosis in diagnoses]
        _write_json(json, documents[0] if len(documents) == 1 else documents)
    if figures is not None:
        for number, diagnosis in enumerate(diagnoses, 1):
            diagnosis.save_figures(figures if len(diagnoses) == 1 else figures / str(number))
    if report is not None:
        from retinaconf.diagnosis.report import write_report

        write_report(report, diagnoses)
        print(f"report: {report}")


def retrofit(
    run: Positional[Path],
    /,
    data: Path,
    out: Path,
    quality: Literal["classification", "localization"] = "classification",
    seed: int = 0,
    layout: LayoutKey | None = None,
    val_fraction: float | None = None,
    device: Device = "auto",
) -> None:
    """Give a trained RetinaNet a quality branch, trained alone: boxes and class scores stay what they are.

    Args:
        run: the folder of a run without a quality branch.
        data: the data set's folder; the branch learns on its train split, alpha is chosen on val.
        out: the new run's folder.
        quality: tower that carries the branch.
        seed: of the augmentation, and of the images that choose the weight decay.
        layout: of the data set's folder; without it, found by looking.
        val_fraction: share of images that is val where neither data set nor run says which; by default the run's.
        device: where to compute.
    """
    from retinaconf.retrofit import retrofit_run

    retrofit_run(run, data, out, quality, seed, layout, device, val_fraction)


def check(
    data: Path,
    json: Path | None = None,
    recipe: str = "conf-lite0",
    short_side: int | None = None,
    long_side: int | None = None,
    layout: LayoutKey | None = None,
    val_fraction: float | None = None,
) -> None:
    """What is wrong with a data set, file by file, before a training finds out.

    Args:
        data: the data set's folder.
        json: also write the findings to this file.
        recipe: the training that is planned: objects are compared with its anchors, at its input size.
        short_side: another short side than the recipe's.
        long_side: another long side likewise.
        layout: of the data set's folder; without it, found by looking.
        val_fraction: share of images that is val where the data set does not say which, instead of the recipe's.
    """
    check_outputs([json], [data])
    from retinaconf.data.check import check as check_data

    if recipe not in RECIPES:
        raise UsageError(f"no recipe {recipe!r}; there are {', '.join(RECIPES)}")
    changes: dict[str, Any] = {"data.short_side": short_side, "data.long_side": long_side}
    changes |= {"data.layout": layout, "data.val_fraction": val_fraction}
    config = RECIPES[recipe].changed(**{name: value for name, value in changes.items() if value is not None})
    report = check_data(data, config)
    report.print()
    if json is not None:
        _write_json(json, report.to_json())
    if report.failed:
        raise InputError(f"{data}: training on this is impossible; the findings marked as errors say why")


def export(run: Positional[Path], /, out: Path, raw: bool = False) -> None:
    """An ONNX file or a torch.export program of a run, for programs without this package.

    Args:
        run: the run folder.
        out: the file; its suffix decides, .onnx or .pt2.
        raw: the network's outputs as they are, instead of finished detections.
    """
    if out.suffix not in (".onnx", ".pt2"):
        raise UsageError(f"--out {out}: end it in .onnx (ONNX) or .pt2 (torch.export)")
    from retinaconf.interop.export import export_run

    print(export_run(run, out, raw))


def import_(
    weights: Positional[Path],
    /,
    out: Path,
    classes: Path | None = None,
    quality: Literal["classification", "localization"] | None = None,
) -> None:
    """A RetinaNet of torchvision, MMDetection or Detectron2 as a run folder.

    Args:
        weights: its checkpoint; code in it is not run.
        out: the run folder.
        classes: names of its classes, where it does not say them: a COCO JSON, or a text file with a name a line.
        quality: tower that carries its quality branch, where it has one and does not say it.
    """
    from retinaconf.interop.import_weights import import_weights

    run = import_weights(weights, out, classes, quality)
    names = ", ".join(run.classes[:3]) + (", ..." if len(run.classes) > 3 else "")
    print(f"{run.family}, {run.config.model.backbone}, {len(run.classes)} classes ({names}): {run.run}")


PaperItem = Literal[
    "table1-statistics",
    "table1",
    "table2",
    "table3",
    "table4",
    "table5",
    "table6",
    "switches",
    "figure1",
    "figure2",
    "figure4",
    "figure5",
    "open-question",
    "all",
]


@dataclass(kw_only=True)
class PaperBase:
    """What decides the defaults of the other options of `paper`."""

    recipe_base: Literal["r50", "lite0"] = "r50"
    """The recipes: the paper's, or those for CPUs and small data."""
    schedule: Literal["1x", "2x"] = "1x"
    """The recipes' schedule; 2x trains for twice the epochs."""


@dataclass(kw_only=True)
class PaperOptions(PaperBase):
    """A table or figure of the paper on a data set, beside the published one, with a verdict on its claims."""

    item: Positional[PaperItem]
    """What to regenerate."""
    data: Path
    """The data set's folder."""
    out: Path
    """Folder for ITEM.md, ITEM.json, ITEM.png and the runs, which are used again."""
    seeds: int = 1
    """Trainings of each kind, with the seeds from --seed on; verdicts need two, better three or more."""
    split: str = "val"
    """What is evaluated: train, val or test. Training always validates on val."""
    max_steps: int | None = None
    """Stop every training after this many steps: to try things out."""
    layout: LayoutKey | None = None
    """Of the data set's folder; without it, found by looking."""
    device: Device = "auto"
    """Where to compute."""
    config: Annotated[Config, tyro.conf.arg(name="")] = RECIPES["retinanet-r50-1x"]
    """Any field of the recipe of plain RetinaNet, for all detectors."""


def paper(args: Sequence[str]) -> None:
    """A table or figure of the paper, regenerated and compared."""
    words = [word for word in args if word not in ("-h", "--help")]
    first, _ = parse(PaperBase, words, "paper", return_unknown_args=True)
    base = paper_recipe(first.recipe_base, first.schedule)
    missing: Any = tyro.MISSING
    default = PaperOptions(item=missing, data=missing, out=missing, config=base)
    options = parse(PaperOptions, args, "paper", default=default)
    for name, value in (("--seeds", options.seeds), ("--max-steps", options.max_steps)):
        if value is not None and value < 1:
            raise UsageError(f"{name} {value}: give at least 1")
    config = options.config if options.layout is None else options.config.changed(**{"data.layout": options.layout})

    from retinaconf.paper.engine import run_paper

    run_paper(
        options.item,
        options.out,
        options.data,
        config,
        options.recipe_base,
        options.seeds,
        options.split,
        options.schedule,
        options.max_steps,
        options.device,
    )


COMMANDS: dict[str, Callable[..., None]] = {
    "demo": demo,
    "train": train,
    "evaluate": evaluate,
    "predict": predict,
    "diagnose": diagnose,
    "retrofit": retrofit,
    "check": check,
    "export": export,
    "import": import_,
    "paper": paper,
}


def main(args: Sequence[str] | None = None) -> None:
    """Run a command and exit."""
    sys.exit(_run(list(sys.argv[1:] if args is None else args)))


def _run(args: list[str]) -> int:
    try:
        _dispatch(args)
        sys.stdout.flush()
    except UsageError as error:
        print(f"retinaconf: {error}", file=sys.stderr)
        return 2
    except (InputError, Interrupted) as error:
        print(f"retinaconf: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("retinaconf: interrupted", file=sys.stderr)
        return 1
    except BrokenPipeError:  # the reader of our output has gone, as `| head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what is left in the buffer goes nowhere
        return 1
    except OSError as error:  # a disk that is full, a folder that went away
        where = "" if error.filename is None else f"{error.filename}: "
        print(f"retinaconf: {where}{reason(error)}", file=sys.stderr)
        return 1
    return 0


def _dispatch(args: list[str]) -> None:
    if not args or args[0] in ("-h", "--help"):
        print(_usage())
        return
    if args[0] == "--version":
        print(f"retinaconf {__version__}")
        return
    name, rest = args[0], args[1:]
    if name not in COMMANDS:
        raise UsageError(f"no command {name!r}; there are {', '.join(COMMANDS)}")
    if COMMANDS[name] in (train, paper):  # which parse by themselves
        COMMANDS[name](rest)
        return

    # Only parsed first: what the command writes to stderr is no complaint about its options.
    @functools.wraps(COMMANDS[name])
    def bound(*args: Any, **kwargs: Any) -> Callable[[], None]:
        return functools.partial(COMMANDS[name], *args, **kwargs)

    parse(bound, rest, name)()


def _usage() -> str:
    lines = ["usage: retinaconf COMMAND ...", "", (sys.modules["retinaconf"].__doc__ or "").splitlines()[0], ""]
    for name, command in COMMANDS.items():
        lines.append(f"  {name:<10} {(command.__doc__ or '').splitlines()[0]}")
    return "\n".join([*lines, "", "`retinaconf COMMAND --help` lists its options."])


def _write_json(path: Path, value: Any) -> None:
    write_aside(path, lambda aside: aside.write_text(jsonlib.dumps(value, indent=1) + "\n"))
