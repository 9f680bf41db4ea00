/** A panel: one detector's picture, scatter and numbers; and what a person does in it. */

/** The page's colours as the present theme resolves them, for the canvases. */
function readColours(root) {
  const boxes = ["kept", "suppressed", "truth", "halo", "veil", "veil-surface"];
  const names = [...boxes, "blank", "surface", "grid", "text", "muted"];
  const camel = (name) => name.replace(/-(.)/, (_, letter) => letter.toUpperCase());
  const probe = root.appendChild(document.createElement("span"));
  const resolve = (name) => {
    probe.style.color = `var(--${name})`;
    return getComputedStyle(probe).color;
  };
  const colours = Object.fromEntries(names.map((name) => [camel(name), resolve(name)]));
  probe.remove();
  return colours;
}

/** A new panel in the page from the template. */
function createPanel(root, detector, index, count) {
  const element = root.querySelector("template").content.firstElementChild.cloneNode(true);
  element.querySelector(".panel-name").textContent = detector.name;
  element.querySelector(".panel-name").hidden = count === 1;
  root.querySelector(".panels").append(element);
  root.querySelector(".panels").classList.toggle("two", count > 1);
  const scatter = element.querySelector(".scatter");
  scatter.setAttribute("aria-label", `${detector.name}: score against IoU`);
  return {
    index,
    name: detector.name,
    element,
    picture: element.querySelector(".picture"),
    scatter,
    detail: element.querySelector(".detail"),
    numbers: element.querySelector(".numbers"),
    shownNumbers: {}, // the elements of their values, by name
    scene: null,
  };
}

/** A candidate in words: class, score, the confidence that a tuned detector gives with its own score, IoU. */
function boxWords({ classes, candidates, scores, match }, i) {
  const fit = match.object[i] < 0 ? "on no object of its class" : `IoU ${match.ious[i].toFixed(2)}`;
  const isTuned = candidates.confidence && scores === candidates.scores;
  const confidence = isTuned ? `, confidence ${candidates.confidence[i].toFixed(2)}` : "";
  return `${classes[candidates.labels[i]]}, score ${scores[i].toFixed(2)}${confidence}, ${fit}`;
}

