/**
 * Score against IoU, a point a candidate: kept ones are filled discs, suppressed ones crosses, and those that fit
 * their object better than the kept box are triangles.
 */

const MARGIN = { left: 40, right: 12, top: 12, bottom: 36 };

/** Plot coordinates of (IoU, score) on `canvas`, and back. */
function scatterScale(canvas) {
  const width = canvas.clientWidth - MARGIN.left - MARGIN.right;
  const height = canvas.clientHeight - MARGIN.top - MARGIN.bottom;
  return {
    x: (iou) => MARGIN.left + iou * width,
    y: (score) => MARGIN.top + (1 - score) * height,
  };
}

/** Draw `scene` (see explorer.js) with the points that `focus` names emphasised. */
function drawScatter(canvas, scene, focus, colours) {
  const context = prepareCanvas(canvas);
  const { x, y } = scatterScale(canvas);
  drawAxes(context, x, y, colours, scene.scoreThreshold);
  const { scores, match } = scene;
  const at = (i) => [x(match.ious[i]), y(scores[i])];

  if (scene.shows.suppressed) {
    const rows = scene.suppressed.filter(scene.isVisible);
    context.globalAlpha = Math.min(0.9, Math.max(0.25, 300 / rows.length));
    stampCrosses(context, rows.map(at), colours.suppressed);
    context.globalAlpha = 1;
    const better = scene.casualties.map((row) => row.best).filter(scene.isVisible);
    fillMarks(context, better.map(at), triangle, colours.suppressed, colours.surface);
  }
  if (scene.shows.kept) {
    fillMarks(context, scene.outcome.kept.filter(scene.isVisible).map(at), disc, colours.kept, colours.surface);
  }
  if (!focus) return;
  context.fillStyle = colours.veilSurface;
  context.fillRect(x(0) - 6, y(1) - 6, x(1) - x(0) + 12, y(0) - y(1) + 12); // marks on the edge, too
  stampCrosses(context, focus.victims.map(at), colours.suppressed);
  if (focus.candidates.length === 2) {
    context.beginPath();
    context.moveTo(...at(focus.candidates[0]));
    context.lineTo(...at(focus.candidates[1]));
    context.setLineDash([3, 3]);
    context.strokeStyle = colours.text;
    context.lineWidth = 1;
    context.stroke();
    context.setLineDash([]);
  }
  for (const i of focus.candidates) {
    const kept = scene.outcome.status[i] === KEPT;
    fillMarks(context, [at(i)], kept ? disc : triangle, kept ? colours.kept : colours.suppressed, colours.surface);
    context.beginPath();
    context.arc(...at(i), 9, 0, 2 * Math.PI);
    context.strokeStyle = colours.text;
    context.lineWidth = 1.5;
    context.stroke();
  }
}

function drawAxes(context, x, y, colours, scoreThreshold) {
  context.font = "11px system-ui, sans-serif";
  context.lineWidth = 1;
  for (const tick of [0, 0.25, 0.5, 0.75, 1]) {
    context.strokeStyle = colours.grid;
    context.beginPath();
    context.moveTo(x(tick), y(0));
    context.lineTo(x(tick), y(1));
    context.moveTo(x(0), y(tick));
    context.lineTo(x(1), y(tick));
    context.stroke();
    context.fillStyle = colours.muted;
    context.textAlign = "center";
    context.fillText(tick, x(tick), y(0) + 15);
    context.textAlign = "right";
    context.fillText(tick, x(0) - 6, y(tick) + 4);
  }
  context.fillStyle = colours.text;
  context.textAlign = "center";
  context.fillText("IoU with its object →", x(0.5), y(0) + 31);
  context.save();
  context.translate(11, y(0.5));
  context.rotate(-Math.PI / 2);
  context.fillText("score →", 0, 0);
  context.restore();
  context.textAlign = "left";
  context.strokeStyle = colours.muted;
  context.setLineDash([2, 3]);
  context.beginPath();
  context.moveTo(x(0), y(scoreThreshold));
  context.lineTo(x(1), y(scoreThreshold));
  context.stroke();
  context.setLineDash([]);
}

function disc(path, x, y) {
  path.moveTo(x + 4.5, y);
  path.arc(x, y, 4.5, 0, 2 * Math.PI);
}

function triangle(path, x, y) {
  path.moveTo(x, y - 6);
  path.lineTo(x + 5.5, y + 4);
  path.lineTo(x - 5.5, y + 4);
  path.closePath();
}

/** A cross at each point. Drawn once and copied: stroking thousands would take longer than a frame. */
function stampCrosses(context, points, colour) {
  const ratio = window.devicePixelRatio || 1;
  const stamp = document.createElement("canvas");
  stamp.width = stamp.height = Math.ceil(8 * ratio);
  const pen = stamp.getContext("2d");
  pen.scale(ratio, ratio);
  pen.strokeStyle = colour;
  pen.lineWidth = 1.2;
  pen.stroke(new Path2D("M1.5 1.5L6.5 6.5M1.5 6.5L6.5 1.5"));
  context.save();
  context.setTransform(1, 0, 0, 1, 0, 0); // at whole pixels, which need no resampling
  for (const [x, y] of points) {
    context.drawImage(stamp, Math.round((x - 4) * ratio), Math.round((y - 4) * ratio));
  }
  context.restore();
}

function fillMarks(context, points, mark, colour, edge) {
  const path = new Path2D();
  for (const [x, y] of points) mark(path, x, y);
  context.fillStyle = colour;
  context.fill(path);
  context.strokeStyle = edge;
  context.lineWidth = 1;
  context.stroke(path);
}

/** The shown candidate whose point is nearest to (x, y) in CSS pixels, or -1. */
function candidateNearPoint(canvas, scene, x, y) {
  const scale = scatterScale(canvas);
  let nearest = -1;
  let best = PICK_DISTANCE + 4;
  for (const i of scene.ranked.filter(scene.isShown)) {
    const distance = Math.hypot(scale.x(scene.match.ious[i]) - x, scale.y(scene.scores[i]) - y);
    if (distance < best) [nearest, best] = [i, distance];
  }
  return nearest;
}
