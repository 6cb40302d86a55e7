/* Search by name, in front of Sphinx's search by words. Names come from names.js, which is loaded when it is needed.
   On the search page the results of both are listed; in the search field of every other page the names are proposed
   while one types. It works from a folder too; then no page can be read, and results show what they say of themselves. */
(() => {
  "use strict";
  const root = document.documentElement.dataset.content_root || "./";
  const EXCERPTS = 10, NAMED = 12, PROPOSED = 8;
  const BETTER = {chapter: 3, page: 2.5, module: 2, task: 1.5, code: -8};  // among equals; code only by its whole name
  let loading = null;

  // --- names -----------------------------------------------------------------------------------------------------

  const wordsOf = text => text.normalize("NFKD").toLowerCase().replace(/\p{M}/gu, "").match(/[\p{L}\p{N}]+/gu) || [];
  const asked = text => {
    const words = wordsOf(text);
    return {words, whole: words.join(""), written: text.trim().toLowerCase()};
  };

  function load() {
    loading ??= new Promise((done, failed) => {
      const script = document.createElement("script");
      script.src = `${root}names.js`;
      script.onload = () => done(globalThis.BOOK_NAMES.map(([title, address, kind, place, names, words, summary]) => ({
        title, address, kind, place, summary, names: names.map(asked), short: names[0],
        all: [...names, words, place].flatMap(wordsOf),
      })));
      script.onerror = failed;
      document.head.append(script);
    });
    return loading;
  }

  /** How well a record answers: 100 for a name itself, then its beginning, a word's beginning, a part, all words. */
  function score(record, query) {
    let best = 0;
    record.names.forEach((name, k) => {
      const share = query.whole.length / name.whole.length, late = Math.min(k, 9) / 10;
      if (name.whole === query.whole) best = Math.max(best, 100 - late + (name.written === query.written));
      else if (name.whole.startsWith(query.whole)) best = Math.max(best, 60 + 20 * share - late);
      else if (name.words.some((_, i) => name.words.slice(i).join("").startsWith(query.whole)))
        best = Math.max(best, 45 + 10 * share - late);
      else if (query.whole.length > 2 && name.whole.includes(query.whole))
        best = Math.max(best, 25 + 10 * share - late);
    });
    if (best < 40 && query.words.every(word => record.all.some(other => other.startsWith(word)))) best = 40;
    return best && best + BETTER[record.kind];
  }

  function find(records, text) {
    const query = asked(text);
    if (!query.whole) return [];
    return records.map(record => [score(record, query), record]).filter(([points]) => points)
      .sort((a, b) => b[0] - a[0] || a[1].title.length - b[1].title.length).map(([, record]) => record);
  }

  function element(tag, text = "", attributes = {}) {
    const made = document.createElement(tag);
    made.textContent = text;
    for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
    return made;
  }

  /** The title in a link and, where it is another word, the short name behind it. */
  function heading(link, record) {
    link.append(record.title);
    if (["chapter", "module"].includes(record.kind) && !record.title.includes(record.short))
      link.append(element("b", record.short));
  }

  // --- the search page ---------------------------------------------------------------------------------------------

  const pages = new Map();  // address -> promise of its text

  function excerpt(into, address, words) {
    if (location.protocol === "file:") return;
    if (!pages.has(address)) pages.set(address, fetch(root + address).then(answer => answer.text()));
    pages.get(address).then(text => {
      const found = Search.makeSearchSummary(text, words, "");
      if (found) into.textContent = found.textContent;
    }).catch(() => {});
  }

  function item(list, address, fill, place, summary) {
    const row = list.appendChild(element("li"));
    fill(row.appendChild(element("a", "", {href: root + address})));
    row.append(element("small", place));
    return row.appendChild(element("p", summary));
  }

  async function answer(text) {
    const out = document.getElementById("search-results");
    const records = await load();
    const named = find(records, text).slice(0, NAMED);
    const [query, words, ...rest] = Search._parseQuery(text);
    const taken = new Set(named.filter(record => record.kind !== "code").map(record => record.address.split("#")[0]));
    const about = new Map(records.filter(record => !record.address.includes("#"))
      .map(record => [record.address, record]));
    const written = [];
    for (const [page, title, , description] of Search._performSearch(query, words, ...rest).reverse()) {
      const address = page + DOCUMENTATION_OPTIONS.LINK_SUFFIX;
      if (description || taken.has(address)) continue;  // an object, which has a name; a page that is listed
      taken.add(address);
      written.push([address, title]);
    }
    out.replaceChildren();
    const count = named.length + written.length;
    out.append(element("p", count ? `${count} ${count === 1 ? "result" : "results"} for “${text}”`
      : `Nothing is called “${text}”, and no page has these words. Fewer letters may find more.`, {role: "status"}));
    let shown = 0;
    const list = out.appendChild(element("ol", "", {class: "found", "aria-label": "By name"}));
    for (const record of named) {
      const row = item(list, record.address, link => heading(link, record), record.place, record.summary);
      row.previousSibling.previousSibling.addEventListener("click", () => {
        localStorage.removeItem("sphinx_highlight_terms");  // a name is not marked all over its own page
      });
      shown += 1;
    }
    if (written.length) out.append(element("h2", named.length ? "In the text" : "Results"));
    const second = out.appendChild(element("ol", "", {class: "found", "aria-label": "In the text"}));
    for (const [address, title] of written) {
      const record = about.get(address);
      const row = item(second, address, link => link.append(record ? record.title : new DOMParser()
        .parseFromString(title, "text/html").body.textContent), record?.place ?? "", record?.summary ?? "");
      if (shown++ < EXCERPTS) excerpt(row, address, words);
    }
    list.hidden = !named.length;
    second.hidden = !written.length;
  }

  function takeOver() {
    const field = document.querySelector(".bd-search-container input[name=q]");
    let waiting = 0;
    Search.performSearch = text => Search.hasIndex() ? answer(text) : Search.deferQuery(text);
    Search.query = answer;
    field.addEventListener("input", () => {
      clearTimeout(waiting);
      waiting = setTimeout(() => {
        if (field.value.trim()) Search.performSearch(field.value.trim());
        else document.getElementById("search-results").replaceChildren();
        const there = new URL(location);
        there.searchParams.set("q", field.value.trim());
        try { history.replaceState(null, "", there); } catch { /* from a folder some browsers refuse */ }
      }, 200);
    });
    document.addEventListener("keydown", event => {  // from the field down the list and back
      const step = {ArrowDown: 1, ArrowUp: -1}[event.key];
      const stops = [field, ...document.querySelectorAll("#search-results .found a")];
      const at = stops.indexOf(document.activeElement);
      if (!step || at < 0 || !stops[at + step]) return;
      event.preventDefault();
      stops[at + step].focus();
    });
  }

  // --- proposals in the search field of any page ---------------------------------------------------------------------

  function propose(field) {
    const list = element("ul", "", {id: "search-proposals", role: "listbox", "aria-label": "Pages by name"});
    list.hidden = true;
    field.form.after(list);
    for (const [name, value] of Object.entries({role: "combobox", "aria-autocomplete": "list",
      "aria-controls": list.id, "aria-expanded": "false"})) field.setAttribute(name, value);
    let chosen = -1;
    const choose = number => {
      chosen = number;
      [...list.children].forEach((option, k) => option.setAttribute("aria-selected", String(k === chosen)));
      if (chosen < 0) field.removeAttribute("aria-activedescendant");
      else field.setAttribute("aria-activedescendant", list.children[chosen].id);
      list.children[chosen]?.scrollIntoView({block: "nearest"});
    };
    const show = records => {
      list.replaceChildren(...records.map((record, k) => {
        const option = element("li", "", {role: "option", id: `search-proposal-${k}`, "aria-selected": "false"});
        const link = option.appendChild(element("a", "", {href: root + record.address, tabindex: "-1"}));
        heading(link, record);
        link.append(element("small", record.place));
        return option;
      }));
      list.hidden = !records.length;
      field.setAttribute("aria-expanded", String(!list.hidden));
      choose(-1);
    };
    field.addEventListener("focus", load);
    field.addEventListener("input", async () => {
      const records = await load();
      show(find(records, field.value).slice(0, PROPOSED));
    });
    field.addEventListener("keydown", event => {
      const step = {ArrowDown: 1, ArrowUp: -1}[event.key], count = list.children.length;
      if (step && count) {
        event.preventDefault();
        choose((chosen + 1 + step + count + 1) % (count + 1) - 1);
      } else if (event.key === "Enter" && chosen >= 0) {
        event.preventDefault();
        list.children[chosen].querySelector("a").click();
      }
    });
  }

  if (typeof Search !== "undefined") takeOver();
  const field = document.querySelector(".search-button__search-container input[name=q]");
  if (field) propose(field);
  globalThis.bookSearch = async text => find(await load(), text);  // for whoever wants to ask without a page: the tests
})();
