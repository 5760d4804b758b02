// The page of `wsss try`: a dropped picture is sent to the server, which answers with its mask, class areas and time.

import { PictureView } from "./canvas.js";
import { swatch } from "./classes.js";
import { Drawing } from "./drawing.js";
import { getBytes, getJson, postBytes } from "./requests.js";

const element = (id) => document.getElementById(id);

class TryPage {
  constructor(session) {
    this.view = new PictureView(element("stage"), session.classes, () => {});
    this.view.setOpacity(element("opacity").value);
    element("title").textContent = `${session.title}: ${session.kind}, ${session.classes.length} classes`;
    this.most = session.most_bytes;
    this.listen();
  }

  listen() {
    const drop = element("drop");
    document.addEventListener("dragover", (event) => {
      event.preventDefault();
      drop.classList.add("over");
    });
    document.addEventListener("dragleave", () => drop.classList.remove("over"));
    document.addEventListener("drop", (event) => {
      event.preventDefault();
      drop.classList.remove("over");
      if (event.dataTransfer.files.length) this.predict(event.dataTransfer.files[0]);
    });
    element("file").addEventListener("change", (event) => {
      if (event.target.files.length) this.predict(event.target.files[0]);
    });
    element("opacity").addEventListener("input", (event) => this.view.setOpacity(event.target.value));
    element("zoom").addEventListener("input", (event) => this.view.setZoom(2 ** event.target.value));
  }

  async predict(file) {
    element("error").hidden = true;
    element("state").textContent = "predicting";
    try {
      if (file.size > this.most) throw new Error(`The file has more than ${this.most} bytes.`);
      const result = await postBytes(`api/predict?name=${encodeURIComponent(file.name)}`, file);
      const labels = new Uint8Array(await getBytes(`labels/${result.number}`));
      this.show(file.name, result, new Drawing(labels, result.width, result.height));
    } catch (error) {
      element("error").textContent = error.message;
      element("error").hidden = false;
      element("state").textContent = "";
    }
  }

  show(name, result, drawing) {
    element("name").textContent = name;
    this.view.show(`picture/${result.number}`, result.width, result.height);
    this.view.drawLabels(drawing);
    element("zoom").value = Math.log2(this.view.zoom);
    element("areas").replaceChildren();
    for (const { label, name: className, share } of result.areas) {
      const row = element("areas").insertRow();
      row.insertCell().append(swatch(label));
      row.insertCell().textContent = className;
      const number = row.insertCell();
      number.className = "number";
      number.textContent = `${(100 * share).toFixed(1)} %`;
    }
    element("state").textContent = `${result.seconds.toFixed(2)} s`;
    element("details").textContent = `${result.width} x ${result.height} pixels, mean confidence ${(100 * result.confidence).toFixed(0)} %`;
  }
}

async function start() {
  try {
    new TryPage(await getJson("api/session"));
  } catch (error) {
    element("error").textContent = error.message;
    element("error").hidden = false;
  }
}

start();
