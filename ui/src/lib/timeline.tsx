// The residency swimlane over video memory and speed, on one time axis.
import { useComputed, useSignal } from "@preact/signals";
import { useEffect, useRef } from "preact/hooks";
import { maybe } from "./api";
import { Chart } from "./chart";
import { clockTime, megabytes, plural, seconds, time } from "./format";
import { now, stale, status } from "./link";
import { gpuLabel, gpus } from "./perf";
import { pref } from "./prefs";
import { go, href } from "./router";
import { activitySettled, byName, residency, swapFailed, swapRevision, swaps } from "./state";
import { Btn, Empty, Panel, Segmented, stateKind } from "./widgets";
import type { ActivityPage, ActivityRow, Residency } from "./types";

const SPANS = [["15", "15 min"], ["60", "1 h"], ["360", "6 h"], ["1440", "24 h"]] as const;
const LANE = 22;

const span = pref<string>("timeline", "60");

function axisTicks(from: number, to: number): number[] {
  const steps = [1, 2, 5, 10, 15, 30, 60, 120, 240].map((m) => m * 60_000);
  const step = steps.find((s) => (to - from) / s <= 8) ?? 240 * 60_000;
  const ticks: number[] = [];
  for (let t = Math.ceil(from / step) * step; t < to; t += step) ticks.push(t);
  return ticks;
}

