/**
 * The picture with its boxes. Each kind has a colour and a form of its own: kept is a thick solid box, suppressed a
 * hairline (dashed where it fits its object better than the box that was kept), ground truth four corners.
 */

const SUPPRESSED_INK = 120; // hairlines get fainter the more there are, so that a thousand do not hide the picture
const PICK_DISTANCE = 10; // CSS pixels between pointer and edge

/** Fit the canvas's pixels to its size on screen; returns its 2D context, scaled to CSS pixels and cleared. */
function prepareCanvas(canvas) {
  const ratio = window.devicePixelRatio || 1;
  const width = canvas.clientWidth;
  const height = canvas.clientHeight;
  if (canvas.width !== Math.round(width * ratio)) canvas.width = Math.round(width * ratio);
  if (canvas.height !== Math.round(height * ratio)) canvas.height = Math.round(height * ratio);
  const context = canvas.getContext("2d");
  context.setTransform(ratio, 0, 0, ratio, 0, 0);
  context.clearRect(0, 0, width, height);
  return context;
}

/** Draw `scene` (see explorer.js) with the boxes that `focus` names emphasised. */
function drawPicture(canvas, scene, focus, colours) {
  const context = prepareCanvas(canvas);
  const scale = canvas.clientWidth / scene.width;
  if (scene.picture) {
    context.drawImage(scene.picture, 0, 0, canvas.clientWidth, canvas.clientHeight);
  } else {
    context.fillStyle = colours.blank;
    context.fillRect(0, 0, canvas.clientWidth, canvas.clientHeight);
  }
  const { boxes } = scene.candidates;
  const stroke = (source, rows, style) => strokeBoxes(context, source, rows, scale, { halo: colours.halo, ...style });

  if (scene.shows.suppressed) {
    const rows = scene.suppressed.filter(scene.isVisible);
    const ink = Math.min(0.7, Math.max(0.12, SUPPRESSED_INK / rows.length));
    stroke(boxes, rows, { colour: colours.suppressed, width: 0.8, ink, halo: null });
    const better = scene.casualties.map((row) => row.best).filter(scene.isVisible);
    stroke(boxes, better, { colour: colours.suppressed, width: 1.8, dash: [6, 4] });
  }
  if (scene.shows.kept) {
    // From the lowest score up, fainter the lower: the boxes that count lie on top.
    for (const i of scene.outcome.kept.filter(scene.isVisible).reverse()) {
      stroke(boxes, [i], { colour: colours.kept, width: 2, ink: 0.45 + 0.55 * scene.scores[i] });
    }
  }
  if (scene.shows.objects) {
    const rows = [...scene.objects.labels.keys()].filter((g) => scene.isVisibleLabel(scene.objects.labels[g]));
    const crowd = rows.filter((g) => scene.objects.crowd[g]);
    const single = rows.filter((g) => !scene.objects.crowd[g]);
    stroke(scene.objects.boxes, single, { colour: colours.truth, width: 2.5, corners: true });
    stroke(scene.objects.boxes, crowd, { colour: colours.truth, width: 1.5, dash: [1.5, 4] });
  }
  if (focus) drawFocus(context, scene, focus, colours, scale, stroke);
}

