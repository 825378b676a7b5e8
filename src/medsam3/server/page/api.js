// Speaks to the server: requests with the token, problem documents as errors, events of jobs, and whether it is there.

const LOOK_MS = 3000;

export class ProblemError extends Error {
  constructor(status, detail) {
    super(detail);
    this.status = status;
  }
}

export class LostError extends Error {}

export class Api {
  constructor(askToken, onLost) {
    this.askToken = askToken;
    this.onLost = onLost;
    this.isLost = false;
    setInterval(() => this.look(), LOOK_MS);
  }

  async look() {
    try {
      const answer = await fetch("/healthz", { cache: "no-store" });
      if (!answer.ok) throw new Error();
      this.setLost(false);
    } catch {
      this.setLost(true);
    }
  }

  setLost(isLost) {
    if (isLost === this.isLost) return;
    this.isLost = isLost;
    this.onLost(isLost);
  }

  headers() {
    const token = sessionStorage.getItem("token");
    return token ? { Authorization: `Bearer ${token}` } : {};
  }

  async request(method, path, body) {
    const isForm = body instanceof FormData;
    const headers = this.headers();
    if (body !== undefined && !isForm) headers["Content-Type"] = "application/json";
    let answer;
    try {
      answer = await fetch(path, { method, headers, body: body === undefined || isForm ? body : JSON.stringify(body) });
    } catch {
      this.setLost(true);
      throw new LostError("the server does not answer");
    }
    if (answer.status === 401) {
      sessionStorage.setItem("token", await this.askToken());
      return this.request(method, path, body);
    }
    if (!answer.ok) throw await problemOf(answer);
    return answer;
  }

  async json(method, path, body) {
    return (await this.request(method, path, body)).json();
  }

  async bitmap(path) {
    return createImageBitmap(await (await this.request("GET", path)).blob());
  }

  // Uploads with progress, which fetch does not tell.
  upload(form, onProgress) {
    return new Promise((resolve, reject) => {
      const request = new XMLHttpRequest();
      request.open("POST", "/v1/images");
      for (const [name, value] of Object.entries(this.headers())) request.setRequestHeader(name, value);
      request.upload.onprogress = (event) => onProgress(event.loaded / Math.max(event.total, 1));
      request.onerror = () => reject(new LostError("the upload was broken off: is the file too large, or the server gone?"));
      request.onload = () => {
        let answer = {};
        try { answer = JSON.parse(request.responseText); } catch { /* said below */ }
        if (request.status === 201) resolve(answer);
        else reject(new ProblemError(request.status, answer.detail ?? `the server answered ${request.status}`));
      };
      request.send(form);
    });
  }

  // Follows a job by its events until it ends. Those with a name go to the listener of that name.
  async follow(job, onProgress, listeners = {}) {
    const answer = await this.request("GET", `/v1/jobs/${job}/events`);
    const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
    let text = "";
    let last = null;
    for (;;) {
      const { value, done } = await reader.read().catch(() => { throw new LostError("the server does not answer"); });
      if (done) break;
      text += value;
      const events = text.split("\n\n");
      text = events.pop();
      for (const event of events) {
        const [, name] = /^event: (.*)$/m.exec(event) ?? [];
        const told = JSON.parse(/^data: (.*)$/m.exec(event)[1]);
        if (name && name !== "message") listeners[name]?.(told);
        else onProgress((last = told));
      }
    }
    if (last === null || ["waiting", "running"].includes(last.state)) throw new LostError("the server does not answer");
    if (last.state === "failed") throw new ProblemError(400, last.error);
    return last;
  }
}

async function problemOf(answer) {
  try {
    return new ProblemError(answer.status, (await answer.json()).detail);
  } catch {
    return new ProblemError(answer.status, `the server answered ${answer.status}`);
  }
}
