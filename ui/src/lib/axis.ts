// What a chart computes before it draws. No DOM here, so Node can test it.

export type Values = (number | null)[];

export interface Series {
  label: string;
  values: Values;
  /** A band around the line, such as the first and the last tenth. */
  low?: Values;
  high?: Values;
}

const LOG_SPAN = 20; // beyond so many times between the lowest and the highest value the scale is logarithmic
const LABEL = 12; // px between the labels at the ends of lines

export const real = (values: Values): number[] => values.filter((value): value is number => value !== null);
export const lowest = (values: Values): number => real(values).reduce((a, b) => Math.min(a, b), Number.POSITIVE_INFINITY);
export const highest = (values: Values): number => real(values).reduce((a, b) => Math.max(a, b), Number.NEGATIVE_INFINITY);

/** Whether small values would vanish on a linear scale. */
export function needsLog(series: readonly Series[]): boolean {
  const low = Math.min(...series.map((item) => lowest(item.values)));
  const high = Math.max(...series.map((item) => highest(item.values)));
  return low > 0 && Number.isFinite(high) && high / low > LOG_SPAN;
}

/** Moves labels apart that would cover each other: their places from the top, in the same order. */
export function spread(places: readonly number[], bottom: number): number[] {
  const order = places.map((y, i) => ({ y, i })).sort((a, b) => a.y - b.y);
  order.forEach((item, at) => { if (at) item.y = Math.max(item.y, (order[at - 1] as { y: number }).y + LABEL); });
  for (let at = order.length - 1, most = bottom; at >= 0; at--, most -= LABEL) (order[at] as { y: number }).y = Math.min((order[at] as { y: number }).y, most);
  const out: number[] = [];
  for (const { y, i } of order) out[i] = y;
  return out;
}

/** Round moments of an axis of so many px, at most eight of them, in epoch milliseconds. */
export function axisTicks(from: number, to: number, width = 480): number[] {
  const sizes = [0.25, 0.5, 1, 2, 5, 10, 15, 30, 60, 120, 240].map((m) => m * 60_000);
  const step = sizes.find((s) => (to - from) / s <= Math.min(8, width / 60)) ?? 240 * 60_000;
  const ticks: number[] = [];
  for (let t = Math.ceil(from / step) * step; t < to; t += step) ticks.push(t);
  return ticks;
}

export const clockLabel = (ms: number, step: number): string => new Date(ms).toLocaleTimeString("en-GB").slice(0, step < 60_000 ? 8 : 5);