/** Show a text, and leave the page's layout alone where it stands already. */
function setText(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

/** An element of this kind with a text in it. */
function textElement(tag, text) {
  return Object.assign(document.createElement(tag), { textContent: text });
}

/** The panel's numbers at the present settings. */
function writeNumbers(panel) {
  const { outcome, losses, suppressed, match, scores, ranked, candidates, foundIou } = panel.scene;
  const found = losses.filter((row) => row.bestIou >= foundIou);
  const mean = (values) => values.reduce((sum, value) => sum + value, 0) / values.length;
  const onObjects = ranked.filter((i) => match.ious[i] >= foundIou);
  const text = (value) => (Number.isFinite(value) ? value.toFixed(3) : "–");
  const numbers = {
    kept: `${outcome.kept.length}`,
    suppressed: suppressed.length.toLocaleString("en"),
    "objects found": `${found.length} of ${losses.length}`,
    "mean IoU kept": text(mean(found.map((row) => row.keptIou))),
    "mean best IoU": text(mean(found.map((row) => row.bestIou))),
    "IoU lost": text(mean(found.map((row) => row.lost))),
    "rank correlation": text(spearman(scores, match.ious, onObjects)),
  };
  for (const [name, value] of Object.entries(numbers)) {
    panel.shownNumbers[name] ??= addNumber(panel.numbers, name);
    setText(panel.shownNumbers[name], value);
  }
  const leftOut = panel.element.querySelector(".left-out");
  leftOut.hidden = !candidates.left_out;
  const count = candidates.left_out.toLocaleString("en");
  leftOut.textContent = `${count} candidates with lower scores are not in this page.`;
}

/** A new line of a list of numbers; returns the element for its value. */
function addNumber(list, name) {
  const item = document.createElement("div");
  const value = document.createElement("dd");
  item.append(textElement("dt", name), value);
  list.append(item);
  return value;
}

/** A new table of the image's objects, most IoU lost first, a row a button that marks its object. */
function fillObjectTable(table, panels, objects, classes, choose) {
  const worst = (object) => Math.max(...panels.map(({ scene }) => lossOf(scene, object).lost));
  const order = panels[0].scene.losses.map((row) => row.object).sort((a, b) => worst(b) - worst(a) || a - b);

  const head = document.createElement("tr");
  head.append(textElement("th", "Object"));
  for (const panel of panels) {
    const prefix = panels.length > 1 ? `${panel.name}: ` : "";
    head.append(...["kept IoU", "best IoU", "lost"].map((name) => textElement("th", `${prefix}${name}`)));
  }
  for (const th of head.cells) th.scope = "col";
  table.querySelector("thead").replaceChildren(head);
  table.querySelector("tbody").replaceChildren(
    ...order.map((object) => {
      const row = document.createElement("tr");
      row.dataset.object = object;
      const button = textElement("button", `${classes[objects.labels[object]]} ${object + 1}`);
      button.type = "button";
      button.addEventListener("click", () => choose(object));
      const name = document.createElement("th");
      name.scope = "row";
      name.append(button);
      row.append(name, ...panels.flatMap(() => ["", "", ""].map((text) => textElement("td", text))));
      return row;
    }),
  );
}

/** Each object's IoU at the present settings, in the rows that stand; they keep their order, to be followed by eye. */
function writeObjectTable(table, panels) {
  for (const row of table.querySelector("tbody").rows) {
    const values = panels.flatMap(({ scene }) => {
      const loss = lossOf(scene, Number(row.dataset.object));
      const lost = loss.bestIou >= scene.foundIou ? loss.lost.toFixed(2) : "not found";
      return [loss.keptIou.toFixed(2), loss.bestIou.toFixed(2), lost];
    });
    for (const [k, value] of values.entries()) setText(row.cells[k + 1], value);
  }
}

function lossOf(scene, object) {
  return scene.losses.find((row) => row.object === object);
}

/** Pointer and keyboard on a canvas: hover shows, click or arrows pin, Escape lets go. */
function connectCanvas(canvas, panel, state, candidateNear, draw) {
  const at = (event) => candidateNear(canvas, panel.scene, event.offsetX, event.offsetY);
  const chosen = (candidate) => (candidate < 0 ? null : { panel: panel.index, candidate });
  canvas.addEventListener("pointermove", (event) => {
    if (event.pointerType === "touch") return;
    const candidate = at(event);
    if (candidate === (state.hovered?.candidate ?? -1)) return;
    state.hovered = chosen(candidate);
    draw();
  });
  canvas.addEventListener("pointerleave", () => {
    if (!state.hovered) return;
    state.hovered = null;
    draw();
  });
  canvas.addEventListener("click", (event) => {
    state.pinned = chosen(at(event));
    draw();
  });
  canvas.addEventListener("keydown", (event) => {
    const { match, ranked, isShown } = panel.scene;
    const sorted = ranked.filter(isShown);
    if (canvas === panel.scatter) sorted.sort((i, j) => match.ious[i] - match.ious[j]);
    const now = state.pinned?.panel === panel.index ? sorted.indexOf(state.pinned.candidate) : -1;
    const last = sorted.length - 1;
    const next = {
      ArrowRight: Math.min(now + 1, last),
      ArrowDown: Math.min(now + 1, last),
      ArrowLeft: Math.max(now - 1, 0),
      ArrowUp: Math.max(now - 1, 0),
      Home: 0,
      End: last,
      Escape: -1,
    }[event.key];
    if (next === undefined || (last < 0 && next !== -1)) return;
    event.preventDefault();
    state.hovered = null;
    state.pinned = next < 0 ? null : chosen(sorted[next]);
    draw();
  });
}
