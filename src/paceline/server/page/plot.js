// Small charts as inline SVG. Colours and strokes are the style sheet's.

const SVG = "http://www.w3.org/2000/svg";
const WIDTH = 300;
const HEIGHT = 64;

function node(name, attributes = {}) {
  const made = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  return made;
}

/** An SVG of lines over a common scale. lines: { values, kind }, null where there is nothing;
 * room: how many values the width holds, the last at the right; label: for who cannot see it. */
export function chart(lines, { room, top, label }) {
  const svg = node("svg", {
    viewBox: `0 0 ${WIDTH} ${HEIGHT}`,
    preserveAspectRatio: "none",
    role: "img",
    "aria-label": label,
  });
  for (const share of [0, 0.5, 1]) {
    const y = 2 + (HEIGHT - 4) * share;
    svg.append(node("line", { x1: 0, x2: WIDTH, y1: y, y2: y, class: "rule" }));
  }
  for (const { values, kind } of lines) {
    const line = trace(values, room, top || 1);
    if (kind.includes("filled") && line.area) {
      svg.append(node("path", { d: line.area, class: `area ${kind}` }));
    }
    svg.append(node("path", { d: line.path, class: `trace ${kind}` }));
  }
  return svg;
}

/** Steps through the values; a gap where there is none. */
function trace(values, room, top) {
  const step = WIDTH / Math.max(1, room);
  const y = (value) => (HEIGHT - 2 - (HEIGHT - 4) * Math.min(1, value / top)).toFixed(1);
  let path = "";
  let area = "";
  let open = false;
  values.forEach((value, at) => {
    const left = (WIDTH - (values.length - at) * step).toFixed(1);
    const right = (WIDTH - (values.length - at - 1) * step).toFixed(1);
    if (value === null || value === undefined) {
      open = false;
      return;
    }
    path += `${open ? "L" : "M"}${left} ${y(value)}H${right}`;
    area += `M${left} ${HEIGHT - 2}V${y(value)}H${right}V${HEIGHT - 2}Z`;
    open = true;
  });
  return { path, area };
}

/** The least "round" number that is not below value: 1, 2 or 5 times a power of ten. */
export function ceiling(value) {
  if (!(value > 0)) return 1;
  const power = 10 ** Math.floor(Math.log10(value));
  return [1, 2, 5, 10].map((m) => m * power).find((m) => m >= value);
}
