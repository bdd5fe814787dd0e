// Time series: uPlot, fetched when the first chart is shown. Samples are drawn as they are, gaps as gaps.
import { useComputed, useSignal } from "@preact/signals";
import { useEffect, useRef } from "preact/hooks";
import type uPlot from "uplot";
import { type Series, axisTicks, clockLabel, highest, lowest, needsLog, real, spread } from "./axis";
import { DASH } from "./format";
import { part } from "./parts";
import { theme } from "./prefs";

export interface ChartProps {
  title: string;
  unit: string;
  /** Epoch milliseconds, ascending. */
  times: number[];
  series: Series[];
  from: number;
  to: number;
  max?: number;
  limit?: number;
  height?: number;
  digits?: number;
  sync?: string;
  /** Widths beside the plot, for charts that share their time axis with something else. */
  left?: number;
  right?: number;
  onSelect?: (from: number, to: number) => void;
}

const DASHES: number[][] = [[], [6, 3], [2, 3], [8, 3, 2, 3]];
const FONT = "11px system-ui, sans-serif";

export function Chart(props: ChartProps) {
  const host = useRef<HTMLDivElement>(null);
  const tip = useRef<HTMLDivElement>(null);
  const plot = useRef<uPlot | null>(null);
  const latest = useRef(props);
  latest.current = props;
  const shown = useSignal(false);
  const log = !props.max && !props.limit && needsLog(props.series);
  const shape = `${props.series.map((item) => item.label + (item.low ? "b" : "")).join("|")}/${log}/${props.left}/${props.right}`;
  const painted = useComputed(() => theme.value);
  const height = props.height ?? 130;
  const show = (value: number | null | undefined): string =>
    value === null || value === undefined || !Number.isFinite(value) ? DASH : `${value.toFixed(latest.current.digits ?? 1)} ${latest.current.unit}`;

  useEffect(() => {
    let alive = true;
    let made: uPlot | null = null;
    let observer: ResizeObserver | null = null;
    part(import("uplot"), ({ default: UPlot }) => {
      const box = host.current;
      if (!alive || !box) return;
      const style = getComputedStyle(box);
      const color = (name: string) => style.getPropertyValue(name).trim();
      const paint = (index: number) => color(`--c${(index % 6) + 1}`);
      const { sync, left = 44, right = 6, series } = latest.current;
      // A line goes on over a short gap: nothing was asked then, which is no reason to break it.
      const gaps: uPlot.Series["gaps"] = (u, _s, _a, _b, found) => found.filter(([a, b]) => b - a > u.bbox.width / 8);
      const axis = { stroke: color("--muted"), grid: { stroke: color("--line"), width: 1 }, ticks: { stroke: color("--line"), width: 1, size: 4 }, font: FONT };
      let inside = false;
      made = new UPlot(
        {
          width: Math.max(200, box.clientWidth),
          height,
          padding: [8, right, 0, 0],
          cursor: { sync: sync ? { key: sync } : undefined, drag: { x: true, y: false, setScale: false }, points: { size: 6 } },
          legend: { show: false },
          scales: {
            x: { time: true, range: () => [latest.current.from / 1000, latest.current.to / 1000] },
            y: log
              ? { distr: 3, range: (_u, min, max) => [(min || 1) / 1.3, (max || 10) * 1.3] }
              : { range: (_u, _min, max) => [0, latest.current.max ?? Math.max(max || 1, latest.current.limit ?? 0) * 1.06] },
          },
          axes: [
            { ...axis, size: 26, splits: (u) => axisTicks(latest.current.from, latest.current.to, u.width - left - right).map((t) => t / 1000), values: (_u, ticks) => ticks.map((t) => clockLabel(t * 1000, ((ticks[1] ?? 60) - (ticks[0] ?? 0)) * 1000)) },
            { ...axis, size: left, space: 26, values: (_u, ticks) => ticks.map((v) => (v === null ? "" : `${v}`)) },
          ],
          // Each line, then the bounds of its band, which have no line of their own.
          series: [
            {},
            ...series.flatMap((item, index) => [
              { label: item.label, stroke: paint(index), width: 1.8, dash: DASHES[Math.floor(index / 6) % 4], spanGaps: false, ...(item.low ? { gaps, points: { size: 4 } } : {}) },
              ...(item.low ? ["high", "low"].map((end) => ({ label: `${item.label} ${end}`, width: 0, points: { show: false }, gaps })) : []),
            ]),
          ],
          bands: series.flatMap((item, index) => {
            const at = 1 + series.slice(0, index).reduce((sum, before) => sum + (before.low ? 3 : 1), 0);
            return item.low ? [{ series: [at + 1, at + 2] as [number, number], fill: `${paint(index)}2e` }] : [];
          }),
          hooks: {
            ready: [
              (u) => {
                u.over.addEventListener("mouseenter", () => (inside = true));
                u.over.addEventListener("mouseleave", () => { inside = false; if (tip.current) tip.current.hidden = true; });
              },
            ],
            setCursor: [
              (u) => {
                const card = tip.current;
                const { idx, left: x = -1, top: y = 0 } = u.cursor;
                if (!card || !inside || idx === null || idx === undefined || x < 0) return;
                const { times, series: lines } = latest.current;
                const rows = lines.map((line, i) => ({ line, i, value: line.values[idx] })).filter((row) => row.value !== null && row.value !== undefined);
                card.replaceChildren(
                  Object.assign(document.createElement("b"), { textContent: clockLabel(times[idx] ?? 0, 1) }),
                  ...rows.map(({ line, i, value }) => {
                    const row = document.createElement("div");
                    row.append(Object.assign(document.createElement("i"), { className: `linekey k${(i % 6) + 1}` }), `${line.label} ${show(value)}`);
                    const [low, high] = [line.low?.[idx], line.high?.[idx]];
                    if (low !== undefined && high !== undefined && low !== high) row.append(` (${show(low)} to ${show(high)})`);
                    return row;
                  }),
                );
                card.hidden = !rows.length;
                const at = x + u.over.offsetLeft;
                const wide = card.offsetWidth;
                card.style.left = `${at + 14 + wide > box.clientWidth ? Math.max(0, at - wide - 14) : at + 14}px`;
                card.style.top = `${Math.max(0, Math.min(y + 10, height - card.offsetHeight))}px`;
              },
            ],
            setSelect: [
              (u) => {
                if (u.select.width > 6) latest.current.onSelect?.(u.posToVal(u.select.left, "x") * 1000, u.posToVal(u.select.left + u.select.width, "x") * 1000);
                u.setSelect({ left: 0, top: 0, width: 0, height: 0 }, false);
              },
            ],
            draw: [
              (u) => {
                const { ctx, bbox } = u;
                const ratio = devicePixelRatio;
                const { limit, series: lines, right: room = 0 } = latest.current;
                ctx.save();
                if (limit) {
                  const y = Math.round(u.valToPos(limit, "y", true)) + 0.5;
                  ctx.strokeStyle = color("--failed");
                  ctx.setLineDash([4, 4]);
                  ctx.beginPath();
                  ctx.moveTo(bbox.left, y);
                  ctx.lineTo(bbox.left + bbox.width, y);
                  ctx.stroke();
                }
                if (room > 40) {
                  const ends = lines
                    .map((line, i) => ({ text: line.label, i, at: line.values.findLastIndex((value) => value !== null), values: line.values }))
                    .filter((end) => end.at >= 0);
                  const places = spread(ends.map((end) => u.valToPos(end.values[end.at] as number, "y")), u.over.clientHeight);
                  ctx.font = `${11 * ratio}px system-ui, sans-serif`;
                  ctx.textBaseline = "middle";
                  ctx.textAlign = "left";
                  ends.forEach((end, k) => {
                    ctx.fillStyle = paint(end.i);
                    ctx.fillText(cut(ctx, end.text, (room - 8) * ratio), bbox.left + bbox.width + 5 * ratio, bbox.top + (places[k] as number) * ratio);
                  });
                }
                ctx.restore();
              },
            ],
          },
        },
        data(latest.current),
        box,
      );
      plot.current = made;
      shown.value = true;
      observer = new ResizeObserver(() => made?.setSize({ width: Math.max(200, box.clientWidth), height }));
      observer.observe(box);
    });
    return () => {
      alive = false;
      observer?.disconnect();
      made?.destroy();
      plot.current = null;
    };
  }, [shape, painted.value]);

  useEffect(() => { plot.current?.setData(data(props)); }, [props.times, props.series, props.from, props.to, shown.value]);

  return (
    <figure class="chart">
      <figcaption>{props.title} <span class="muted">{props.unit}{log ? ", logarithmic" : ""}</span></figcaption>
      <div class="chart-host">
        <div ref={host} class="chart-box" style={{ minHeight: `${height}px` }} aria-hidden="true" />
        <div ref={tip} class="chart-tip" hidden aria-hidden="true" />
      </div>
      <div class="chart-legend" role="region" aria-label={`${props.title}: figures`} tabIndex={0} style={{ marginLeft: `${Math.min(props.left ?? 44, 44)}px` }}>
        <table>
          <thead><tr><th scope="col"><span class="sr">Series</span></th><th scope="col">last</th><th scope="col">min</th><th scope="col">max</th></tr></thead>
          <tbody>
            {props.series.map((item, index) => (
              <tr key={item.label}>
                <th scope="row"><i class={`linekey k${(index % 6) + 1}`} />{item.label}</th>
                <td>{show(real(item.values).at(-1))}</td>
                <td>{show(lowest(item.values))}</td>
                <td>{show(highest(item.values))}</td>
              </tr>
            ))}
          </tbody>
        </table>
      </div>
    </figure>
  );
}

