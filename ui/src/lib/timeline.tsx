// The residency swimlane over video memory and speed, on one time axis.
import { useSignal } from "@preact/signals";
import { useEffect, useRef } from "preact/hooks";
import { maybe } from "./api";
import { axisTicks, clockLabel } from "./axis";
import { Chart } from "./chart";
import { clockTime, megabytes, plural, seconds, time } from "./format";
import { now, stale, status } from "./link";
import { metrics, minutes, range, steps, zoom } from "./metrics";
import { gpuLabel, gpus } from "./perf";
import { go, href } from "./router";
import { activitySettled, byName, models, residency, servedBy, stateShown, swapFailed, swapRevision, swaps } from "./state";
import { Btn, Panel, STATE_WORD, stateKind } from "./widgets";
import type { ActivityPage, ActivityRow, ModelStatus, Residency } from "./types";

const LANE = 22;

export function Timeline({ known }: { known: boolean }) {
  const segments = useSignal<Residency[] | null>([]);
  const rows = useSignal<ActivityRow[]>([]);
  const drag = useSignal<[number, number] | null>(null);
  const asTable = useSignal(false);
  const width = useSignal(900);
  const host = useRef<HTMLDivElement>(null);
  const online = status.value.state === "open";
  const swapsSeen = swapRevision.value;

  useEffect(() => {
    if (!online) return;
    const timer = setTimeout(() => {
      Promise.all([residency(Date.now() - minutes.peek() * 60_000), swaps()]).then(([list, all]) => {
        const failed = new Map((all ?? []).filter(swapFailed).map((item) => [item.id, item]));
        segments.value =
          list?.map((item) => {
            const swap = item.state === "starting" && item.swap_id ? failed.get(item.swap_id) : undefined;
            return swap && swap.model === item.model && item.t1 ? { ...item, state: "failed", reason: swap.error || item.reason } : item;
          }) ?? null;
      }, () => undefined);
    }, 150);
    return () => clearTimeout(timer);
  }, [minutes.value, swapsSeen, online]);
  useEffect(() => {
    if (!online) return;
    const start = new Date(Date.now() - minutes.peek() * 60_000).toISOString();
    const timer = setTimeout(
      () => maybe<ActivityPage>("/api/metrics/activity", { start, limit: 500 }).then((p) => p?.data && (rows.value = p.data), () => undefined),
      300,
    );
    return () => clearTimeout(timer);
  }, [minutes.value, activitySettled.value, online]);
  useEffect(() => {
    if (!host.current) return;
    const observer = new ResizeObserver(([entry]) => (width.value = Math.max(240, Math.floor(entry?.contentRect.width ?? 900))));
    observer.observe(host.current);
    return () => observer.disconnect();
  }, [asTable.value, !segments.value?.length]);

  const [from, to] = range.value;
  const gpuList = [...gpus.value.values()];
  const list = segments.value;
  // All charts of this panel have the same room beside their plots, so that one moment is at one place in all of them.
  const narrow = width.value < 520;
  const [labels, beside] = narrow ? [92, 8] : [150, 110];
  const plotWidth = width.value - labels - beside;
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
  const data = metrics.value;
  const speeds = data?.speeds ?? [];
  const speedTimes = data ? steps(data) : [];
  const course = (model: string, pick: (item: (typeof speeds)[number]) => number) => {
    const found = new Map(speeds.filter((item) => item.model === model).map((item) => [item.start * 1000, pick(item)]));
    return speedTimes.map((t) => found.get(t) ?? null);
  };
  const speedModels = [...new Set(speeds.map((item) => item.model))].sort().slice(0, 6);

  const axis = { from, to, sync: "overview", left: labels, right: beside, onSelect: select };
  return (
    <Panel
      class="timeline"
      title="Timeline"
      aside={
        <>
          {zoom.value && <Btn small onClick={() => (zoom.value = null)}>{clockTime(from)} to {clockTime(to)}: back to live</Btn>}
          {shown.length > 0 ? <Btn small aria-pressed={asTable.value} onClick={() => (asTable.value = !asTable.value)}>Table</Btn> : list !== null && known && <span class="muted">No model was loaded in this time</span>}
        </>
      }
    >
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
              {axisTicks(from, to, plotWidth).map((t) => (
                <g key={t}>
                  <line class="grid" x1={x(t)} x2={x(t)} y1="0" y2={height - 18} />
                  <text class="tick" x={x(t)} y={height - 5} text-anchor="middle">{clockLabel(t, to - from < 8 * 60_000 ? 1 : 60_000)}</text>
                </g>
              ))}
              {lanes.map((lane, index) => (
                <g key={lane.id} transform={`translate(0 ${index * LANE})`}>
                  <text class="lane-name" x="0" y="15" onClick={() => go("model", { id: lane.id })}>
                    <title>{lane.id}</title>
                    {fit(lane.id, labels)}
                  </text>
                  <line class="lane-line" x1={labels} x2={width.value - beside} y1={LANE - 1} y2={LANE - 1} />
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
                  {!narrow && <text class="tick" x={width.value - beside + 6} y="15">{laneNow(lane.id, models.value)}</text>}
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
      <div class="chart-rows">
        {speedModels.length > 0 && (
          <Chart
            title="Generation speed, median with the range from the first to the last tenth"
            unit="t/s"
            times={speedTimes}
            {...axis}
            height={170}
            series={speedModels.map((model) => ({ label: model, values: course(model, (item) => item.p50), low: course(model, (item) => item.p10), high: course(model, (item) => item.p90) }))}
          />
        )}
        {gpuList.length > 0 && (
          <Chart
            title="Video memory"
            unit="GiB"
            times={times}
            {...axis}
            limit={Math.max(...gpuList.map((samples) => (samples.at(-1)?.s.mem_total_mb ?? 0) / 1024))}
            series={gpuList.map((samples) => ({
              label: `${gpuLabel(samples[0]?.s as never)}`,
              values: alignTo(times, samples.map((item) => [item.t, item.s.mem_used_mb / 1024])),
            }))}
          />
        )}
      </div>
    </Panel>
  );
}

/** What a model does at the right end of its lane. */
function laneNow(id: string, all: ModelStatus[]): string {
  const model = all.find((item) => item.id === id && !item.peerID);
  return model && !zoom.value ? STATE_WORD[stateShown(model, servedBy(id).length)] ?? "" : "";
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
