// Speed histograms with their percentiles named. One distinct value is one bar, not a division by zero.
import { rate } from "./format";
import type { HistogramData } from "./types";

const WIDTH = 320;
const HEIGHT = 64;

export interface Layout {
  bars: { x: number; width: number; height: number; from: number; to: number; count: number }[];
  marks: { name: string; x: number; value: number }[];
}

export function layout(data: HistogramData): Layout {
  const bins = data.bins.length ? data.bins : [0];
  const top = Math.max(...bins, 1);
  const span = data.max - data.min;
  const width = WIDTH / bins.length;
  const at = (value: number) => (span > 0 ? ((value - data.min) / span) * WIDTH : WIDTH / 2);
  return {
    bars: bins.map((count, i) => ({
      x: i * width,
      width,
      height: (count / top) * HEIGHT,
      from: span > 0 ? data.min + i * data.binSize : data.min,
      to: span > 0 ? Math.min(data.max, data.min + (i + 1) * data.binSize) : data.max,
      count,
    })),
    marks: (["p50", "p95", "p99"] as const).map((name) => ({ name, x: at(data[name]), value: data[name] })),
  };
}

export function Histogram({ title, data, kind }: { title: string; data: HistogramData | null; kind: string }) {
  if (!data) return null;
  const { bars, marks } = layout(data);
  return (
    <figure class={`hist ${kind}`}>
      <figcaption>{title} <span class="muted">t/s</span></figcaption>
      <svg
        viewBox={`0 0 ${WIDTH} ${HEIGHT}`}
        preserveAspectRatio="none"
        role="img"
        aria-label={`${title}: ${marks.map((m) => `${m.name} ${rate(m.value)}`).join(", ")}`}
      >
        {bars.map((bar) => (
          <rect key={bar.x} x={bar.x + 0.5} y={HEIGHT - bar.height} width={Math.max(1, bar.width - 1)} height={bar.height}>
            <title>{`${rate(bar.from)} to ${rate(bar.to)} t/s: ${bar.count}`}</title>
          </rect>
        ))}
        {marks.map((mark) => (
          <line key={mark.name} class={mark.name} x1={mark.x} x2={mark.x} y1="0" y2={HEIGHT} />
        ))}
      </svg>
      <div class="hist-legend">
        <span>{rate(data.min)}</span>
        {marks.map((mark) => (
          <span key={mark.name} class={mark.name}>{mark.name} <b>{rate(mark.value)}</b></span>
        ))}
        <span>{rate(data.max)}</span>
      </div>
    </figure>
  );
}
