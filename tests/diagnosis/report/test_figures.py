"""The figures in files of their own: those of the page, and nothing that needs the page."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
from planted import random_set

from retinaconf.cell_anchors import CellAnchors
from retinaconf.diagnosis.measures.coverage import anchor_coverage
from retinaconf.diagnosis.measures.diagnose import diagnose
from retinaconf.diagnosis.report.figures import FIGURES, save_figures
from retinaconf.diagnosis.report.page import write_report


def test_a_file_is_the_pages_figure_and_stands_alone(tmp_path: Path) -> None:
    ground_truth, boxes = random_set(np.random.default_rng(0))
    boxes = replace(boxes, quality=boxes.scores[::-1].copy(), class_scores=boxes.scores)
    shape = (len(ground_truth), 2)
    coverage = anchor_coverage(ground_truth, np.ones(shape), np.full(shape, 64), CellAnchors())
    diagnosis = diagnose(ground_truth, candidates=boxes, coverage=coverage, replicates=5)
    write_report(tmp_path / "report.html", [diagnosis])
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    files = save_figures(diagnosis, tmp_path / "figures")
    assert [path.name for path in files] == [f"{name}.svg" for name in FIGURES]
    for path in files:
        text = path.read_text(encoding="utf-8")
        root = ElementTree.fromstring(text)
        assert root.tag == "{http://www.w3.org/2000/svg}svg"
        assert root.findtext("{*}text") == FIGURES[path.stem][0]
        shapes = text.partition("</text>")[2]
        assert len(shapes) > 200
        assert f">{shapes}<figcaption>" in page
        style = root.findtext("{*}style")
        assert "var(" not in style  # which programs other than browsers do not know
        for used in set(re.findall(r'class="([\w-]+)', shapes)) - {"label"}:  # as all text
            assert re.search(rf"\.{used}\b", style), used


def test_what_there_is_no_data_for_has_no_figure(tmp_path: Path) -> None:
    ground_truth, boxes = random_set(np.random.default_rng(0))
    files = save_figures(diagnose(ground_truth, boxes, replicates=5), tmp_path)
    assert {path.stem for path in files} == {"density-after-nms", "oracles", "reliability"}
    assert set(files) == set(tmp_path.iterdir())
