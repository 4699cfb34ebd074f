"use strict";
const DATA = JSON.parse(document.getElementById("data").textContent);
const PALETTES = {
  light: ["#0b6bcb", "#c4491d", "#1a7f37", "#8250df", "#9a6700", "#0a7d8c", "#bf3989", "#57606a"],
  dark: ["#58a6ff", "#ff9466", "#3fb950", "#bc8cff", "#e3b341", "#39c5cf", "#ff7bd5", "#9ea7b3"],
};
const SYSTEM = window.matchMedia("(prefers-color-scheme: dark)");
let chosen = null; // what the button chose; null follows the system
const several = DATA.runs.length > 1;

function theme() { return chosen ?? (SYSTEM.matches ? "dark" : "light"); }
function style(name) { return getComputedStyle(document.documentElement).getPropertyValue(name).trim(); }
function element(kind, attributes = {}, text = "") {
  const made = document.createElement(kind);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.textContent = text;
  return made;
}

function figure(options) {
  const made = Bokeh.Plotting.figure({
    sizing_mode: "stretch_width", tools: "", toolbar_location: null,
    background_fill_color: null, border_fill_color: null, outline_line_color: null, min_border: 4, ...options,
  });
  for (const axis of [...made.xaxes, ...made.yaxes]) {
    axis.axis_line_color = axis.major_tick_line_color = style("--line");
    axis.minor_tick_line_color = null;
    axis.major_label_text_color = axis.axis_label_text_color = style("--quiet");
    axis.major_label_text_font_size = "12px";
  }
  for (const grid of made.center.filter((part) => part instanceof Bokeh.Grid)) grid.grid_line_color = style("--line");
  for (const grid of made.center.filter((part) => part instanceof Bokeh.Grid)) grid.grid_line_alpha = 0.5;
  return made;
}

// The exponential mean of the values, without its bias towards the first ones.
function smooth(values) {
  const keep = Math.min(0.98, 1 - 12 / values.length);
  let mean = 0, weight = 0;
  return values.map((value) => {
    mean = keep * mean + (1 - keep) * value;
    weight = keep * weight + (1 - keep);
    return mean / weight;
  });
}

function draw(made, [steps, values], color, label, held_out) {
  const source = new Bokeh.ColumnDataSource({data: {step: steps, value: values, label: steps.map(() => label)}});
  const x = {field: "step"}, y = {field: "value"};
  const noisy = !held_out && values.length > 60;
  const line = made.line(x, y, {
    source, line_color: color, line_width: noisy ? 1 : 2, line_alpha: noisy ? 0.35 : 1,
    line_dash: held_out ? "dashed" : "solid",
  });
  if (noisy) made.line(steps, smooth(values), {line_color: color, line_width: 2});
  if (held_out || values.length < 3) made.scatter(x, y, {source, size: 6, color});
  return line;
}

function chart(spec) {
  const made = figure({height: 210}), lines = [], labels = [];
  const palette = PALETTES[theme()];
  let count = 0;
  for (const metric of spec.metrics) {
    DATA.runs.forEach((run, place) => {
      const curve = run.curves[metric];
      if (!curve) return;
      const held_out = metric.startsWith("eval_");
      const color = palette[(several ? place : count++) % palette.length];
      const name = metric.replaceAll("_", " ").replace(/^eval /, "held-out ");
      lines.push(draw(made, curve, color, several ? `${run.name}: ${name}` : name, held_out));
      if (!several) labels.push([name, color]);
    });
  }
  mark(made);
  made.add_tools(new Bokeh.HoverTool({
    renderers: lines, mode: "vline",
    tooltips: [["", "@label"], ["step", "@step"], [spec.unit || "value", "@value{0.[00000]}"]],
  }));
  if (!window.matchMedia("(pointer: coarse)").matches) made.add_tools(new Bokeh.BoxZoomTool({dimensions: "width"}), new Bokeh.ResetTool());
  made.toolbar_location = "right";
  made.toolbar_inner = true;
  made.toolbar.autohide = true;
  made.toolbar.logo = null;
  return [made, labels];
}

// A line at each step at which an alert was raised.
function mark(made) {
  for (const run of DATA.runs) for (const alert of run.alerts) if (alert.step !== null) {
    made.add_layout(new Bokeh.Span({
      location: alert.step, dimension: "height", line_dash: "dotted", line_width: 1.5,
      line_color: style(alert.severity === "error" ? "--error" : "--warning"),
    }));
  }
}

function heading(spec, labels) {
  const box = element("div"), title = element("h3", {}, spec.title);
  const good = {higher: "higher is better", lower: "lower is better"}[spec.better];
  const words = [spec.unit, good].filter(Boolean).join(", ");
  if (words) title.append(" ", element("span", {class: "unit"}, words));
  box.append(title);
  if (labels.length > 1) {
    const names = element("p");
    for (const [name, color] of labels) names.append(element("b", {style: `color:${color}`}, "■ "), `${name}  `);
    box.append(names);
  }
  if (spec.note) box.append(element("p", {}, spec.note));
  return box;
}

