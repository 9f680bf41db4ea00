/**
 * The page's data: one JSON block whose long columns are base64 of little-endian typed arrays, as explorer_data.py
 * packs them. Unpacked image by image, when one is first looked at.
 */

/** The typed array that a base64 text holds. */
function unpackColumn(base64, ArrayType) {
  const text = atob(base64);
  const bytes = new Uint8Array(text.length);
  for (let i = 0; i < text.length; i++) bytes[i] = text.charCodeAt(i);
  return new ArrayType(bytes.buffer);
}

/**
 * Candidates of one detector in one image: boxes (4n) xyxy in the picture's original pixels, labels (n), the detector's
 * own scores (n), where it has a quality classScores (n) and quality (n), from which other scores can be made, and where
 * it is tuned confidence (n), the IoU to expect of its own scores.
 */
function unpackCandidates(packed) {
  const column = (name, ArrayType) => (packed[name] === undefined ? null : unpackColumn(packed[name], ArrayType));
  const labels = column("labels", Uint16Array);
  return {
    count: labels.length,
    boxes: column("boxes", Float32Array),
    labels,
    scores: column("scores", Float32Array),
    classScores: column("class_scores", Float32Array),
    quality: column("quality", Float32Array),
    confidence: column("confidence", Float32Array),
    left_out: packed.left_out,
  };
}

/** Ground truth of one image: boxes (4n) xyxy, labels (n), crowd (n) 0 or 1. */
function unpackObjects(packed) {
  const labels = unpackColumn(packed.labels, Uint16Array);
  return {
    count: labels.length,
    boxes: unpackColumn(packed.boxes, Float64Array),
    labels,
    crowd: unpackColumn(packed.crowd, Uint8Array),
  };
}

/** The image `index` with its columns unpacked (once). */
function unpackImage(data, index) {
  const image = data.images[index];
  if (!image.unpacked) {
    image.unpacked = {
      objects: unpackObjects(image.objects),
      candidates: image.candidates.map(unpackCandidates),
    };
  }
  return image.unpacked;
}
