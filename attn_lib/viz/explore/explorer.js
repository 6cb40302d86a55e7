// Starts every stored explorer on the page. attn_lib/viz/explore packs the data that this reads.
(() => {
  "use strict";

  const make = (tag, props, ...children) => {
    const node = Object.assign(document.createElement(tag), props);
    node.append(...children);
    return node;
  };
  const unpack = async base64 => {
    const bytes = Uint8Array.from(atob(base64), c => c.charCodeAt(0));
    return new Response(new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"))).arrayBuffer();
  };
  const words = async base64 => JSON.parse(new TextDecoder().decode(await unpack(base64)));
  const load = async src => {
    const img = make("img", {src});
    await img.decode();
    return img;
  };

  // The text below the picture. It is seen at once, and spoken once the reader stays; at the start nothing is spoken.
  const speaker = figure => {
    const spoken = figure.querySelector("output");
    const seen = make("p", {className: "ax-said", textContent: spoken.textContent});
    let waits, width;
    seen.setAttribute("aria-hidden", "true");
    spoken.before(seen);
    new ResizeObserver(() => {
      if (figure.clientWidth === width) return;  // taller by its own text: the height that this left is kept
      width = figure.clientWidth;
      figure.classList.toggle("ax-narrow", width < 480);
      seen.style.minHeight = "";
    }).observe(figure);
    return text => {
      seen.style.minHeight = `${seen.offsetHeight}px`;  // what lies below does not jump
      seen.textContent = text;
      clearTimeout(waits);
      waits = setTimeout(() => { spoken.textContent = text; }, 500);
    };
  };

  const slider = (name, values, index, show) => {
    const value = make("b", {});
    const input = make("input", {type: "range", min: 0, max: values.length - 1, value: index});
    const label = () => {
      value.textContent = values[input.value];
      input.setAttribute("aria-valuetext", values[input.value]);
    };
    value.setAttribute("aria-hidden", "true");  // the input says it
    input.addEventListener("input", () => { label(); show(+input.value); });
    label();
    return make("label", {}, make("span", {}, name), input, value);
  };

  // Calls move(rows, columns, key) for arrow keys, Home, End and Enter; a slider keeps its own keys.
  const onKeys = (figure, move) => figure.addEventListener("keydown", event => {
    const n = event.shiftKey ? 4 : 1;
    const [rows, cols] = {ArrowUp: [-n, 0], ArrowDown: [n, 0], ArrowLeft: [0, -n], ArrowRight: [0, n],
                          Home: [0, 0], End: [0, 0], Enter: [0, 0]}[event.key] || [];
    if (rows === undefined || event.target.matches("input, button") && !event.key.startsWith("Arrow")
        || event.target.matches("input") || event.ctrlKey || event.altKey || event.metaKey) return;
    event.preventDefault();
    move(rows, cols, event.key);
  });

  // One hint for mouse and keyboard, one for fingers; each goes on where the page is narrow.
  const hint = (figure, ...said) => figure.append(make("p", {className: "ax-hint"}, ...said.map(([always, narrow], i) =>
    make("span", {className: i ? "ax-coarse" : "ax-fine"}, always, make("span", {className: "ax-more"}, ` ${narrow}`)))));

  // A picture for every combination of settings.
  const frames = async (figure, data, stage) => {
    const img = stage.querySelector("img"), at = data.sliders.map(() => 0), say = speaker(figure);
    data.frames[0] = img.src;  // not sent twice
    const inputs = data.sliders.map(({name, values}, d) => {
      const label = slider(name, values, 0, k => {
        at[d] = k;
        const i = data.sliders.reduce((n, s, j) => n * s.values.length + at[j], 0);
        Object.assign(img, {src: data.frames[i], alt: data.alts[i]});
        say(data.texts[i]);
      });
      figure.append(label);
      return label.querySelector("input");
    });
    stage.tabIndex = -1;  // a click on the picture, then left and right for the first slider, up and down for the last
    stage.addEventListener("click", event => {  // on a phone: the whole picture, or the place that was tapped, to be read
      if (!figure.matches(".ax-narrow") && !stage.matches(".ax-zoom")) return;
      const box = img.getBoundingClientRect(), share = (event.clientX - box.left) / box.width;
      stage.tabIndex = stage.classList.toggle("ax-zoom") ? 0 : -1;
      stage.scrollLeft = share * img.clientWidth - stage.clientWidth / 2;
    });
    onKeys(figure, (rows, cols, key) => {
      const input = rows ? inputs[inputs.length - 1] : inputs[0];
      input.value = key === "Home" ? 0 : key === "End" ? input.max : +input.value + cols - rows;
      input.dispatchEvent(new Event("input"));
    });
    hint(figure, ["Drag a slider, or use the arrow keys, Home and End on it.", "A click on the picture enlarges it."],
      ["Drag a slider, or tap beside its knob.", "A tap on the picture enlarges it."]);
  };

  // A query cell on a grid over a photograph; each panel answers with a heat map or with sampling points.
  const grid = async (figure, data, stage) => {
    const [rows, cols] = data.grid, [width, height] = data.size, pad = data.pad, panels = data.panels;
    const side = Math.max(width, height), scale = Math.max(1, Math.round(640 / side)), unit = side / 256;
    const colours = new Uint8Array(await unpack(data.colours)), texts = await words(data.texts);
    const pictures = await Promise.all(data.pictures.map(load));
    for (const panel of panels) {
      panel.canvas = make("canvas", {width: (width + 2 * pad) * scale, height: (height + 2 * pad) * scale});
      if (panel.heat) panel.small = make("canvas", {width: panel.shape[1], height: panel.shape[0]});
      for (const [name, Type] of [["heat", Uint8Array], ["weights", Uint8Array], ["points", Int16Array], ["regular", Int16Array]])
        if (panel[name]) panel[name] = new Type(await unpack(panel[name]));
      if (panel.ends) panel.ends = await words(panel.ends);
    }
    let [row, col] = data.start, overlay = 1, held = false;

    // Red, green, blue and opacity of a level of the heat map.
    const colour = (level, signed) => {
      const at = 3 * level + (signed ? 768 : 0);  // diverging
      return [...colours.subarray(at, at + 3), 64 + 0.6 * (signed ? 2 * Math.abs(level - 128) : level)];
    };
    const strip = signed => [...Array(signed ? 32 : 33).keys()].map(i => {
      const [r, g, b, a] = colour(Math.min(255, 8 * i + (signed ? 4 : 0)), signed);
      return `rgba(${r},${g},${b},${a / 255})`;
    });
    const heat = (ctx, panel, query) => {
      const [h, w] = panel.shape, tile = new ImageData(w, h), first = panel.still ? 0 : query * h * w;
      panel.heat.subarray(first, first + h * w).forEach((level, i) => tile.data.set(colour(level, panel.signed), 4 * i));
      panel.small.getContext("2d").putImageData(tile, 0, 0);
      ctx.globalAlpha = overlay;
      ctx.globalCompositeOperation = "saturation";  // the photograph in grey: colour is weight
      ctx.fillStyle = "#808080";
      ctx.fillRect(0, 0, width, height);
      ctx.globalCompositeOperation = "source-over";
      ctx.imageSmoothingEnabled = false;
      ctx.drawImage(panel.small, 0, 0, width, height);
      ctx.globalAlpha = 1;
    };
    const dots = (ctx, panel, query) => {
      const disc = (k, list, radius, fill) => {
        const i = 2 * (query * panel.k + k), x = list[i + 1] / 64, y = list[i] / 64;
        ctx.beginPath();
        ctx.arc(x, y, radius * unit, 0, 7);
        ctx.fillStyle = fill;
        if (fill) ctx.fill();
        ctx.stroke();
        return [x, y];
      };
      ctx.lineWidth = unit;
      ctx.strokeStyle = "#fff";
      for (let k = 0; panel.regular && k < panel.k; k++) {
        const from = disc(k, panel.regular, 2, "#1f2430"), to = 2 * (query * panel.k + k);
        ctx.beginPath();
        ctx.moveTo(...from);
        ctx.lineTo(panel.points[to + 1] / 64, panel.points[to] / 64);
        ctx.stroke();
      }
      for (let k = 0; k < panel.k; k++) {
        const weight = panel.weights ? panel.weights[query * panel.k + k] / 255 : 1;
        ctx.globalAlpha = 0.4 + 0.6 * weight;
        disc(k, panel.points, 5 * Math.sqrt(weight), "#d55e00");
      }
      ctx.globalAlpha = 1;
    };
    const draw = () => {
      const query = row * cols + col;
      for (const panel of panels) {
        const ctx = panel.canvas.getContext("2d");
        ctx.setTransform(scale, 0, 0, scale, pad * scale, pad * scale);
        ctx.fillStyle = "#d5dae3";
        ctx.fillRect(-pad, -pad, width + 2 * pad, height + 2 * pad);
        ctx.imageSmoothingEnabled = !data.coarse;
        ctx.drawImage(pictures[panel.picture], 0, 0, width, height);
        if (panel.heat) heat(ctx, panel, query);
        if (data.mark) for (const [line, colour] of [[8, "#000"], [3, "#fff"]]) {
          Object.assign(ctx, {lineWidth: line / scale, strokeStyle: colour});
          ctx.strokeRect(col * width / cols, row * height / rows, width / cols, height / rows);
        }
        if (panel.points) dots(ctx, panel, query);
        if (panel.ends) panel.key.forEach((end, i) => { end.textContent = panel.ends[i][query] ?? panel.ends[i][0]; });
      }
    };
    const say = speaker(figure);
    const go = (r, c) => {
      const to = [[r, rows], [c, cols]].map(([i, n]) => Math.max(0, Math.min(n - 1, i)));
      if (to[0] === row && to[1] === col) return;
      [row, col] = to;
      draw();
      say(texts[row * cols + col]);
    };
    // On a narrow page one panel is large and takes the finger; the others answer above it, and come forward at a tap.
    const large = panel => panels.forEach(p => p.box.classList.toggle("ax-large", p === panel));
    const isSmall = panel => figure.matches(".ax-narrow:not(.ax-stack)") && !panel.box.matches(".ax-large");
    const point = (event, panel) => {
      if (isSmall(panel)) return;
      const box = panel.canvas.getBoundingClientRect();
      const cell = (share, length, n) => Math.floor((share * (length + 2 * pad) - pad) / length * n);
      go(cell((event.clientY - box.top) / box.height, height, rows), cell((event.clientX - box.left) / box.width, width, cols));
    };

    for (const panel of panels) {
      const {canvas, ends, signed} = panel;
      panel.key = (ends || []).map(() => make("span", {}));
      const key = make("div", {className: "ax-key"}, ...panel.key);
      if (panel.heat) {
        const bar = make("i", {});
        bar.style.background = `linear-gradient(90deg,${strip(signed)}),#808080`;
        panel.key[0].after(bar);
      }
      panel.box = make("div", {className: "ax-panel"}, panel.label, canvas, key);
      canvas.addEventListener("pointermove", event => held || point(event, panel));
      canvas.addEventListener("pointerdown", event => {
        if (!isSmall(panel)) held = event.pointerType === "mouse" && !held;
        panels.forEach(p => { p.canvas.style.cursor = held ? "default" : ""; });
        point(event, panel);
      });
      panel.box.addEventListener("click", () => isSmall(panel) && large(panel));
    }
    large(panels[0]);
    draw();
    const n = panels.length, across = n < 4 ? n : Math.ceil(n / 2), tall = height / width;
    figure.classList.toggle("ax-stack", n * tall <= 1.5);  // narrow, all of them fit on a screen
    stage.style.setProperty("--ax-across", across);
    stage.style.setProperty("--ax-wide", `${Math.min(24, 32 / Math.ceil(n / across) / tall)}rem`);
    stage.style.setProperty("--ax-small", Math.max(2, Math.min(3, n - 1)));
    const view = make("div", {className: "ax-panels"}, ...panels.map(panel => panel.box));
    view.setAttribute("role", "img");
    view.setAttribute("aria-label", stage.querySelector("img").alt);
    stage.replaceChildren(view);
    stage.tabIndex = 0;
    stage.setAttribute("role", "application");
    stage.setAttribute("aria-label", figure.getAttribute("aria-label"));

    const steps = [["left", 0, -1], ["up", -1, 0], ["down", 1, 0], ["right", 0, 1]].map(([name, r, c]) => {
      const button = make("button", {type: "button", className: `ax-${name}`, tabIndex: -1, onclick: () => go(row + r, col + c)});
      button.setAttribute("aria-label", `${data.noun} ${name}`);
      return button;
    });
    stage.after(make("div", {className: "ax-steps"}, ...steps));
    if (panels[0].heat)
      figure.append(slider("strength of the colours", [...Array(11).keys()].map(i => `${10 * i} %`), 10, i => { overlay = i / 10; draw(); }));
    onKeys(figure, (r, c, key) => key === "Home" ? go(...data.start) : key === "End" ? go(rows, cols)
      : key === "Enter" ? large(panels[(panels.findIndex(p => p.box.matches(".ax-large")) + 1) % n]) : go(row + r, col + c));
    hint(figure, [`Hover or drag; a click holds the ${data.noun}. Arrow keys move it (with Shift by four), Home brings it back.`,
                  n > 1 ? "A click on a small picture, or Enter, enlarges it." : ""],
      ["Move a finger over the picture, or step with the arrows.", n > 1 ? "A tap on a small picture enlarges it." : ""]);
  };

  for (const figure of document.querySelectorAll('figure.attn-explorer[data-state="stored"]')) {
    figure.dataset.state = "starting";
    const data = JSON.parse(figure.querySelector("script").textContent);
    const start = figure.dataset.kind === "frames" ? frames : grid;
    start(figure, data, figure.querySelector(".ax-stage")).then(() => {
      figure.dataset.state = "ready";
    }).catch(error => {
      figure.dataset.state = "picture";  // it stays
      console.warn("This explorer shows its picture only:", error);
    });
  }
})();