/** The focused candidate or object thick, with what it stands against: its suppressor, its victims, its object. */
function drawFocus(context, scene, focus, colours, scale, stroke) {
  context.fillStyle = colours.veil;
  context.fillRect(0, 0, context.canvas.clientWidth, context.canvas.clientHeight);
  const { boxes, labels } = scene.candidates;
  if (focus.victims.length) {
    const ink = Math.min(1, Math.max(0.25, SUPPRESSED_INK / focus.victims.length));
    stroke(boxes, focus.victims, { colour: colours.suppressed, width: 1, ink, halo: null });
  }
  const style = (i) =>
    scene.outcome.status[i] === KEPT ? { colour: colours.kept } : { colour: colours.suppressed, dash: [8, 5] };
  for (const i of focus.candidates) stroke(boxes, [i], { width: 3.5, ...style(i) });
  if (focus.object >= 0) {
    stroke(scene.objects.boxes, [focus.object], { colour: colours.truth, width: 4, corners: true });
  }
  for (const i of focus.candidates) {
    const text = `${scene.classes[labels[i]]} ${scene.scores[i].toFixed(2)}`;
    // The kept box's tag above it, the other's below: they often lie on each other.
    const y = scene.outcome.status[i] === KEPT ? boxes[4 * i + 1] * scale - 20 : boxes[4 * i + 3] * scale + 2;
    drawTag(context, text, boxes[4 * i] * scale, y, style(i).colour, colours.halo);
  }
}

/** Stroke the boxes `rows`; `corners` draws only their corners, `halo` edges the lines in a contrasting colour. */
function strokeBoxes(context, boxes, rows, scale, { colour, width, ink = 1, dash = null, corners = false, halo }) {
  context.globalAlpha = ink;
  for (const i of rows) {
    const [x1, y1, x2, y2] = [0, 1, 2, 3].map((side) => boxes[4 * i + side] * scale);
    const path = corners && cornersOf(x1, y1, x2, y2);
    const stroke = () => (path ? context.stroke(path) : context.strokeRect(x1, y1, x2 - x1, y2 - y1)); // much faster
    if (halo) {
      context.strokeStyle = halo;
      context.lineWidth = width + 2;
      stroke();
    }
    context.setLineDash(dash ?? []);
    context.strokeStyle = colour;
    context.lineWidth = width;
    stroke();
    context.setLineDash([]);
  }
  context.globalAlpha = 1;
}

/** The four corners of a box, each arm a quarter of the shorter side, at most 18 pixels. */
function cornersOf(x1, y1, x2, y2) {
  const path = new Path2D();
  const arm = Math.min(18, (x2 - x1) / 4, (y2 - y1) / 4);
  for (const [x, y, dx, dy] of [
    [x1, y1, arm, arm],
    [x2, y1, -arm, arm],
    [x2, y2, -arm, -arm],
    [x1, y2, arm, -arm],
  ]) {
    path.moveTo(x + dx, y);
    path.lineTo(x, y);
    path.lineTo(x, y + dy);
  }
  return path;
}

/** A name plate with its upper left corner at (x, y), kept inside the picture. */
function drawTag(context, text, x, y, colour, ink) {
  context.font = "600 12px system-ui, sans-serif";
  const width = context.measureText(text).width + 10;
  const left = Math.max(0, Math.min(x, context.canvas.clientWidth - width));
  const top = Math.max(0, Math.min(y, context.canvas.clientHeight - 18));
  context.fillStyle = colour;
  context.fillRect(left, top, width, 18);
  context.fillStyle = ink;
  context.fillText(text, left + 5, top + 13);
}

/** The shown candidate whose edge is nearest to (x, y) in CSS pixels, or -1; kept boxes win a tie. */
function candidateNearEdge(canvas, scene, x, y) {
  const scale = canvas.clientWidth / scene.width;
  const { boxes } = scene.candidates;
  const shown = [
    ...(scene.shows.kept ? scene.outcome.kept : []),
    ...(scene.shows.suppressed ? scene.suppressed : []),
  ].filter(scene.isVisible);
  let nearest = -1;
  let best = PICK_DISTANCE;
  for (const i of shown) {
    const [x1, y1, x2, y2] = [0, 1, 2, 3].map((side) => boxes[4 * i + side] * scale);
    const outside = Math.hypot(Math.max(x1 - x, 0, x - x2), Math.max(y1 - y, 0, y - y2));
    const inside = Math.min(x - x1, x2 - x, y - y1, y2 - y);
    const distance = outside > 0 ? outside : inside;
    if (distance < best) [nearest, best] = [i, distance];
  }
  return nearest;
}
