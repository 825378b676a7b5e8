// The field in which a phrase is written, with known concepts to choose from and what is known of each.

import { byId, element } from "./dom.js";

const PAUSE_MS = 120;

export class PhraseField {
  // find(phrases) is called with what was asked for, one or more; findAll(phrases) if it is for all open images.
  constructor(api, find, findAll) {
    this.api = api;
    this.find = find;
    this.field = byId("phrase");
    this.list = byId("concepts");
    this.chosen = -1;
    this.asked = 0;
    this.field.addEventListener("input", () => this.complete());
    this.field.addEventListener("keydown", (event) => this.key(event));
    this.field.addEventListener("focus", () => this.field.select());
    this.field.addEventListener("blur", () => this.close());
    byId("ask").addEventListener("submit", (event) => {
      event.preventDefault();
      this.submit();
    });
    byId("find-all").onclick = () => this.submit(findAll);
  }

  // Several phrases are divided by commas.
  get parts() {
    return this.field.value.split(/[,;\n]/).map((part) => part.trim());
  }

  submit(find = this.find) {
    this.close();
    const phrases = [...new Set(this.parts.filter(Boolean))];
    if (phrases.length) find(phrases);
  }

  async complete() {
    const text = this.parts.at(-1);
    const mine = ++this.asked;
    await new Promise((resolve) => setTimeout(resolve, PAUSE_MS));
    if (mine !== this.asked) return;
    const concepts = text ? await this.api.json("GET", `/v1/concepts?q=${encodeURIComponent(text)}`).catch(() => null) : [];
    if (concepts && mine === this.asked && document.activeElement === this.field) this.show(text, concepts.slice(0, 9));
  }

  show(text, concepts) {
    const typed = text.toLowerCase();
    const isListed = concepts.some((one) => [one.name, ...one.synonyms].some((name) => name.toLowerCase() === typed));
    const lines = concepts.map((one) => {
      const other = one.name.toLowerCase().includes(typed) ? null : one.synonyms.find((name) => name.toLowerCase().includes(typed));
      return { name: other ?? one.name, mark: one.is_taught === false ? "not taught" : other ? `read as ${one.name}` : "" };
    });
    if (text && !isListed) lines.push({ name: text, mark: "not in the list, a guess" });
    this.chosen = -1;
    this.list.replaceChildren(...lines.map(({ name, mark }, k) => {
      const line = element("li", { id: `concept-${k}`, aria: { role: "option", selected: "false" } }, element("span", { textContent: name }), element("small", { textContent: mark }));
      line.dataset.name = name;
      line.addEventListener("pointerdown", (event) => {
        event.preventDefault();
        this.take(line);
        this.submit();
      });
      return line;
    }));
    this.open(lines.length > 0);
  }

  take(line) {
    this.field.value = [...this.parts.slice(0, -1), line.dataset.name].join(", ");
  }

  choose(k) {
    const lines = [...this.list.children];
    if (!lines.length) return;
    this.chosen = (k + lines.length) % lines.length;
    lines.forEach((line, at) => line.setAttribute("aria-selected", String(at === this.chosen)));
    this.field.setAttribute("aria-activedescendant", lines[this.chosen].id);
    lines[this.chosen].scrollIntoView({ block: "nearest" });
    this.take(lines[this.chosen]);
  }

  key(event) {
    if (event.key === "ArrowDown" || event.key === "ArrowUp") {
      event.preventDefault();
      if (this.list.hidden) this.complete();
      else this.choose(this.chosen < 0 && event.key === "ArrowUp" ? -1 : this.chosen + (event.key === "ArrowDown" ? 1 : -1));
    } else if (event.key === "Escape") {
      event.stopPropagation();
      if (this.list.hidden) this.field.blur();
      this.close();
    }
  }

  open(isOpen) {
    this.list.hidden = !isOpen;
    this.field.setAttribute("aria-expanded", String(isOpen));
    if (!isOpen) this.field.removeAttribute("aria-activedescendant");
  }

  close() {
    this.asked++;
    this.open(false);
  }
}
