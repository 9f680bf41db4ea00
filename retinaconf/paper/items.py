"""What each table and figure of the paper is made of. The engine (`engine.py`) knows none of them by name."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from retinaconf.errors import InputError
from retinaconf.inference.joint_score import JointScore, product, proportional, released, sweep
from retinaconf.paper import published
from retinaconf.recipes import DETECTORS, FINISH

NAMES = {"retinanet": "RetinaNet", "iou-aware": "IoU-aware Net", "conf": "RetinaNet-Conf"}
SMALL = 0.002  # of AP: what the paper's text reads as no difference
R101 = "resnet101.tv_in1k"


Finish = tuple[tuple[str, Any], ...]  # settings of `inference` that a finished run gets


@dataclass(frozen=True)
class Training:
    """A detector of `recipes.DETECTORS` with settings changed; those with equal settings are trained once."""

    detector: str
    changes: tuple[tuple[str, Any], ...] = ()
    longer: bool = False  # the 2x schedule, whatever is asked for
    paper_scale: bool = False  # only with the recipes r50: the backbone is another one
    label: str = field(default="", compare=False)  # in place of a name made of many changes

    @property
    def name(self) -> str:
        """Of its files: the label, or the detector and what is changed."""
        if self.label:
            return self.label
        told = [name.rpartition(".")[2] if value is True else str(value) for name, value in self.changes]
        return "-".join([self.detector, *told] + ["2x"] * self.longer)


@dataclass(frozen=True)
class Row:
    """A line of a table: a training, judged by one joint score, with `finish`, other settings of `inference`."""

    name: str
    training: Training
    joint: JointScore
    published: published.Row | None = None
    finish: Finish = ()

    @property
    def ending(self) -> str:
        """What `finish` switches on, behind the name of what is measured."""
        return "".join(f", {name}" for name, value in self.finish if value is True)

    @property
    def judged_by(self) -> str:
        """The joint score's name, and what else is switched on."""
        return self.joint.name + self.ending


@dataclass(frozen=True)
class Contrast:
    """A sum of the rows' APs whose weights add up to 0, and what is claimed of it (`compare.verdict`)."""

    text: str
    weights: dict[str, float]  # by row name
    relation: Literal["more", "same"] = "more"
    margin: float = 0.0


@dataclass(frozen=True)
class Claim:
    """One of the guide's claims to check, or one of its switches."""

    text: str
    parts: tuple[Contrast, ...]


@dataclass(frozen=True)
class Item:
    """A table or figure. `kind` says how it is shown: rows, curves over alpha, statistics, a formula ..."""

    title: str
    kind: Literal[
        "rows", "alpha", "statistics", "figure1", "figure2", "figure4", "figure5", "open-question", "ladder"
    ] = "rows"
    rows: tuple[Row, ...] = ()
    claims: tuple[Claim, ...] = ()
    trainings: tuple[Training, ...] = field(default=())  # of an item without rows
    asked: dict[str, Training] = field(default_factory=dict)  # by name: whose branch is asked what it says where
    before: dict[str, str] = field(default_factory=dict)  # of a ladder, by row: the row that it changes
    controls: dict[str, tuple[str, ...]] = field(default_factory=dict)  # ... and the RetinaNets, the most alike first


RETINANET, IOU_AWARE, CONF = (Training(detector) for detector in ("retinanet", "iou-aware", "conf"))
CLS = product(0.0)


def _loss(**changes: Any) -> Training:
    return Training("conf", tuple((f"loss.{name}", value) for name, value in changes.items()))


def _more(better: str, worse: str, margin: float = 0.0) -> Contrast:
    text = f"{better} > {worse}" + (f" {'+' if margin > 0 else '-'} {100 * abs(margin):g}" if margin else "")
    return Contrast(text, {better: 1, worse: -1}, "more", margin)


def _same(a: str, b: str) -> Contrast:
    return Contrast(f"|{a} - {b}| < {100 * SMALL:g}", {a: 1, b: -1}, "same", SMALL)


LOSSES = {
    "L1": _loss(quality="l1"),
    "Smooth L1": _loss(quality="smooth-l1"),
    "L2": _loss(quality="l2"),
    "GFocal": _loss(quality="gfocal"),
    "CE_w (w = 0.0001)": _loss(quality="ce-weighted", quality_negative_weight=1e-4),
    "CE_w (w = 0.001)": _loss(quality="ce-weighted", quality_negative_weight=1e-3),
    "CE": CONF,
}
WEIGHTED = "CE_w (w = 0.0001)"


