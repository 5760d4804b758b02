// The list of pictures: any number of them, of which only the visible rows exist and are requested.

import { getJson } from "./requests.js";

const ROW = 76; // pixels, as in page.css
const PAGE = 40;
const MARKS = { accepted: "✓ accepted", rejected: "✗ rejected", changed: "● changed", "": "" };

export class PictureList {
  // `onSelect(index)` is called when a picture is chosen in the list.
  constructor(box, classes, onSelect) {
    this.box = box;
    this.classes = classes;
    this.onSelect = onSelect;
    this.order = [];
    this.rows = new Map();
    this.selected = -1;
    this.inner = document.createElement("div");
    this.inner.className = "rows";
    box.append(this.inner);
    box.addEventListener("scroll", () => this.draw());
    box.addEventListener("keydown", (event) => {
      const move = { ArrowDown: 1, ArrowUp: -1, PageDown: 8, PageUp: -8 }[event.key];
      if (!move || !this.order.length) return;
      event.preventDefault();
      this.choose(Math.max(0, Math.min(this.order.length - 1, this.selected + move)));
    });
    new ResizeObserver(() => this.draw()).observe(box);
  }

  setOrder(order, current) {
    this.order = order;
    this.rows.clear();
    this.selected = order.indexOf(current);
    this.inner.style.height = `${ROW * order.length}px`;
    this.reveal();
    this.draw();
  }

  // Select the picture at a position of the list.
  choose(position) {
    this.selected = position;
    this.reveal();
    this.draw();
    this.onSelect(this.order[position]);
  }

  // Remember the changed row of a picture.
  update(row) {
    this.rows.set(row.index, row);
    this.draw();
  }

  reveal() {
    const top = ROW * Math.max(0, this.selected);
    const { scrollTop, clientHeight } = this.box;
    if (top < scrollTop || top + ROW > scrollTop + clientHeight) this.box.scrollTop = top - clientHeight / 2 + ROW / 2;
  }

  draw() {
    const first = Math.max(0, Math.floor(this.box.scrollTop / ROW) - 2);
    const last = Math.min(this.order.length, Math.ceil((this.box.scrollTop + this.box.clientHeight) / ROW) + 2);
    const shown = [];
    const missing = [];
    for (let position = first; position < last; position++) {
      const row = this.rows.get(this.order[position]);
      if (row) shown.push(this.element(row, position));
      else missing.push(this.order[position]);
    }
    this.inner.replaceChildren(...shown);
    if (this.selected >= first && this.selected < last) this.box.setAttribute("aria-activedescendant", "selected-row");
    else this.box.removeAttribute("aria-activedescendant");
    if (missing.length) this.load(missing);
  }

  async load(missing) {
    if (this.loading) return;
    this.loading = true;
    try {
      const { rows } = await getJson(`api/rows?ids=${missing.slice(0, PAGE).join(",")}`);
      for (const row of rows) this.rows.set(row.index, row);
    } catch {
      return; // the page reports that the server is gone with its next step
    } finally {
      this.loading = false;
    }
    this.draw();
  }

  element(row, position) {
    const element = document.createElement("div");
    element.className = `row ${row.state}`;
    element.role = "option";
    element.style.top = `${ROW * position}px`;
    element.setAttribute("aria-selected", position === this.selected);
    element.setAttribute("aria-posinset", position + 1);
    element.setAttribute("aria-setsize", this.order.length);
    if (position === this.selected) element.id = "selected-row";
    const picture = document.createElement("img");
    picture.alt = "";
    picture.src = `thumbnail/${row.index}`;
    const text = document.createElement("div");
    for (const [className, content] of [
      ["name", row.name],
      ["tags", row.tags.map((tag) => this.classes[tag]).join(", ") || "no tag"],
      ["state", MARKS[row.state]],
      ["reason", row.reasons[0] ?? ""],
    ]) {
      const line = document.createElement("span");
      line.className = className;
      line.textContent = content;
      if (content) text.append(line);
    }
    element.append(picture, text);
    element.addEventListener("click", () => this.choose(position));
    return element;
  }
}
