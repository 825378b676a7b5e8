// The left column: what is open, what may be opened, and what is dropped on the page.

import { byId, element, partOf } from "./dom.js";

const PICTURE = /\.(png|jpe?g|bmp|tiff?|webp|gif|heic|avif)$/i;

export class Sources {
  // told: { open(source, phrase), choose(study), remove(study) }
  constructor(api, told) {
    this.api = api;
    this.told = told;
    byId("pick-files").onclick = () => byId("files").click();
    byId("pick-folder").onclick = () => byId("folder").click();
    for (const name of ["files", "folder"]) {
      byId(name).onchange = (event) => {
        this.openFiles([...event.target.files]);
        event.target.value = "";
      };
    }
    document.addEventListener("dragover", (event) => { event.preventDefault(); document.body.classList.add("over"); });
    document.addEventListener("dragleave", (event) => { if (!event.relatedTarget) document.body.classList.remove("over"); });
    document.addEventListener("drop", async (event) => {
      event.preventDefault();
      document.body.classList.remove("over");
      this.openFiles(await droppedFiles(event.dataTransfer.items));
    });
  }

  // Pictures are an image each; all else that comes together is one image, such as a series.
  async openFiles(files) {
    const inOrder = files.toSorted((a, b) => b.name.localeCompare(a.name, "en", { numeric: true })); // the last opened is listed first
    const groups = files.length > 1 && files.every((file) => PICTURE.test(file.name)) ? inOrder.map((file) => [file]) : [files];
    for (const group of groups) {
      if (!group.length) return;
      const form = new FormData();
      for (const file of group) form.append("files", file, file.webkitRelativePath || file.relative || file.name);
      await this.told.open({ form });
    }
  }

  show(studies, current) {
    byId("images").replaceChildren(...studies.map((study) => {
      const { about } = study;
      const detail = about.frames > 1 ? `${about.modality ?? ""} ${about.frames} ${partOf(about)}s`.trim() : `${about.width} × ${about.height}`;
      const said = study.failed ?? study.found.concepts.filter((one) => one.phrase).map((one) => `${one.phrase}: ${one.verdict}`).join(", ");
      const words = [element("span", { className: "name", textContent: about.name }), element("small", { textContent: detail })];
      if (said) words.push(element("small", { className: "answers", textContent: said, title: said }));
      const button = element("button", { type: "button", className: "open", title: about.name, onclick: () => this.told.choose(study) },
        element("img", { src: study.thumbnail ?? "", alt: "" }),
        element("span", { className: "text" }, ...words));
      if (study === current) button.setAttribute("aria-current", "true");
      const away = element("button", { type: "button", className: "quiet", textContent: "×", title: `Remove ${about.name}`, aria: { label: `Remove ${about.name}` }, onclick: () => this.told.remove(study) });
      return element("li", {}, button, away);
    }));
  }

  // Gives the samples.
  async showSamples() {
    const samples = await this.api.json("GET", "/v1/samples").catch(() => []);
    byId("samples-part").hidden = !samples.length;
    byId("samples").replaceChildren(...samples.map((one) => element("li", {}, element("button", {
      type: "button", textContent: one.title, title: `Open, and look for ${one.phrase}`, onclick: () => this.told.open({ sample: one.name }, one.phrase),
    }))));
    return samples;
  }

  async showData(path = "") {
    const entries = await this.api.json("GET", `/v1/data?path=${encodeURIComponent(path)}`).catch(() => []);
    byId("data-part").hidden = !entries.length && !path;
    const lines = entries.map((entry) => element("li", {}, element("button", {
      type: "button", textContent: entry.is_folder ? `${entry.name}/` : entry.name, title: entry.is_folder ? "Look into the folder" : "Open",
      onclick: () => (entry.is_folder ? this.showData(entry.path) : this.told.open({ data: entry.path })),
    })));
    if (path) {
      const above = path.split("/").slice(0, -1).join("/");
      lines.unshift(
        element("li", {}, element("button", { type: "button", textContent: "↑ back", onclick: () => this.showData(above) })),
        element("li", {}, element("button", { type: "button", textContent: "Open this folder as a series", onclick: () => this.told.open({ data: path }) })),
      );
    }
    byId("data").replaceChildren(...lines);
  }
}

// All files of what was dropped, folders among it.
async function droppedFiles(items) {
  const entries = [...items].map((item) => item.webkitGetAsEntry?.()).filter(Boolean);
  const files = [];
  const walk = async (entry) => {
    if (entry.isFile) {
      const file = await new Promise((resolve, reject) => entry.file(resolve, reject));
      file.relative = entry.fullPath.slice(1);
      if (!file.name.startsWith(".")) files.push(file);
      return;
    }
    const reader = entry.createReader();
    for (;;) {
      const some = await new Promise((resolve, reject) => reader.readEntries(resolve, reject));
      if (!some.length) return;
      for (const one of some) await walk(one);
    }
  };
  for (const entry of entries) await walk(entry);
  return files;
}
