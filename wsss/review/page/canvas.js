// Shows a picture with its mask or map, at any zoom, and turns pointer and keys into positions on the picture.

import { BACKGROUND, labelName, patternTable } from "./classes.js";

const OUTLINE = 0xff000000; // opaque black, as RGBA in little-endian order

export class PictureView {
  // `stage` scrolls and receives keys; `onDraw(phase, x, y)` is called with phase begin, move or end.
  constructor(stage, classes, onDraw) {
    this.stage = stage;
    this.classes = classes;
    this.onDraw = onDraw;
    this.frame = add(stage, "div", "frame");
    this.picture = add(this.frame, "img", "layer");
    this.picture.alt = "";
    this.map = add(this.frame, "img", "layer");
    this.map.alt = "";
    this.overlay = add(this.frame, "canvas", "layer");
    this.names = add(this.frame, "div", "names");
    this.cross = add(this.frame, "div", "cross");
    this.zoom = 1;
    this.at = { x: 0, y: 0 };
    this.pointer = { x: NaN, y: NaN };
    this.radius = 0;
    this.down = false;
    this.busy = false;
    this.listen();
  }

  show(address, width, height) {
    this.width = width;
    this.height = height;
    this.overlay.width = width;
    this.overlay.height = height;
    this.context = this.overlay.getContext("2d");
    this.picture.src = address;
    this.at = { x: Math.floor(width / 2), y: Math.floor(height / 2) };
    this.fit();
  }

  // While the view is busy, no stroke can begin; one that has begun ends first.
  setBusy(busy) {
    if (busy) this.end();
    this.busy = busy;
    this.stage.setAttribute("aria-busy", busy);
  }

  fit() {
    const across = (this.stage.clientWidth - 8) / this.width;
    const down = (this.stage.clientHeight - 8) / this.height;
    this.setZoom(Math.max(0.05, Math.min(across, down, 16)));
  }

  setZoom(zoom) {
    const { stage } = this;
    const middleX = (stage.scrollLeft + stage.clientWidth / 2) / (this.width * this.zoom);
    const middleY = (stage.scrollTop + stage.clientHeight / 2) / (this.height * this.zoom);
    this.zoom = Math.max(0.05, Math.min(32, zoom));
    this.frame.style.width = `${this.width * this.zoom}px`;
    this.frame.style.height = `${this.height * this.zoom}px`;
    stage.scrollLeft = middleX * this.width * this.zoom - stage.clientWidth / 2;
    stage.scrollTop = middleY * this.height * this.zoom - stage.clientHeight / 2;
    this.placeCross();
  }

  setOpacity(opacity) {
    this.overlay.style.opacity = opacity;
    this.map.style.opacity = opacity;
  }

  // Show the map at an address, or none.
  showMap(address) {
    this.map.hidden = !address;
    if (address) this.map.src = address;
    else this.map.removeAttribute("src");
  }

  // Draw labels, or only those in a box; null hides the mask.
  drawLabels(drawing, box = null) {
    this.overlay.hidden = !drawing;
    if (!drawing) {
      this.names.replaceChildren();
      return;
    }
    const { labels, width, height } = drawing;
    const left = box ? Math.max(0, box.left - 1) : 0;
    const top = box ? Math.max(0, box.top - 1) : 0;
    const right = box ? Math.min(width - 1, box.right + 1) : width - 1;
    const bottom = box ? Math.min(height - 1, box.bottom + 1) : height - 1;
    const scale = Math.max(1, Math.round(Math.max(width, height) / 400));
    const image = this.context.createImageData(right - left + 1, bottom - top + 1);
    const pixels = new Uint32Array(image.data.buffer);
    for (let y = top, to = 0; y <= bottom; y++)
      for (let x = left; x <= right; x++, to++) {
        const at = y * width + x;
        const label = labels[at];
        if (label === BACKGROUND) continue;
        const edge =
          (x > 0 && labels[at - 1] !== label) ||
          (x < width - 1 && labels[at + 1] !== label) ||
          (y > 0 && labels[at - width] !== label) ||
          (y < height - 1 && labels[at + width] !== label);
        const { table, period } = patternTable(label);
        pixels[to] = edge
          ? OUTLINE
          : table[(Math.floor(y / scale) % period) * period + (Math.floor(x / scale) % period)];
      }
    this.context.putImageData(image, left, top);
    if (!this.down) this.drawNames(drawing);
  }

