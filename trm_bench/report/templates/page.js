"use strict";
// What a page can do beside being read. Without scripts everything is there, in its first order.

const all = (selector, root = document) => Array.from(root.querySelectorAll(selector));

function made(tag, attributes = {}, text = "") {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.textContent = text;
  return element;
}

// ------------------------------------------------------------------------------------------ tables

// A click or Enter on a header sorts its column: best first, then the other way round. Empty cells stay last.
function sortBy(header) {
  const table = header.closest("table");
  const body = table.tBodies[0];
  const number = header.cellIndex;
  const first = number === 0 || header.dataset.lower === "yes" ? "ascending" : "descending";
  const other = first === "ascending" ? "descending" : "ascending";
  const order = header.getAttribute("aria-sort") === first ? other : first;
  const sign = order === "ascending" ? 1 : -1;
  const key = (row) => {
    const text = row.cells[number].dataset.value ?? row.cells[number].textContent.trim();
    return text === "\u2013" ? "" : text;
  };
  const rows = Array.from(body.rows).sort((a, b) => {
    const [x, y] = [key(a), key(b)];
    if (x === "" || y === "") return (x === "") - (y === "");
    const difference = Number(x) - Number(y);
    return sign * (Number.isNaN(difference) ? x.localeCompare(y, "en", { numeric: true }) : difference);
  });
  for (const each of table.tHead.rows[0].cells) each.removeAttribute("aria-sort");
  header.setAttribute("aria-sort", order);
  body.append(...rows);
}

function makeSortable(table) {
  for (const header of table.tHead.rows[0].cells) {
    const button = made("button", { type: "button" });
    button.append(...header.childNodes);
    header.append(button);
    button.addEventListener("click", () => sortBy(header));
  }
}

const LONG = 12; // rows, from which on a table can be searched

function makeSearchable(table) {
  const title = table.caption.textContent;
  const input = made("input", { type: "search", placeholder: "Show rows with\u2026", "aria-label": `Show rows of ${title} with` });
  const count = made("span", { class: "soft", role: "status" });
  const bar = made("p", { class: "tools screen" });
  bar.append(input, " ", count);
  table.parentElement.before(bar);
  input.addEventListener("input", () => {
    const words = input.value.toLowerCase().split(/\s+/);
    const rows = Array.from(table.tBodies[0].rows);
    for (const row of rows) {
      const text = row.textContent.toLowerCase();
      row.classList.toggle("unmatched", !words.every((word) => text.includes(word)));
    }
    const left = rows.filter((row) => !row.classList.contains("unmatched")).length;
    count.textContent = input.value ? `${left} of ${rows.length} rows` : "";
  });
}

for (const table of all("table.sorts")) {
  makeSortable(table);
  const chosen = table.tHead.rows[0].cells[0].textContent.startsWith("method"); // above, of all tables at once
  if (table.tBodies[0].rows.length > LONG && !chosen) makeSearchable(table);
}

// --------------------------------------------------------------------------- which methods are shown

const chooser = document.getElementById("choice");
if (chooser) {
  chooser.hidden = false;
  const boxes = all("input", chooser);
  const show = () => {
    const off = new Set(boxes.filter((box) => !box.checked).map((box) => box.value));
    for (const element of all("[data-method]")) element.classList.toggle("off", off.has(element.dataset.method));
    chooser.querySelector("output").textContent = off.size ? `${boxes.length - off.size} of ${boxes.length}` : `all ${boxes.length}`;
  };
  chooser.addEventListener("change", show);
  for (const button of all("button", chooser)) {
    button.addEventListener("click", () => {
      for (const box of boxes) box.checked = button.value === "all";
      show();
    });
  }
  show();
}

// ------------------------------------------------------------------------------- values of the charts

// The mark under the pointer, or else the one that the arrow keys reach, says its value.
const tip = made("div", { id: "tip", role: "status", hidden: "" });
document.body.append(tip);

function hideTip() {
  tip.hidden = true;
  for (const chart of all("svg.lighting")) chart.classList.remove("lighting");
  for (const mark of all("svg .lit")) mark.classList.remove("lit");
}

function showTip(mark, x, y) {
  hideTip();
  tip.textContent = mark.dataset.tip;
  tip.hidden = false;
  const room = document.documentElement.clientWidth - tip.offsetWidth - 8;
  const above = y - tip.offsetHeight - 12;
  tip.style.left = `${Math.max(8, Math.min(x + 12, room))}px`;
  tip.style.top = `${above > 8 ? above : y + 16}px`;
  const chart = mark.ownerSVGElement;
  const method = mark.closest("[data-method]")?.dataset.method;
  if (method === undefined) return;
  chart.classList.add("lighting");
  for (const each of all("[data-method]", chart)) each.classList.toggle("lit", each.dataset.method === method);
}