def _table1() -> Item:
    rows = [Row(NAMES[t.detector], t, CLS, published.TABLE1[NAMES[t.detector]]) for t in (RETINANET, IOU_AWARE, CONF)]
    claim = Claim(
        "1. The branch helps even unused (alpha = 0)",
        (_more("IoU-aware Net", "RetinaNet"), _more("RetinaNet-Conf", "RetinaNet")),
    )
    return Item("Table 1 (section 4): three models, ranked by the class score", rows=tuple(rows), claims=(claim,))


def _table2() -> Item:
    rows = [Row("RetinaNet", RETINANET, CLS, published.TABLE1["RetinaNet"])]
    rows += [Row(name, training, CLS, published.TABLE2[name]) for name, training in LOSSES.items()]
    claims = (
        Claim("2a. Cross entropy is the best loss", tuple(_more("CE", name) for name in LOSSES if name != "CE")),
        Claim(
            "2b. Regression losses are below or at the baseline",
            tuple(_more("RetinaNet", name, -SMALL) for name in ("L1", "Smooth L1", "L2")),
        ),
    )
    return Item("Table 2: losses of the confidence branch, alpha = 0", rows=tuple(rows), claims=claims)


def _table3() -> Item:
    rows = []
    for alpha, numbers in ((0.0, published.TABLE2), (0.4, published.TABLE3)):
        rows += [
            Row(f"{name}, alpha {alpha:g}", LOSSES[name], product(alpha), numbers[name]) for name in (WEIGHTED, "CE")
        ]
    gain = {f"{WEIGHTED}, alpha 0.4": 1, f"{WEIGHTED}, alpha 0": -1, "CE, alpha 0.4": -1, "CE, alpha 0": 1}
    claim = Claim(
        "3. Positives alone are enough for cross entropy, though CE_w gains more from the product",
        (
            _more("CE, alpha 0.4", f"{WEIGHTED}, alpha 0.4", -SMALL),
            Contrast("gain of CE_w by the product > gain of CE", {name: float(w) for name, w in gain.items()}),
        ),
    )
    return Item("Table 3: cross entropy on positives, and on all samples", rows=tuple(rows), claims=(claim,))


def _table4() -> Item:
    joints = {joint.name: joint for joint in sweep()} | {"cls": CLS}
    rows = tuple(Row(name, CONF, joints[name], numbers) for name, numbers in published.TABLE4.items())
    claims = (
        Claim("4a. The product with alpha = 0.4 is better than the class score", (_more("product(0.4)", "cls"),)),
        Claim(
            "4b. The filter obj > 0.5 hardly matters",
            tuple(_same(f"{name}(obj>0.5)", name) for name in ("cls", "cls*obj", "product(0.4)")),
        ),
    )
    return Item("Table 4: ways to join class score and object confidence", rows=rows, claims=claims)


def _table5() -> Item:
    rows, claims = [], []
    for training in (IOU_AWARE, CONF):
        name = NAMES[training.detector]
        for tenth, numbers in enumerate(published.TABLE5[name]):
            alpha = tenth / 10
            rows.append(Row(f"{name}, alpha {alpha:g}", training, product(alpha), numbers))
        flat = [_more(f"{name}, alpha {alpha:g}", f"{name}, alpha 0", -0.005) for alpha in (0.1, 0.2, 0.3, 0.4, 0.5)]
        claims.append(Claim(f"5a. {name}: up to alpha = 0.5 nothing is lost", tuple(flat)))
        steep = _more(f"{name}, alpha 0.6", f"{name}, alpha 0.9", 0.02)
        claims.append(Claim(f"5b. {name}: after alpha = 0.6 AP falls steeply", (steep,)))
    return Item("Table 5: alpha", kind="alpha", rows=tuple(rows), claims=tuple(claims))


def _table6() -> Item:
    alphas = {"retinanet": 0.0, "iou-aware": 0.5, "conf": 0.4}
    rows = []
    for detector, name in NAMES.items():
        for suffix, training in (
            ("base", Training(detector)),
            ("R101", Training(detector, (("model.backbone", R101),), paper_scale=True)),
            ("R101, 2x", Training(detector, (("model.backbone", R101),), longer=True, paper_scale=True)),
        ):
            label = f"{name}, {suffix}"
            if label in published.TABLE6:
                rows.append(Row(label, training, product(alphas[detector]), published.TABLE6[label]))
    conf = NAMES["conf"]
    claim = Claim(
        "6. RetinaNet-Conf is better than RetinaNet with either backbone, and better still when trained for longer",
        (
            _more(f"{conf}, base", "RetinaNet, base"),
            _more(f"{conf}, R101", "RetinaNet, R101"),
            _more(f"{conf}, R101, 2x", f"{conf}, R101"),
        ),
    )
    return Item("Table 6: backbones and schedules", rows=tuple(rows), claims=(claim,))