async function show(made, where) {
  await Bokeh.Plotting.show(made, where);
}

function timeline() {
  const where = document.getElementById("timeline"), kinds = [], rows = {step: [], kind: [], text: [], color: []};
  const colors = {error: style("--error"), warning: style("--warning"), info: style("--quiet")};
  for (const run of DATA.runs) {
    const prefix = several ? `${run.name}: ` : "";
    for (const [list, kind] of [[run.alerts, "alerts"], [run.events, "events"]]) for (const event of list) {
      if (event.step === null) continue;
      rows.step.push(event.step);
      rows.kind.push(kind);
      rows.text.push(`${prefix}${event.code}: ${event.message}`);
      rows.color.push(colors[event.severity] ?? colors.info);
      if (!kinds.includes(kind)) kinds.push(kind);
    }
  }
  where.replaceChildren();
  where.hidden = !kinds.length;
  if (!kinds.length) return;
  const last = Math.max(1, ...DATA.runs.flatMap((run) => Object.values(run.curves).map(([steps]) => steps.at(-1))));
  const made = figure({
    height: 86, y_range: new Bokeh.FactorRange({factors: kinds}),
    x_range: new Bokeh.Range1d({start: -0.02 * last, end: 1.02 * last}),
  });
  const source = new Bokeh.ColumnDataSource({data: rows});
  const dots = made.scatter({field: "step"}, {field: "kind"}, {source, size: 10, color: {field: "color"}, line_color: null});
  made.add_tools(new Bokeh.HoverTool({renderers: [dots], tooltips: [["step", "@step"], ["", "@text"]]}));
  show(made, where);
}

function drawCharts() {
  const main = document.getElementById("charts");
  main.replaceChildren();
  let part = null, grid = null;
  for (const spec of DATA.charts) {
    if (spec.part !== part) {
      part = spec.part;
      grid = element("div", {class: "grid"});
      main.append(element("h2", {}, part), grid);
    }
    const [made, labels] = chart(spec), card = element("section", {class: "card"}), place = element("div", {class: "chart"});
    card.append(heading(spec, labels), place);
    grid.append(card);
    show(made, place);
  }
}

function completions() {
  const runs = document.getElementById("run"), prompts = document.getElementById("prompt");
  if (!runs) return;
  DATA.runs.forEach((run, place) => { if (run.prompts.length) runs.append(element("option", {value: place}, run.name)); });
  runs.hidden = runs.options.length < 2;
  const fill = () => {
    prompts.replaceChildren();
    DATA.runs[runs.value].prompts.forEach((one, place) => {
      const steps = new Set(one.completions.map((row) => row[0])).size;
      const text = one.prompt.length > 90 ? `${one.prompt.slice(0, 90)}…` : one.prompt || "(empty prompt)";
      prompts.append(element("option", {value: place}, `${text}  (${steps} ${steps === 1 ? "step" : "steps"})`));
    });
    table();
  };
  const table = () => {
    const one = DATA.runs[runs.value].prompts[prompts.value], body = element("tbody");
    for (const [step, text, reward, parts, finished] of one.completions) {
      const row = element("tr"), words = element("td");
      const detail = Object.entries(parts).map(([name, value]) => `${name} ${value}`).join(", ");
      words.append(element("pre", {}, text === "" ? "(empty)" : text));
      if (finished === false) words.append(element("span", {class: "warning"}, "cut off at the longest length"));
      row.append(element("td", {class: "number", "data-label": "step"}, step), element("td", {class: "number", "data-label": "reward"}, reward ?? "none"));
      row.append(element("td", {class: "quiet"}, Object.keys(parts).length > 1 ? detail : ""), words);
      body.append(row);
    }
    const head = element("thead"), names = element("tr"), made = element("table", {class: "stack"});
    for (const name of ["step", "reward", "its parts", "completion"]) names.append(element("th", {}, name));
    head.append(names);
    made.append(head, body);
    const prompt = element("div", {class: "prompt"});
    prompt.append(element("pre", {}, one.prompt));
    document.getElementById("completions").replaceChildren(prompt, made);
  };
  runs.onchange = fill;
  prompts.onchange = table;
  fill();
}

function paint() {
  document.documentElement.dataset.theme = theme();
  document.getElementById("theme").textContent = theme() === "dark" ? "Light" : "Dark";
  if (several) document.querySelectorAll(".swatch").forEach((dot) => {
    dot.style.background = PALETTES[theme()][dot.dataset.run % 8];
  });
  timeline();
  drawCharts();
}

document.getElementById("theme").onclick = () => { chosen = theme() === "dark" ? "light" : "dark"; paint(); };
SYSTEM.addEventListener("change", paint);
if (new URLSearchParams(location.search).has("theme")) chosen = new URLSearchParams(location.search).get("theme");
completions();
paint();
