/**
 * Joint score and non-maximum suppression, by the rule of retinaconf/diagnosis/measures/nms.py, so that the page and Python
 * keep exactly the same boxes:
 *
 * - boxes and scores are float32 values, the arithmetic on them is float64 (JavaScript's numbers);
 * - the joint score is rounded to float32 before anything is compared, because two libraries' pow() may differ in the
 *   last of 53 bits but then agree in the first 24;
 * - candidates with score > threshold take part, by falling score, equal scores by rising index;
 * - one is suppressed if its IoU with a kept box of its class is > the NMS IoU;
 * - the best `maxDetections` (100) of an image are kept.
 */

/** What became of a candidate. */
const BELOW = 0; // its score is not above the threshold
const KEPT = 1;
const SUPPRESSED = 2; // by a kept box of its class
const CUT = 3; // not suppressed, but enough better ones are kept

/** (n) Float32Array: quality^alpha * class_score^(1 - alpha); the detector's own score for alpha null or without them. */
function jointScores(candidates, alpha) {
  if (alpha === null || !candidates.quality) return candidates.scores;
  const scores = new Float32Array(candidates.count); // rounds what is stored
  for (let i = 0; i < scores.length; i++) {
    scores[i] = Math.pow(candidates.quality[i], alpha) * Math.pow(candidates.classScores[i], 1 - alpha);
  }
  return scores;
}

/** IoU of box i of `a` with box j of `b` (both 4n, xyxy); NaN where neither has an area. */
function boxIou(a, i, b, j) {
  const p = 4 * i;
  const q = 4 * j;
  const width = Math.min(a[p + 2], b[q + 2]) - Math.max(a[p], b[q]);
  const height = Math.min(a[p + 3], b[q + 3]) - Math.max(a[p + 1], b[q + 1]);
  const inter = Math.max(width, 0) * Math.max(height, 0);
  const areaA = (a[p + 2] - a[p]) * (a[p + 3] - a[p + 1]);
  const areaB = (b[q + 2] - b[q]) * (b[q + 3] - b[q + 1]);
  return inter / (areaA + areaB - inter);
}

/**
 * Per-class greedy NMS.
 *
 * Returns {kept: indices by falling score, status: (n) BELOW | KEPT | SUPPRESSED | CUT, suppressor: (n) index of the
 * best kept box that suppressed the candidate, or -1}.
 *
 * One pass in the order of score over all classes: the first 100 that no kept box of their class suppresses are the
 * best 100 of those that NMS class by class leaves.
 */
function nonMaximumSuppression(candidates, scores, iouThreshold, scoreThreshold, maxDetections) {
  const { boxes, labels, count } = candidates;
  const order = [];
  for (let i = 0; i < count; i++) if (scores[i] > scoreThreshold) order.push(i);
  order.sort((i, j) => scores[j] - scores[i] || i - j);

  const status = new Uint8Array(count);
  const suppressor = new Int32Array(count).fill(-1);
  const kept = [];
  const keptOfClass = new Map();
  for (const i of order) {
    const rivals = keptOfClass.get(labels[i]) ?? [];
    const better = rivals.find((j) => boxIou(boxes, i, boxes, j) > iouThreshold);
    if (better !== undefined) {
      status[i] = SUPPRESSED;
      suppressor[i] = better;
    } else if (kept.length < maxDetections) {
      status[i] = KEPT;
      kept.push(i);
      rivals.push(i);
      keptOfClass.set(labels[i], rivals);
    } else {
      status[i] = CUT;
    }
  }
  return { kept, status, suppressor };
}
