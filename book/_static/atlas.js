// The atlas: filters, sorting, charts and comparison over the rows of its table. The page is whole without this script.
// What is chosen stands in the address, behind the #, so that a view can be linked and works from a folder as well.
(() => {
  "use strict";
  const root = document.querySelector(".attn-atlas");
  if (!root) return;
  const $ = (selector, within = root) => within.querySelector(selector);
  const $$ = (selector, within = root) => [...within.querySelectorAll(selector)];
  const table = $(".atlas-table"), body = $("tbody", table), rows = $$("tr", body), controls = $(".atlas-controls");
  const heads = new Map($$("thead th", table).map(th => [th.dataset.k, th.textContent]));
  const cell = (row, key) => $(`[data-k="${key}"]`, row);
  const value = (row, key) => { const c = cell(row, key); return c.dataset.v ?? c.textContent; };
  const number = (row, key) => parseFloat(cell(row, key).dataset.v);
  const byId = new Map(rows.map(row => [row.dataset.id, row]));
  const name = row => row.querySelector("th b").textContent;
  const CHOICES = ["family", "action", "input", "growth", "fresh", "size", "chapter", "notices", "same", "runs"];
  const EVERY = new Set(["notices", "same", "runs"]);  // all that are ticked must hold; elsewhere one is enough
  const SIDE = "56";  // of the map that the table gives numbers for
  const EXTRA = ["training", "same", "limits", "paper"];

  // Where times were recorded: the first is what the page shows without this script.
  const footings = $("[name=on]", controls), keys = [...footings.options].map(option => option.value);
  // Side of the map, or "train", -> seconds, or in words why there is no time.
  function times(row) {
    const mine = (row.dataset.t || "").split("|")[keys.indexOf(state.on)];
    return new Map((mine || "").split(";").filter(Boolean).map(pair => pair.split(":")).map(([key, t]) => [key, isNaN(t) ? t : +t]));
  }
  let filled;
  function fillTimes() {
    const chosen = footings.options[keys.indexOf(state.on)];
    if (!chosen || chosen === filled) return;
    filled = chosen;
    $(".atlas-where").textContent = chosen.dataset.where;
    const found = rows.map(row => [row, times(row)]), slowest = Math.max(...found.map(([, t]) => +t.get(SIDE) || 0));
    for (const [row, t] of found) for (const [key, column] of [[SIDE, "time"], ["train", "training"]]) {
      const c = cell(row, column), v = t.get(key);
      c.textContent = v > 0 ? si(v, "s") : v || "–";
      if (v > 0) c.dataset.v = v; else delete c.dataset.v;
      if (v > 0 && column === "time") {
        const bar = document.createElement("i");  // from a ten-thousandth of the longest
        bar.style.width = `${Math.max(2, Math.round(46 * (1 + Math.log10(v / slowest) / 4)))}px`;
        c.prepend(bar);
      }
    }
  }

  let state = { picked: [], column: [], sort: "name", down: false, q: "" };

  // ---- the address ----
  function read() {
    const given = new URLSearchParams(location.hash.slice(1));
    const list = key => (given.get(key) || "").split(",").filter(Boolean);
    const sort = given.get("sort") || "name", on = given.get("on");
    state = { q: given.get("q") || "", from: given.get("from") || "", to: given.get("to") || "",
              on: keys.includes(on) ? on : keys[0], sort: heads.has(sort) ? sort : "name", down: given.get("down") === "1",
              column: list("column").filter(key => EXTRA.includes(key)),
              picked: list("picked").filter(id => byId.has(id)) };
    for (const key of CHOICES) state[key] = list(key);
    $$("input[type=checkbox][name]", controls).forEach(box => { box.checked = state[box.name].includes(box.value); });
    for (const key of ["q", "from", "to", "sort", "on"]) $(`[name="${key}"]`, controls).value = state[key];
    draw();
  }
  function write() {
    const said = new URLSearchParams();
    for (const key of [...CHOICES, "column", "picked"]) if (state[key].length) said.set(key, state[key].join(","));
    for (const key of ["q", "from", "to"]) if (state[key]) said.set(key, state[key]);
    if (state.sort !== "name") said.set("sort", state.sort);
    if (state.down) said.set("down", "1");
    if (state.on !== keys[0]) said.set("on", state.on);
    history.replaceState(null, "", "#" + said.toString().replace(/%2C/g, ","));
    draw();
  }

  // A question's view; what the times were recorded on stays.
  const view = said => "#" + [said, state.on === keys[0] ? "" : `on=${state.on}`].filter(Boolean).join("&");

  // ---- which rows, in which order ----
  const words = row => (row.dataset.q + " " + cell(row, "name").textContent).toLowerCase();
  function fits(row) {
    const year = number(row, "year");
    if (state.from && year < +state.from || state.to && year > +state.to) return false;
    if (!state.q.toLowerCase().split(/\s+/).every(word => words(row).includes(word))) return false;
    return CHOICES.every(key => {
      const has = (row.dataset[key] || "").split(" "), wanted = state[key];
      return !wanted.length || (EVERY.has(key) ? wanted.every(w => has.includes(w)) : wanted.some(w => has.includes(w)));
    });
  }
  function compare(a, b) {
    const [x, y] = [value(a, state.sort), value(b, state.sort)], [m, n] = [parseFloat(x), parseFloat(y)];
    const numeric = state.sort !== "name" && [a, b].some(row => cell(row, state.sort).dataset.v !== undefined);
    if (numeric && (isNaN(m) || isNaN(n))) return isNaN(m) - isNaN(n);  // what was not measured comes last
    return (numeric ? m - n : x.localeCompare(y)) * (state.down ? -1 : 1);
  }
  function draw() {
    fillTimes();
    body.append(...rows.slice().sort(compare));
    let shown = 0;
    for (const row of rows) {
      row.hidden = !fits(row);
      shown += !row.hidden;
      $("input", row).checked = state.picked.includes(row.dataset.id);
    }
    $("output", controls).textContent = `${shown} of ${rows.length} modules`;
    $$("[data-k]", table).forEach(c => {
      c.hidden = EXTRA.includes(c.dataset.k) && !state.column.includes(c.dataset.k);
      if (c.tagName === "TH" && c.scope === "col") {
        if (c.dataset.k === state.sort) c.setAttribute("aria-sort", state.down ? "descending" : "ascending");
        else c.removeAttribute("aria-sort");
      }
    });
    $$(".atlas-presets button").forEach(b => b.setAttribute("aria-pressed", view(b.dataset.state) === location.hash));
    chartOfCost(rows.filter(row => !row.hidden));
    chartOfScaling(state.picked.map(id => byId.get(id)));
    sideBySide(state.picked.map(id => byId.get(id)));
  }

  // ---- charts ----
  const SVG = "http://www.w3.org/2000/svg", WIDE = 520, HIGH = 320, LEFT = 62, LOW = 40;
  function element(parent, tag, attributes, text) {
    const made = document.createElementNS(SVG, tag);
    for (const [key, v] of Object.entries(attributes)) made.setAttribute(key, v);
    if (text !== undefined) made.textContent = text;
    parent.append(made);
    return made;
  }
  function si(v, unit) {
    if (!v) return "0";
    const k = Math.max(-4, Math.min(4, Math.floor(Math.log10(v) / 3 + 1e-9)));
    return `${parseFloat((v / 1000 ** k).toPrecision(3))} ${["p", "n", "µ", "m", "", "k", "M", "G", "T"][k + 4]}${unit}`.trim();
  }
  // Logarithmic axes with a line for each power of ten, on a short one for 1, 2 and 5 of each, or for each given value.
  function axes(chart, label, xs, ys, units, ticks) {
    chart.replaceChildren();
    const svg = element(chart, "svg", { viewBox: `0 0 ${WIDE} ${HIGH}`, role: "group", "aria-label": label });
    const range = v => { const a = Math.log10(Math.min(...v)), b = Math.log10(Math.max(...v)), pad = 0.06 * (b - a || 1); return [a - pad, b + pad]; };
    const [x0, x1] = range(xs), [y0, y1] = range(ys);
    const X = v => LEFT + (Math.log10(v) - x0) / (x1 - x0) * (WIDE - LEFT - 14);
    const Y = v => HIGH - LOW - (Math.log10(v) - y0) / (y1 - y0) * (HIGH - LOW - 12);
    const tens = (a, b) => {
      const all = [];
      for (let k = Math.floor(a); k <= b; k++) for (const m of b - a < 2 ? [1, 2, 5] : [1]) all.push(m * 10 ** k);
      return all.filter(v => a <= Math.log10(v) && Math.log10(v) <= b);
    };
    for (const v of ticks || tens(x0, x1)) {
      element(svg, "line", { x1: X(v), x2: X(v), y1: 12, y2: HIGH - LOW });
      element(svg, "text", { x: X(v), y: HIGH - LOW + 15, "text-anchor": "middle" }, ticks ? `${v}²` : si(v, units[0]));
    }
    for (const v of tens(y0, y1)) {
      element(svg, "line", { x1: LEFT, x2: WIDE - 14, y1: Y(v), y2: Y(v) });
      element(svg, "text", { x: LEFT - 5, y: Y(v) + 4, "text-anchor": "end" }, si(v, units[1]));
    }
    return { svg, X, Y };
  }
  const colour = row => getComputedStyle($(".atlas-dot", row)).backgroundColor;
  const LEAST = 64;  // bytes: what keeps nothing stands at the left edge
  function chartOfCost(shown) {
    const chart = $('[data-chart="cost"]'), points = shown.filter(row => number(row, "time") > 0);
    if (!points.length) { chart.replaceChildren("Nothing that was measured fits."); return; }
    const kept = row => Math.max(LEAST, number(row, "bytes"));
    const { svg, X, Y } = axes(chart, "Time over bytes kept for the backward pass, both logarithmic",
                               points.map(kept), points.map(row => number(row, "time")), ["B", "s"]);
    const taken = points.map(row => [X(kept(row)) - 5, Y(number(row, "time")) - 5, 10, 10]);
    for (const row of points) {
      const x = X(kept(row)), y = Y(number(row, "time")), text = name(row), wide = 7.2 * text.length;
      // No stop of the Tab key: the table's rows are.
      const link = element(svg, "a", { href: `#m-${row.dataset.id}`, "data-id": row.dataset.id, tabindex: "-1" });
      element(link, "circle", { cx: x, cy: y, r: state.picked.includes(row.dataset.id) ? 7 : 5, style: `fill:${colour(row)}` });
      element(link, "title", {}, `${cell(row, "name").querySelector("a").textContent}: ${si(number(row, "time"), "s")}, ${si(number(row, "bytes"), "B")} kept`);
      const places = [[x + 8, y - 7], [x - 8 - wide, y - 7], [x - wide / 2, y - 21], [x - wide / 2, y + 8]];
      const free = places.find(([a, b]) => a > LEFT && a + wide < WIDE && b > 0 && b < HIGH - LOW - 12 &&
        taken.every(([c, d, w, h]) => a + wide < c || c + w < a || b + 14 < d || d + h < b));
      if (free) {
        taken.push([...free, wide, 14]);
        element(link, "text", { x: free[0], y: free[1] + 11 }, text);
      } else {
        const right = x + 8 + wide > WIDE;
        element(link, "text", { x: right ? x - 8 : x + 8, y: y + 4, "text-anchor": right ? "end" : "start", class: "late" }, text);
      }
    }
  }
  function chartOfScaling(picked) {
    const chart = $('[data-chart="scaling"]');
    const lines = picked.map(row => [row, [...times(row)].filter(([key, t]) => key !== "train" && t > 0)
      .map(([side, t]) => [+side, t])]).filter(([, t]) => t.length);
    if (!lines.length) { chart.replaceChildren("Tick rows of the table to see how their time grows."); return; }
    const sides = [...new Set(lines.flatMap(([, t]) => t.map(p => p[0])))].sort((a, b) => a - b);
    const { svg, X, Y } = axes(chart, "Time over the side of the map, both logarithmic", [...sides, sides.at(-1) * 1.35],
                               lines.flatMap(([, t]) => t.map(p => p[1])), ["", "s"], sides);
    const labels = [];
    lines.forEach(([row, t], k) => {
      const style = `stroke:${colour(row)}`, dash = ["", "6 3", "2 3", "8 3 2 3"][k % 4];
      element(svg, "polyline", { points: t.map(([s, v]) => `${X(s)},${Y(v)}`).join(" "), style, "stroke-dasharray": dash });
      for (const [s, v] of t) element(svg, "circle", { cx: X(s), cy: Y(v), r: 4, style: `fill:${colour(row)}` });
      const [side, why] = [...times(row)].find(([key, v]) => key !== "train" && isNaN(v)) || [];
      labels.push([Y(t.at(-1)[1]), X(t.at(-1)[0]) + 8, why ? `${name(row)}, ${why} at ${side}²` : name(row)]);
    });
    labels.sort((a, b) => a[0] - b[0]);
    labels.forEach((label, k) => { if (k && label[0] < labels[k - 1][0] + 13) label[0] = labels[k - 1][0] + 13; });
    for (const [y, x, text] of labels) element(svg, "text", { x, y: y + 4 }, text);
  }

  // ---- two to four side by side ----
  function sideBySide(picked) {
    const side = $(".atlas-side");
    side.hidden = picked.length < 2;
    if (side.hidden) { side.replaceChildren(); return; }
    const made = document.createElement("table"), head = made.createTHead().insertRow(), first = document.createElement("th");
    first.textContent = "Side by side";
    head.append(first);
    for (const row of picked) {
      const th = document.createElement("th");
      th.scope = "col";
      th.append($("a", cell(row, "name")).cloneNode(true));
      head.append(th);
    }
    const filled = made.createTBody();
    for (const [key, title] of heads) {
      if (key === "name" || key === "chapter") continue;
      const line = filled.insertRow(), th = document.createElement("th");
      th.scope = "row";
      th.textContent = title;
      line.append(th);
      const texts = picked.map(row => cell(row, key).innerHTML.replace(/<i .*?<\/i>/, ""));
      texts.forEach(text => { line.insertCell().innerHTML = text; });  // cells of this page's own table
      if (new Set(texts).size > 1) { line.className = "differs"; th.textContent += " ≠"; }
    }
    const close = document.createElement("button");
    close.type = "button";
    close.textContent = "Untick all";
    close.onclick = () => { state.picked = []; write(); };
    side.replaceChildren(made, close);
  }

  // ---- CSV ----
  function csv() {
    const columns = [...heads.keys()].filter(key => key !== "chapter");
    const quoted = text => `"${String(text).replace(/"/g, '""')}"`;
    const where = $(".atlas-where").textContent;
    const seen = $$("tr", body).filter(row => !row.hidden);
    const lines = seen.map(row => [row.dataset.id, row.dataset.family, ...columns.map(key => key === "name" || cell(row, key).dataset.v === undefined || key === "same"
      ? (key === "name" ? $("a", cell(row, key)) : cell(row, key)).textContent : value(row, key)), where].map(quoted).join(","));
    const head = ["id", "family", ...columns.map(key => ({ bytes: "bytes kept", time: "seconds", training: "seconds to train" })[key] || heads.get(key).toLowerCase()), "times on"];
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([[head.map(quoted).join(","), ...lines].join("\r\n") + "\r\n"], { type: "text/csv" }));
    link.download = "attention-modules.csv";
    link.click();
    URL.revokeObjectURL(link.href);
  }

  // ---- set up ----
  for (const row of rows) {
    const box = document.createElement("input");
    box.type = "checkbox";
    box.setAttribute("aria-label", `Compare ${name(row)}`);
    box.onchange = () => {
      state.picked = state.picked.filter(id => id !== row.dataset.id);
      if (box.checked) state.picked = [...state.picked, row.dataset.id].slice(-4);  // four fit side by side
      write();
    };
    cell(row, "name").prepend(box);
  }
  const sort = $("[name=sort]");
  for (const [key, title] of heads) if (key !== "chapter") sort.add(new Option(title.toLowerCase(), key));
  $$("thead button", table).forEach(button => {
    const key = button.parentElement.dataset.k;
    button.onclick = () => { state.down = state.sort === key && !state.down; state.sort = key; sort.value = key; write(); };
  });
  footings.onchange = () => { state.on = footings.value; write(); };
  sort.onchange = () => { state.sort = sort.value; state.down = false; write(); };
  controls.addEventListener("input", event => {
    const { name: key, value: v, type } = event.target;
    if (type === "checkbox") state[key] = $$(`input[name="${key}"]:checked`, controls).map(box => box.value);
    else if (["q", "from", "to"].includes(key)) state[key] = v.trim();
    else return;
    write();
  });
  $$(".atlas-presets button").forEach(b => {
    b.onclick = () => { history.replaceState(null, "", view(b.dataset.state)); read(); };
  });
  $("[name=all]").onclick = () => { history.replaceState(null, "", view("")); read(); };
  $("[name=csv]").onclick = csv;
  $('[data-chart="cost"]').addEventListener("click", event => {
    const link = event.target.closest("a");
    if (!link) return;
    event.preventDefault();  // the hash holds the state
    const row = byId.get(link.dataset.id);
    row.scrollIntoView({ block: "center" });
    $("a", row).focus({ preventScroll: true });
  });
  addEventListener("hashchange", read);
  new MutationObserver(draw).observe(document.documentElement, { attributeFilter: ["data-theme"] });  // colours
  $("details", controls).open = matchMedia("(min-width: 760px)").matches;
  controls.hidden = false;
  root.classList.add("live");
  read();
})();
