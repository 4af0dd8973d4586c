"use strict";
// Buttons that zoom a chart by its viewBox; without this script the chart is there as a whole.
for (const figure of document.querySelectorAll("[data-zoom]")) {
  const svg = figure.querySelector("svg.chart");
  const whole = svg.getAttribute("viewBox").split(" ").map(Number);
  let box = whole.slice();
  const clamp = (value, low, high) => Math.min(Math.max(value, low), high);
  const show = () => {
    box[0] = clamp(box[0], 0, whole[2] - box[2]);
    box[1] = clamp(box[1], 0, whole[3] - box[3]);
    svg.setAttribute("viewBox", box.join(" "));
    svg.classList.toggle("zoomed", box[2] < whole[2]);
  };
  const zoom = (factor, x, y) => {
    const width = clamp(box[2] * factor, whole[2] / 16, whole[2]);
    const height = width * whole[3] / whole[2];
    box = [box[0] + (box[2] - width) * x, box[1] + (box[3] - height) * y, width, height];
    show();
  };
  const place = (event) => {
    const edges = svg.getBoundingClientRect();
    return [(event.clientX - edges.left) / edges.width, (event.clientY - edges.top) / edges.height];
  };
  const bar = document.createElement("div");
  bar.className = "zoom";
  for (const [text, name, act] of [
    ["+", "Zoom in", () => zoom(0.5, 0.5, 0.5)],
    ["−", "Zoom out", () => zoom(2, 0.5, 0.5)],
    ["Whole", "Show the whole chart", () => { box = whole.slice(); show(); }],
  ]) {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = text;
    button.setAttribute("aria-label", name);
    button.addEventListener("click", act);
    bar.append(button);
  }
  figure.querySelector("figcaption").after(bar);
  svg.addEventListener("dblclick", (event) => zoom(0.5, ...place(event)));
  svg.addEventListener("wheel", (event) => {
    if (event.ctrlKey) { event.preventDefault(); zoom(event.deltaY < 0 ? 0.8 : 1.25, ...place(event)); }
  }, { passive: false });
  svg.addEventListener("pointermove", (event) => {
    if (!(event.buttons & 1) || box[2] === whole[2]) return;
    const scale = box[2] / svg.getBoundingClientRect().width;
    box[0] -= event.movementX * scale;
    box[1] -= event.movementY * scale;
    show();
  });
  figure.querySelector(".scroll").addEventListener("keydown", (event) => {
    const moves = { ArrowLeft: [-0.2, 0], ArrowRight: [0.2, 0], ArrowUp: [0, -0.2], ArrowDown: [0, 0.2] };
    const keys = { "+": 0.5, "=": 0.5, "-": 2 };
    if (keys[event.key]) zoom(keys[event.key], 0.5, 0.5);
    else if (moves[event.key] && box[2] < whole[2]) {
      box[0] += moves[event.key][0] * box[2];
      box[1] += moves[event.key][1] * box[3];
      show();
      event.preventDefault();
    }
  });
}
