// What was done on the page as a line for the shell and as Python, from the steps that stand.

const CORRECTIONS = ["click", "scribble", "paint", "remove", "propagate"];

// What the line leaves out is said beside it.
export function commandLine(study, model, format) {
  const steps = study.standing();
  const words = ["medsam3", "segment", quoted(study.about.name)];
  for (const step of steps.filter((step) => step.do === "segment")) words.push("--text", quoted(step.phrase));
  for (const step of steps.filter((step) => step.do === "exemplar")) words.push("--exemplar", [...step.box, Number(step.positive !== false)].join(","));
  const boxes = steps.filter((step) => step.do === "box");
  for (const step of boxes) words.push("--box", step.box.join(","));
  const frames = [...new Set(steps.map((step) => step.frame).filter(Number.isInteger))];
  if (study.isStack && frames.length === 1) words.push(boxes.length ? "--at" : "--frame", frames[0]);
  if (study.window) words.push("--window", quoted(study.window));
  if (model !== "mini") words.push("--model", quoted(model));
  if (format) words.push("--format", format);
  return words.join(" ");
}

export function isWhole(study) {
  return !study.standing().some((step) => CORRECTIONS.includes(step.do));
}

export function python(study, model) {
  const { low, high } = study.asked ?? {};
  const options = study.asked ? `, options=medsam3.Options(window=Window(${low}, ${high}))` : "";
  return [
    "import medsam3",
    ...(study.asked ? ["from medsam3.image import Window"] : []),
    "",
    `image = medsam3.read(${JSON.stringify(study.about.name)})`,
    `session = medsam3.Session(image, medsam3.load(${JSON.stringify(model)})${options})`,
    ...study.standing().map(pythonLine),
    `medsam3.write(session.masks_by_concept, ${study.about.kind === "volume" ? '"masks.nii.gz"' : '"masks.png"'}, image)`,
    "",
  ].join("\n");
}

function pythonLine(step) {
  const first = {
    segment: () => [JSON.stringify(step.phrase)],
    exemplar: () => step.box,
    click: () => [step.x, step.y],
    scribble: () => [JSON.stringify(step.points)],
    paint: () => [JSON.stringify(step.points)],
    box: () => step.box,
    select: () => [step.object ?? "None"],
  }[step.do]?.() ?? [];
  const more = [];
  if (step.positive === false) more.push("positive=False");
  if (step.do === "paint") more.push(`radius=${step.radius}`, ...(step.adding === false ? ["adding=False"] : []));
  if (step.do === "exemplar" && step.phrase) more.push(`phrase=${JSON.stringify(step.phrase)}`);
  if (Number.isInteger(step.frame)) more.push(`frame=${step.frame}`);
  if (Number.isInteger(step.object) && step.do !== "select") more.push(`object=${step.object}`);
  return `session.${step.do}(${[...first, ...more].join(", ")})`;
}

function quoted(text) {
  return /^[\w./-]+$/.test(text) ? text : `'${text.replaceAll("'", "'\\''")}'`;
}
