// The model board: theme, filter, order, a look at the newest state each minute, and links that leave Airflow's frame.
"use strict";

// Airflow remembers what its reader chose, and follows the system where nothing was.
function followTheme() {
  let chosen = null;
  try { chosen = localStorage.getItem("theme"); } catch { /* no storage, no choice */ }
  const dark = chosen === "dark" || (chosen !== "light" && matchMedia("(prefers-color-scheme: dark)").matches);
  document.documentElement.dataset.theme = dark ? "dark" : "light";
}
followTheme();
addEventListener("storage", followTheme);
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", followTheme);

// Airflow shows this page in a frame that may neither open windows nor lead its own window elsewhere: a link is followed there.
// Links from page to page of ours stay in the frame, and so do those within a page.
function followOutside(event) {
  const link = event.target.closest?.("a[href]");
  if (!link || window.top === window || event.button > 1) return;
  const asked = event.button === 1 || event.ctrlKey || event.metaKey;
  if (link.getAttribute("href").startsWith("#") || ("inside" in link.dataset && !asked)) return;
  event.preventDefault();
  const outside = window.top.document.createElement("a");
  // In a drawing, an address is an object.
  outside.href = link.href.baseVal ?? link.href;
  outside.rel = "noopener";
  if ((link.target.baseVal ?? link.target) === "_blank" || asked) outside.target = "_blank";
  window.top.document.body.append(outside);
  outside.click();
  outside.remove();
}
addEventListener("click", followOutside);
addEventListener("auxclick", followOutside);

addEventListener("DOMContentLoaded", () => {
  const table = document.getElementById("board");
  if (!table) return;
  const filter = document.getElementById("filter"), needing = document.getElementById("needing");
  const heads = [...table.tHead.rows[0].cells];
  let order = null;

  function show() {
    const words = filter.value.toLowerCase().split(/\s+/).filter(Boolean);
    let shown = 0;
    for (const row of table.tBodies[0].rows) {
      const text = row.textContent.toLowerCase();
      const wanted = words.every((word) => text.includes(word))
        && !(needing.checked && (row.classList.contains("fine") || row.classList.contains("new")));
      row.hidden = !wanted;
      shown += wanted;
    }
    document.querySelector(".nothing").hidden = shown > 0;
  }

  function sort() {
    const value = (row) => {
      if (!order) return Number(row.dataset.rank);
      const found = row.cells[order.column]?.dataset.value;
      return order.kind === "number" ? Number(found ?? -Infinity) : found ?? "";
    };
    const compare = (a, b) => (typeof a === "number" ? a - b : a.localeCompare(b));
    const rows = [...table.tBodies[0].rows].sort((a, b) => compare(value(a), value(b)) * (order?.descending ? -1 : 1));
    table.tBodies[0].append(...rows);
    heads.forEach((head, column) => {
      head.ariaSort = order?.column === column ? (order.descending ? "descending" : "ascending") : "none";
    });
  }

  // A column once up, once down, then the order it came in: what needs somebody first.
  function choose(column) {
    const kind = heads[column].dataset.sort, downFirst = kind === "number";
    if (order?.column !== column) order = { column, kind, descending: downFirst };
    else order = order.descending === downFirst ? { column, kind, descending: !downFirst } : null;
    sort();
  }

  async function look() {
    if (document.hidden) return;
    const answer = await fetch(location.href, { headers: { Accept: "text/html" } }).catch(() => null);
    if (!answer) return;
    if (!answer.ok) { location.reload(); return; }
    const fresh = new DOMParser().parseFromString(await answer.text(), "text/html");
    if (!fresh.getElementById("board")) { location.reload(); return; }
    table.tBodies[0].replaceWith(fresh.getElementById("board").tBodies[0]);
    for (const part of [".tally", ".at"]) document.querySelector(part).replaceWith(fresh.querySelector(part));
    sort();
    show();
  }

  table.classList.add("sortable");
  heads.forEach((head, column) => {
    head.tabIndex = 0;
    head.addEventListener("click", () => choose(column));
    head.addEventListener("keydown", (event) => { if (event.key === "Enter") choose(column); });
  });
  document.getElementById("tools").hidden = false;
  document.getElementById("tools").addEventListener("submit", (event) => event.preventDefault());
  filter.addEventListener("input", show);
  needing.addEventListener("change", show);
  setInterval(look, 60_000);
});
