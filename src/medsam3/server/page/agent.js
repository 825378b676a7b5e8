// The assistant: an instruction in words, what would be sent where before anything is, steps as they happen, the transcript.

import { byId, element } from "./dom.js";

export class Agent {
  // told: { study() -> Study, during(text, work), job(told), done(study), save(name, blob) }
  constructor(api, told) {
    this.api = api;
    this.told = told;
    this.policy = "offline";
    byId("agent-form").addEventListener("submit", (event) => {
      event.preventDefault();
      this.begin();
    });
    byId("agent-transcript").onclick = () => this.saveTranscript();
    byId("send-dialog").addEventListener("close", () => this.answered?.(byId("send-dialog").returnValue === "send"));
  }

  // Asks the server who may decide; without an answer the panel stays away.
  async show() {
    const about = await this.api.json("GET", "/v1/agent").catch(() => null);
    byId("agent").hidden = !about;
    if (!about) return;
    this.about = about;
    byId("agent-who").hidden = !about.llm;
    byId("agent-llm").textContent = about.llm ?? "";
    byId("agent-images-part").hidden = true;
    for (const radio of document.querySelectorAll("[name=policy]")) radio.onchange = () => this.choose(radio.value);
    this.choose("offline");
  }

  choose(policy) {
    this.policy = policy;
    const isSent = policy === "llm";
    byId("agent-images-part").hidden = !isSent || !this.about.may_send_images;
    byId("agent-where").textContent = isSent ? `Your words go to ${this.about.sent_to}. You are shown what exactly, before anything is sent.` : "Nothing leaves the server: rules decide, no language model is asked.";
  }

  async begin() {
    const study = this.told.study();
    const instruction = byId("instruction").value.trim();
    if (!study || !instruction) return;
    byId("agent-steps").replaceChildren();
    byId("agent-said").textContent = "";
    byId("agent-transcript").hidden = true;
    const sent = this.policy === "llm";
    const asked = { image: study.about.id, instruction, policy: this.policy, send_images: sent && byId("agent-images").checked };
    await this.told.during("the assistant is at work", async () => {
      if (sent) {
        const preview = await this.api.json("POST", "/v1/agent/preview", asked);
        if (!(await this.agreed(preview))) return;
        asked.consent = preview.consent;
      }
      await this.follow(study, { kind: "agent", ...asked });
    });
  }

  // Shows what would be sent, and waits for the answer.
  agreed(preview) {
    const pictures = preview.pictures.map((one) => element("figure", {}, element("img", { src: `data:image/png;base64,${one.png}`, alt: one.caption }), element("figcaption", { textContent: `${one.caption} (${one.width} × ${one.height})` })));
    byId("send-what").replaceChildren(
      element("p", { textContent: `To ${preview.sent_to}, model ${preview.model}. ${pictures.length ? "These pictures and words:" : "These words, and no picture:"}` }),
      ...pictures, element("pre", { textContent: preview.text, tabIndex: 0 }),
      element("details", {}, element("summary", { textContent: "and these rules" }), element("pre", { textContent: preview.system })),
      element("p", { textContent: `Later it may send what its tools say about masks${pictures.length ? ", and pictures of them" : ""}: ${preview.tools.join(", ")}.` }),
    );
    byId("send-dialog").returnValue = "";
    byId("send-dialog").showModal();
    return new Promise((resolve) => { this.answered = resolve; });
  }

  async follow(study, asked) {
    const job = await this.api.json("POST", "/v1/jobs", asked);
    const ended = await this.api.follow(job.id, (told) => this.told.job({ ...told, id: job.id }), { step: (step) => this.showStep(step) });
    this.job = job.id;
    byId("agent-transcript").hidden = false;
    if (ended.state !== "done") { byId("agent-said").textContent = "Stopped."; return; }
    const { outcome, reason } = ended.agent;
    const words = { found: "Found.", absent: "Not there.", undecided: "Not sure." }[outcome] ?? "";
    byId("agent-said").textContent = `${words} ${reason}`;
    if (ended.result) await study.addLayer(asked.instruction, ended.result);
    await this.told.done(study);
  }

  showStep(step) {
    const line = element("li", { className: step.is_mistake ? "mistake" : "" }, element("b", { textContent: step.call }), element("code", { textContent: step.arguments }), element("p", { textContent: step.text }));
    byId("agent-steps").append(line);
    line.scrollIntoView({ block: "nearest" });
  }

  async saveTranscript() {
    await this.told.during("writing", async () => {
      const answer = await this.api.request("GET", `/v1/jobs/${this.job}/transcript`);
      this.told.save("transcript.html", await answer.blob());
    });
  }
}