export function Timeline({ known }: { known: boolean }) {
  const segments = useSignal<Residency[] | null>([]);
  const rows = useSignal<ActivityRow[]>([]);
  const zoom = useSignal<[number, number] | null>(null);
  const drag = useSignal<[number, number] | null>(null);
  const asTable = useSignal(false);
  const width = useSignal(900);
  const host = useRef<HTMLDivElement>(null);
  const minutes = Number(span.value);
  const online = status.value.state === "open";
  const swapsSeen = swapRevision.value;

  useEffect(() => {
    if (!online) return;
    const timer = setTimeout(() => {
      Promise.all([residency(Date.now() - minutes * 60_000), swaps()]).then(([list, all]) => {
        const failed = new Map((all ?? []).filter(swapFailed).map((item) => [item.id, item]));
        segments.value =
          list?.map((item) => {
            const swap = item.state === "starting" && item.swap_id ? failed.get(item.swap_id) : undefined;
            return swap && swap.model === item.model && item.t1 ? { ...item, state: "failed", reason: swap.error || item.reason } : item;
          }) ?? null;
      }, () => undefined);
    }, 150);
    return () => clearTimeout(timer);
  }, [minutes, swapsSeen, online]);
  useEffect(() => {
    if (!online) return;
    const start = new Date(Date.now() - minutes * 60_000).toISOString();
    const timer = setTimeout(
      () => maybe<ActivityPage>("/api/metrics/activity", { start, limit: 500 }).then((p) => p?.data && (rows.value = p.data), () => undefined),
      300,
    );
    return () => clearTimeout(timer);
  }, [minutes, activitySettled.value, online]);
  useEffect(() => {
    if (!host.current) return;
    const observer = new ResizeObserver(([entry]) => (width.value = Math.max(240, Math.floor(entry?.contentRect.width ?? 900))));
    observer.observe(host.current);
    return () => observer.disconnect();
  }, [asTable.value, !segments.value?.length]);

  // The axis moves in steps of five seconds: a smooth one would redraw everything each second.
  const right = useComputed(() => Math.ceil(now.value / 5000) * 5000);
  const [from, to] = zoom.value ?? [right.value - minutes * 60_000, right.value];
  const gpuList = [...gpus.value.values()];
  const list = segments.value;
  const labels = width.value < 520 ? 92 : 170;
  const plotWidth = width.value - labels - 8;
  const x = (t: number) => labels + ((Math.min(Math.max(t, from), to) - from) / (to - from)) * plotWidth;
  const shown = (list ?? []).filter((item) => (item.t1 ?? now.value) > from && item.t0 < to && item.state !== "stopped");
  const lanes = [...new Set(shown.map((item) => item.model))].map((id) => ({ id })).sort(byName);
  const height = lanes.length * LANE + 22;

  if (list === null && !gpuList.length) return null;

  const at = (event: PointerEvent) => {
    const box = (event.currentTarget as SVGElement).getBoundingClientRect();
    const share = (event.clientX - box.left - labels) / plotWidth;
    return from + Math.min(1, Math.max(0, share)) * (to - from);
  };
  const select = (a: number, b: number) => { zoom.value = [Math.min(a, b), Math.max(a, b)]; };

  const times = gpuList[0]?.map((item) => item.t) ?? [];
  const speeds = rows.value
    .filter((row) => row.tokens.tokens_per_second > 0)
    .map((row) => ({ t: time(row.timestamp), model: row.model, v: row.tokens.tokens_per_second }))
    .sort((a, b) => a.t - b.t);
  const speedModels = [...new Set(speeds.map((item) => item.model))].sort().slice(0, 6);

  return (
    <Panel
      class="timeline"
      title="Timeline"
      aside={
        <>
          {zoom.value && <Btn small onClick={() => (zoom.value = null)}>{clockTime(from)} to {clockTime(to)}: back to live</Btn>}
          <Btn small aria-pressed={asTable.value} onClick={() => (asTable.value = !asTable.value)}>Table</Btn>
          <Segmented
            label="Time span"
            value={span.value}
            options={SPANS}
            onChange={(value) => {
              zoom.value = null;
              span.value = value;
            }}
          />
        </>
      }
    >
      {list !== null && !shown.length && known && <Empty title="No model was loaded in this time" />}
      {shown.length > 0 && !asTable.value && (
        <>
          <div class="lanes" ref={host}>
            <svg
              width={width.value}
              height={height}
              role="img"
              aria-label={`Which of ${lanes.length} models were loaded between ${clockTime(from)} and ${clockTime(to)}. The button named Table shows the same as a table.`}
              onPointerDown={(event) => { if (event.button === 0) drag.value = [at(event), at(event)]; }}
              onPointerMove={(event) => { if (drag.value) drag.value = [drag.value[0], at(event)]; }}
              onPointerUp={() => {
                const [a, b] = drag.value ?? [0, 0];
                drag.value = null;
                if (Math.abs(x(a) - x(b)) > 8) select(a, b);
              }}
              onPointerLeave={() => (drag.value = null)}
              onDblClick={() => (zoom.value = null)}
            >
              <defs>
                <pattern id="hatch" width="6" height="6" patternUnits="userSpaceOnUse" patternTransform="rotate(45)">
                  <rect width="2" height="6" class="hatch" />
                </pattern>
                <pattern id="dots" width="6" height="6" patternUnits="userSpaceOnUse"><circle cx="2" cy="2" r="1.2" class="hatch" /></pattern>
              </defs>
              {axisTicks(from, to).map((t) => (
                <g key={t}>
                  <line class="grid" x1={x(t)} x2={x(t)} y1="0" y2={height - 18} />
                  <text class="tick" x={x(t)} y={height - 5} text-anchor="middle">{new Date(t).toLocaleTimeString("en-GB").slice(0, 5)}</text>
                </g>
              ))}
              {lanes.map((lane, index) => (
                <g key={lane.id} transform={`translate(0 ${index * LANE})`}>
                  <text class="lane-name" x="0" y="15" onClick={() => go("model", { id: lane.id })}>
                    <title>{lane.id}</title>
                    {fit(lane.id, labels)}
                  </text>
                  <line class="lane-line" x1={labels} x2={width.value - 8} y1={LANE - 1} y2={LANE - 1} />
                  {shown
                    .filter((item) => item.model === lane.id)
                    .map((item) => {
                      const left = x(item.t0);
                      const kind = kindOf(item);
                      const w = Math.max(2, x(item.t1 ?? now.value) - left);
                      const words = `${lane.id}: ${item.state} ${clockTime(item.t0)} to ${item.t1 ? clockTime(item.t1) : "now"}, ${seconds((item.t1 ?? now.value) - item.t0)}${item.reason ? `, ${item.reason}` : ""}${item.t1 ? "" : stateNow(item)}`;
                      const open = item.swap_id ? () => go("swap", { id: item.swap_id }) : undefined;
                      return (
                        <g key={`${item.t0}${item.state}`} class={open ? "seg open" : "seg"} onClick={open}>
                          <title>{words}</title>
                          <rect class={`lane-${kind}`} x={left} y="4" width={w} height={LANE - 8} rx="2" />
                          {kind === "loading" && <rect x={left} y="4" width={w} height={LANE - 8} fill="url(#hatch)" />}
                          {kind === "draining" && <rect x={left} y="4" width={w} height={LANE - 8} fill="url(#dots)" />}
                          {kind === "failed" && <text class="lane-x" x={left + w / 2} y="15" text-anchor="middle">✕</text>}
                        </g>
                      );
                    })}
                  {rows.value
                    .filter((row) => row.model === lane.id)
                    .map((row) => {
                      const t = time(row.timestamp);
                      if (t < from || t > to) return null;
                      return <rect key={row.id} class={row.error_msg ? "tickmark bad" : "tickmark"} x={x(t)} y={LANE - 6} width="1.5" height="5" />;
                    })}
                </g>
              ))}
              {drag.value && (
                <rect
                  class="selection"
                  x={Math.min(x(drag.value[0]), x(drag.value[1]))}
                  width={Math.abs(x(drag.value[1]) - x(drag.value[0]))}
                  y="0"
                  height={height - 18}
                />
              )}
            </svg>
          </div>
          <p class="legend" aria-hidden="true">
            {(["ready", "busy", "loading", "draining", "failed"] as const)
              .filter((kind) => shown.some((item) => kindOf(item) === kind))
              .map((kind) => (
              <span key={kind}><i class={`swatch lane-${kind} pattern-${kind}`} /> {kind}</span>
            ))}
            <span><i class="swatch tickmark" /> request</span>
            <span class="muted hide-phone">drag to zoom, double-click to go back</span>
          </p>
        </>
      )}
      {shown.length > 0 && asTable.value && (
        <div class="table-scroll short" tabIndex={0} role="region" aria-label="Residency">
          <table class="table">
            <thead>
              <tr>
                <th>Model</th>
                <th>State</th>
                <th>From</th>
                <th>To</th>
                <th>For</th>
                <th>Why</th>
              </tr>
            </thead>
            <tbody>
              {[...shown]
                .sort((a, b) => b.t0 - a.t0)
                .map((item) => (
                  <tr key={`${item.model}${item.t0}${item.state}`}>
                    <td><a href={href("model", { id: item.model })}>{item.model}</a></td>
                    <td>{item.state}{item.t1 ? "" : stateNow(item)}</td>
                    <td class="num">{clockTime(item.t0)}</td>
                    <td class="num">{item.t1 ? clockTime(item.t1) : "now"}</td>
                    <td class="num">{seconds((item.t1 ?? now.value) - item.t0)}</td>
                    <td>{item.swap_id ? <a href={href("swap", { id: item.swap_id })}>{item.reason || "swap"}</a> : item.reason}</td>
                  </tr>
                ))}
            </tbody>
          </table>
        </div>
      )}
      {!stale.value && <span class="sr">Live</span>}
      <div class="chart-grid">
        {gpuList.length > 0 && (
          <Chart
            title="Video memory"
            unit="GiB"
            times={times}
            from={from}
            to={to}
            sync="overview"
            limit={Math.max(...gpuList.map((samples) => (samples.at(-1)?.s.mem_total_mb ?? 0) / 1024))}
            series={gpuList.map((samples) => ({
              label: `${gpuLabel(samples[0]?.s as never)}`,
              values: alignTo(times, samples.map((item) => [item.t, item.s.mem_used_mb / 1024])),
            }))}
            onSelect={select}
          />
        )}
        {speeds.length > 0 && (
          <Chart
            title="Decode speed by request"
            unit="t/s"
            times={speeds.map((item) => item.t)}
            from={from}
            to={to}
            sync="overview"
            series={speedModels.map((model) => ({
              label: model,
              points: true,
              values: speeds.map((item) => (item.model === model ? item.v : null)),
            }))}
            onSelect={select}
          />
        )}
      </div>
    </Panel>
  );
}

const kindOf = (item: Residency): string => (item.busy && item.state === "ready" ? "busy" : stateKind(item.state));

/** What a model that is loaded now does and takes. */
const stateNow = (item: Residency): string =>
  [item.busy ? `, ${plural(item.busy, "request")}` : item.state === "ready" && item.busy === 0 ? ", idle" : "", item.vram_mb ? `, ${megabytes(item.vram_mb)}` : ""].join("");

function fit(name: string, width: number): string {
  const most = Math.floor((width - 8) / 6.9);
  return name.length <= most ? name : `${name.slice(0, Math.ceil(most / 2) - 1)}…${name.slice(-Math.floor(most / 2) + 1)}`;
}

/** Values of one series at another's times; a gap where nothing was sampled within four seconds. */
export function alignTo(times: number[], points: [number, number][]): (number | null)[] {
  let i = 0;
  return times.map((t) => {
    while (i < points.length - 1 && Math.abs((points[i + 1] as [number, number])[0] - t) <= Math.abs((points[i] as [number, number])[0] - t)) i += 1;
    const point = points[i];
    return point && Math.abs(point[0] - t) < 4000 ? point[1] : null;
  });
}
