// The page of `wsss review`: one picture at a time, with its tags and mask. Every step is sent to the server, which writes the files.

import { PictureView } from "./canvas.js";
import { BACKGROUND, labelName, swatch, UNSURE } from "./classes.js";
import { Drawing } from "./drawing.js";
import { PictureList } from "./list.js";
import { getBytes, getJson, postBytes, postJson } from "./requests.js";

const element = (id) => document.getElementById(id);
const KEYS = [
  ["N, P", "next and previous picture"],
  ["Enter", "accept tags and mask, and go to the next picture"],
  ["X", "reject the picture: it is left out of the training"],
  ["R", "reopen an accepted or rejected picture"],
  ["1 to 9", "toggle the tag with this number"],
  ["/", "find a class: Enter toggles the tag of the first one, Shift+Enter paints with it"],
  ["B, E, F", "brush, eraser, fill a region"],
  ["C", "choose the class to paint with"],
  ["Shift+1 to 9", "paint with the class of this number"],
  ["G", "go to the picture: arrow keys move the cross (with Shift faster), space paints"],
  ["[ ]", "smaller and larger brush"],
  [", .", "smaller and larger regions"],
  ["Z, Y", "undo and redo (also with Ctrl)"],
  ["M", "next layer: mask, maps, none"],
  ["O, Shift+O", "more and less opacity"],
  ["- + 0", "zoom out, zoom in, fit"],
  ["S", "save again after an error"],
  ["?", "this help"],
];

class ReviewPage {
  constructor(session) {
    this.session = session;
    this.classes = session.classes;
    this.histories = new Map();
    this.queue = Promise.resolve();
    this.waiting = 0;
    this.failed = null;
    this.unsaved = new Map();
    this.jobs = 0;
    this.opening = null;
    this.changing = null;
    this.tool = "brush";
    this.label = 1;
    this.layer = "mask";
    this.current = null;
    this.drawing = null;
    this.view = new PictureView(element("stage"), this.classes, (...where) => this.draw(...where));
    this.list = new PictureList(element("list"), this.classes, (index) => this.open(index));
    this.build();
    this.listen();
    this.showProgress(session);
  }

  build() {
    element("title").textContent = `Review of ${this.session.title}`;
    document.title = `${this.session.title} - wsss review`;
    fillSelect(element("sort"), this.session.sorts.map((sort) => [sort, sort]));
    fillSelect(element("only"), [["", "any"], ...this.classes.map((name, index) => [index, name])]);
    element("tools").hidden = !this.session.can_paint;
    const labels = [...this.classes.keys()].map((index) => index + 1);
    const paints = [...labels, UNSURE, BACKGROUND];
    fillSelect(element("paint"), paints.map((label) => [label, labelName(label, this.classes)]));
    this.tagButtons = this.classes.map((name, index) => {
      const button = document.createElement("button");
      button.type = "button";
      const key = document.createElement("kbd");
      key.textContent = index + 1;
      const text = document.createElement("span");
      text.textContent = name;
      button.append(key, swatch(index + 1), text);
      button.addEventListener("click", () => this.toggleTag(index));
      return button;
    });
    element("tags").append(...this.tagButtons);
    for (const [key, about] of KEYS) {
      const row = element("key-table").insertRow();
      const name = document.createElement("kbd");
      name.textContent = key;
      row.insertCell().append(name);
      row.insertCell().textContent = about;
    }
    this.view.setOpacity(element("opacity").value);
    this.view.setRadius(Number(element("size").value));
  }