/** A text that fits, with its end cut off if it must be. */
function cut(ctx: CanvasRenderingContext2D, text: string, room: number): string {
  let end = text.length;
  while (end > 1 && ctx.measureText(end < text.length ? `${text.slice(0, end)}…` : text).width > room) end -= 1;
  return end < text.length ? `${text.slice(0, end)}…` : text;
}

function data({ times, series }: ChartProps): uPlot.AlignedData {
  return [times.map((t) => t / 1000), ...series.flatMap((item) => (item.low && item.high ? [item.values, item.high, item.low] : [item.values]))] as uPlot.AlignedData;
}

/** A line without axes; what is not known is left out. */
export function Sparkline({ values, label, wide = false }: { values: readonly (number | null)[]; label: string; wide?: boolean }) {
  const known = values.map((value, i) => [i, value] as const).filter((pair): pair is readonly [number, number] => pair[1] !== null);
  if (known.length < 2) return wide ? <div class="spark wide" /> : null;
  const max = Math.max(...known.map(([, value]) => value), 1e-9);
  const points = known.map(([i, value]) => `${((i / (values.length - 1)) * 60).toFixed(1)},${(15 - (value / max) * 14).toFixed(1)}`);
  return (
    <svg class={`spark ${wide ? "wide" : ""}`} width="60" height="16" viewBox="0 0 60 16" preserveAspectRatio={wide ? "none" : undefined} role="img" aria-label={label}>
      <polyline points={points.join(" ")} />
    </svg>
  );
}
