// Stops of the Tab key: what scrolls is one, and is called by what it holds; what nobody needs to stop at is none.
(() => {
  "use strict";
  const SCROLLS = [["div.math, mjx-container[display=true]", "Formula"], [".cell_output pre", "Output"], ["pre", "Code"],
                   [".pst-scrollable-table-container, .atlas-scroll, .atlas-side", "Table"]];
  const INSIDE = "a[href], button, input, select, summary, [tabindex='0']";  // moving to one of these scrolls as well

  // Whether a part scrolls depends on the window, on fonts and on formulas: it is asked for whenever its size changes.
  // (The theme asks as well, for code alone, with no name, and not when a fold is opened.)
  const look = node => {
    const stop = node.scrollWidth > node.clientWidth && !node.querySelector(INSIDE);
    if (stop === node.hasAttribute("aria-label")) return;
    if (!stop) return ["tabindex", "role", "aria-label"].forEach(name => node.removeAttribute(name));
    const [, holds] = SCROLLS.find(([selector]) => node.matches(selector));
    const said = { tabindex: 0, role: "group", "aria-label": `${holds}, wider than the page` };
    Object.entries(said).forEach(([name, value]) => node.setAttribute(name, value));
  };

  addEventListener("load", async () => {
    // A cell is copied with the mouse, by touch, or by a reader's own list of buttons.
    document.querySelectorAll(".copybtn").forEach(button => { button.tabIndex = -1; });
    await globalThis.MathJax?.startup?.promise;
    await document.fonts.ready;
    const sizes = new ResizeObserver(changes => changes.forEach(({ target }) => look(target)));
    document.querySelectorAll("article *").forEach(node => {
      if (SCROLLS.some(([selector]) => node.matches(selector))) sizes.observe(node);
    });
  });
})();