  listen() {
    const actions = {
      previous: () => this.step(-1),
      next: () => this.step(1),
      accept: () => this.decide("accepted"),
      reject: () => this.decide("rejected"),
      reopen: () => this.decide("changed"),
      undo: () => this.undo(),
      redo: () => this.redo(),
      brush: () => this.setTool("brush"),
      eraser: () => this.setTool("eraser"),
      region: () => this.setTool("region"),
      original: () => this.backToOriginal(),
      finish: () => this.finish(),
      help: () => element("keys").showModal(),
    };
    for (const [id, act] of Object.entries(actions)) element(id).addEventListener("click", () => this.guarded(act));
    for (const id of ["sort", "show", "only"])
      element(id).addEventListener("change", () => this.guarded(() => this.reorder()));
    element("find").addEventListener("change", () => this.guarded(() => this.reorder()));
    element("layer").addEventListener("change", (event) => this.setLayer(event.target.value));
    element("paint").addEventListener("change", (event) => this.setLabel(Number(event.target.value)));
    element("opacity").addEventListener("input", (event) => this.view.setOpacity(event.target.value));
    element("zoom").addEventListener("input", (event) => this.view.setZoom(2 ** event.target.value));
    element("size").addEventListener("input", (event) => this.view.setRadius(Number(event.target.value)));
    element("region-size").addEventListener("input", () => (this.regions = null));
    element("class-search").addEventListener("input", () => this.filterClasses());
    element("class-search").addEventListener("keydown", (event) => this.searchKey(event));
    document.addEventListener("keydown", (event) => this.key(event));
    window.addEventListener("beforeunload", (event) => {
      if (this.waiting || this.failed) event.preventDefault();
    });
  }

  // Run a step, and show its error on the page.
  async guarded(act) {
    try {
      await act();
    } catch (error) {
      this.showError(error);
    }
  }

  showError(error) {
    element("error").textContent = error ? error.message : "";
    element("error").hidden = !error;
  }

  // Ask for the pictures as they are sorted and filtered now; `first` is the one to show, by default the present one.
  async reorder(first) {
    const query = new URLSearchParams({ sort: element("sort").value, show: element("show").value });
    if (element("only").value !== "") query.set("cls", element("only").value);
    if (element("find").value) query.set("find", element("find").value);
    const answer = await getJson(`api/order?${query}`);
    this.showProgress(answer);
    this.list.setOrder(answer.order, first ?? this.opening ?? this.current?.index);
    if (this.list.selected < 0 && answer.order.length) this.list.choose(0);
  }

  showProgress({ done, total, measured }) {
    element("progress").textContent = `${done} of ${total} done`;
    element("bar").value = total ? done / total : 0;
    element("measured").textContent =
      measured < total ? `${measured} of ${total} measured; choose a sorting again to use new measures` : "";
  }

  // Whether the picture that is shown can be changed: while another one is loaded, a key or stroke might be meant for that one.
  get ready() {
    return this.current !== null && this.jobs === 0;
  }

  // Run a job during which neither tags nor mask can be changed.
  async alone(job) {
    this.jobs++;
    this.view.setBusy(true);
    try {
      await job();
    } catch (error) {
      this.showError(error);
    } finally {
      if (--this.jobs === 0) this.view.setBusy(false);
    }
  }

  // Show a picture; one that is shown already is not loaded again.
  async open(index) {
    if (index === (this.opening ?? this.current?.index)) return;
    this.opening = index;
    await this.alone(async () => {
      try {
        await this.changing;
        await this.queue; // so that the answer contains all own steps
        const picture = await getJson(`api/picture/${index}`);
        const bytes = picture.has_mask ? await getBytes(`mask/${index}`) : null;
        if (this.opening === index) this.show(picture, bytes);
      } finally {
        if (this.opening === index) this.opening = null;
      }
    });
  }

  show(picture, bytes) {
    const { index, width, height } = picture;
    this.showError(this.failed);
    this.current = picture;
    this.regions = null;
    this.drawing = bytes && new Drawing(new Uint8Array(bytes), width, height);
    if (!this.histories.has(index)) this.histories.set(index, { done: [], undone: [] });
    this.view.show(`picture/${index}`, width, height);
    this.showZoom();
    this.fillLayers();
    this.showPicture();
    history.replaceState(null, "", `#${index}`);
  }

