"use strict";
// The headings of table.sortable become buttons that sort by their column; again, the other way
// round. A row that explains the one above (tr.reason) stays below it.
for (const table of document.querySelectorAll("table.sortable")) {
  const heads = [...table.tHead.rows[0].cells];
  const body = table.tBodies[0];
  const shown = (row, column) => (row.cells[column]?.firstChild?.textContent ?? "").trim();
  const sort = (column) => {
    const head = heads[column];
    const up = head.getAttribute("aria-sort") === "descending";
    heads.forEach((other) => other.removeAttribute("aria-sort"));
    head.setAttribute("aria-sort", up ? "ascending" : "descending");
    const groups = [];
    for (const row of body.rows) {
      if (row.classList.contains("reason")) groups.at(-1).push(row);
      else groups.push([row]);
    }
    const compare = (one, two) => {
      const [a, b] = [shown(one[0], column), shown(two[0], column)];
      const [x, y] = [parseFloat(a), parseFloat(b)];
      if (isNaN(x) !== isNaN(y)) return isNaN(x) ? 1 : -1; // what was not measured comes last
      const order = isNaN(x) ? a.localeCompare(b, undefined, { numeric: true }) : x - y;
      return up ? order : -order;
    };
    groups.sort(compare).flat().forEach((row) => body.append(row));
  };
  heads.forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.title = "sort by this column";
    button.append(...head.childNodes);
    button.addEventListener("click", () => sort(column));
    head.append(button);
  });
}
