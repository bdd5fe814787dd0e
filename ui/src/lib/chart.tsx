// Time series: uPlot, fetched when the first chart is shown. Samples are drawn as they are, gaps as gaps.
import { useEffect, useRef } from "preact/hooks";
import { useComputed, useSignal } from "@preact/signals";
import type uPlot from "uplot";
import { theme } from "./prefs";

export interface Series {
  label: string;
  values: (number | null)[];
  points?: boolean;
}

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
  legend?: boolean;
  onSelect?: (from: number, to: number) => void;
}

const DASHES: number[][] = [[], [6, 3], [2, 3], [8, 3, 2, 3]];

export function Chart(props: ChartProps) {
  const host = useRef<HTMLDivElement>(null);
  const plot = useRef<uPlot | null>(null);
  const latest = useRef(props);
  latest.current = props;
  const shown = useSignal(false);
  const shape = `${props.series.map((item) => item.label + (item.points ? "p" : "")).join("|")}/${props.legend}`;
  const painted = useComputed(() => theme.value);

  useEffect(() => {
    let alive = true;
    let made: uPlot | null = null;
    let observer: ResizeObserver | null = null;
    void import("uplot").then(({ default: UPlot }) => {
      const box = host.current;
      if (!alive || !box) return;
      const style = getComputedStyle(box);
      const color = (name: string) => style.getPropertyValue(name).trim();
      const { unit, sync } = latest.current;
      const digits = latest.current.digits ?? 1;
      const axis = {
        stroke: color("--muted"),
        grid: { stroke: color("--line"), width: 1 },
        ticks: { stroke: color("--line"), width: 1, size: 4 },
        font: "11px system-ui, sans-serif",
      };
      made = new UPlot(
        {
          width: Math.max(200, box.clientWidth),
          height: latest.current.height ?? 120,
          padding: [8, 6, 0, 0],
          cursor: { sync: sync ? { key: sync } : undefined, drag: { x: true, y: false, setScale: false }, points: { size: 5 } },
          legend: { show: latest.current.legend ?? true, live: true },
          scales: {
            x: { time: true, range: () => [latest.current.from / 1000, latest.current.to / 1000] },
            y: { range: (_u, _min, max) => [0, latest.current.max ?? Math.max(max || 1, latest.current.limit ?? 0) * 1.06] },
          },
          axes: [
            {
              ...axis,
              size: 26,
              space: 70,
              values: (_u, ticks) => ticks.map((t) => new Date(t * 1000).toLocaleTimeString("en-GB").slice(0, (ticks[1] ?? 60) - (ticks[0] ?? 0) < 60 ? 8 : 5)),
            },
            { ...axis, size: 44, space: 26, values: (_u, ticks) => ticks.map((v) => `${v}`) },
          ],
          series: [
            { value: (_u, v) => (v ? new Date(v * 1000).toLocaleTimeString("en-GB") : "–") },
            ...latest.current.series.map((item, index) => ({
              label: item.label,
              stroke: color(`--c${(index % 6) + 1}`),
              width: 1.5,
              dash: DASHES[Math.floor(index / 6) % 4],
              spanGaps: false,
              paths: item.points ? () => null : undefined,
              points: { show: !!item.points, size: 5, width: 1.5 },
              value: (_u: uPlot, v: number | null) => (v === null || v === undefined ? "–" : `${v.toFixed(digits)} ${unit}`),
            })),
          ],
          hooks: {
            setSelect: [
              (u) => {
                if (u.select.width > 6) {
                  latest.current.onSelect?.(u.posToVal(u.select.left, "x") * 1000, u.posToVal(u.select.left + u.select.width, "x") * 1000);
                }
                u.setSelect({ left: 0, top: 0, width: 0, height: 0 }, false);
              },
            ],
            draw: [
              (u) => {
                const limit = latest.current.limit;
                if (!limit) return;
                const y = Math.round(u.valToPos(limit, "y", true)) + 0.5;
                u.ctx.save();
                u.ctx.strokeStyle = color("--failed");
                u.ctx.setLineDash([4, 4]);
                u.ctx.beginPath();
                u.ctx.moveTo(u.bbox.left, y);
                u.ctx.lineTo(u.bbox.left + u.bbox.width, y);
                u.ctx.stroke();
                u.ctx.restore();
              },
            ],
          },
        },
        data(latest.current),
        box,
      );
      plot.current = made;
      shown.value = true;
      observer = new ResizeObserver(() => made?.setSize({ width: Math.max(200, box.clientWidth), height: latest.current.height ?? 120 }));
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
      <figcaption>{props.title} <span class="muted">{props.unit}</span></figcaption>
      <div ref={host} class="chart-box" style={{ minHeight: `${props.height ?? 120}px` }} aria-hidden="true" />
      <details class="chart-values">
        <summary>Values</summary>
        <table class="plain">
          <thead>
            <tr>
              <th scope="col">Series</th>
              <th scope="col">Now</th>
              <th scope="col">Lowest</th>
              <th scope="col">Highest</th>
            </tr>
          </thead>
          <tbody>
            {props.series.map((item) => {
              const values = item.values.filter((value): value is number => value !== null);
              const show = (value: number | undefined) =>
                value === undefined || !Number.isFinite(value) ? "–" : `${value.toFixed(props.digits ?? 1)} ${props.unit}`;
              return (
                <tr key={item.label}>
                  <th scope="row">{item.label}</th>
                  <td>{show(values.at(-1))}</td>
                  <td>{show(values.reduce((a, b) => Math.min(a, b), Number.POSITIVE_INFINITY))}</td>
                  <td>{show(values.reduce((a, b) => Math.max(a, b), Number.NEGATIVE_INFINITY))}</td>
                </tr>
              );
            })}
          </tbody>
        </table>
      </details>
    </figure>
  );
}

function data({ times, series }: ChartProps): uPlot.AlignedData {
  return [times.map((t) => t / 1000), ...series.map((item) => item.values)] as uPlot.AlignedData;
}

export function Sparkline({ values, label }: { values: readonly number[]; label: string }) {
  if (values.length < 2) return null;
  const max = Math.max(...values, 1e-9);
  const points = values.map((value, i) => `${((i / (values.length - 1)) * 60).toFixed(1)},${(15 - (value / max) * 14).toFixed(1)}`);
  return <svg class="spark" width="60" height="16" viewBox="0 0 60 16" role="img" aria-label={label}><polyline points={points.join(" ")} /></svg>;
}
