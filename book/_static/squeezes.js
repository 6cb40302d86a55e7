// What each squeeze can see: the numbers of the table become buttons, and the panel shows what lies behind one.
// The table is whole without this script.
(() => {
  "use strict";
  const root = document.querySelector(".attn-squeezes");
  if (!root) return;
  const behind = JSON.parse(root.querySelector("script").textContent), panel = root.querySelector(".squeezes-panel");
  const make = (tag, text, props = {}) => Object.assign(document.createElement(tag), { textContent: text }, props);
  const SVG = "http://www.w3.org/2000/svg";
  const draw = (tag, attributes, ...children) => {
    const node = document.createElementNS(SVG, tag);
    for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
    node.append(...children);
    return node;
  };

  // Training loss, a line a seed. The scale is the same for every number of a task, so that two can be compared.
  const tops = {};
  for (const [key, { loss }] of Object.entries(behind)) {
    const task = key.split(" ")[0];
    tops[task] = Math.max(tops[task] || 0, ...loss.flat());
  }
  function chart(key, { loss, steps, title }) {
    const [W, H, left, bottom] = [340, 150, 34, 30], top = tops[key.split(" ")[0]];
    const x = share => left + share * (W - left - 8), y = value => 8 + (1 - value / top) * (H - bottom - 8);
    const text = (at, words, extra) => draw("text", { x: at[0], y: at[1], ...extra }, words);
    const ticks = [0, top / 2, top].map(value => draw("g", {},
      draw("line", { x1: left, x2: W - 8, y1: y(value), y2: y(value) }),
      text([left - 6, y(value) + 4], value.toFixed(1), { "text-anchor": "end" })));
    const lines = loss.map(seed => draw("polyline", {
      points: seed.map((value, k) => `${x((k + .5) / seed.length).toFixed(1)},${y(value).toFixed(1)}`).join(" "),
    }));
    return draw("svg", { viewBox: `0 0 ${W} ${H}`, role: "img", "aria-label": `Training loss of ${title}, three seeds.` },
      ...ticks, ...lines, text([left, H - 8], "step 0"), text([W - 8, H - 8], `${steps}`, { "text-anchor": "end" }),
      text([(left + W) / 2, H - 8], "training loss, three seeds", { "text-anchor": "middle" }));
  }

  const buttons = [...root.querySelectorAll("td[data-key]")].map(cell => {
    const button = make("button", "", { type: "button", tabIndex: -1 });
    button.append(...cell.childNodes);
    button.setAttribute("aria-label", `${behind[cell.dataset.key].title}: ${button.textContent.trim()}`);
    cell.append(button);
    return button;
  });
  let shown = null;
  function show(button) {
    if (button === shown) return;
    shown?.setAttribute("aria-pressed", "false");
    shown = button;
    button.setAttribute("aria-pressed", "true");
    buttons.forEach(other => { other.tabIndex = other === button ? 0 : -1; });
    const key = button.parentNode.dataset.key, one = behind[key];
    const said = make("div", "");
    said.append(make("strong", one.title), make("p", one.score), make("p", one.reading));
    for (const [text, href] of one.links) said.append(make("a", text, { href }));
    panel.replaceChildren(said, chart(key, one));
  }
  const rows = [...root.querySelectorAll("tbody tr")].map(row => [...row.querySelectorAll("button")]);
  for (const button of buttons) {
    button.addEventListener("pointerenter", () => show(button));
    button.addEventListener("focus", () => show(button));
    button.addEventListener("click", () => show(button));
    button.addEventListener("keydown", event => {
      const move = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] }[event.key];
      if (!move) return;
      event.preventDefault();
      const i = rows.findIndex(row => row.includes(button)), column = button.parentNode.cellIndex;
      const next = move[0]
        ? rows[i + move[0]]?.find(other => other.parentNode.cellIndex === column)
        : rows[i][rows[i].indexOf(button) + move[1]];
      next?.focus();
    });
  }
  if (buttons.length) buttons[0].tabIndex = 0;
  panel.setAttribute("aria-live", "polite");
})();
