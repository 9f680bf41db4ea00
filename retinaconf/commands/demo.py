"""`retinaconf demo`: all of it in a few minutes on two cores, without a download."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from retinaconf.commands.evaluate import print_report
from retinaconf.commands.options import Device
from retinaconf.files import write_json

SCENES, EPOCHS = (256, 50), 4  # scenes to train on and to judge by
QUICK_SCENES, QUICK_EPOCHS = (96, 16), 3  # with `--quick`
SIZE = (160, 224)  # height and width of a scene: multiples of 32, so that none is padding
PICTURES = 12
SHOWN = 0.45  # least score of a box in a picture: about as many boxes as digits

# What makes aligned-lite0 fit into a few minutes: small pictures, a small head, few epochs.
CHANGES: dict[str, Any] = {
    "model.channels": 64,
    "model.head_convs": 1,
    "optimizer.kept_lr": 1.0,  # digits are far from ImageNet, so the backbone learns like the rest, but for its stem
    "model.freeze_norm": False,
    "data.short_side": SIZE[0],
    "data.long_side": SIZE[1],
    "data.scale": (1.0, 1.0),
    "data.flip": 0.0,  # a mirrored 2 is no digit
    "data.batch_size": 4,
    "optimizer.lr": 2e-3,
    "optimizer.reference_batch": 4,
    "optimizer.ema": 0.98,
    "schedule.warmup_steps": 25,
}


def demo(out: Path = Path("demo"), quick: bool = False, device: Device = "auto") -> None:
    """Train, evaluate and diagnose a detector on built-in scenes, in minutes, without a download.

    A demo that was interrupted continues where it stopped; one that is done only evaluates again.

    Args:
        out: folder for data, run, numbers and pictures.
        quick: the same in about a minute, to see that all of it works: fewer scenes and epochs, and so a lower AP.
        device: where to compute.

    Raises:
        InputError: scikit-learn or the backbone's weights are missing, or `out` holds something else.
    """
    from retinaconf.data.scenes import write_scenes
    from retinaconf.diagnosis.inputs import diagnose_run
    from retinaconf.diagnosis.report.page import write_report
    from retinaconf.diagnosis.report.summary import summarize
    from retinaconf.inference.evaluate import evaluate
    from retinaconf.inference.predict import predict_files
    from retinaconf.recipes import recipe
    from retinaconf.training.run import train_run

    data, run = out / "data", out / "run"
    (train, val), epochs = (QUICK_SCENES, QUICK_EPOCHS) if quick else (SCENES, EPOCHS)
    print(f"1. {train} + {val} scenes of real handwritten digits on photographs, made here: {data}")
    write_scenes(data, train, val, size=SIZE)
    print(f"2. training aligned-lite0, made small, on them: {run}")
    config = recipe("aligned-lite0").changed(**CHANGES, **{"schedule.epochs": epochs})
    train_run(config, data, run, resume=True, device=device)
    print("3. evaluating every joint score of class and quality, from one pass of the network")
    report = evaluate(run, data, sweep=True, device=device)
    print_report(report)
    write_json(out / "sweep.json", report)
    best = max(report["sweep"], key=lambda row: row["metrics"]["AP"])
    plain = report["sweep"][0]["metrics"]["AP"]
    print(
        f"   class score alone: AP {plain:.3f}; {report['joint']}, which it was trained for: "
        f"AP {report['metrics']['AP']:.3f}; best, {best['joint']}: AP {best['metrics']['AP']:.3f}"
    )
    print(f"4. diagnosing it: {out / 'report.html'}")
    diagnosis = diagnose_run(run, data, "val", device=device)
    print("\n".join(f"   {line}" for line in summarize(diagnosis)))
    write_report(out / "report.html", [diagnosis])
    pictures = sorted((data / "images").glob("val*"))[:PICTURES]
    print(f"5. drawing detections: {out / 'pictures'}")
    predict_files(run, pictures, out / "pictures", score_threshold=SHOWN, device=device)
