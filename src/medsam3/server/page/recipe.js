// What was done on the page as a line for the shell and as Python, from the steps that stand.

// The line, and whether it is all that was done: on the command line a box or an example holds for every phrase, so what
// does not fit is left out.
export function commandLine(study, model, format) {
  const steps = study.standing().filter((step) => step.do !== "select");
  const [phrases, examples, boxes, follows] = ["segment", "exemplar", "box", "propagate"].map((name) => steps.filter((step) => step.do === name));
  const fitting = phrases.length <= 1 && !boxes.length ? examples : [];
  const drawn = phrases.length || examples.length ? [] : boxes;
  const followed = drawn.length ? follows : [];
  const words = ["medsam3", "segment", quoted(study.about.name)];
  for (const step of phrases) words.push("--text", quoted(step.phrase));
  for (const step of fitting) words.push("--exemplar", [...step.box, Number(step.positive !== false)].join(","));
  for (const step of drawn) words.push("--box", step.box.join(","));
  const frames = [...new Set([...phrases, ...fitting, ...drawn].map((step) => step.frame ?? null))];
  if (study.isStack && frames.length === 1 && frames[0] !== null) words.push(followed.length ? "--at" : "--frame", frames[0]);
  if (study.window) words.push("--window", quoted(study.window));
  if (model !== "mini") words.push("--model", quoted(model));
  if (format) words.push("--format", format);
  return { line: words.join(" "), isWhole: phrases.length + fitting.length + drawn.length + followed.length === steps.length && frames.length <= 1 };
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
