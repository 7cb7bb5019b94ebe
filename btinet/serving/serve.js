"use strict";

(() => {
  const model = JSON.parse(document.getElementById("model").textContent);
  const file = document.getElementById("file");
  const layers = document.getElementById("layers");
  const results = document.getElementById("results");
  const status = document.getElementById("status");
  const LEVELS = ["D1", "D2", "D3", "D4"];
  const SHOWN = 2;
  const ATTEMPTS = 4;
  const COLOURS = { yes: [0, 200, 83], check: [255, 171, 0], no: [255, 23, 68] };
  const SIGNS = { yes: "✓", check: "!", no: "✕" };
  const SUFFIXES = {
    png: "image/png", jpg: "image/jpeg", jpeg: "image/jpeg", bmp: "image/bmp", tif: "image/tiff", tiff: "image/tiff",
    dcm: "application/dicom", dicom: "application/dicom",
  };
  const SIGNALS = {
    w_seg: ["w_seg", "gate of the mask's features"],
    w_clf: ["w_clf", "gate of the class's features"],
    delta: ["δ", "w_clf − w_seg"],
    align: ["alignment", "of the two tasks' changes"],
    seg_energy: ["E_seg", "edges in the mask's features"],
    clf_energy: ["E_clf", "spread of the class's features"],
    tim_dseg_l1: ["|Δ seg|", "change proposed for the mask"],
    tim_dclf_l1: ["|Δ clf|", "change proposed for the class"],
  };
  const SIDE = [768, 1024]; // of a picture as it is drawn: its longest, in pixels

  const shown = []; // what is on the page, first to last: { article, draw }

  // Small helpers

  function element(tag, properties = {}, ...children) {
    const made = Object.assign(document.createElement(tag), properties);
    made.append(...children);
    return made;
  }

  function number(value) {
    const size = Math.abs(value);
    return size >= 1000 ? count(Math.round(value)) : size && size < 1e-3 ? value.toExponential(1) : value.toPrecision(3);
  }

  const percent = (value) => `${(100 * value).toFixed(1)} %`;
  const count = (value) => value.toLocaleString("en");
  const bytes = (text) => Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
  const pause = (seconds) => new Promise((resolve) => setTimeout(resolve, 1000 * seconds));

  // Asking

  /** The content type that a file is sent as. The server looks at the content itself. */
  function kindOf(picked) {
    const suffix = picked.name.includes(".") ? picked.name.split(".").pop().toLowerCase() : "dcm";
    return SUFFIXES[suffix] ?? picked.type;
  }

  /** Why a file need not be sent at all. */
  function fault(picked) {
    if (!model.kinds.includes(kindOf(picked))) return `is of a kind that is not taken: ${picked.type || "unknown"}`;
    if (picked.size > model.max_bytes) return `has ${(picked.size / 1e6).toFixed(1)} MB; at most ${model.max_bytes / 1e6} are taken`;
    return null;
  }

  async function ask(picked) {
    for (let attempt = 1; ; attempt++) {
      const response = await fetch("v1/predict?preview=true", {
        method: "POST", headers: { "Content-Type": kindOf(picked) }, body: picked,
      });
      if (response.status === 429 && attempt < ATTEMPTS) {
        await pause(Number(response.headers.get("Retry-After") ?? 1));
        continue;
      }
      const content = await response.json().catch(() => ({ detail: `status ${response.status}` }));
      if (!response.ok) throw new Error(content.detail);
      return content;
    }
  }

  async function add(picked) {
    const entry = place(picked.name || "pasted image");
    const problem = fault(picked);
    if (problem) return fail(entry, problem);
    say(`Predicting ${entry.name} …`);
    try {
      await present(entry, await ask(picked));
    } catch (error) {
      fail(entry, error instanceof TypeError ? "the server does not answer: is it still running?" : error.message);
    }
  }

  function say(text) {
    status.textContent = text;
  }

  // Showing

  /** Room for one more result; the last one makes way where there are two. */
  function place(name) {
    while (shown.length >= SHOWN) remove(shown.at(-1));
    const article = document.getElementById("result").content.cloneNode(true).firstElementChild;
    const entry = { name, article };
    article.querySelector("h2").textContent = name;
    article.setAttribute("aria-label", name);
    article.setAttribute("aria-busy", "true");
    article.classList.add("waiting");
    article.querySelector(".verdict").hidden = true;
    article.querySelector(".columns").replaceChildren(element("div", { className: "ghost" }, "Predicting …"));
    article.querySelector(".remove").addEventListener("click", () => {
      remove(entry);
      file.focus();
      say(`Removed ${name}.`);
    });
    shown.push(entry);
    results.append(article);
    arrange();
    return entry;
  }

  function remove(entry) {
    shown.splice(shown.indexOf(entry), 1);
    entry.article.remove();
    for (const url of entry.urls ?? []) URL.revokeObjectURL(url);
    arrange();
  }

  function arrange() {
    results.classList.toggle("two", shown.length > 1);
    document.body.classList.toggle("answered", shown.length > 0);
    layers.hidden = !shown.some((entry) => entry.draw);
    document.getElementById("invitation").replaceChildren(
      ["Drop an image, paste it, or ", "Compare: drop or paste another image, or ", "Drop or paste an image in place of the second, or "][shown.length],
      element("u", {}, "choose a file"));
  }

  function fail(entry, message) {
    const { article } = entry;
    article.classList.remove("waiting");
    article.classList.add("failed");
    article.removeAttribute("aria-busy");
    article.querySelector(".columns").replaceChildren();
    article.querySelector(".verdict").hidden = false;
    article.querySelector(".badge").textContent = "Not predicted";
    article.querySelector(".reason").textContent = message;
    say(`${entry.name}: ${message}`);
  }

  async function present(entry, answer) {
    const fresh = document.getElementById("result").content.cloneNode(true).querySelector(".columns");
    const canvas = fresh.querySelector("canvas");
    const draw = await painter(canvas, answer);
    if (!shown.includes(entry)) return; // removed meanwhile
    const { article, name } = entry;
    const reliable = `Reliable: ${answer.reliable}`;
    const lesion = answer.lesion_area ? `lesion outlined, ${percent(answer.lesion_share)} of the image` : "no lesion";
    canvas.setAttribute("aria-label", `${name}: ${lesion}`);
    fresh.querySelector(".facts").replaceChildren(...facts(answer));
    article.querySelector(".columns").replaceWith(fresh);
    article.querySelector(".badge").textContent = `${SIGNS[answer.reliable]} ${reliable}`;
    article.querySelector(".badge").classList.add(answer.reliable);
    article.querySelector(".reason").textContent = answer.reason;
    article.querySelector(".verdict").hidden = false;
    article.classList.remove("waiting");
    article.removeAttribute("aria-busy");
    entry.urls = offer(article.querySelector(".downloads"), name, answer);
    entry.draw = draw;
    draw();
    arrange();
    const called = answer.class === null ? "" : `${answer.class} ${number(answer.confidence)}, `;
    say(`${name}: ${called}${lesion}. ${reliable}: ${answer.reason}.`);
  }

  function offer(line, name, answer) {
    const stem = name.replace(/\.[^.]*$/, "");
    const { mask, preview, ...numbers } = answer;
    const parts = [
      ["Mask (PNG)", `${stem}-mask.png`, bytes(mask), "image/png"],
      ["Numbers (JSON)", `${stem}.json`, JSON.stringify(numbers, null, 1), "application/json"],
    ];
    line.append(element("span", {}, `${count(answer.width)} × ${count(answer.height)} px`));
    return parts.map(([text, download, content, type]) => {
      const href = URL.createObjectURL(new Blob([content], { type }));
      line.append(element("a", { href, download }, text));
      return href;
    });
  }

  function facts(answer) {
    const made = [];
    const section = (title, ...content) => made.push(element("h3", {}, title), ...content);
    const pair = (name, value, more = "") => element("div", {}, element("dt", {}, name),
      element("dd", {}, value, more && element("small", {}, ` ${more}`)));
    const main = element("dl", { className: "answer" });
    if (answer.class !== null) main.append(pair("Class", answer.class));
    main.append(
      pair("Lesion", answer.lesion_area ? percent(answer.lesion_share) : "none", answer.lesion_area ? `${count(answer.lesion_area)} px` : ""),
      pair("Mask confidence", number(answer.mask_confidence)));
    made.push(main);
    const probabilities = Object.entries(answer.probabilities);
    if (probabilities.length) {
      section("Class probabilities", element("dl", { className: "probabilities" }, ...probabilities.map(([name, value]) => {
        const fill = element("i");
        fill.style.width = percent(value).replace(" ", "");
        const bar = element("span", { className: "bar" }, fill);
        bar.setAttribute("aria-hidden", "true");
        return element("div", {}, element("dt", { className: name === answer.class ? "first" : "" }, name),
          element("dd", {}, bar), element("dd", {}, value.toFixed(3)));
      })));
    }
    const signals = Object.keys(SIGNALS).filter((name) => name in answer.signals);
    if (signals.length) section("Gate signals, coarse to fine", table(LEVELS, signals.map((name) => [
      ...SIGNALS[name], answer.signals[name].map((value, level) => scale(value, `${name}_${LEVELS[level]}`))])));
    const distance = answer.distance === null ? "infinite" : number(answer.distance);
    made.push(element("details", {}, element("summary", {}, "Compared with the training images"),
      element("p", { className: "note" }, `Distance ${distance}; unlike them above ${number(model.distance_limit)}.`),
      table([""], Object.entries(answer.statistics).map(([name, value]) => [
        name.replace("image_", ""), "", [scale(value, name)]]))));
    return made;
  }

  function table(columns, rows) {
    const head = (scope, ...content) => element("th", { scope }, ...content);
    return element("table", { className: "signals" },
      element("colgroup", {}, element("col", { className: "name" }), ...columns.map(() => element("col"))),
      columns.join("") && element("thead", {}, element("tr", {}, element("td"), ...columns.map((name) => head("col", name)))),
      element("tbody", {}, ...rows.map(([name, note, cells]) => element("tr", {},
        head("row", name, note && element("small", {}, note)), ...cells))));
  }

  /** A number, and where it lies among the training images: their 1st to 99th percentile is the scale's middle. */
  function scale(value, feature) {
    const cell = element("td", {}, number(value));
    const typical = model.typical[feature];
    if (!typical) return cell;
    const [low, high] = typical;
    const part = high > low ? (value - low) / (high - low) : 0.5;
    const mark = element("b");
    mark.style.left = `${Math.min(98, Math.max(2, 20 + 60 * part))}%`;
    const line = element("span", { className: "scale" }, element("i"), mark);
    line.setAttribute("aria-hidden", "true");
    const outside = value < low || value > high;
    cell.classList.toggle("outside", outside);
    cell.title = `${feature}: ${number(value)}; of the training images 98 % are from ${number(low)} to ${number(high)}`;
    cell.setAttribute("aria-label", outside ? `${number(value)}, unusual` : number(value));
    cell.append(line);
    return cell;
  }

  // Pictures

  async function load(source) {
    const image = new Image();
    image.src = source;
    await image.decode();
    return image;
  }

  /** What draws a result on its canvas as the controls say. */
  async function painter(canvas, answer) {
    const picture = await load(`data:image/jpeg;base64,${answer.preview}`);
    const mask = await load(`data:image/png;base64,${answer.mask}`);
    const longest = Math.max(picture.naturalWidth, picture.naturalHeight);
    const factor = Math.min(SIDE[1], Math.max(SIDE[0], longest)) / longest;
    canvas.width = Math.max(1, Math.round(picture.naturalWidth * factor));
    canvas.height = Math.max(1, Math.round(picture.naturalHeight * factor));
    const { outline, fill } = masks(mask, canvas.width, canvas.height, COLOURS[answer.reliable]);
    return () => {
      const context = canvas.getContext("2d");
      context.imageSmoothingQuality = "high";
      context.globalAlpha = 1;
      context.drawImage(picture, 0, 0, canvas.width, canvas.height);
      const layer = layers.elements.layer.value;
      context.globalAlpha = Number(layers.elements.opacity.value);
      if (layer === "both") context.drawImage(fill, 0, 0);
      context.globalAlpha = 1;
      if (layer !== "none") context.drawImage(outline, 0, 0);
    };
  }

  /** The mask's outline and its inside at a size, in a colour, as canvases. */
  function masks(mask, width, height, colour) {
    const sheet = () => new OffscreenCanvas(width, height).getContext("2d", { willReadFrequently: true });
    const source = sheet();
    source.drawImage(mask, 0, 0, width, height);
    const { data } = source.getImageData(0, 0, width, height);
    const inside = (x, y) => x >= 0 && y >= 0 && x < width && y < height && data[4 * (y * width + x)] >= 128;
    const thickness = Math.max(2, Math.round(Math.max(width, height) / 300));
    const slant = Math.round(thickness * Math.SQRT1_2);
    const steps = [[1, 0], [-1, 0], [0, 1], [0, -1]].map(([x, y]) => [x * thickness, y * thickness])
      .concat([[1, 1], [1, -1], [-1, 1], [-1, -1]].map(([x, y]) => [x * slant, y * slant]));
    const painted = [sheet(), sheet()].map((context) => ({ context, image: context.createImageData(width, height) }));
    for (let y = 0; y < height; y++) {
      for (let x = 0; x < width; x++) {
        if (!inside(x, y)) continue;
        const isEdge = steps.some(([dx, dy]) => !inside(x + dx, y + dy));
        painted[isEdge ? 0 : 1].image.data.set([...colour, 255], 4 * (y * width + x));
      }
    }
    const [outline, fill] = painted.map(({ context, image }) => {
      context.putImageData(image, 0, 0);
      return context.canvas;
    });
    return { outline, fill };
  }

  // Controls

  function take(files) {
    for (const picked of [...files].slice(0, SHOWN)) add(picked);
  }

  file.addEventListener("change", () => {
    take(file.files);
    file.value = ""; // the same file may be chosen again
  });
  layers.addEventListener("input", () => shown.forEach((entry) => entry.draw?.()));
  layers.addEventListener("submit", (event) => event.preventDefault());
  document.addEventListener("paste", (event) => {
    if (event.clipboardData.files.length) take(event.clipboardData.files);
  });
  document.addEventListener("dragover", (event) => {
    event.preventDefault();
    document.body.classList.add("dragging");
  });
  document.addEventListener("dragleave", (event) => {
    if (!event.relatedTarget) document.body.classList.remove("dragging");
  });
  document.addEventListener("drop", (event) => {
    event.preventDefault();
    document.body.classList.remove("dragging");
    take(event.dataTransfer.files);
  });
})();
