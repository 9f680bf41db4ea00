/**
 * The explorer: settings -> NMS -> picture, scatter and numbers, for one detector or two side by side.
 *
 * `state` is all that a person can change; `compute` makes a panel's `scene` from it; `draw` shows the scenes. A
 * setting's event runs compute and draw at once, a hover only draw.
 */

const CASUALTY = 0.01; // IoU that an object must have lost before its suppressed box is marked

/** Build the explorer inside `root` from the page's data; returns a small handle for scripts and tests. */
function createExplorer(root, data) {
  const find = (selector) => root.querySelector(selector);
  const initial = data.settings;
  const state = {
    image: 0,
    alpha: initial.alpha, // null: each detector's own score
    nmsIou: initial.nms_iou,
    scoreThreshold: initial.score_threshold,
    label: -1, // show one class only; NMS is not touched
    shows: { kept: true, suppressed: true, objects: true },
    pinned: null, // {panel, candidate} or {object}
    hovered: null,
  };
  const panels = data.detectors.map((detector, index) => createPanel(root, detector, index, data.detectors.length));
  let colours = readColours(root);

  /** What a panel shows at the present settings. */
  function compute(panel) {
    const { objects, candidates: all } = unpackImage(data, state.image);
    const candidates = all[panel.index];
    const image = data.images[state.image];
    candidates.match ??= matchToObjects(candidates, objects);
    const { match } = candidates;
    const scores = jointScores(candidates, state.alpha);
    const limits = [state.nmsIou, state.scoreThreshold, initial.max_detections];
    const outcome = nonMaximumSuppression(candidates, scores, ...limits);
    const rows = [...outcome.status.keys()];
    const losses = objectLosses(match, objects, outcome.status);
    const isVisibleLabel = (label) => state.label < 0 || label === state.label;
    const isVisible = (i) => isVisibleLabel(candidates.labels[i]);
    const taking = rows.filter((i) => outcome.status[i] !== BELOW);
    panel.scene = {
      classes: data.classes,
      width: image.width,
      picture: image.element,
      objects,
      candidates,
      match,
      scores,
      outcome,
      losses,
      foundIou: initial.object_iou, // an object is found by a box of this IoU or more
      casualties: losses.filter((row) => row.lost > CASUALTY && row.bestIou >= initial.object_iou),
      suppressed: rows.filter((i) => outcome.status[i] === SUPPRESSED || outcome.status[i] === CUT),
      ranked: taking.sort((i, j) => scores[j] - scores[i] || i - j),
      scoreThreshold: state.scoreThreshold,
      shows: state.shows,
      isVisibleLabel,
      isVisible,
      isShown: (i) => isVisible(i) && (outcome.status[i] === KEPT ? state.shows.kept : state.shows.suppressed),
    };
  }

  /** What to emphasise in a panel: {candidates, victims, object}, or null. */
  function focusIn(panel) {
    const chosen = state.hovered ?? state.pinned;
    if (!chosen) return null;
    const { outcome, match } = panel.scene;
    if (chosen.panel === panel.index) {
      const i = chosen.candidate;
      const rival = outcome.suppressor[i];
      const victims = panel.scene.suppressed.filter((k) => outcome.suppressor[k] === i);
      return { candidates: rival >= 0 ? [rival, i] : [i], victims, object: match.object[i] };
    }
    const object = chosen.object ?? panels[chosen.panel].scene.match.object[chosen.candidate];
    const row = lossOf(panel.scene, object);
    if (!row) return null;
    const candidates = [...new Set([row.kept, row.best])].filter((i) => i >= 0);
    return { candidates, victims: [], object };
  }

  function draw() {
    for (const panel of panels) {
      const focus = focusIn(panel);
      drawPicture(panel.picture, panel.scene, focus, colours);
      drawScatter(panel.scatter, panel.scene, focus, colours);
    }
    // Text comes last: to ask a canvas for its size once text has changed lays out the whole page.
    for (const panel of panels) setText(panel.detail, describeFocus(panel));
    const pinned = state.pinned?.object ?? -1;
    for (const row of find(".objects tbody").rows) {
      row.classList.toggle("chosen", Number(row.dataset.object) === pinned);
    }
  }

  /** The focused candidate in words. */
  function describeFocus(panel) {
    const chosen = state.hovered ?? state.pinned;
    if (!chosen) return "Point at a box or a dot, or press Tab and the arrow keys.";
    const { candidates, match, outcome, scores, ranked } = panel.scene;
    if (chosen.panel !== panel.index) {
      const focus = focusIn(panel);
      if (!focus) return "";
      const kept = focus.candidates.find((i) => outcome.status[i] === KEPT);
      const best = focus.candidates.find((i) => outcome.status[i] !== KEPT);
      const parts = [kept === undefined ? "No box is kept for this object." : `Kept: ${boxWords(panel.scene, kept)}.`];
      if (best !== undefined) parts.push(`Best-placed of all: ${boxWords(panel.scene, best)}.`);
      return parts.join(" ");
    }
    const i = chosen.candidate;
    const parts = [`${ranked.indexOf(i) + 1} of ${ranked.length} by score: ${boxWords(panel.scene, i)}.`];
    if (candidates.quality) {
      parts.push(`Class score ${candidates.classScores[i].toFixed(2)}, quality ${candidates.quality[i].toFixed(2)}.`);
    }
    const rival = outcome.suppressor[i];
    if (outcome.status[i] === KEPT) {
      const victims = outcome.suppressor.filter((k) => k === i).length;
      parts.push(victims ? `Kept; it suppressed ${victims}.` : "Kept.");
    } else if (rival >= 0) {
      const gap = match.object[rival] === match.object[i] ? match.ious[i] - match.ious[rival] : 0;
      const verdict = gap > CASUALTY ? ` This one fits better, by ${gap.toFixed(2)}.` : "";
      parts.push(`Suppressed by ${boxWords(panel.scene, rival)}.${verdict}`);
    } else if (outcome.status[i] === CUT) {
      parts.push(`Cut: ${initial.max_detections} better-scored boxes are kept.`);
    }
    return parts.join(" ");
  }

  /** Everything that follows from a setting. */
  function update() {
    for (const panel of panels) compute(panel);
    for (const { index, scene } of panels) {
      const candidate = state.pinned?.panel === index ? state.pinned.candidate : -1;
      const isGone = candidate >= 0 && (!scene.isShown(candidate) || scene.outcome.status[candidate] === BELOW);
      if (isGone) state.pinned = null;
    }
    draw();
    for (const panel of panels) writeNumbers(panel);
    writeObjectTable(find(".objects"), panels);
  }

  function chooseImage(index) {
    state.image = index;
    state.pinned = state.hovered = null;
    const image = data.images[index];
    for (const panel of panels) {
      panel.picture.style.aspectRatio = `${image.width} / ${image.height}`;
      panel.picture.style.maxWidth = `calc(72vh * ${image.width / image.height})`;
      panel.picture.setAttribute("aria-label", `${panel.name}: boxes in ${image.name}`);
    }
    find(".image-name").textContent = image.name;
    fillClassFilter();
    for (const panel of panels) compute(panel);
    const { objects } = unpackImage(data, index);
    fillObjectTable(find(".objects"), panels, objects, data.classes, (object) => {
      state.pinned = state.pinned?.object === object ? null : { object };
      draw();
    });
    update();
    if (image.jpeg && !image.element) {
      const element = new Image();
      element.src = `data:image/jpeg;base64,${image.jpeg}`;
      element.decode().then(() => {
        image.element = element;
        if (state.image === index) update();
      });
    }
  }

  function fillClassFilter() {
    const { objects, candidates } = unpackImage(data, state.image);
    const present = new Set([...objects.labels, ...candidates.flatMap((columns) => [...columns.labels])]);
    if (!present.has(state.label)) state.label = -1;
    const option = (value, text) => Object.assign(document.createElement("option"), { value, textContent: text });
    const options = [...present].sort((a, b) => a - b).map((label) => option(label, data.classes[label]));
    find(".class-filter").replaceChildren(option(-1, "All classes"), ...options);
    find(".class-filter").value = state.label;
  }

  /** Show an object of an image with the boxes that score at least `score`, by the detectors' own scores. */
  function openObject(image, object, score) {
    const step = Number(find("input[name=scoreThreshold]").step);
    const below = step * Math.floor(score / step - 1e-3);
    Object.assign(state, { alpha: initial.alpha, nmsIou: initial.nms_iou, label: -1 });
    state.scoreThreshold = Math.max(0, Math.min(initial.score_threshold, below));
    filmstrip.choose(image);
    sliders.show();
    state.pinned = { object };
    draw();
    find(".panels").scrollIntoView();
    panels[0].picture.focus({ preventScroll: true });
  }

  const sliders = connectSliders(root, data, state, update);
  const filmstrip = createFilmstrip(root, data, chooseImage);

  find(".class-filter").addEventListener("change", (event) => {
    state.label = Number(event.target.value);
    update();
  });
  for (const box of root.querySelectorAll(".shows input")) {
    box.addEventListener("change", () => {
      state.shows[box.name] = box.checked;
      update();
    });
  }
  for (const panel of panels) {
    connectCanvas(panel.picture, panel, state, candidateNearEdge, draw);
    connectCanvas(panel.scatter, panel, state, candidateNearPoint, draw);
  }
  new ResizeObserver(() => panels[0].scene && draw()).observe(root);
  const recolour = () => {
    colours = readColours(root);
    draw();
  };
  new MutationObserver(recolour).observe(document.documentElement, { attributeFilter: ["data-theme"] });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", recolour);

  filmstrip.choose(0);

  return {
    state,
    openObject,
    /** Show image `image` with these settings; those left out stay. */
    set({ image = state.image, ...settings }) {
      Object.assign(state, settings);
      sliders.show();
      if (image === state.image) update();
      else filmstrip.choose(image);
    },
    /** Indices of the kept candidates of a detector, best first. */
    kept: (detector = 0) => panels[detector].scene.outcome.kept,
    panels,
    scatterScale,
  };
}
