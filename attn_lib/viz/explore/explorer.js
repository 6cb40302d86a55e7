// Starts every explorer on the page that is not running yet. attn_lib/viz/explore packs the data that this reads.
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
  const load = async src => {
    const img = make("img", {src});
    await img.decode();
    return img;
  };

  const slider = (name, values, index, show) => {
    const value = make("b", {});
    const input = make("input", {type: "range", min: 0, max: values.length - 1, value: index});
    const label = () => {
      value.textContent = values[input.value];
      input.setAttribute("aria-valuetext", values[input.value]);
    };
    input.addEventListener("input", () => { label(); show(+input.value); });
    label();
    return make("label", {}, name, input, value);
  };

  // Calls move(rows, columns, key) for arrow keys, Home and End; a slider keeps its own keys.
  const onKeys = (figure, move) => figure.addEventListener("keydown", event => {
    const n = event.shiftKey ? 4 : 1;
    const [rows, cols] = {ArrowUp: [-n, 0], ArrowDown: [n, 0], ArrowLeft: [0, -n], ArrowRight: [0, n],
                          Home: [0, 0], End: [0, 0]}[event.key] || [];
    if (rows === undefined || event.target.matches("input") || event.ctrlKey || event.altKey || event.metaKey) return;
    event.preventDefault();
    move(rows, cols, event.key);
  });

  // A picture for every combination of settings.
  const frames = async (figure, data, stage, readout) => {
    const img = stage.querySelector("img"), at = data.sliders.map(() => 0);
    data.frames[0] = img.src;  // not sent twice
    const inputs = data.sliders.map(({name, values}, d) => {
      const label = slider(name, values, 0, k => {
        at[d] = k;
        const i = data.sliders.reduce((n, s, j) => n * s.values.length + at[j], 0);
        Object.assign(img, {src: data.frames[i], alt: data.alts[i]});
        readout.textContent = data.texts[i];
      });
      figure.append(label);
      return label.querySelector("input");
    });
    figure.tabIndex = -1;  // a click on the picture, then left and right for the first slider, up and down for the last
    onKeys(figure, (rows, cols, key) => {
      const input = rows ? inputs[inputs.length - 1] : inputs[0];
      input.value = key === "Home" ? 0 : key === "End" ? input.max : +input.value + cols - rows;
      input.dispatchEvent(new Event("input"));
    });
  };

  // A query cell on a grid over a photograph; each panel answers with a heat map or with sampling points.
  const grid = async (figure, data, stage, readout) => {
    const [rows, cols] = data.grid, [width, height] = data.size, pad = data.pad;
    const side = Math.max(width, height), scale = Math.max(1, Math.round(640 / side)), unit = side / 256;
    const colours = new Uint8Array(await unpack(data.colours));
    const texts = JSON.parse(new TextDecoder().decode(await unpack(data.texts)));
    const pictures = await Promise.all(data.pictures.map(load));
    for (const panel of data.panels) {
      panel.canvas = make("canvas", {width: (width + 2 * pad) * scale, height: (height + 2 * pad) * scale});
      if (panel.heat) panel.small = make("canvas", {width: panel.shape[1], height: panel.shape[0]});
      for (const [name, Type] of [["heat", Uint8Array], ["weights", Uint8Array], ["points", Int16Array], ["regular", Int16Array]])
        if (panel[name]) panel[name] = new Type(await unpack(panel[name]));
    }
    let [row, col] = data.start, overlay = 1, held = false;

    const heat = (ctx, panel, query) => {
      const [h, w] = panel.shape, tile = new ImageData(w, h), first = panel.still ? 0 : query * h * w;
      panel.heat.subarray(first, first + h * w).forEach((weight, i) => {
        const at = 3 * weight + (panel.signed ? 768 : 0);  // diverging
        tile.data.set(colours.subarray(at, at + 3), 4 * i);
        tile.data[4 * i + 3] = 64 + 0.6 * (panel.signed ? 2 * Math.abs(weight - 128) : weight);
      });
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
      for (const panel of data.panels) {
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
      }
      readout.textContent = texts[query];
    };
    const go = (r, c) => {
      const to = [[r, rows], [c, cols]].map(([i, n]) => Math.max(0, Math.min(n - 1, i)));
      if (to[0] === row && to[1] === col) return;
      [row, col] = to;
      draw();
    };
    const point = event => {
      const box = event.target.getBoundingClientRect();
      const cell = (share, length, n) => Math.floor((share * (length + 2 * pad) - pad) / length * n);
      go(cell((event.clientY - box.top) / box.height, height, rows), cell((event.clientX - box.left) / box.width, width, cols));
    };

    draw();
    stage.setAttribute("role", "img");
    stage.setAttribute("aria-label", stage.querySelector("img").alt);
    stage.replaceChildren(...data.panels.map(({label, canvas}) => {
      canvas.addEventListener("pointermove", event => held || point(event));
      canvas.addEventListener("pointerdown", event => {
        held = event.pointerType === "mouse" && !held;
        stage.style.cursor = held ? "default" : "";
        point(event);
      });
      return make("div", {className: "ax-panel"}, label, canvas);
    }));
    if (data.panels[0].heat)
      figure.append(slider("overlay", [...Array(11).keys()].map(i => `${10 * i} %`), 10, i => { overlay = i / 10; draw(); }));
    onKeys(figure, (r, c, key) => key === "Home" ? go(...data.start) : key === "End" ? go(rows, cols) : go(row + r, col + c));
    figure.tabIndex = 0;
    figure.setAttribute("role", "application");
  };

  for (const figure of document.querySelectorAll("figure.attn-explorer:not([data-state])")) {
    figure.dataset.state = "starting";
    const data = JSON.parse(figure.querySelector("script").textContent);
    const start = figure.dataset.kind === "frames" ? frames : grid;
    start(figure, data, figure.querySelector(".ax-stage"), figure.querySelector("output")).then(() => {
      figure.append(make("p", {className: "ax-hint", textContent: data.hint}));
      figure.dataset.state = "ready";
    }).catch(error => {
      figure.dataset.state = "picture";  // it stays
      console.warn("This explorer shows its picture only:", error);
    });
  }
})();
