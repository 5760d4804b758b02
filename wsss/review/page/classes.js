// Colours and patterns of classes. The seven colours are those of Okabe and Ito, which people with any kind of colour blindness can tell apart;
// with six patterns, 42 classes look different, and every class is also labelled with its number and name.

const COLOURS = [
  [230, 159, 0],
  [86, 180, 233],
  [0, 158, 115],
  [240, 228, 66],
  [0, 114, 178],
  [213, 94, 0],
  [204, 121, 167],
];
const UNSURE_COLOUR = [128, 128, 128];
export const BACKGROUND = 0;
export const UNSURE = 255;

const near = (value, period, width) => ((value % period) + period) % period < width;
const PATTERNS = [
  () => false,
  (x, y) => near(x + y, 8, 3),
  (x, y) => near(y, 6, 2),
  (x, y) => near(x - y, 8, 3),
  (x, y) => near(x, 6, 2),
  (x, y) => near(x, 6, 3) && near(y, 6, 3),
];
const UNSURE_PATTERN = (x, y) => near(x + y, 8, 2) || near(x - y, 8, 2);

// The colour of a label (1, 2, ... or UNSURE) at a pixel, as [red, green, blue]; `scale` enlarges the pattern.
export function colourAt(label, x, y, scale) {
  const index = label - 1;
  const colour = label === UNSURE ? UNSURE_COLOUR : COLOURS[index % COLOURS.length];
  const pattern = label === UNSURE ? UNSURE_PATTERN : PATTERNS[index % PATTERNS.length];
  return pattern(Math.floor(x / scale), Math.floor(y / scale)) ? colour.map((value) => value * 0.45) : colour;
}

// Tables for drawing quickly: for each label, the colours of one period of its pattern (24 x 24), packed as RGBA.
const PERIOD = 24;
const tables = new Map();

export function patternTable(label) {
  if (!tables.has(label)) {
    const table = new Uint32Array(PERIOD * PERIOD);
    const bytes = new Uint8Array(table.buffer);
    for (let y = 0; y < PERIOD; y++)
      for (let x = 0; x < PERIOD; x++) bytes.set([...colourAt(label, x, y, 1), 255], 4 * (y * PERIOD + x));
    tables.set(label, table);
  }
  return { table: tables.get(label), period: PERIOD };
}

// A small square in the colour and pattern of a label.
export function swatch(label) {
  const canvas = document.createElement("canvas");
  canvas.width = canvas.height = 20;
  canvas.className = "swatch";
  canvas.setAttribute("aria-hidden", "true");
  const context = canvas.getContext("2d");
  for (let y = 0; y < 20; y++)
    for (let x = 0; x < 20; x++) {
      context.fillStyle = label === BACKGROUND ? "#fff" : `rgb(${colourAt(label, x, y, 1).map(Math.round).join(",")})`;
      context.fillRect(x, y, 1, 1);
    }
  return canvas;
}

export function labelName(label, classes) {
  if (label === BACKGROUND) return "background";
  return label === UNSURE ? "unsure" : classes[label - 1];
}
