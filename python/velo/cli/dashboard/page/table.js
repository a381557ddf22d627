// Tables whose rows stay the same elements while their figures change, so that focus stays as well.

/**
 * Returns a function that shows rows in a table.
 *
 * columns: {head, cell, word, wide, sort}. `cell` gives the text of a row, or an element;
 * `sort` is the name of the order that a click on the head asks for.
 * options.id names a row; options.open is called with a row that was chosen; options.sort with the
 * name of an order.
 */
export function table(element, columns, { id, open, sort, warn } = {}) {
  const head = element.createTHead().insertRow();
  const body = element.createTBody();
  const known = new Map();
  for (const column of columns) {
    const cell = document.createElement("th");
    cell.scope = "col";
    cell.className = classes(column);
    if (column.sort) {
      const button = document.createElement("button");
      button.type = "button";
      button.textContent = column.head;
      button.addEventListener("click", () => sort(column.sort));
      cell.append(button);
    } else cell.textContent = column.head;
    head.append(cell);
  }

  function made(row) {
    const line = document.createElement("tr");
    for (const [at, column] of columns.entries()) {
      const cell = line.insertCell();
      cell.className = classes(column);
      if (open && at === 0) {
        const button = document.createElement("button");
        button.type = "button";
        cell.append(button);
      }
    }
    if (open) {
      line.className = "openable";
      line.addEventListener("click", () => open(line.shows));
    }
    known.set(id(row), line);
    return line;
  }

  return (rows, sorted) => {
    const there = new Set(rows.map(id));
    for (const [name, line] of known) {
      if (there.has(name)) continue;
      line.remove();
      known.delete(name);
    }
    let before = null;
    for (const row of rows) {
      const line = known.get(id(row)) ?? made(row);
      line.shows = row;
      line.classList.toggle("warn", Boolean(warn?.(row)));
      for (const [at, column] of columns.entries()) {
        const text = String(column.cell(row) ?? "");
        const cell = line.cells[at];
        const place = cell.firstElementChild ?? cell;
        if (place.textContent !== text) place.textContent = text;
        const title = column.title?.(row) ?? (column.word ? text : "");
        if (cell.title !== title) cell.title = title;
      }
      const next = before ? before.nextSibling : body.firstChild;
      if (line !== next) {
        const focused = line.contains(document.activeElement) ? document.activeElement : null;
        body.insertBefore(line, next);
        focused?.focus({ preventScroll: true });
      }
      before = line;
    }
    if (sorted) {
      for (const [at, column] of columns.entries()) {
        const way = column.sort === sorted.order ? (sorted.down ? "descending" : "ascending") : null;
        const cell = head.cells[at];
        if (way) cell.setAttribute("aria-sort", way);
        else cell.removeAttribute("aria-sort");
        if (column.sort) {
          const mark = way === "descending" ? " ↓" : way === "ascending" ? " ↑" : "";
          cell.firstChild.textContent = column.head + mark;
        }
      }
    }
    element.closest(".scroll").hidden = rows.length === 0;
  };
}

function classes(column) {
  return [column.word && "word", column.wide && "wide"].filter(Boolean).join(" ");
}
