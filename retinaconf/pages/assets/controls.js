/** The explorer's controls: three sliders and the strip of images. */

/** Connect the sliders to `state`; `show` writes the state into them. */
function connectSliders(root, data, state, update) {
  const settings = ["alpha", "nmsIou", "scoreThreshold"];
  const slider = Object.fromEntries(settings.map((name) => [name, root.querySelector(`input[name=${name}]`)]));
  const initial = { ...state };
  // Where the slider of alpha stands while the detectors' own scores are shown: at the alpha that orders boxes alike.
  const ownAlpha = data.detectors.find((detector) => detector.has_quality)?.own_score.alpha ?? 0;
  const words = (name) => {
    if (state[name] === null) return "own score";
    return name === "scoreThreshold" ? state[name].toFixed(3) : state[name].toFixed(2);
  };
  const show = () => {
    for (const name of settings) {
      slider[name].value = state[name] ?? ownAlpha;
      const text = words(name);
      root.querySelector(`output[for=${slider[name].id}]`).textContent = text;
      slider[name].setAttribute("aria-valuetext", text);
    }
  };
  for (const name of settings) {
    slider[name].addEventListener("input", () => {
      state[name] = Number(slider[name].value);
      update();
      show();
    });
  }
  const formulas = data.detectors.map(({ name, own_score }) =>
    data.detectors.length > 1 ? `${name}: ${own_score.formula}.` : `Own score: ${own_score.formula}.`,
  );
  root.querySelector(".own-score").textContent = formulas.join(" ");
  const without = data.detectors.filter((detector) => !detector.has_quality).map((detector) => detector.name);
  slider.alpha.disabled = without.length === data.detectors.length;
  if (without.length) {
    const note = root.querySelector(".alpha-note");
    note.classList.add("important");
    note.textContent = slider.alpha.disabled
      ? "Not available: alpha mixes a class score with a quality score, and these candidates carry one score only."
      : `Does not change ${without.join(", ")}, which gives one score only.`;
  }
  root.querySelector(".reset").addEventListener("click", () => {
    for (const name of settings) state[name] = initial[name];
    show();
    update();
  });
  show();
  return { show };
}

/** A file's name in pieces between which a line may break: behind a separator, or before the extension. */
function breakable(name) {
  const pieces = name.split(/(?<=[/_-])|(?=\.[^.]*$)/);
  return pieces.flatMap((piece, k) => (k ? [document.createElement("wbr"), piece] : [piece]));
}

/** The strip of images, worst first: a listbox that arrows, Home, End and the search field work on. */
function createFilmstrip(root, data, chooseImage) {
  const strip = root.querySelector(".filmstrip");
  const search = root.querySelector(".search");
  const options = data.images.map((image, index) => {
    const option = document.createElement("div");
    option.setAttribute("role", "option");
    option.id = `image-${index}`;
    const picture = document.createElement("div");
    picture.className = "thumbnail";
    if (image.jpeg) {
      const element = new Image();
      element.loading = "lazy";
      element.alt = "";
      element.src = `data:image/jpeg;base64,${image.jpeg}`;
      picture.append(element);
    }
    const name = Object.assign(document.createElement("div"), { className: "file" });
    name.append(...breakable(image.name));
    const note = Object.assign(document.createElement("div"), { className: "loss", textContent: image.note });
    option.title = image.name;
    option.append(picture, name, note);
    option.addEventListener("click", () => choose(index));
    return option;
  });
  strip.replaceChildren(...options);

  function choose(index) {
    for (const [k, option] of options.entries()) {
      option.setAttribute("aria-selected", k === index);
      option.tabIndex = k === index ? 0 : -1;
    }
    const { offsetLeft, offsetWidth } = options[index]; // scrollIntoView would move the page, too
    strip.scrollLeft = offsetLeft - strip.offsetLeft - (strip.clientWidth - offsetWidth) / 2;
    chooseImage(index);
  }

  strip.addEventListener("keydown", (event) => {
    const shown = options.filter((option) => !option.hidden);
    const now = shown.indexOf(document.activeElement);
    const last = shown.length - 1;
    const next = {
      ArrowRight: Math.min(now + 1, last),
      ArrowDown: Math.min(now + 1, last),
      ArrowLeft: Math.max(now - 1, 0),
      ArrowUp: Math.max(now - 1, 0),
      Home: 0,
      End: last,
    }[event.key];
    if (next === undefined || last < 0) return;
    event.preventDefault();
    choose(options.indexOf(shown[next]));
    shown[next].focus();
  });
  search.addEventListener("input", () => {
    const wanted = search.value.trim().toLowerCase();
    const matches = ({ name, labels }) =>
      [name, ...labels.map((label) => data.classes[label])].some((text) => text.toLowerCase().includes(wanted));
    for (const [k, option] of options.entries()) option.hidden = !matches(data.images[k]);
    const shown = options.filter((option) => !option.hidden);
    const found = [`${shown.length} of ${options.length} images`];
    if (data.others.length) {
      found.push(`${data.others.filter(matches).length} of the ${data.others.length} that are not in this page`);
    }
    root.querySelector(".found").textContent = wanted ? found.join(", ") : "";
    root.querySelector(".offered").hidden = wanted !== "";
    if (shown.length && !shown.some((option) => option.tabIndex === 0)) shown[0].tabIndex = 0;
  });
  return { choose };
}