  // Write the name of each label on one of its pixels near the middle of its area.
  drawNames({ labels, width }) {
    const sums = new Map();
    for (let at = 0; at < labels.length; at++)
      if (labels[at] !== BACKGROUND) {
        let sum = sums.get(labels[at]);
        if (!sum) sums.set(labels[at], (sum = { x: 0, y: 0, n: 0, best: Infinity, at: 0 }));
        sum.x += at % width;
        sum.y += Math.floor(at / width);
        sum.n++;
      }
    for (let at = 0; at < labels.length; at++)
      if (labels[at] !== BACKGROUND) {
        const sum = sums.get(labels[at]);
        const distance = Math.hypot((at % width) - sum.x / sum.n, Math.floor(at / width) - sum.y / sum.n);
        if (distance < sum.best) Object.assign(sum, { best: distance, at });
      }
    const shown = [...sums].map(([label, sum]) => {
      const name = document.createElement("span");
      name.textContent = `${label === 255 ? "" : `${label} `}${labelName(label, this.classes)}`;
      name.style.left = `${(100 * (sum.at % width)) / this.width}%`;
      name.style.top = `${(100 * Math.floor(sum.at / width)) / this.height}%`;
      return name;
    });
    this.names.replaceChildren(...shown);
  }

  setRadius(radius) {
    this.radius = radius;
    this.placeCross();
  }

  moveCross(x, y) {
    this.at = {
      x: Math.max(0, Math.min(this.width - 1, x)),
      y: Math.max(0, Math.min(this.height - 1, y)),
    };
    this.placeCross();
    if (this.down) this.onDraw("move", this.at.x, this.at.y);
  }

  placeCross() {
    const side = (2 * this.radius + 1) * this.zoom;
    this.cross.style.width = this.cross.style.height = `${side}px`;
    this.cross.style.left = `${(this.at.x + 0.5) * this.zoom - side / 2}px`;
    this.cross.style.top = `${(this.at.y + 0.5) * this.zoom - side / 2}px`;
  }

  begin() {
    if (this.down || this.busy) return;
    this.down = true;
    this.onDraw("begin", this.at.x, this.at.y);
  }

  end() {
    if (!this.down) return;
    this.down = false;
    this.onDraw("end", this.at.x, this.at.y);
  }

  listen() {
    const position = (event) => {
      const box = this.frame.getBoundingClientRect();
      return [Math.floor((event.clientX - box.left) / this.zoom), Math.floor((event.clientY - box.top) / this.zoom)];
    };
    this.frame.addEventListener("pointerdown", (event) => {
      if (event.button !== 0) return;
      this.stage.focus({ preventScroll: true });
      this.frame.setPointerCapture(event.pointerId);
      this.pointer = { x: event.screenX, y: event.screenY };
      this.moveCross(...position(event));
      this.begin();
      event.preventDefault();
    });
    // browsers also report moves of a pointer that rests while the page below it changes: the cross stays where keys have put it
    this.frame.addEventListener("pointermove", (event) => {
      if (event.screenX === this.pointer.x && event.screenY === this.pointer.y) return;
      this.pointer = { x: event.screenX, y: event.screenY };
      this.moveCross(...position(event));
    });
    for (const name of ["pointerup", "pointercancel"]) this.frame.addEventListener(name, () => this.end());
    const moves = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
    this.stage.addEventListener("keydown", (event) => {
      if (event.ctrlKey || event.metaKey || event.altKey) return;
      if (event.key in moves) {
        const step = event.shiftKey ? Math.max(8, this.radius) : 1;
        this.moveCross(this.at.x + step * moves[event.key][0], this.at.y + step * moves[event.key][1]);
      } else if (event.key === " ") this.begin();
      else return;
      event.preventDefault();
    });
    this.stage.addEventListener("keyup", (event) => {
      if (event.key === " ") this.end();
    });
    this.stage.addEventListener("blur", () => this.end());
  }
}

function add(parent, tag, className) {
  const element = document.createElement(tag);
  element.className = className;
  element.draggable = false;
  parent.append(element);
  return element;
}
