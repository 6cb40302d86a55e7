// A figure opens at reading size in a layer of its own, where it can be moved about and made larger. Without this
// script the link around it leads to the picture's file.
(() => {
  "use strict";
  const FIGURES = "article .cell_output img, article figure img";
  const OUT = ".attn-explorer, .attn-map, .attn-card, .sd-card";  // these have their own ways

  const make = (tag, props, ...children) => {
    const node = Object.assign(document.createElement(tag), props);
    node.append(...children);
    return node;
  };
  const button = (text, label, onclick) => {
    const made = make("button", { type: "button", textContent: text, onclick });
    if (label) made.setAttribute("aria-label", label);
    return made;
  };

  let layer, view, picture, width, scale;

  function build() {
    picture = make("img", { draggable: false });
    view = make("div", { tabIndex: 0 }, picture);
    view.setAttribute("role", "group");
    view.setAttribute("aria-label", "The figure: arrow keys move it, plus and minus change its size");
    const bar = make("form", { method: "dialog" }, button("−", "Smaller", () => size(scale / 1.25)),
                     button("+", "Larger", () => size(scale * 1.25)), button("Close", "", () => layer.close()));
    layer = make("dialog", { className: "enlarged" }, bar, view);
    layer.setAttribute("aria-label", "Enlarged figure");
    layer.addEventListener("keydown", event => {
      const step = { "+": 1.25, "=": 1.25, "-": 0.8 }[event.key];
      if (event.key === "Escape") layer.close();
      else if (step) size(scale * step);
      else if (event.key === "0") size(reading());
      else return;
      event.preventDefault();
    });
    view.addEventListener("wheel", event => {
      if (!event.ctrlKey) return;  // without Ctrl the wheel scrolls
      event.preventDefault();
      size(scale * Math.exp(-event.deltaY / 300), event);
    }, { passive: false });
    // A mouse drags; fingers scroll and pinch by themselves.
    view.addEventListener("pointerdown", down => {
      if (down.pointerType !== "mouse" || down.button) return;
      const [left, top] = [view.scrollLeft, view.scrollTop];
      const move = event => view.scrollTo(left + down.clientX - event.clientX, top + down.clientY - event.clientY);
      view.setPointerCapture(down.pointerId);
      view.addEventListener("pointermove", move);
      view.addEventListener("lostpointercapture", () => view.removeEventListener("pointermove", move), { once: true });
    });
    document.body.append(layer);
  }

  // As drawn, or larger where the window has room for it.
  function reading() {
    const height = width * picture.naturalHeight / (picture.naturalWidth || 1);
    const room = Math.min((innerWidth - 16) / width, (innerHeight - 64) / height);
    return Math.min(2.5, Math.max(1, room));
  }
  // The place under the pointer, or in the middle, stays where it is.
  function size(wanted, at) {
    const box = view.getBoundingClientRect();
    const x = (at ? at.clientX : box.width / 2) - box.left, y = (at ? at.clientY : box.height / 2) - box.top;
    const before = scale, [left, top] = [view.scrollLeft, view.scrollTop];
    scale = Math.min(6, Math.max(0.4, wanted));
    picture.style.width = `${width * scale}px`;
    if (before) view.scrollTo((left + x) * scale / before - x, (top + y) * scale / before - y);
  }

  function open(image) {
    if (!layer) build();
    // The width that it is drawn for: on a narrow page it is shown smaller.
    width = parseFloat(image.style.width) || image.naturalWidth || image.getBoundingClientRect().width;
    scale = 0;
    picture.alt = image.alt;
    picture.src = image.currentSrc || image.src;
    layer.showModal();
    view.focus();
    const begin = () => { size(reading()); view.scrollTo(0, 0); };
    picture.decode().then(begin, begin);
  }

  function prepare(image) {
    let link = image.closest("a");
    if (image.closest(OUT) || link && !link.classList.contains("image-reference")) return;  // a link leads somewhere else
    if (!link) {
      const inner = image.closest("picture") || image;
      link = make("a", { className: "image-reference", href: image.currentSrc || image.src });
      inner.replaceWith(link);
      link.append(inner);
    }
    link.setAttribute("aria-haspopup", "dialog");
    link.addEventListener("click", event => {
      if (event.ctrlKey || event.metaKey || event.shiftKey) return;  // a new tab, as ever
      event.preventDefault();
      open(image);
    });
  }

  addEventListener("DOMContentLoaded", () => document.querySelectorAll(FIGURES).forEach(prepare));
})();