  fillLayers() {
    const maps = this.current.maps.map((cls) => [`map ${cls}`, `map of ${this.classes[cls]}`]);
    const layers = [...(this.drawing ? [["mask", "mask"]] : []), ...maps, ["none", "none"]];
    fillSelect(element("layer"), layers);
    const known = layers.some(([value]) => value === this.layer);
    this.setLayer(known ? this.layer : layers[0][0]);
  }

  setLayer(layer) {
    this.layer = element("layer").value = layer;
    this.view.drawLabels(layer === "mask" ? this.drawing : null);
    this.view.showMap(layer.startsWith("map ") ? `map/${this.current.index}/${layer.slice(4)}` : null);
  }

  showPicture() {
    const { name, tags, state, reasons } = this.current;
    const steps = this.histories.get(this.current.index);
    element("name").textContent = `${name}${state ? ` (${state})` : ""}`;
    const lines = reasons.map((reason) => {
      const line = document.createElement("li");
      line.textContent = reason;
      return line;
    });
    element("reasons").replaceChildren(...lines);
    this.tagButtons.forEach((button, index) => button.setAttribute("aria-pressed", tags.includes(index)));
    element("undo").disabled = !steps.done.length;
    element("redo").disabled = !steps.undone.length;
    element("reopen").disabled = !["accepted", "rejected"].includes(state);
    for (const id of ["brush", "eraser", "region", "original"]) element(id).disabled = !this.drawing;
  }

  step(by) {
    const position = this.list.selected + by;
    if (position >= 0 && position < this.list.order.length) this.list.choose(position);
  }

  // Send the decision on a picture, or its mask, to the server after all earlier ones; what fails is kept until it is saved.
  send(what, index, post) {
    const key = `${what} ${index}`;
    this.waiting++;
    element("saved").textContent = "saving";
    this.queue = this.queue.then(async () => {
      try {
        const row = await post();
        this.unsaved.delete(key);
        if (!this.unsaved.size) this.failed = null;
        this.showError(this.failed);
        this.showProgress(row);
        this.list.update(row);
        if (this.current?.index === index) {
          Object.assign(this.current, row);
          this.showPicture();
        }
      } catch (error) {
        this.unsaved.set(key, { what, index, post });
        this.failed = error;
        this.showError(error);
      }
      this.waiting--;
      element("saved").textContent = this.failed ? "not saved: press S to try again" : this.waiting ? "saving" : "saved";
    });
    return this.queue;
  }

  sendDecision(index, tags, state) {
    return this.send("decision", index, () => postJson(`api/picture/${index}`, { tags, state }));
  }

  sendMask(index, labels) {
    const copy = labels.slice();
    return this.send("mask", index, () => postBytes(`mask/${index}`, copy));
  }

  remember(step) {
    const steps = this.histories.get(this.current.index);
    steps.done.push(step);
    steps.undone = [];
  }

  // Set tags and state of the current picture, as one step of the history.
  change(tags, state) {
    const before = { tags: this.current.tags, state: this.current.state };
    this.remember({ before, after: { tags, state } });
    this.applyDecision({ tags, state });
  }

  applyDecision({ tags, state }) {
    Object.assign(this.current, { tags, state });
    this.showPicture();
    return this.sendDecision(this.current.index, tags, state);
  }

  toggleTag(index) {
    if (!this.ready) return;
    const { tags, state } = this.current;
    const changed = tags.includes(index) ? tags.filter((tag) => tag !== index) : [...tags, index].sort((a, b) => a - b);
    this.change(changed, state || "changed");
  }

  decide(state) {
    if (!this.ready || (state === "changed" && !["accepted", "rejected"].includes(this.current.state))) return;
    this.change(this.current.tags, state);
    if (state !== "changed") this.step(1);
  }

  undo() {
    if (!this.ready) return;
    const steps = this.histories.get(this.current.index);
    const step = steps.done.pop();
    if (!step) return;
    steps.undone.push(step);
    this.replay(step, "before");
  }

