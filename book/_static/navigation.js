/* The sidebar's parts stay open or shut from page to page, as the reader left them; the part of the page is open. */
(() => {
  "use strict";
  const parts = [...document.querySelectorAll(".bd-sidebar-primary li.toctree-l0 > details")];
  const name = part => part.querySelector(".caption-text").textContent;
  let open = [];
  try { open = JSON.parse(sessionStorage.getItem("open-parts")) || []; } catch { /* no storage: nothing is kept */ }
  for (const part of parts) {
    if (open.includes(name(part))) part.open = true;
    part.addEventListener("toggle", () => {
      const now = parts.filter(other => other.open && !other.querySelector(".current")).map(name);
      try { sessionStorage.setItem("open-parts", JSON.stringify(now)); } catch { /* as above */ }
    });
  }
  parts.find(part => part.querySelector(".current"))?.scrollIntoView({block: "nearest"});
})();
