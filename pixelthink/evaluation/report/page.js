"use strict";
(() => {
  const PAGE = 24;
  const { samples, pictures } = JSON.parse(document.getElementById("data").textContent);
  const byId = (id) => document.getElementById(id);
  const cards = byId("cards"), viewer = byId("viewer");
  const controls = ["sort", "level", "outcome", "text"].map(byId).filter(Boolean);
  let order = [], drawn = 0, current = 0;

  // All text of models and data goes through textContent or attributes, never through HTML.
  function element(name, attributes = {}, ...children) {
    const made = document.createElement(name);
    for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
    made.append(...children.filter((child) => child !== null));
    return made;
  }

  function shape(name, attributes) {
    const made = document.createElementNS("http://www.w3.org/2000/svg", name);
    for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
    return made;
  }

  function overlay(sample, answer) {
    const [width, height] = sample.size;
    const svg = shape("svg", { viewBox: `0 0 ${width} ${height}`, preserveAspectRatio: "none", "aria-hidden": "true" });
    const path = (d, name) => { if (d) svg.append(shape("path", { d, class: name })); };
    path(sample.ignore, "ignore-mask");
    path(answer.mask, "answer-mask");
    path(sample.target, "target-mask under");
    path(sample.target, "target-mask");
    for (const { box: [x1, y1, x2, y2], points } of answer.objects) {
      const rectangle = { x: x1, y: y1, width: Math.max(x2 - x1 + 1, 1), height: Math.max(y2 - y1 + 1, 1) };
      svg.append(shape("rect", { ...rectangle, class: "answer-box under" }), shape("rect", { ...rectangle, class: "answer-box" }));
      for (const [x, y] of points) svg.append(shape("circle", { cx: x + 0.5, cy: y + 0.5, r: Math.max(width, height) / 70, class: "answer-point" }));
    }
    return svg;
  }

  function view(sample, run, tall) {
    const answer = sample.answers[run];
    const label = sample.answers.length > 1 ? element("b", { class: `run run-${run}` }, "AB"[run]) : null;
    if (sample.picture === null) return [label, element("span", { class: "missing" }, "no picture")];
    const [width, height] = sample.size;
    const outcome = answer.failure ? `failed: ${answer.failure}` : answer.iou === null ? "answered" : `IoU ${answer.iou.toFixed(2)}`;
    const image = element("img", { src: pictures[sample.picture], alt: `${sample.question} (${outcome})` });
    const frame = element("span", { class: "frame" }, image, overlay(sample, answer));
    frame.style.aspectRatio = `${width} / ${height}`;
    frame.style.width = `min(100%, calc(${tall} * ${width / height}))`;
    return [label, frame];
  }

  function tags(sample, answer, run) {
    const line = element("div", { class: "tags" });
    if (sample.answers.length > 1) line.append(element("b", { class: `run run-${run}` }, "AB"[run]));
    if (answer.iou !== null) {
      const fill = element("span");
      fill.style.width = `${100 * answer.iou}%`;
      line.append(element("span", { class: "iou" }, `IoU ${answer.iou.toFixed(2)}`), element("span", { class: "meter", "aria-hidden": "true" }, fill));
    }
    if (answer.failure) line.append(element("span", { class: "failed" }, answer.failure));
    for (const flaw of answer.flaws) line.append(element("span", {}, flaw));
    line.append(element("span", {}, `${answer.tokens} tokens${answer.cut ? ", cut off" : ""}`));
    return line;
  }

  function heading(sample) {
    const line = element("div", { class: "tags" });
    if (sample.level) line.append(element("span", { class: `tag level-${sample.level}` }, sample.level));
    if (sample.gain !== null && Math.abs(sample.gain) > 1e-9) {
      line.append(element("span", { class: sample.gain > 0 ? "gain" : "loss" }, `${sample.gain > 0 ? "+" : "−"}${Math.abs(sample.gain).toFixed(2)} IoU`));
    }
    line.append(element("span", {}, sample.id));
    return line;
  }

  function card(place) {
    const sample = samples[order[place]];
    const views = element("div", { class: "views" });
    sample.answers.forEach((_, run) => {
      const button = element("button", { type: "button", class: "view", "aria-label": `Look closer: ${sample.question}` }, ...view(sample, run, "300px"));
      button.addEventListener("click", () => look(place));
      views.append(button);
    });
    const about = element("div", { class: "about" }, heading(sample), element("h3", {}, sample.question));
    sample.answers.forEach((answer, run) => {
      about.append(tags(sample, answer, run), element("p", { class: "reasoning" }, answer.reasoning || answer.response || answer.detail || "(nothing)"));
    });
    return element("article", { class: "card", "data-id": sample.id }, views, about);
  }

  function look(place) {
    current = Math.max(0, Math.min(order.length - 1, place));
    const sample = samples[order[current]];
    const views = element("div", { class: "views" });
    const columns = element("div", { class: "columns" });
    sample.answers.forEach((answer, run) => {
      views.append(element("div", { class: "view" }, ...view(sample, run, "56vh")));
      const times = Object.entries(answer.timings).filter(([, ms]) => ms !== null).map(([name, ms]) => `${name.replace("_ms", "")} ${ms.toFixed(1)} ms`);
      const more = [answer.responseTokens === null ? null : `${answer.responseTokens} tokens in all`,
        answer.uncertainty === null ? null : `uncertainty ${answer.uncertainty.toFixed(3)}`,
        answer.rscore === null ? null : `rated ${answer.rscore}`, ...times].filter(Boolean);
      const column = element("div", {}, tags(sample, answer, run));
      if (answer.detail) column.append(element("p", { class: "fine" }, answer.detail));
      column.append(element("h3", {}, "Reasoning"), element("p", { class: "reasoning" }, answer.reasoning || "(none)"),
        element("h3", {}, "Whole response"), element("pre", { tabindex: "0" }, answer.response), element("p", { class: "fine" }, more.join(" · ")));
      columns.append(column);
    });
    const difficulty = sample.difficulty === null ? [] : [element("p", { class: "fine" }, `difficulty ${sample.difficulty.toFixed(1)}`)];
    byId("shown").replaceChildren(views, element("div", { class: "about" }, heading(sample), element("h3", {}, sample.question), ...difficulty, columns));
    byId("place").textContent = `${current + 1} of ${order.length}`;
    byId("previous").disabled = current === 0;
    byId("next").disabled = current === order.length - 1;
    if (!viewer.open) viewer.showModal();
  }

  const keys = {
    iou: (sample) => sample.answers.at(-1).iou,
    tokens: (sample) => sample.answers.at(-1).tokens,
    difficulty: (sample) => sample.difficulty,
    gain: (sample) => sample.gain,
    order: () => 0,
  };

  function matches(sample) {
    const value = (id) => byId(id)?.value ?? "";
    const [kind, cause] = value("outcome").split(":");
    const words = value("text").trim().toLowerCase();
    const fits = {
      "": () => true,
      used: (answer) => answer.failure === null,
      failed: (answer) => answer.failure !== null,
      failure: (answer) => answer.failure === cause,
      flaw: (answer) => answer.flaws.includes(cause),
    }[kind];
    const text = () => [sample.question, sample.id, ...sample.answers.map((answer) => answer.reasoning || answer.response)].join("\n").toLowerCase();
    return (!value("level") || sample.level === value("level")) && sample.answers.some(fits) && (!words || text().includes(words));
  }

  function arrange() {
    const [name, direction] = byId("sort").value.split("-");
    const sign = direction === "up" ? 1 : -1;
    const key = (index) => keys[name](samples[index]);
    order = samples.map((_, index) => index).filter((index) => matches(samples[index]));
    order.sort((a, b) => {
      const [x, y] = [key(a), key(b)];
      if (x === y) return a - b;
      if (x === null || y === null) return x === null ? 1 : -1;  // what has no value comes last
      return sign * (x - y);
    });
    cards.replaceChildren();
    drawn = 0;
    byId("count").textContent = `${order.length} of ${samples.length} samples`;
    showMore();
  }

  function showMore() {
    const until = Math.min(drawn + PAGE, order.length);
    for (; drawn < until; drawn += 1) cards.append(card(drawn));
    byId("more").hidden = drawn === order.length;
  }

  for (const control of controls) control.addEventListener(control.id === "text" ? "input" : "change", arrange);
  byId("tools").addEventListener("submit", (event) => event.preventDefault());
  byId("more").addEventListener("click", showMore);
  byId("previous").addEventListener("click", () => look(current - 1));
  byId("next").addEventListener("click", () => look(current + 1));
  byId("close").addEventListener("click", () => viewer.close());
  viewer.addEventListener("click", (event) => { if (event.target === viewer) viewer.close(); });
  viewer.addEventListener("keydown", (event) => {
    if (event.key === "ArrowLeft") look(current - 1);
    if (event.key === "ArrowRight") look(current + 1);
  });
  for (const box of document.querySelectorAll("[data-layer]")) {
    box.addEventListener("change", () => document.body.classList.toggle(`no-${box.dataset.layer}`, !box.checked));
  }
  byId("theme").addEventListener("click", () => {
    const root = document.documentElement;
    const dark = root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
    root.dataset.theme = dark ? "light" : "dark";
  });
  document.querySelector(".charts").addEventListener("click", (event) => {
    const dot = event.target.closest("[data-sample]");
    if (!dot) return;
    const index = Number(dot.dataset.sample);
    if (!order.includes(index)) {
      byId("tools").reset();
      arrange();
    }
    look(order.indexOf(index));
  });
  cards.classList.toggle("pairs", samples.length > 0 && samples[0].answers.length > 1);
  arrange();
})();
