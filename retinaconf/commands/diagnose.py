"""`retinaconf diagnose`: where a detector's score and its boxes disagree."""

from __future__ import annotations

from pathlib import Path

from tyro.conf import Positional

from retinaconf.commands.options import Device, LayoutKey
from retinaconf.files import write_json
from retinaconf.outputs import check_outputs


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
    """Measure where a detector's scores and boxes disagree, what that costs, and what fixing it is worth.

    Diagnose a run on a data set (RUN --data ROOT), or any detector from files (--detections DT --ground-truth GT).

    Args:
        run: a run folder; its boxes before NMS are computed.
        data: the data set's folder; it may also hold the ground truth of files.
        split: split of the data set.
        detections: COCO results of a detector after NMS; two files compare two detectors.
        candidates: boxes before NMS, COCO results or .npz; two files compare two detectors.
        ground_truth: for files, the COCO ground truth of the same images.
        images: folder of the images, for the report's pictures.
        report: write a self-contained HTML report to this file.
        json: write every number to this file.
        figures: write the figures as SVG to this folder.
        alpha: for a run, exponent of the quality in the joint score, instead of its own.
        nms_iou: for files, IoU above which NMS removes a box; 0.5 if it is not given.
        score_threshold: for files, score that a candidate must exceed; 0 if it is not given.
        layout: of the data set's folder. Without it, the folder's content decides.
        val_fraction: share of the images that is val, if neither data set nor run says which. Without it, the run's.
        device: where to compute, for a run.
    """
    from retinaconf import api
    from retinaconf.diagnosis.report.advice import advise
    from retinaconf.diagnosis.report.comparability import incomparable
    from retinaconf.diagnosis.report.document import to_json
    from retinaconf.diagnosis.report.figures import save_figures
    from retinaconf.diagnosis.report.summary import summarize

    check_outputs([json, report], [run, data, ground_truth, *detections, *candidates, images])
    diagnoses = api.diagnose(
        run,
        data,
        split,
        detections=detections,
        candidates=candidates,
        ground_truth=ground_truth,
        images=images,
        report=report,
        alpha=alpha,
        nms_iou=nms_iou,
        score_threshold=score_threshold,
        layout=layout,
        val_fraction=val_fraction,
        device=device,
    )
    for diagnosis in diagnoses:
        notes = (f"note: {note}" for note in diagnosis.notes)
        print("\n".join([*summarize(diagnosis), *notes, "What to do:", *(f"- {line}" for line in advise(diagnosis))]))
    if len(diagnoses) == 2:
        for sentence in incomparable(*diagnoses):
            print(f"note on both: {sentence}")
    if json is not None:
        documents = [to_json(diagnosis) for diagnosis in diagnoses]
        write_json(json, documents[0] if len(documents) == 1 else documents)
    if figures is not None:
        for number, diagnosis in enumerate(diagnoses, 1):
            save_figures(diagnosis, figures if len(diagnoses) == 1 else figures / str(number))
    if report is not None:
        print(f"report: {report}")
