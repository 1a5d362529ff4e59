// A stream as a band: sink tokens, what has left the window, the window, and what is not computed.

const WIDTH = 1000; // of the drawing; it is stretched to the page's
const MOST_GONE = 0.4; // of the width: beyond it, what has left is drawn shorter than it is

export function drawBand(svg, stats, windowStart, { labels = true } = {}) {
  const { num_sink_tokens, num_tokens, num_pending_tokens } = stats;
  const sinks = Math.min(num_sink_tokens, num_tokens);
  const from = Math.max(sinks, windowStart);
  const computed = Math.max(from, num_tokens - num_pending_tokens);
  const gone = from - sinks;
  const seen = Math.max(1, num_tokens - gone);
  const isBroken = gone / Math.max(1, num_tokens) > MOST_GONE;
  const goneWidth = isBroken ? WIDTH * MOST_GONE : (WIDTH * gone) / Math.max(1, num_tokens);
  const scale = (WIDTH - goneWidth) / seen;
  const edges = [0, sinks * scale, sinks * scale + goneWidth];
  edges.push(edges[2] + (computed - from) * scale, WIDTH);
  const kinds = ["sink", "gone", "window", "pending"];
  const [whole, top, height] = labels ? [50, 14, 20] : [14, 2, 10];
  const boxes = kinds.map((kind, index) => {
    const width = edges[index + 1] - edges[index];
    return width <= 0 ? "" : `<rect class="${kind}" x="${edges[index]}" y="${top}" width="${width}" height="${height}"/>`;
  });
  const tear = isBroken ? `<path class="edge" d="${tearAt(edges[1] + goneWidth / 2, top, height)}"/>` : "";
  svg.innerHTML =
    `<defs><pattern id="hatch" width="8" height="8" patternUnits="userSpaceOnUse" patternTransform="rotate(45)">` +
    `<path d="M0 0V8"/></pattern></defs>` +
    `<svg viewBox="0 0 ${WIDTH} ${whole}" preserveAspectRatio="none" width="100%" height="100%">${boxes.join("")}${tear}` +
    `<rect class="edge" x="0" y="${top}" width="${WIDTH}" height="${height}"/></svg>` +
    (labels ? texts(edges, sinks, gone, from, num_tokens) : "");
  const many = (count, what) => `${count.toLocaleString("en")} ${what}`;
  svg.setAttribute(
    "aria-label",
    `${many(num_tokens, "tokens")}: ${many(sinks, "sink tokens")}, ${many(gone, "gone")}, ` +
      `${many(computed - from, "in the window")}, ${many(num_tokens - computed, "not computed yet")}`,
  );
}

function tearAt(x, top, height) {
  const bottom = top + height + 3;
  return `M${x - 6} ${top - 3}l8 ${height / 3}l-8 ${height / 3}L${x + 2} ${bottom}`;
}

function texts(edges, sinks, gone, from, end) {
  const at = (x, y, anchor, text) => `<text x="${(100 * x) / WIDTH}%" y="${y}" text-anchor="${anchor}">${text}</text>`;
  const number = (value) => value.toLocaleString("en");
  const labels = [at(0, 10, "start", "0"), at(WIDTH, 10, "end", number(end))];
  if (gone > 0) {
    const middle = (edges[1] + edges[2]) / 2;
    labels.push(at(middle, 46, "middle", `${number(gone)} gone`));
    labels.push(at(edges[2], 10, edges[2] > 0.8 * WIDTH ? "end" : "start", number(from)));
  }
  labels.push(at(WIDTH, 46, "end", `${number(end - from)} in the window`));
  if (sinks > 0) labels.push(at(0, 46, "start", `${number(sinks)} sinks`));
  return labels.join("");
}
