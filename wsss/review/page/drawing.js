// A mask that is drawn on: labels, tools that change them, and the patches that undo and redo the changes. No page elements here.

export class Drawing {
  constructor(labels, width, height) {
    this.labels = labels;
    this.width = width;
    this.height = height;
    this.before = null;
    this.box = null;
  }

  // Begin a change; tools between `begin` and `end` are one step of the history.
  begin() {
    this.before = this.labels.slice();
    this.box = null;
  }

  // End a change; gives the patch, or null if nothing changed.
  end() {
    const { before, box } = this;
    this.before = this.box = null;
    if (!box) return null;
    const patch = { ...box, before: crop(before, this.width, box), after: crop(this.labels, this.width, box) };
    return patch.before.every((label, at) => label === patch.after[at]) ? null : patch;
  }

  undo(patch) {
    paste(this.labels, this.width, patch, patch.before);
  }

  redo(patch) {
    paste(this.labels, this.width, patch, patch.after);
  }

  // Paint a disk; a radius of 0 is one pixel.
  dab(x, y, radius, label) {
    const top = Math.max(0, Math.ceil(y - radius));
    const bottom = Math.min(this.height - 1, Math.floor(y + radius));
    for (let row = top; row <= bottom; row++) {
      const half = Math.sqrt(radius * radius - (row - y) * (row - y));
      const left = Math.max(0, Math.ceil(x - half));
      const right = Math.min(this.width - 1, Math.floor(x + half));
      if (left > right) continue;
      this.labels.fill(label, row * this.width + left, row * this.width + right + 1);
      this.touch(left, row, right, row);
    }
  }

  // Paint a line of disks.
  stroke(fromX, fromY, toX, toY, radius, label) {
    const length = Math.hypot(toX - fromX, toY - fromY);
    const steps = Math.max(1, Math.ceil(length / Math.max(1, radius / 2)));
    for (let step = 0; step <= steps; step++) {
      const share = step / steps;
      this.dab(Math.round(fromX + share * (toX - fromX)), Math.round(fromY + share * (toY - fromY)), radius, label);
    }
  }

  // Give all pixels of a region a label.
  fill(regions, region, label) {
    for (let at = 0; at < regions.length; at++)
      if (regions[at] === region && this.labels[at] !== label) {
        this.labels[at] = label;
        const x = at % this.width;
        const y = (at - x) / this.width;
        this.touch(x, y, x, y);
      }
  }

  // Replace all labels.
  replace(labels) {
    this.labels.set(labels);
    this.touch(0, 0, this.width - 1, this.height - 1);
  }

  touch(left, top, right, bottom) {
    const box = this.box;
    this.box = box
      ? {
          left: Math.min(box.left, left),
          top: Math.min(box.top, top),
          right: Math.max(box.right, right),
          bottom: Math.max(box.bottom, bottom),
        }
      : { left, top, right, bottom };
  }
}

function crop(labels, width, { left, top, right, bottom }) {
  const cut = new Uint8Array((right - left + 1) * (bottom - top + 1));
  for (let row = top, to = 0; row <= bottom; row++, to += right - left + 1)
    cut.set(labels.subarray(row * width + left, row * width + right + 1), to);
  return cut;
}

function paste(labels, width, { left, top, right, bottom }, cut) {
  const across = right - left + 1;
  for (let row = top, from = 0; row <= bottom; row++, from += across)
    labels.set(cut.subarray(from, from + across), row * width + left);
}