  redo() {
    if (!this.ready) return;
    const steps = this.histories.get(this.current.index);
    const step = steps.undone.pop();
    if (!step) return;
    steps.done.push(step);
    this.replay(step, "after");
  }

  replay(step, which) {
    if (step.patch) {
      if (which === "before") this.drawing.undo(step.patch);
      else this.drawing.redo(step.patch);
      this.afterDrawing(step.patch);
    }
    if (step[which]) this.applyDecision(step[which]);
    else this.showPicture();
  }

  setTool(tool) {
    this.tool = tool;
    for (const id of ["brush", "eraser", "region"]) element(id).setAttribute("aria-pressed", id === tool);
  }

  setLabel(label) {
    this.label = label;
    element("paint").value = label;
    if (this.tool === "eraser") this.setTool("brush");
  }

  draw(phase, x, y) {
    if (!this.drawing || this.layer !== "mask") {
      if (phase === "begin" && this.drawing) this.setLayer("mask");
      return;
    }
    if (this.tool === "region") {
      if (phase === "begin") this.changing = this.alone(() => this.fillRegion(x, y));
      else if (phase === "end") this.view.drawNames(this.drawing);
      return;
    }
    const label = this.tool === "eraser" ? BACKGROUND : this.label;
    const radius = Number(element("size").value);
    if (phase === "begin") {
      this.drawing.begin();
      this.drawing.dab(x, y, radius, label);
    } else if (phase === "move" && this.last) this.drawing.stroke(this.last.x, this.last.y, x, y, radius, label);
    this.last = phase === "end" ? null : { x, y };
    if (phase === "end") this.finishStroke(label);
    else this.view.drawLabels(this.drawing, this.drawing.box);
  }

  finishStroke(painted) {
    const patch = this.drawing.before && this.drawing.end();
    if (!patch) return;
    const { tags, state } = this.current;
    const step = { patch };
    if (painted > 0 && painted !== UNSURE && !tags.includes(painted - 1)) {
      step.before = { tags, state };
      step.after = { tags: [...tags, painted - 1].sort((a, b) => a - b), state: state || "changed" };
    }
    this.remember(step);
    this.afterDrawing(patch);
    if (step.after) this.applyDecision(step.after);
  }

  afterDrawing(patch) {
    if (this.layer === "mask") this.view.drawLabels(this.drawing, patch);
    this.sendMask(this.current.index, this.drawing.labels);
  }

  async fillRegion(x, y) {
    const { current, drawing, label } = this;
    const side = element("region-size").value;
    if (!this.regions) {
      element("saved").textContent = "finding regions";
      this.regions = new Int32Array(await getBytes(`regions/${current.index}/${side}`));
      element("saved").textContent = "";
    }
    drawing.begin();
    drawing.fill(this.regions, this.regions[y * drawing.width + x], label);
    this.finishStroke(label);
  }

  backToOriginal() {
    if (this.ready && this.drawing) this.changing = this.alone(() => this.takeOriginal());
  }

  async takeOriginal() {
    const { current, drawing } = this;
    const original = new Uint8Array(await getBytes(`mask/${current.index}?original`));
    drawing.begin();
    drawing.replace(original);
    const patch = drawing.end();
    if (!patch) return;
    this.remember({ patch });
    this.afterDrawing(patch);
  }

  async saveAgain() {
    for (const { what, index, post } of [...this.unsaved.values()]) this.send(what, index, post);
    await this.queue;
  }

  async finish() {
    await this.queue;
    const { commands, done, total } = await postJson("api/finish", {});
    element("summary").textContent = `${done} of ${total} pictures done.`;
    const parts = commands.flatMap(({ title, command }) => {
      const heading = document.createElement("h3");
      heading.textContent = title;
      const text = document.createElement("pre");
      text.textContent = command;
      text.tabIndex = 0;
      return [heading, text];
    });
    if (!parts.length) parts.push("No tag and no mask was changed, so there is nothing to train again.");
    element("command-list").replaceChildren(...parts);
    element("commands").showModal();
  }