def _switches() -> Item:
    stopped = _loss(detach_quality_target=True)
    rows = (
        Row("gradient through IoU, alpha 0", CONF, CLS),
        Row("gradient stopped, alpha 0", stopped, CLS),
        Row("gradient through IoU, alpha 0.4", CONF, product(0.4)),
        Row("gradient stopped, alpha 0.4", stopped, product(0.4)),
        Row("eq. (11) on large levels only", CONF, released(0.4)),
    )
    claims = (
        Claim(
            "The gradient through the IoU target hardly matters",
            (_same(rows[1].name, rows[0].name), _same(rows[3].name, rows[2].name)),
        ),
        Claim(
            "The released code's slip on small levels hardly matters",
            (_same(rows[4].name, rows[2].name),),
        ),
    )
    return Item("The released code's switches", rows=rows, claims=claims)


BEYOND_POSITIVES = {
    "CE": CONF,
    WEIGHTED: LOSSES[WEIGHTED],
    "varifocal": _loss(quality="varifocal"),
    "GFocal, all anchors": _loss(quality="gfocal-all"),
    "CE, near boxes": _loss(quality="ce-near"),
    "CE, best ranked": _loss(quality="ce-ranked"),
}


def _open_question() -> Item:
    rows = [Row("RetinaNet", RETINANET, CLS), Row("joint head", Training("joint"), CLS)]
    joints = [product(0.0), product(0.4), product(0.6), *(proportional(alpha) for alpha in (0.4, 0.6, 0.8))]
    for name, training in BEYOND_POSITIVES.items():
        rows += [Row(f"{name}, {joint.name}", training, joint) for joint in joints]
    claims = tuple(
        Claim(
            f"{name} is better than cross entropy on positives, and than RetinaNet",
            (
                _more(f"{name}, product(0.4)", "CE, product(0.4)"),
                _more(f"{name}, proportional(0.6)", "CE, product(0.4)"),
                _more(f"{name}, proportional(0.6)", "RetinaNet"),
                _more(f"{name}, product(0)", "RetinaNet"),
            ),
        )
        for name in BEYOND_POSITIVES
        if name != "CE"
    )
    claims += (Claim("The joint head is better than RetinaNet", (_more("joint head", "RetinaNet"),)),)
    title = "The open question: losses of object confidence beyond positives"
    return Item(title, "open-question", tuple(rows), claims, asked=BEYOND_POSITIVES)


SLOW_BACKBONE, SLOW_RETINANET = {"optimizer.kept_lr": 0.1}, "RetinaNet, slow backbone"
VARIFOCAL = {"loss.iou_score": "varifocal"}
ENDS: dict[str, dict[str, Any]] = {  # `Row.finish`, by step
    "aligned, voting": {"vote": True},
    "aligned, varifocal, slow backbone, Soft-NMS": FINISH,
}
# By step: the step before it, and what it changes. A step that no other builds on is a control or an alternative.
LADDER: dict[str, tuple[str, dict[str, Any]]] = {
    "GIoU": ("RetinaNet", {"loss.box": "giou", "loss.box_weight": 2.0}),
    "nine anchors, ATSS": ("GIoU", {"matching.assigner": "atss"}),
    "one anchor": ("GIoU", {"model.anchor_ratios": (1.0,), "model.anchor_scales": (8.0,)}),
    "one anchor, ATSS": ("one anchor", {"matching.assigner": "atss"}),
    "level scale": ("one anchor, ATSS", {"model.level_scale": True}),
    "joint head": ("one anchor, ATSS", {"model.class_target": "iou"}),
    "trained apart": ("one anchor, ATSS", {"model.quality": "classification", "inference.alpha": 0.4}),
    "product": ("trained apart", {"loss.joint": "product"}),
    "distances": ("joint head", {"model.box": "distances"}),
    "DFL": ("distances", {"model.box": "distribution"}),
    "aligned": ("DFL", {}),  # with what the recipe of this name has
    "aligned, trained apart": ("aligned", {"loss.joint": "separate"}),
    "aligned, task-aligned": ("aligned", {"matching.assigner": "task-aligned"}),
    "aligned, rank loss": ("aligned", {"loss.rank": 1.0}),
    "aligned, group norm": ("aligned", {"model.head_norm": "group"}),
    "aligned, voting": ("aligned", {}),  # the same training, with its ENDS
    "aligned, varifocal": ("aligned", VARIFOCAL),
    "aligned, slow backbone": ("aligned", SLOW_BACKBONE),
    "aligned, varifocal, slow backbone": ("aligned, slow backbone", VARIFOCAL),
    "aligned, varifocal, slow backbone, Soft-NMS": ("aligned, varifocal, slow backbone", {}),  # `aligned-lite0`
    "aligned, rank loss, varifocal, slow backbone": ("aligned, varifocal, slow backbone", {"loss.rank": 3.0}),
    "aligned, trained apart, slow backbone": ("aligned, slow backbone", {"loss.joint": "separate"}),
    SLOW_RETINANET: ("RetinaNet", SLOW_BACKBONE),
}


