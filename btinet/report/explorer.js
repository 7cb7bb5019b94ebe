// The sample explorer: filters and sorts the rows of #explorer-data, and shows them in a grid that holds only the cards
// in view. A row is one test image of one run. Pictures come in chunks, from this page or from scripts beside it.
"use strict";
(() => {
  const data = JSON.parse(document.getElementById("explorer-data").textContent);
  const { columns, levels, runs } = data;
  const count = columns.run.length;
  const form = document.getElementById("explorer");
  const grid = document.getElementById("explorer-grid");
  const sheet = grid.firstElementChild;
  const dialog = document.getElementById("explorer-sample");
  const status = document.getElementById("explorer-count");
  const field = (name) => form.elements[name];

  const FAILED = 0.5; // IoU below it is a failed segmentation
  const TRUTH = [25, 195, 125];
  const PREDICTION = [255, 138, 31];
  const CARD = 172; // least width of a card, px
  const BENEATH = 96; // height of a card's text and bars, px

  let shown = []; // rows that pass the filters, sorted
  let active = 0; // position in shown
  let across = 1; // cards in a row

  // Values

  const cache = new Map();

  /** A quantity's value for every row, NaN where there is none; "w_seg.1" is the signal w_seg at level D2. */
  function values(key) {
    if (!cache.has(key)) {
      const [name, level] = key.split(".");
      const found = new Float64Array(count);
      for (let row = 0; row < count; row++) {
        const value = level === undefined ? columns[name][row] : columns[name][row * levels.length + Number(level)];
        found[row] = value ?? NaN;
      }
      cache.set(key, found);
    }
    return cache.get(key);
  }

  /** Lowest and highest value of a signal at any level. */
  function extent(name) {
    const key = `extent of ${name}`;
    if (!cache.has(key)) {
      const range = [Infinity, -Infinity];
      for (const value of columns[name]) {
        if (value !== null) {
          range[0] = Math.min(range[0], value);
          range[1] = Math.max(range[1], value);
        }
      }
      cache.set(key, range);
    }
    return cache.get(key);
  }

  const iou = values("iou" in data.quantities ? "iou" : "gt_area");
  const isLesion = (row) => columns.lesion[row];
  const hasFailed = (row) => isLesion(row) && iou[row] < FAILED;
  const classifies = (row) => columns.predicted[row] !== null;
  const isWrong = (row) => classifies(row) && columns.predicted[row] !== columns.truth[row];
  const run = (row) => runs[columns.run[row]];
  const id = (row) => data.ids[columns.sample[row]];
  const className = (row, label) => run(row).classes[label];
  const runName = ({ dataset, method, variant, seed }) => `${dataset} · ${method} · ${variant} · seed ${seed}`;

  function number(value) {
    if (value === null || Number.isNaN(value)) return "–";
    return String(Number(value.toPrecision(3))).replace("-", "−");
  }

  function label(key) {
    const [name, level] = key.split(".");
    return level === undefined ? data.quantities[name] : `${data.signals[name]} ${levels[level]}`;
  }

  // Filters and order

  const OUTCOMES = {
    "class-right": (row) => classifies(row) && !isWrong(row),
    "class-wrong": isWrong,
    "seg-failed": hasFailed,
    "seg-good": (row) => isLesion(row) && iou[row] >= FAILED,
    "no-lesion": (row) => !isLesion(row),
  };

  /** Tests that a row must pass, each only where something is asked for. */
  function tests() {
    const wanted = [];
    for (const name of ["dataset", "method", "variant", "seed"]) {
      const value = field(name).value;
      if (value) {
        const fits = runs.map((entry) => String(entry[name]) === value);
        wanted.push((row) => fits[columns.run[row]]);
      }
    }
    if (field("outcome").value) wanted.push(OUTCOMES[field("outcome").value]);
    const search = field("search").value.toLowerCase();
    if (search) wanted.push((row) => id(row).toLowerCase().includes(search));
    for (const [name, key] of [["iou", "iou"], ["signal", field("signal").value]]) {
      const [from, to] = [field(`${name}-from`).value, field(`${name}-to`).value];
      if (from !== "") wanted.push((row) => values(key)[row] >= Number(from));
      if (to !== "") wanted.push((row) => values(key)[row] <= Number(to));
    }
    return wanted;
  }

  function update() {
    const wanted = tests();
    const rows = [];
    for (let row = 0; row < count; row++) {
      if (wanted.every((test) => test(row))) rows.push(row);
    }
    const by = values(field("sort").value);
    const direction = Number(field("direction").value);
    rows.sort((a, b) => {
      const [first, second] = [by[a], by[b]];
      if (Number.isNaN(first) || Number.isNaN(second)) return Number.isNaN(first) - Number.isNaN(second) || a - b;
      return direction * (first - second) || a - b;
    });
    shown = rows;
    active = 0;
    status.textContent = `${rows.length.toLocaleString("en")} of ${count.toLocaleString("en")} samples, by `
      + `${label(field("sort").value)}, ${direction < 0 ? "highest" : "lowest"} first`;
    grid.scrollTop = 0;
    layOut();
  }

  // Pictures

  const chunks = new Map(); // name -> promise of its pictures
  const arriving = new Map(); // name -> what resolves that promise

  /** Called by the scripts beside the page. */
  window.explorerPictures = (name, pictures) => arriving.get(name)(pictures);

  function chunk(name) {
    if (!chunks.has(name)) {
      chunks.set(name, new Promise((resolve, reject) => {
        if (data.folder === null) {
          resolve(JSON.parse(document.getElementById(`explorer-${name}`).textContent));
          return;
        }
        arriving.set(name, resolve);
        const script = document.createElement("script");
        script.src = `${data.folder}/${name}.js`;
        script.onerror = () => reject(new Error(`${script.src} is not there`));
        document.head.append(script);
      }));
    }
    return chunks.get(name);
  }

  async function pictures(kind, entry) {
    const starts = data.chunks[kind];
    let number = starts.length - 1;
    while (starts[number] > entry) number--;
    return (await chunk(`${kind}-${number}`))[entry - starts[number]];
  }

  async function decoded(base64, type) {
    if (base64 === null) return null;
    const image = new Image();
    image.src = `data:image/${type};base64,${base64}`;
    await image.decode();
    return image;
  }

  /** Grey values of a picture, one a pixel. */
  function greys(image) {
    const context = surface(image.width, image.height).getContext("2d", { willReadFrequently: true });
    context.drawImage(image, 0, 0);
    const { data: pixels } = context.getImageData(0, 0, image.width, image.height);
    return Uint8Array.from({ length: pixels.length / 4 }, (_, index) => pixels[4 * index]);
  }

  function surface(width, height) {
    const canvas = document.createElement("canvas");
    canvas.width = width;
    canvas.height = height;
    return canvas;
  }

  /** A canvas of the size of ``image``; ``colour`` writes [r, g, b, a] of a pixel into the four places it is given. */
  function painted(image, colour) {
    const canvas = surface(image.width, image.height);
    const context = canvas.getContext("2d");
    const pixels = context.createImageData(image.width, image.height);
    for (let index = 0; index < image.width * image.height; index++) colour(index, pixels.data, 4 * index);
    context.putImageData(pixels, 0, 0);
    return canvas;
  }

  /** A mask's area and its outline, just inside, in one colour. */
  function maskLayers(image, [red, green, blue]) {
    const mask = greys(image);
    const { width, height } = image;
    const isEdge = (index) => {
      const [x, y] = [index % width, Math.floor(index / width)];
      return x === 0 || y === 0 || x === width - 1 || y === height - 1
        || !mask[index - 1] || !mask[index + 1] || !mask[index - width] || !mask[index + width];
    };
    const filled = (isPart) => painted(image, (index, pixels, at) => {
      if (!mask[index] || !isPart(index)) return;
      pixels[at] = red;
      pixels[at + 1] = green;
      pixels[at + 2] = blue;
      pixels[at + 3] = 255;
    });
    return { area: filled(() => true), outline: filled(isEdge) };
  }

  /** Violet to yellow, more opaque where the variance is higher; grey values are 510 * its square root. */
  function varianceLayer(image) {
    const grey = greys(image);
    const scale = [[75, 29, 145], [214, 51, 108], [255, 212, 59]];
    return painted(image, (index, pixels, at) => {
      const place = grey[index] / 127.5;
      const low = Math.min(1, Math.floor(place));
      for (let channel = 0; channel < 3; channel++) {
        const [from, to] = [scale[low][channel], scale[low + 1][channel]];
        pixels[at + channel] = from + (place - low) * (to - from);
      }
      pixels[at + 3] = Math.min(255, 2.5 * grey[index]);
    });
  }

  const layered = new Map(); // row -> promise of its layers; the oldest are forgotten
  function layers(row) {
    if (!layered.has(row)) {
      if (layered.size > 300) layered.delete(layered.keys().next().value);
      layered.set(row, (async () => {
        const [[photo, truth], [prediction, variance]] = await Promise.all([
          pictures("in", columns.sample[row]), pictures("out", row),
        ]);
        const images = await Promise.all([
          decoded(photo, "jpeg"), decoded(truth, "png"), decoded(prediction, "png"), decoded(variance, "png"),
        ]);
        return {
          photo: images[0],
          truth: images[1] && maskLayers(images[1], TRUTH),
          prediction: images[2] && maskLayers(images[2], PREDICTION),
          variance: images[3] && varianceLayer(images[3]),
        };
      })());
    }
    return layered.get(row);
  }

  async function draw(canvas, row) {
    canvas.dataset.row = row;
    const found = await layers(row);
    if (canvas.dataset.row !== String(row)) return; // meanwhile it shows another
    const size = found.photo?.width ?? found.prediction?.area.width ?? 1;
    canvas.width = canvas.height = size;
    const context = canvas.getContext("2d");
    const put = (image, opacity) => {
      context.globalAlpha = opacity;
      context.drawImage(image, 0, 0, size, size);
    };
    const opacity = Number(field("opacity").value);
    if (found.photo) put(found.photo, 1);
    if (found.variance && field("variance").checked) put(found.variance, Math.min(1, 2 * opacity));
    if (found.prediction && field("prediction").checked) {
      put(found.prediction.area, 0.6 * opacity);
      put(found.prediction.outline, 1);
    }
    if (found.truth && field("truth").checked) put(found.truth.outline, 1);
    canvas.dataset.drawn = row;
  }

  // The grid

  const cards = new Map(); // position in shown -> its card

  function layOut() {
    across = Math.max(1, Math.floor(grid.clientWidth / CARD));
    for (const card of cards.values()) card.remove();
    cards.clear();
    sheet.style.height = `${Math.ceil(shown.length / across) * cardHeight()}px`;
    fill();
  }

  const cardWidth = () => Math.floor(grid.clientWidth / across);
  const cardHeight = () => cardWidth() + BENEATH - 10;

  /** Make the cards in view, and one row on either side; remove the others. */
  function fill() {
    const first = Math.max(0, Math.floor(grid.scrollTop / cardHeight()) - 1) * across;
    const last = Math.min(shown.length, (Math.ceil((grid.scrollTop + grid.clientHeight) / cardHeight()) + 1) * across);
    for (const [position, card] of cards) {
      if (position < first || position >= last) {
        card.remove();
        cards.delete(position);
      }
    }
    for (let position = first; position < last; position++) {
      if (!cards.has(position)) {
        const card = makeCard(position);
        cards.set(position, card);
        sheet.append(card);
      }
    }
    markActive();
  }

  function element(tag, properties = {}, ...children) {
    const made = Object.assign(document.createElement(tag), properties);
    made.append(...children);
    return made;
  }

  const iouText = (row) => isLesion(row) ? `IoU ${number(iou[row])}` : "no lesion";
  const iouMark = (row) => isLesion(row) ? (hasFailed(row) ? "bad" : "good") : "";

  function classText(row) {
    const truth = className(row, columns.truth[row]);
    if (!classifies(row)) return truth;
    return isWrong(row) ? `${truth} ✗ ${className(row, columns.predicted[row])}` : `${truth} ✓`;
  }

  function makeCard(position) {
    const row = shown[position];
    const signal = field("signal").value;
    const canvas = element("canvas");
    canvas.setAttribute("aria-hidden", "true");
    const card = element("div", { className: "card", id: `sample-${position}` },
      canvas,
      element("p", { className: "name", title: `${id(row)} · ${runName(run(row))}` }, id(row)),
      element("p", { className: "verdict" },
        element("span", { className: iouMark(row) }, iouText(row)),
        element("span", {}, `${number(values(signal)[row])}`)),
      element("p", { className: isWrong(row) ? "bad" : "", title: classText(row) }, classText(row)),
      bars(row, signal));
    card.setAttribute("role", "option");
    card.setAttribute("aria-setsize", shown.length);
    card.setAttribute("aria-posinset", position + 1);
    card.setAttribute("aria-label", `${id(row)}, ${runName(run(row))}, ${iouText(row)}, ${classText(row)}, `
      + `${label(signal)} ${number(values(signal)[row])}`);
    card.style.width = `${cardWidth()}px`;
    card.style.height = `${cardHeight()}px`;
    card.style.transform = `translate(${(position % across) * cardWidth()}px, `
      + `${Math.floor(position / across) * cardHeight()}px)`;
    draw(canvas, row);
    return card;
  }

  /** The signal at every level of a row, from its lowest to its highest value; nothing for what has no levels. */
  function bars(row, key) {
    const [name, chosen] = key.split(".");
    const made = element("div", { className: "bars" });
    made.setAttribute("aria-hidden", "true");
    if (chosen === undefined) return made;
    const [low, high] = extent(name);
    levels.forEach((level, index) => {
      const value = values(`${name}.${index}`)[row];
      const bar = element("i", { title: `${label(`${name}.${index}`)}: ${number(value)}` });
      bar.style.height = `${Number.isNaN(value) ? 0 : 100 * (value - low) / (high - low || 1)}%`;
      bar.classList.toggle("chosen", index === Number(chosen));
      made.append(bar);
    });
    return made;
  }

  function markActive() {
    for (const [position, card] of cards) card.setAttribute("aria-selected", position === active);
    if (cards.has(active)) grid.setAttribute("aria-activedescendant", `sample-${active}`);
    else grid.removeAttribute("aria-activedescendant");
  }

  function moveTo(position) {
    if (!shown.length) return;
    active = Math.min(shown.length - 1, Math.max(0, position));
    const top = Math.floor(active / across) * cardHeight();
    if (top < grid.scrollTop) grid.scrollTop = top;
    if (top + cardHeight() > grid.scrollTop + grid.clientHeight) grid.scrollTop = top + cardHeight() - grid.clientHeight;
    fill();
  }

  // One sample

  function open() {
    if (!shown.length) return;
    document.getElementById("explorer-layers").append(overlays); // back when the dialog closes
    showSample();
    dialog.showModal();
  }

  function showSample() {
    const row = shown[active];
    document.getElementById("explorer-title").textContent =
      `${id(row)} (${(active + 1).toLocaleString("en")} of ${shown.length.toLocaleString("en")})`;
    const canvas = dialog.querySelector("canvas");
    canvas.setAttribute("role", "img");
    canvas.setAttribute("aria-label", `${id(row)} with ground truth and prediction: ${iouText(row)}`);
    draw(canvas, row);
    dialog.querySelector(".facts").replaceChildren(...facts(row));
  }

  function facts(row) {
    const made = [];
    const add = (title, content) => made.push(element("h4", {}, title), content);
    const list = (pairs) => element("dl", {}, ...pairs.flatMap(([name, value]) =>
      [element("dt", {}, name), element("dd", {}, value)]));
    const group = columns.group[row];
    add(runName(run(row)), list([
      ["Segmentation", element("span", { className: iouMark(row) }, iouText(row))],
      ["Class", element("span", { className: isWrong(row) ? "bad" : "" }, classText(row))],
      ...(group === null ? [] : [["Group", group]]),
    ]));
    const probs = columns.probs[row];
    if (probs) {
      add("Class probabilities", list(probs.map((value, index) => [
        className(row, index) + (index === columns.truth[row] ? " (truth)" : ""), meter(value, 0, 1)])));
    }
    const signals = Object.keys(data.signals).filter((name) => !Number.isNaN(values(`${name}.0`)[row]));
    if (signals.length) {
      const table = element("table", {},
        element("thead", {}, element("tr", {}, element("td"), ...levels.map((level) => head(level, "col")))),
        element("tbody", {}, ...signals.map((name) => element("tr", {}, head(data.signals[name], "row"),
          ...levels.map((_, index) => element("td", {}, meter(values(`${name}.${index}`)[row], ...extent(name))))))));
      add("Signals, coarse to fine", table);
    }
    add("Numbers", list(Object.entries(data.quantities).map(([name, text]) => [text, number(values(name)[row])])));
    const others = [];
    for (let other = 0; other < count; other++) {
      if (columns.sample[other] === columns.sample[row] && other !== row) others.push(other);
    }
    if (others.length) {
      add("The same image in other runs", element("div", { className: "others" }, ...others.map((other) =>
        element("button", { type: "button", onclick: () => jump(other) },
          `${run(other).method} · ${run(other).variant} · seed ${run(other).seed}: ${iouText(other)}`))));
    }
    return made;
  }

  function head(text, scope) {
    return element("th", { scope }, text);
  }

  function meter(value, low, high) {
    const made = element("span", { className: "meter" }, number(value));
    made.style.setProperty("--part", Number.isNaN(value) ? 0 : (value - low) / (high - low || 1));
    return made;
  }

  /** Show a row, even one that the filters hide. */
  function jump(row) {
    if (!shown.includes(row)) {
      form.reset();
      update();
    }
    moveTo(shown.indexOf(row));
    showSample();
  }

  // Views and controls

  const signalOf = (preferred) => preferred.find((name) => name in data.signals);
  const gate = signalOf(["w_seg", "delta", "seg_energy"]);
  const VIEWS = {
    unreliable: () => ({ sort: field("signal").value, direction: -1 }),
    missed: () => ({ outcome: "seg-failed", sort: field("signal").value, direction: 1 }),
    "false-alarms": () => ({ outcome: "seg-good", sort: field("signal").value, direction: -1 }),
    overconfident: () => ({ outcome: "class-wrong", sort: "conf", direction: -1 }),
    worst: () => ({ sort: "iou", direction: 1 }),
  };

  function addOptions(select, entries) {
    select.append(...entries.map(([value, text]) => new Option(text, value)));
  }

  function prepareControls() {
    for (const name of ["dataset", "method", "variant", "seed"]) {
      const found = [...new Set(runs.map((entry) => String(entry[name])))];
      addOptions(field(name), [["", "any"], ...found.map((value) => [value, value])]);
      field(name).closest("label").hidden = found.length < 2;
    }
    for (const name of ["signal", "sort"]) {
      for (const [signal, text] of Object.entries(data.signals)) {
        const group = element("optgroup", { label: text });
        addOptions(group, levels.map((level, index) => [`${signal}.${index}`, `${text} ${level}`]));
        field(name).append(group);
      }
      const group = element("optgroup", { label: "Without level" });
      addOptions(group, Object.entries(data.quantities));
      field(name).append(group);
      const preferred = gate ? `${gate}.1` : "iou" in data.quantities ? "iou" : Object.keys(data.quantities)[0];
      for (const option of field(name).options) option.defaultSelected = option.value === preferred;
      field(name).value = preferred;
    }
    if (!("conf" in data.quantities)) form.querySelector("[data-view=overconfident]").hidden = true;
    if (!gate) field("direction").value = "1";
  }

  const filters = form.querySelector(".filters");
  const overlays = form.querySelector(".layers");

  form.addEventListener("input", (event) => {
    if (!overlays.contains(event.target)) update();
  });
  overlays.addEventListener("input", () => {
    for (const [position, card] of cards) draw(card.querySelector("canvas"), shown[position]);
    if (dialog.open) draw(dialog.querySelector("canvas"), shown[active]);
  });
  form.addEventListener("submit", (event) => event.preventDefault());
  form.addEventListener("reset", () => { // the fields are reset after the event; within the dialog it is jump, which updates
    if (!dialog.open) setTimeout(update);
  });
  form.addEventListener("click", (event) => {
    const view = event.target.dataset.view;
    if (!view) return;
    field("outcome").value = "";
    for (const [name, value] of Object.entries(VIEWS[view]())) field(name).value = value;
    update();
  });

  grid.addEventListener("scroll", fill);
  grid.addEventListener("click", (event) => {
    const card = event.target.closest(".card");
    if (!card) return;
    moveTo(Number(card.getAttribute("aria-posinset")) - 1);
    open();
  });
  grid.addEventListener("keydown", (event) => {
    const page = across * Math.max(1, Math.floor(grid.clientHeight / cardHeight()));
    const steps = {
      ArrowLeft: -1, ArrowRight: 1, ArrowUp: -across, ArrowDown: across, PageUp: -page, PageDown: page,
      Home: -shown.length, End: shown.length,
    };
    if (event.key in steps) moveTo(active + steps[event.key]);
    else if (event.key === "Enter" || event.key === " ") open();
    else return;
    event.preventDefault();
  });

  dialog.addEventListener("keydown", (event) => {
    const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (!step || event.target.type === "range") return;
    moveTo(active + step);
    showSample();
    event.preventDefault();
  });
  dialog.addEventListener("click", (event) => {
    if (event.target.dataset.move) {
      moveTo(active + Number(event.target.dataset.move));
      showSample();
    }
    if ("close" in event.target.dataset || event.target === dialog) dialog.close();
  });

  dialog.addEventListener("close", () => {
    filters.append(overlays);
    grid.focus();
  });

  prepareControls();
  new ResizeObserver(layOut).observe(grid);
  update();
})();
