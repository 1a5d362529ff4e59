// A short history of one number, as a curve.

export class Curve {
  constructor(svg, label, { keep = 90, most = null, unit = "" } = {}) {
    Object.assign(this, { svg, label, keep, most, unit, values: [] });
    svg.setAttribute("viewBox", "0 0 100 40");
    svg.setAttribute("preserveAspectRatio", "none");
  }

  add(value, text) {
    this.values.push(value);
    if (this.values.length > this.keep) this.values.shift();
    this.label.textContent = text;
    const top = this.most ?? Math.max(...this.values, 1e-9);
    const step = 100 / (this.keep - 1);
    const first = 100 - step * (this.values.length - 1);
    const points = this.values.map((each, index) => `${first + step * index} ${38 - (36 * each) / top}`);
    this.svg.innerHTML = `<line x1="0" x2="100" y1="38.5" y2="38.5"/><path d="M${points.join("L")}"/>`;
  }
}