def _ladder() -> Item:
    trainings = {"RetinaNet": RETINANET}
    for name, (step, changes) in LADDER.items():
        base = Training(name) if name in DETECTORS else trainings[step]
        settings = tuple((dict(base.changes) | changes).items())
        label = name.replace(",", "").replace(" ", "-").lower()
        trainings[name] = replace(base, changes=settings, label=label) if changes else base
    rows = []
    for name, training in trainings.items():
        alpha = (DETECTORS[training.detector] | dict(training.changes)).get("inference.alpha", 0.0)
        finish = tuple(ENDS.get(name, {}).items())
        rows.append(Row(name, training, product(alpha), published.R50.get(name), finish))
    before = {name: step for name, (step, _) in LADDER.items()}
    slow = {name for name in LADDER if name.startswith("aligned") and "slow backbone" in name}
    controls: dict[str, tuple[str, ...]] = dict.fromkeys(LADDER, ("RetinaNet",))
    controls |= dict.fromkeys(slow, (SLOW_RETINANET, "RetinaNet"))
    rivals = {name: dict.fromkeys((step, *controls[name])) for name, step in before.items()}
    claims = [Claim(name, tuple(_more(name, other) for other in others)) for name, others in rivals.items()]
    product_question = (("product", "joint head"), ("product", "trained apart"), ("aligned", "aligned, trained apart"))
    claims.append(Claim("trained by the score that ranks", tuple(_more(*pair) for pair in product_question)))
    title = "From RetinaNet to aligned"
    return Item(title, "ladder", tuple(rows), tuple(claims), before=before, controls=controls)


ITEMS: dict[str, Item] = {
    "table1-statistics": Item(
        "Table 1 (introduction): boxes before and after NMS", "statistics", trainings=(RETINANET,)
    ),
    "table1": _table1(),
    "table2": _table2(),
    "table3": _table3(),
    "table4": _table4(),
    "table5": _table5(),
    "table6": _table6(),
    "switches": _switches(),
    "figure1": Item("Figure 1: score against IoU, before and after NMS", "figure1", trainings=(RETINANET,)),
    "figure2": Item("Figure 2: proportions of boxes, before and after NMS", "figure2", trainings=(RETINANET,)),
    "figure4": Item("Figure 4: the product of IoU and class score", "figure4"),
    "figure5": Item("Figure 5: the sigmoid, and what each loss's gradient makes of it", "figure5"),
    "open-question": _open_question(),
    "ladder": _ladder(),
}
ALL = [name for name in ITEMS if name not in ("open-question", "ladder")]  # what the paper has


def for_base(item: Item, base: str, channels: int = 256) -> Item:
    """The item without the rows that a recipe base, or a head of so many channels, does not have."""
    rows = [row for row in item.rows if not (base == "lite0" and row.training.paper_scale)]
    grouped = ("model.head_norm", "group")
    return only(item, [row.name for row in rows if not (channels % 32 and grouped in row.training.changes)])


def only(item: Item, names: Collection[str]) -> Item:
    """The item with these rows, and with the parts of claims that are of these rows alone.

    Raises:
        InputError: a name is no row of it.
    """
    known = [row.name for row in item.rows]
    if unknown := [name for name in names if name not in known]:
        raise InputError(f"{item.title}: no row {unknown[0]!r}; there are {', '.join(map(repr, known)) or 'none'}")
    rows = tuple(row for row in item.rows if row.name in names)
    claims = [replace(c, parts=tuple(part for part in c.parts if set(part.weights) <= set(names))) for c in item.claims]
    return replace(item, rows=rows, claims=tuple(claim for claim in claims if claim.parts))


def rows_of(training: Training) -> dict[str, Row]:
    """By `judged_by`, a row of each kind that any item has of this training."""
    return {row.judged_by: row for item in ITEMS.values() for row in item.rows if row.training == training}
