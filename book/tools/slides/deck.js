// Starts the deck once formulas and fonts are there, and lets every slide fit.
(async () => {
  // Explorers keep their arrow keys; a click beside one gives them back to the slides.
  const free = () => !document.activeElement?.closest(".attn-explorer");
  const settings = {width: 1280, height: 720, margin: 0, center: false, hash: true, transition: "none", slideNumber: "c/t",
                    viewDistance: 1000, mobileViewDistance: 1000, keyboardCondition: free, plugins: [RevealNotes]};
  await Reveal.initialize(settings);
  await globalThis.MathJax?.startup?.promise;
  await document.fonts.ready;
  const starting = () => document.querySelector(".attn-explorer:is([data-state=stored], [data-state=starting])");
  for (let tries = 0; tries < 200 && starting(); tries++) await new Promise(done => setTimeout(done, 50));
  const tooLong = slide => slide.scrollHeight > slide.clientHeight || slide.scrollWidth > slide.clientWidth;
  const fit = slide => {
    // A wide formula shrinks alone, whatever the size of the text.
    const shrink = () => {
      for (const math of slide.querySelectorAll(".formula > div")) {
        math.style.fontSize = "100%";
        const set = math.querySelector("mjx-math"), wide = set ? set.getBoundingClientRect().width / Reveal.getScale() : 0;
        if (wide > math.clientWidth) math.style.fontSize = `${Math.floor(100 * math.clientWidth / wide)}%`;
      }
    };
    // An explorer is made larger or smaller as a whole, with its words below or beside it.
    const explorer = slide.querySelector(".attn-explorer");
    if (explorer) {
      const {clientWidth, clientHeight} = explorer.parentElement;
      const share = side => {
        explorer.classList.toggle("side", side);
        return Math.min(clientWidth / explorer.offsetWidth, clientHeight / explorer.offsetHeight);
      };
      const seen = side => share(side) * explorer.querySelector(".ax-stage, .ax-panels").offsetWidth;
      const chosen = share(seen(true) > seen(false));
      explorer.style.transform = `translateX(-50%) scale(${chosen})`;
    }
    // Code shrinks first, since a line of it may not break.
    for (const code of slide.querySelectorAll(".source pre"))
      for (let size = 19; size >= 13 && (code.scrollWidth > code.clientWidth || tooLong(slide)); size--)
        code.style.fontSize = `${size}px`;
    // Text alone may be large; none is smaller than 60 %.
    const most = slide.matches(".list, .equations, .question, .exercise") ? 132 : 100;
    for (let share = most; share >= 60; share -= 4) {
      slide.style.fontSize = `${share}%`;
      shrink();
      if (!tooLong(slide)) break;
    }
  };
  document.querySelectorAll(".slide").forEach(fit);
  document.documentElement.dataset.ready = "yes";
})();