  showZoom() {
    element("zoom").value = Math.log2(this.view.zoom);
  }

  setZoom(zoom) {
    this.view.setZoom(zoom);
    this.showZoom();
  }

  filterClasses() {
    const text = element("class-search").value.trim().toLowerCase();
    this.tagButtons.forEach((button, index) => (button.hidden = !this.classes[index].toLowerCase().includes(text)));
  }

  searchKey(event) {
    if (event.key === "Enter") {
      const first = this.tagButtons.findIndex((button) => !button.hidden);
      if (first < 0) return;
      if (event.shiftKey) this.setLabel(first + 1);
      else this.toggleTag(first);
    } else if (event.key !== "Escape") return;
    event.preventDefault();
    event.target.value = "";
    this.filterClasses();
    event.target.blur();
  }

  key(event) {
    const inText = event.target.matches("input[type=search], select");
    if (inText || document.querySelector("dialog[open]") || event.altKey) return;
    const ctrl = event.ctrlKey || event.metaKey;
    const digit = /^Digit([1-9])$/.exec(event.code);
    const act = ctrl
      ? { z: event.shiftKey ? () => this.redo() : () => this.undo(), y: () => this.redo() }[event.key.toLowerCase()]
      : digit
        ? () => this.digit(Number(digit[1]), event.shiftKey)
        : this.keyAction(event);
    if (!act) return;
    event.preventDefault();
    this.guarded(act);
  }

  digit(number, shift) {
    if (number > this.classes.length) return;
    if (shift) this.setLabel(number);
    else this.toggleTag(number - 1);
  }

  keyAction(event) {
    if (event.key === "Enter") return event.target.matches("button") ? null : () => this.decide("accepted");
    const slide = (id, by) => () => {
      const slider = element(id);
      slider.value = Number(slider.value) + by;
      slider.dispatchEvent(new Event("input"));
    };
    const sizes = Math.max(1, Math.round(element("size").value / 5));
    return {
      n: () => this.step(1),
      p: () => this.step(-1),
      x: () => this.decide("rejected"),
      r: () => this.decide("changed"),
      z: () => this.undo(),
      y: () => this.redo(),
      b: () => this.setTool("brush"),
      e: () => this.setTool("eraser"),
      f: () => this.setTool("region"),
      c: () => element("paint").focus(),
      g: () => element("stage").focus(),
      m: () => this.nextLayer(),
      o: slide("opacity", event.shiftKey ? -0.1 : 0.1),
      s: () => this.saveAgain(),
      "/": () => element("class-search").focus(),
      "?": () => element("keys").showModal(),
      "[": slide("size", -sizes),
      "]": slide("size", sizes),
      ",": slide("region-size", -4),
      ".": slide("region-size", 4),
      "-": () => this.setZoom(this.view.zoom / 1.25),
      "+": () => this.setZoom(this.view.zoom * 1.25),
      "=": () => this.setZoom(this.view.zoom * 1.25),
      0: () => {
        this.view.fit();
        this.showZoom();
      },
    }[event.key.toLowerCase()];
  }

  nextLayer() {
    const layers = [...element("layer").options].map((option) => option.value);
    this.setLayer(layers[(layers.indexOf(this.layer) + 1) % layers.length]);
  }
}

function fillSelect(select, pairs) {
  const options = pairs.map(([value, text]) => {
    const option = document.createElement("option");
    option.value = value;
    option.textContent = text;
    return option;
  });
  select.replaceChildren(...options);
}

async function start() {
  try {
    const page = new ReviewPage(await getJson("api/session"));
    const asked = Number(location.hash.slice(1));
    await page.reorder(location.hash ? asked : undefined);
    if (page.list.selected >= 0 && !page.current) page.list.choose(page.list.selected);
  } catch (error) {
    element("error").textContent = error.message;
    element("error").hidden = false;
  }
}

start();
