/** How well candidates fit the objects, and what NMS lost of it. */

/**
 * How the candidates fit the objects of their class; crowd regions are no objects.
 *
 * Returns {ious: (n) Float64Array, each candidate's with the object that it fits best, 0 where it overlaps none of its
 * class, object: (n) Int32Array, that object or -1, fitting: for each object the candidates that overlap it, as
 * {candidate, iou}, best-placed first}.
 */
function matchToObjects(candidates, objects) {
  const ious = new Float64Array(candidates.count);
  const object = new Int32Array(candidates.count).fill(-1);
  const fitting = Array.from({ length: objects.count }, () => []);
  for (let i = 0; i < candidates.count; i++) {
    for (let g = 0; g < objects.count; g++) {
      if (objects.crowd[g] || objects.labels[g] !== candidates.labels[i]) continue;
      const iou = boxIou(candidates.boxes, i, objects.boxes, g);
      if (iou > 0) fitting[g].push({ candidate: i, iou });
      if (iou > ious[i]) {
        ious[i] = iou;
        object[i] = g;
      }
    }
  }
  for (const boxes of fitting) boxes.sort((a, b) => b.iou - a.iou);
  return { ious, object, fitting };
}

/**
 * For each object: the best-placed candidate of its class that took part in NMS, the best-placed that was kept, and
 * the IoU lost between them (the NMS casualties of retinaconf/diagnosis/measures/casualties.py).
 *
 * Returns a list of {object, best, kept, bestIou, keptIou, lost}; best and kept are -1 where there is none.
 */
function objectLosses(match, objects, status) {
  const rows = [];
  for (let g = 0; g < objects.count; g++) {
    if (objects.crowd[g]) continue;
    const best = match.fitting[g].find(({ candidate }) => status[candidate] !== BELOW);
    const kept = match.fitting[g].find(({ candidate }) => status[candidate] === KEPT);
    const [bestIou, keptIou] = [best?.iou ?? 0, kept?.iou ?? 0];
    const lost = bestIou - keptIou;
    rows.push({ object: g, best: best?.candidate ?? -1, kept: kept?.candidate ?? -1, bestIou, keptIou, lost });
  }
  return rows;
}

/** Spearman's rank correlation of two columns over the chosen rows; NaN where one of them is constant. */
function spearman(xs, ys, rows) {
  const a = averageRanks(xs, rows);
  const b = averageRanks(ys, rows);
  const mean = (rows.length + 1) / 2;
  let ab = 0;
  let aa = 0;
  let bb = 0;
  for (let k = 0; k < rows.length; k++) {
    ab += (a[k] - mean) * (b[k] - mean);
    aa += (a[k] - mean) ** 2;
    bb += (b[k] - mean) ** 2;
  }
  return ab / Math.sqrt(aa * bb);
}

/** Ranks from 1 of values[rows], equal values sharing the mean of theirs. */
function averageRanks(values, rows) {
  const sorted = Float64Array.from(rows, (i) => values[i]).sort();
  const ranks = new Map(); // by value
  for (let start = 0; start < sorted.length; ) {
    let end = start;
    while (end < sorted.length && sorted[end] === sorted[start]) end++;
    ranks.set(sorted[start], (start + end + 1) / 2);
    start = end;
  }
  return rows.map((i) => ranks.get(values[i]));
}