function markNear(x, y) {
  for (const [dx, dy] of [[0, 0], [4, 0], [-4, 0], [0, 4], [0, -4]]) {
    const mark = document.elementFromPoint(x + dx, y + dy)?.closest(".frame svg [data-tip]");
    if (mark) return mark;
  }
  return null;
}

for (const chart of all(".frame svg")) {
  for (const title of all("title", chart)) {
    title.parentElement.dataset.tip = title.textContent;
    title.remove(); // or the browser shows a second one
  }
  const marks = all("[data-tip]", chart);
  if (!marks.length) continue;
  chart.setAttribute("tabindex", "0");
  const point = (event) => {
    const mark = markNear(event.clientX, event.clientY);
    if (mark) showTip(mark, event.clientX, event.clientY);
    else hideTip();
  };
  chart.addEventListener("pointermove", point);
  chart.addEventListener("pointerdown", point);
  chart.addEventListener("pointerleave", hideTip);
  chart.addEventListener("blur", hideTip);
  let at = -1;
  chart.addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
    if (event.key === "Escape") hideTip();
    const shown = marks.filter((mark) => !mark.closest(".off"));
    if (!step || !shown.length) return;
    event.preventDefault();
    at = (at + step + shown.length) % shown.length;
    const box = shown[at].getBoundingClientRect();
    showTip(shown[at], box.right, box.top);
  });
}
addEventListener("scroll", hideTip, { passive: true });

// ------------------------------------------------------------------------------------- each subject

const tool = document.getElementById("compared");
if (tool) {
  const data = JSON.parse(document.getElementById("compared-values").content.textContent);
  const [transfer, method, against] = all("select", tool);
  const result = all("output", tool)[0];
  const place = tool.querySelector("div");
  const shown = (value, sign) => (value === null ? "\u2013" : `${sign && value > 0 ? "+" : ""}${value.toFixed(2)}`);
  const draw = () => {
    const own = data.transfers[transfer.value];
    const [left, right] = [against, method].map((select) => own.values[select.value]);
    const rows = own.subjects.map((subject, i) => {
      const both = left[i] !== null && right[i] !== null;
      return [subject, left[i], right[i], both ? (right[i] - left[i]) * (data.lower ? -1 : 1) : null];
    });
    rows.sort((a, b) => (a[3] ?? Infinity) - (b[3] ?? Infinity));
    const known = rows.map((row) => row[3]).filter((x) => x !== null);
    const better = known.filter((x) => x > 0).length;
    const worse = known.filter((x) => x < 0).length;
    const mean = known.length ? known.reduce((a, b) => a + b, 0) / known.length : null;
    result.textContent = `${method.value} is better in ${better} and worse in ${worse} of ${known.length} subjects; mean gain ${shown(mean, true)} ${data.points}.`;
    const table = made("table", { class: "numbers sorts" });
    table.append(made("caption", { class: "unseen" }, `Each subject: ${method.value} against ${against.value}, ${transfer.value}`));
    const head = table.createTHead().insertRow();
    for (const name of ["subject", against.value, method.value, `gain [${data.points}]`]) head.append(made("th", { scope: "col" }, name));
    if (data.lower) for (const i of [1, 2]) head.cells[i].dataset.lower = "yes";
    const body = table.createTBody();
    for (const [subject, ...values] of rows) {
      const row = body.insertRow();
      row.append(made("th", { scope: "row" }, subject));
      values.forEach((value, i) => row.append(made("td", { "data-value": value ?? "" }, shown(value, i === 2))));
    }
    const scroll = made("div", { class: "scroll tall", tabindex: "0", role: "region", "aria-label": table.caption.textContent });
    scroll.append(table);
    place.replaceChildren(scroll);
    makeSortable(table);
    if (rows.length > LONG) makeSearchable(table);
  };
  tool.hidden = false;
  tool.addEventListener("change", (event) => event.target.matches("select") && draw());
  draw();
}

// -------------------------------------------------------------------------------------------- print

// What is collapsed is printed too, and collapsed again afterwards.
addEventListener("beforeprint", () => {
  for (const details of all("details:not([open])")) {
    details.dataset.closed = "";
    details.open = true;
  }
});
addEventListener("afterprint", () => {
  for (const details of all("details[data-closed]")) {
    delete details.dataset.closed;
    details.open = false;
  }
});
