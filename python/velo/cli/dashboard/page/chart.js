// A chart of the last minutes: one or two lines, and marks; it shows the figures under the pointer.

const NAMES = "http://www.w3.org/2000/svg";
const LEFT = 46, BOTTOM = 16, TOP = 6, RIGHT = 6;
const GAP = 5; // seconds without a point that interrupt a line
const SHORTEST = 60, LONGEST = 300; // seconds

function svg(name, attributes, text) {
  const element = document.createElementNS(NAMES, name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  if (text !== undefined) element.textContent = text;
  return element;
}

function html(name, className, text) {
  const element = document.createElement(name);
  if (className) element.className = className;
  if (text !== undefined) element.textContent = text;
  return element;
}

/**
 * Adds a chart to a parent; returns a function that draws points.
 *
 * title: its name. lines: [{name, of}], of which the first is filled. marks: [{name, kind, of}], whose
 * counts are marked where they grow. now: the large text for a point. format: the text of a figure.
 * log: whether the axis is logarithmic.
 */
export function chart(parent, { title, lines, marks = [], now, format, log }) {
  const card = html("div", "card chart");
  const large = html("div", "now");
  const legend = html("div", "legend");
  const drawing = svg("svg", { role: "img", "aria-label": title });
  card.append(html("h2", "", title), large, legend, drawing);
  parent.append(card);
  let points = [];
  let pointed = null;
  drawing.addEventListener("pointermove", (event) => {
    pointed = event.clientX - drawing.getBoundingClientRect().left;
    draw();
  });
  drawing.addEventListener("pointerleave", () => { pointed = null; draw(); });
  new ResizeObserver(() => draw()).observe(drawing);

  function say(point, past) {
    large.replaceChildren(...now(point));
    const said = lines.map(({ name, of }, at) => {
      const value = format(of(point) ?? null) || "–";
      return key(at ? "two" : "", lines.length + marks.length > 1 || past ? `${name} ${value}` : name);
    });
    for (const { name, kind, of } of marks)
      said.push(key(`mark ${kind === "recovery" ? "good" : ""}`, `${name} ${of(point)}`));
    if (past) said.push(html("span", "", new Date(point.time * 1e3).toLocaleTimeString("en-GB")));
    legend.replaceChildren(...said);
  }

  function key(className, text) {
    const part = html("span");
    part.append(html("i", className), text);
    return part;
  }

  function draw() {
    const { width, height } = drawing.getBoundingClientRect();
    drawing.replaceChildren();
    if (!points.length || !width) return;
    drawing.setAttribute("viewBox", `0 0 ${width} ${height}`);
    const last = points.at(-1);
    const span = Math.min(LONGEST, Math.max(SHORTEST, last.time - points[0].time));
    const shown = points.filter((point) => point.time >= last.time - span);
    const right = width - RIGHT, floor = height - BOTTOM;
    const x = (time) => right - ((last.time - time) / span) * (right - LEFT);
    const values = shown.flatMap((point) => lines.map(({ of }) => of(point) ?? null))
      .filter((value) => value !== null && (!log || value > 0));
    const [low, high, ticks] = log ? decades(values) : steps(values);
    const y = log
      ? (value) => floor - (Math.log10(Math.max(value, low) / low) / Math.log10(high / low)) * (floor - TOP)
      : (value) => floor - (value / high) * (floor - TOP);
    for (const tick of ticks) {
      drawing.append(svg("line", { class: "grid", x1: LEFT, x2: right, y1: y(tick), y2: y(tick) }));
      drawing.append(svg("text", { x: LEFT - 6, y: y(tick) + 4, "text-anchor": "end" }, format(tick)));
    }
    const every = span > 180 ? 60 : span > 90 ? 30 : 15;
    for (let ago = 0; ago <= span; ago += every) {
      const label = ago === 0 ? "now" : ago % 60 ? `${ago} s` : `${ago / 60} min`;
      const anchor = ago === 0 ? "end" : "middle";
      if (x(last.time - ago) - LEFT > 14)
        drawing.append(svg("text", { x: x(last.time - ago), y: height - 2, "text-anchor": anchor }, label));
    }
    for (const [at, { of }] of lines.entries()) {
      for (const run of runs(shown, of)) {
        const path = run.map((point) => `${x(point.time).toFixed(1)},${y(of(point)).toFixed(1)}`);
        if (at === 0 && !log) {
          const ends = `L${x(run.at(-1).time)},${floor}L${x(run[0].time)},${floor}Z`;
          drawing.append(svg("path", { class: "area", d: `M${path.join("L")}${ends}` }));
        }
        drawing.append(svg("path", { class: at ? "line two" : "line", d: `M${path.join("L")}` }));
      }
    }
    for (const [row, { kind, of }] of marks.entries()) {
      for (const [at, point] of shown.entries()) {
        if (at && of(point) > of(shown[at - 1]))
          drawing.append(svg("circle", { class: kind, cx: x(point.time), cy: TOP + 5 + 12 * row, r: 4 }));
      }
    }
    const past = pointed !== null && pointed > LEFT;
    const point = past ? nearest(shown, x, pointed) : last;
    if (past)
      drawing.append(svg("line", { class: "cross", x1: x(point.time), x2: x(point.time), y1: TOP, y2: floor }));
    say(point, past);
  }

  return (all) => { points = all; draw(); };
}

function nearest(points, x, at) {
  return points.reduce((best, point) =>
    Math.abs(x(point.time) - at) < Math.abs(x(best.time) - at) ? point : best);
}

/** Returns the parts of a line without a gap. */
function runs(points, of) {
  const parts = [];
  let last = null;
  for (const point of points) {
    if ((of(point) ?? null) === null) { last = null; continue; }
    if (last === null || point.time - last > GAP) parts.push([]);
    parts.at(-1).push(point);
    last = point.time;
  }
  return parts;
}

function steps(values) {
  const most = Math.max(...values, 1);
  const rough = most / 3;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = Math.max(1, [1, 2, 2.5, 5, 10].find((one) => one * power >= rough) * power);
  const high = Math.ceil(most / step) * step;
  return [0, high, Array.from({ length: Math.round(high / step) + 1 }, (_, at) => at * step)];
}

function decades(values) {
  const low = 10 ** Math.floor(Math.log10(Math.min(...values, 10)));
  const high = Math.max(low * 100, 10 ** Math.ceil(Math.log10(Math.max(...values, 100))));
  const count = Math.round(Math.log10(high / low));
  const every = Math.ceil(count / 4);
  const ticks = [];
  for (let at = 0; at <= count; at += every) ticks.push(low * 10 ** at);
  return [low, high, ticks];
}
