"""From an item to its three files: train what is missing, evaluate, compare, write. `retinaconf paper`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from retinaconf.config import Config
from retinaconf.evaluation.coco import METRICS
from retinaconf.evaluation.compare import overall, paired_difference, seeds_needed, verdict
from retinaconf.files import finite, write_aside, write_json
from retinaconf.paper import published
from retinaconf.paper.figures import save_figure
from retinaconf.paper.items import ALL, ITEMS, Claim, Contrast, Item, for_base, only
from retinaconf.paper.ladder import steps
from retinaconf.paper.markdown import to_markdown
from retinaconf.paper.misalignment import statistics
from retinaconf.paper.quality_statistics import qualities
from retinaconf.paper.runs import Evaluation, Experiments
from retinaconf.recipes import paper_recipe

Results = dict[str, list[Evaluation]]  # by row name, a seed each


def run_paper(
    item: str,
    out: Path,
    root: Path,
    base: Config,
    recipe_base: str = "r50",
    seeds: int = 1,
    split: str = "val",
    schedule: str = "1x",
    max_steps: int | None = None,
    device: str = "auto",
    rows: Sequence[str] = (),
) -> None:
    """Regenerate an item, or `all` of the paper's, into `out/ITEM.{md,json,png}`.

    Seeds are `base.seed` and those that follow it. Runs are kept in `out/runs` and used again, whatever item asks for
    them; stopped at any time, the same command continues them.

    Args:
        item: a key of `ITEMS`, or `all`.
        out: the folder.
        root: the data set's.
        base: settings of plain RetinaNet, of which the detectors are changes.
        recipe_base: `lite0` leaves out what needs the paper's backbones.
        seeds: how many trainings of each kind.
        split: what is evaluated; training always validates on `val`.
        schedule: what `base` has, `1x` or `2x`.
        max_steps: ends every training early: for trying things out.
        device: where to compute.
        rows: of the item, by name; none for all.

    Raises:
        InputError: no such row, bad data, or a folder that cannot be used.
        Interrupted: it was asked to stop.
    """
    chosen = {
        name: for_base(ITEMS[name], recipe_base, base.model.channels) for name in (ALL if item == "all" else [item])
    }
    if rows:
        chosen = {name: only(one, rows) for name, one in chosen.items()}
    experiments = Experiments(out, root, base, split, schedule, max_steps, device)
    print(experiments.description, flush=True)
    for name, one in chosen.items():
        document = _document(name, one, experiments, range(base.seed, base.seed + seeds))
        document |= {"recipe_base": recipe_base, "settings": _settings(experiments.base, recipe_base, schedule)}
        _write(document, out)
        print(f"{name}: {out / name}.md, .json, .png", flush=True)
        for claim in document["claims"]:
            print(f"  {claim['claim']}: {claim['verdict']}", flush=True)


def _write(document: dict[str, Any], out: Path) -> None:
    path, page = out / document["item"], to_markdown(document)
    write_json(path.with_suffix(".json"), document)
    save_figure(document, path.with_suffix(".png"))
    write_aside(path.with_suffix(".md"), lambda aside: aside.write_text(page))


def _document(name: str, item: Item, experiments: Experiments, seeds: range) -> dict[str, Any]:
    """Everything about an item, ready for json.dumps (docs/paper.md)."""
    document: dict[str, Any] = {
        "item": name,
        "title": item.title,
        "kind": item.kind,
        "data": experiments.description,
        "is_coco": experiments.is_coco,
        "split": experiments.split,
        "images": len(experiments.ground_truth),
        "seeds": list(seeds),
        "max_steps": experiments.max_steps,
        "rows": [],
        "claims": [],
    }
    if item.trainings:
        document["statistics"] = statistics(experiments, item.trainings[0], seeds[0])
    if item.before:
        document |= {"before": item.before, "controls": item.controls, "steps": steps(experiments, item, seeds)}
    # Seed by seed, so that every row has its first result early.
    found: Results = {row.name: [] for row in item.rows}
    for seed in seeds:
        for row in item.rows:
            found[row.name].append(experiments.evaluate(row, seed))
    for row in item.rows:
        by_seed = [evaluation.metrics for evaluation in found[row.name]]
        document["rows"].append(
            {
                "name": row.name,
                "detector": row.training.detector,
                "joint": row.joint.name,
                "alpha": row.joint.alpha,
                "changes": dict(row.training.changes),
                "runs": [experiments.lines(row.training, seed)[-1]["run"] for seed in seeds],
                "seeds": by_seed,
                "mean": {metric: _mean([metrics[metric] for metrics in by_seed]) for metric in METRICS},
                "published": None if row.published is None else published.named(row.published),
            }
        )
    if item.asked:
        document["qualities"] = {name: qualities(experiments, asked, seeds[0]) for name, asked in item.asked.items()}
    document["claims"] = [judge(claim, found) for claim in item.claims]
    return document


def _settings(base: Config, recipe_base: str, schedule: str) -> dict[str, Any]:
    """What the runs were trained with otherwise than by the recipe; seed and loading aside."""
    recipe = paper_recipe(recipe_base, schedule).flat()
    return {
        name: value
        for name, value in base.flat().items()
        if value != recipe[name] and name not in ("seed", "data.workers")
    }


def judge(claim: Claim, found: Results) -> dict[str, Any]:
    """A claim's verdict and those of its parts, with their differences and intervals."""
    parts = [_judge_part(part, found) for part in claim.parts]
    return {"claim": claim.text, "verdict": overall([part["verdict"] for part in parts]), "parts": parts}


def _judge_part(part: Contrast, found: Results) -> dict[str, Any]:
    values = sum(
        weight * np.array([np.nan if e.metrics["AP"] is None else e.metrics["AP"] for e in found[row]])
        for row, weight in part.weights.items()
    )
    draws = sum(weight * np.array([e.draws for e in found[row]]) for row, weight in part.weights.items())
    assert isinstance(values, np.ndarray)
    assert isinstance(draws, np.ndarray)
    difference = paired_difference(values, draws)
    result = verdict(difference, part.relation, part.margin)
    needed: int | str | None = None
    if difference.known and len(values) > 1 and result == "undecided":
        needed = seeds_needed(difference, part.relation, part.margin) or "more images, not seeds"
    judged: dict[str, Any] = finite(
        {
            "text": part.text,
            "verdict": result,
            "difference": difference.mean,
            "interval": [difference.low, difference.high],
            "seeds": difference.seeds,
            "seed_spread": difference.seed_spread,
            "image_spread": difference.image_spread,
            "seeds_needed": needed,
        }
    )
    return judged


def _mean(values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None
