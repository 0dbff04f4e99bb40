// Filters and sorts the table of claims. Without scripts it is the full table.
"use strict";
const table = document.querySelector("table.claims");
const claims = [...table.tBodies]; // each is a claim: its row, and the row of details
const heads = [...table.tHead.rows[0].cells];
const form = document.getElementById("filters");
const filters = [...form.querySelectorAll("[data-filter]")];
let order = "";

function filter() {
  for (const claim of claims) {
    claim.hidden = filters.some((one) => one.value && one.value !== claim.dataset[one.name]);
  }
  const shown = claims.filter((claim) => !claim.hidden).length;
  form.querySelector("output").value = `${shown} of ${claims.length} shown`;
}

function choose(wanted) {
  for (const one of filters) one.value = wanted[one.name] ?? "";
  filter();
}

// Sorts by a column's key, "-key" for downwards, "" as listed; claims without a value come last.
function sort(wanted) {
  order = wanted;
  const key = order.replace("-", "");
  const column = heads.findIndex((head) => key && head.dataset.key === key);
  const value = (claim) => parseFloat(claim.rows[0].cells[column]?.dataset.value);
  const compare = (one, other) => {
    const [a, b] = [value(one), value(other)];
    if (isNaN(a) || isNaN(b)) return isNaN(a) - isNaN(b);
    return order === key ? a - b : b - a;
  };
  table.append(...[...claims].sort(compare));
  heads.forEach((head, index) => {
    if (index === column) head.ariaSort = order === key ? "ascending" : "descending";
    else head.removeAttribute("aria-sort");
  });
  form.elements.order.value = order; // no choice is shown if this order is not offered there
}

// A link to a claim shows it, whatever the filters, with its details.
function reveal() {
  const claim = claims.find((one) => one.id === decodeURIComponent(location.hash.slice(1)));
  if (!claim) return;
  if (claim.hidden) choose({});
  claim.querySelector("details").open = true;
  claim.scrollIntoView();
}

for (const head of heads.filter((one) => one.dataset.key)) {
  const button = document.createElement("button");
  button.append(...head.childNodes);
  button.onclick = () => sort(order === head.dataset.key ? `-${order}` : head.dataset.key);
  head.append(button);
}
for (const link of document.querySelectorAll("a[data-study]")) {
  link.addEventListener("click", () => choose(link.dataset));
}
form.addEventListener("input", () => { filter(); });
form.elements.order.addEventListener("input", (event) => sort(event.target.value));
form.querySelector("button").onclick = () => choose({});
form.hidden = false;
window.addEventListener("hashchange", reveal);
filter();
reveal();
