"""What the report's words mean, for someone who never read the paper."""

GLOSSARY = {
    "IoU": (
        "Intersection over union of two boxes: 1 where they coincide, 0 where they do not meet. Here it says how well "
        "a predicted box is placed on its object."
    ),
    "Localization": "How well boxes are placed; measured by IoU.",
    "Score": "The number a detector ranks its boxes by. NMS and AP trust it; nothing makes it know the IoU.",
    "Alignment": "The score is aligned with localization when boxes with higher scores are better placed.",
    "Candidate": "A box the detector proposes, before NMS. A detection is one that is left after it.",
    "NMS": ("Non-maximum suppression: of overlapping boxes of one class only the one with the highest score is kept."),
    "NMS casualty": (
        "A box that fits its object better than the box that was kept, and was suppressed for its lower score."
    ),
    "Quality": "A second score, of how good a box is whatever its class: predicted IoU, objectness, centerness.",
    "Alpha": (
        "The weight of quality in the joint score, quality^alpha × class score^(1 − alpha). 0 is the class score alone."
    ),
    "Rank correlation": (
        "Do two numbers order boxes alike? 1: exactly, 0: no relation, −1: exactly opposed. Spearman's rho and "
        "Kendall's tau."
    ),
    "Concordance": (
        "Of two boxes on the same object, how often the score puts the better-placed one first. 50 % is chance."
    ),
    "An object's own boxes": (
        "Those of its class that fit no other object better and have IoU 0.5 or more with it. Their order is measured "
        "on the 50 with the highest scores. Objects with fewer than two say nothing about it."
    ),
    "TOOD's figures": (
        "What the paper TOOD (Feng et al., ICCV 2021) measures alignment by. Before NMS: do score and IoU order an "
        "object's 50 best-scored boxes alike (1: exactly, 0: no relation), and how well do its 10 best-scored ones "
        "fit? After NMS: how many objects have a box with IoU 0.5 or more (correct), how many further such boxes are "
        "left (redundant), and how many fit badly (error)? The counts grow with the images and with a lower score "
        "threshold; the published ones are of COCO with ResNet-50."
    ),
    "95 % interval": (
        "Where a gain would lie, 95 times in 100, on other images of this kind. It comes from drawing the images anew, "
        "200 to 1,000 times (a bootstrap). A gain is sure where the whole interval is above 0."
    ),
    "AP": (
        "Average precision, COCO's main metric: mean over classes and over IoU 0.50 to 0.95. AP50 and AP75 are at one "
        "IoU."
    ),
    "Oracle": ("AP if one thing were perfect and all else stayed: an upper bound of what mending that thing can give."),
    "LaECE": (
        "Localization-aware expected calibration error: mean distance between the score and precision × IoU. 0 is best."
    ),
    "D-ECE": "Detection expected calibration error: mean distance between the score and the precision. 0 is best.",
    "LRP": (
        "Localization recall precision error at a score threshold: misplacement, false and missed boxes in one "
        "number; 0 is best. Optimal LRP is the smallest over all thresholds, and names the threshold to deploy with."
    ),
}
