"use strict";
// Line charts as inline SVG: one line a class, time to the right, drawn anew with each point.

const SVG = "http://www.w3.org/2000/svg";

function svg(name, attributes, text) {
  const node = document.createElementNS(SVG, name);
  for (const key in attributes) node.setAttribute(key, attributes[key]);
  if (text !== undefined) node.textContent = text;
  return node;
}

// The least of 1, 2, 2.5 or 5 times a power of ten that is not below `value`.
function ceiling(value) {
  if (!(value > 0)) return 1;
  const power = 10 ** Math.floor(Math.log10(value));
  return power * [1, 2, 2.5, 5, 10].find(step => step * power >= value * 0.999);
}

function axis(value) {
  if (value === 0) return "0";
  return value >= 10000 ? `${value / 1000}k` : String(Number(value.toPrecision(3)));
}

// points: [{time, values: [number or null, one a class]}], oldest first.
// options: {limit: a line to draw at this value, seconds: width of the chart,
//           none: what to say while there are points but no value}
function drawChart(box, points, options) {
  const width = box.clientWidth || 400, height = box.clientHeight || 170;
  const left = 40, right = 6, top = 8, bottom = 20;
  const last = points.length ? points[points.length - 1].time : 0;
  const from = last - options.seconds;
  const shown = points.filter(point => point.time >= from);
  box.replaceChildren();
  const known = shown.some(point => point.values.some(value => value !== null && value !== undefined));
  if (shown.length < 2 || !known) {
    const empty = document.createElement("div");
    empty.className = "empty";
    empty.textContent = shown.length < 2 || !options.none ? "collecting" : options.none;
    box.append(empty);
    return;
  }
  const most = Math.max(options.limit * 1.2 || 0, ...shown.flatMap(p => p.values.map(v => v ?? 0)));
  const high = ceiling(most);
  const x = time => left + (width - left - right) * (time - from) / options.seconds;
  const y = value => height - bottom - (height - top - bottom) * Math.min(value, high) / high;
  const picture = svg("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": options.label });
  for (const part of [0, 0.5, 1]) {
    const at = Math.round(y(part * high)) + 0.5;
    picture.append(svg("line", { class: "grid", x1: left, x2: width - right, y1: at, y2: at }));
    picture.append(svg("text", { x: left - 6, y: at + 4, "text-anchor": "end" }, axis(part * high)));
  }
  for (const ago of [1, 0.5, 0]) {
    const minutes = ago * options.seconds / 60;
    const anchor = ago === 1 ? "start" : ago ? "middle" : "end";
    const text = minutes ? `−${Number(minutes.toFixed(1))} min` : "now";
    picture.append(svg("text", { x: x(last - 60 * minutes), y: height - 4, "text-anchor": anchor }, text));
  }
  if (options.limit) {
    const at = y(options.limit);
    picture.append(svg("line", { class: "limit", x1: left, x2: width - right, y1: at, y2: at }));
  }
  const lines = shown[shown.length - 1].values.length;
  for (let n = lines - 1; n >= 0; n -= 1) {
    let path = "", before = null;
    for (const point of shown) {
      const value = point.values[n];
      // A gap of several points is a gap in the line.
      const joined = before !== null && point.time - before < 10;
      before = value === null || value === undefined ? null : point.time;
      if (before !== null) path += `${joined ? "L" : "M"}${x(point.time).toFixed(1)} ${y(value).toFixed(1)}`;
    }
    if (path) picture.append(svg("path", { class: `s${n % 8}`, d: path }));
  }
  box.append(picture);
}
