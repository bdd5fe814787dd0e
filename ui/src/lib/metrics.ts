// The time range of the overview, and the sums and speeds of the requests within it.
import { computed, signal } from "@preact/signals";
import { useEffect } from "preact/hooks";
import { get, maybe } from "./api";
import { time } from "./format";
import { now, status } from "./link";
import { pref } from "./prefs";
import { activitySettled, residency, swapRevision } from "./state";
import type { ActivityPage, Stats } from "./types";

export const SPANS = [["fit", "Fit"], ["15", "15 min"], ["60", "1 h"], ["360", "6 h"], ["1440", "24 h"]] as const;
const DAY = 1440;
const MINUTE = 60_000;
const POINTS = 90; // steps of the series in the range

export const span = pref<string>("timeline", "fit");
/** A part of the range that was chosen with the pointer. */
export const zoom = signal<[number, number] | null>(null);
/** The first moment of the last day of which anything is known; 0 before that is known. */
const earliest = signal(0);

// The axis moves in steps of five seconds: a smooth one would redraw everything each second.
const right = computed(() => Math.ceil(now.value / 5000) * 5000);
/** The length of the range up to now, in minutes. */
export const minutes = computed(() => {
  if (span.value !== "fit") return Number(span.value) || 60;
  const known = earliest.value ? (right.value - earliest.value) / MINUTE : 15;
  return Math.min(DAY, Math.max(2, Math.ceil(known * 1.03)));
});
export const range = computed<[number, number]>(() => zoom.value ?? [right.value - minutes.value * MINUTE, right.value]);

/** The length of a step, in whole seconds that divide minutes and hours. */
export const stepOf = (ms: number): number =>
  [1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900].find((s) => ms / 1000 / s <= POINTS) ?? 1800;

export interface Metrics extends Stats {
  from: number;
  to: number;
  /** Seconds. */
  step: number;
}

export const metrics = signal<Metrics | null>(null);

/** Keeps `metrics` up to date with the range while the page is open. */
export function useMetrics(): void {
  const online = status.value.state === "open";
  const [from, to] = range.value;
  const step = stepOf(to - from);
  // A live range moves all the time; it is read again when requests have ended, or it is longer than what was read.
  const key = zoom.value ? `${from}/${to}` : `${minutes.value}/${step}`;
  useEffect(() => {
    if (!online || earliest.peek()) return;
    const since = Date.now() - DAY * MINUTE;
    const first = maybe<ActivityPage>("/api/metrics/activity", { start: new Date(since).toISOString(), sort: "id", order: "asc", limit: 1 });
    Promise.all([residency(since), first]).then(([lanes, page]) => {
      const row = page?.data[0];
      const found = [...(lanes ?? []).map((lane) => Math.max(since, lane.t0)), ...(row ? [time(row.timestamp) - row.duration_ms] : [])];
      if (found.length) earliest.value = Math.min(...found);
    }, () => undefined);
  }, [online, activitySettled.value, swapRevision.value]);
  useEffect(() => {
    if (!online) return;
    const abort = new AbortController();
    const timer = setTimeout(() => {
      const [start, end] = zoom.peek() ?? [Date.now() - minutes.peek() * MINUTE, Date.now()];
      const bounds = { start: new Date(start).toISOString(), ...(zoom.peek() ? { end: new Date(end).toISOString() } : {}) };
      get<Stats>("/api/metrics/stats", { ...bounds, bucket: step }, abort.signal).then(
        (stats) => (metrics.value = { ...stats, from: start, to: end, step }),
        () => undefined,
      );
    }, 150);
    return () => {
      clearTimeout(timer);
      abort.abort();
    };
  }, [key, online, activitySettled.value]);
}

/** The beginnings of all steps of the range, in epoch milliseconds. */
export function steps({ from, to, step }: { from: number; to: number; step: number }): number[] {
  const width = step * 1000;
  const out: number[] = [];
  for (let t = Math.floor(from / width) * width; t <= to; t += width) out.push(t);
  return out;
}
