// Numbers and times as people read them. A server's "not known" (-1, null, undefined) becomes a dash.

export const DASH = "\u2013";

export function known(value: number | null | undefined): value is number {
  return typeof value === "number" && Number.isFinite(value) && value >= 0;
}

export function count(value: number | null | undefined): string {
  if (!known(value)) return DASH;
  return Math.round(value).toLocaleString("en-US");
}

export function short(value: number | null | undefined): string {
  if (!known(value)) return DASH;
  if (value < 10_000) return count(value);
  if (value < 1_000_000) return `${(value / 1000).toFixed(value < 100_000 ? 1 : 0)}k`;
  return `${(value / 1_000_000).toFixed(value < 100_000_000 ? 1 : 0)}M`;
}

export function rate(value: number | null | undefined): string {
  if (!known(value) || value === 0) return DASH;
  return value >= 100 ? Math.round(value).toLocaleString("en-US") : value.toFixed(1);
}

export function bytes(value: number | null | undefined): string {
  if (!known(value)) return DASH;
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  let size = value;
  let unit = 0;
  while (size >= 1024 && unit < units.length - 1) {
    size /= 1024;
    unit += 1;
  }
  return `${unit === 0 || size >= 100 ? Math.round(size) : size.toFixed(1)} ${units[unit]}`;
}

export const megabytes = (value: number | null | undefined): string => (known(value) ? bytes(value * 1048576) : DASH);

export const gib = (mb: number): string => (mb / 1024).toFixed(1);

/** 0.84 s, 12.3 s, 4:05, 2:10:09, 3 d 4 h */
export function duration(ms: number | null | undefined): string {
  if (!known(ms)) return DASH;
  if (ms < 1000) return `${Math.round(ms)} ms`;
  const s = ms / 1000;
  if (s < 10) return `${s.toFixed(2)} s`;
  if (s < 60) return `${s.toFixed(1)} s`;
  return clock(s);
}

/** Whole seconds as m:ss or h:mm:ss. */
export function clock(seconds: number | null | undefined): string {
  if (!known(seconds)) return DASH;
  const total = Math.floor(seconds);
  const h = Math.floor(total / 3600);
  const m = Math.floor(total / 60) % 60;
  const s = total % 60;
  const two = (n: number) => String(n).padStart(2, "0");
  if (h >= 48) return `${Math.floor(h / 24)} d ${h % 24} h`;
  return h ? `${h}:${two(m)}:${two(s)}` : `${m}:${two(s)}`;
}

export function seconds(ms: number): string {
  return ms < 9950 ? `${(ms / 1000).toFixed(1)} s` : ms < 60_000 ? `${Math.round(ms / 1000)} s` : clock(ms / 1000);
}

/** Epoch milliseconds from RFC 3339 text, seconds or milliseconds; NaN when it is none of them. */
export function time(value: unknown): number {
  if (typeof value === "number") return value < 1e11 ? value * 1000 : value;
  if (typeof value === "string" && value) {
    // JavaScript reads three fraction digits; servers send up to nine.
    return Date.parse(value.replace(/(\.\d{3})\d+/, "$1"));
  }
  return Number.NaN;
}

const sameDay = (a: Date, b: Date) => a.toDateString() === b.toDateString();

export function clockTime(ms: number): string {
  if (!Number.isFinite(ms)) return DASH;
  const at = new Date(ms);
  const hm = at.toLocaleTimeString("en-GB");
  return sameDay(at, new Date()) ? hm : `${at.toLocaleDateString("en-CA").slice(5)} ${hm}`;
}

export function ago(ms: number, now: number): string {
  const s = Math.max(0, (now - ms) / 1000);
  if (!Number.isFinite(s)) return DASH;
  if (s < 2) return "now";
  if (s < 60) return `${Math.floor(s)} s ago`;
  if (s < 3600) return `${Math.floor(s / 60)} min ago`;
  if (s < 86400) return `${Math.floor(s / 3600)} h ago`;
  return `${Math.floor(s / 86400)} d ago`;
}

/** A server's error without the Go program's phrase in front of it. */
export const plainError = (text: string): string => text.replace(/^unspecific error: /, "");

/** The same, short enough for a table: "exit 3", "signal SIGSEGV", "timed out". */
export function shortFailure(text: string): string {
  const exit = /\((?:exit status (\d+)|(signal \w+))\)/.exec(text);
  if (exit) return exit[1] ? `exit ${exit[1]}` : (exit[2] as string);
  if (/timed out/.test(text)) return "timed out";
  const plain = plainError(text).split("\n")[0] as string;
  const last = plain.slice(plain.lastIndexOf(": ") + 1).trim();
  return plain.length > 32 && last ? last : plain;
}

export const percent = (value: number | null | undefined): string => known(value) ? `${Math.round(value)} %` : DASH;

export const plural = (n: number, one: string, many = `${one}s`): string => `${count(n)} ${n === 1 ? one : many}`;

export function quantile(sorted: readonly number[], q: number): number {
  if (!sorted.length) return Number.NaN;
  const at = q * (sorted.length - 1);
  const low = Math.floor(at);
  const a = sorted[low] as number;
  const b = sorted[Math.min(low + 1, sorted.length - 1)] as number;
  return a + (b - a) * (at - low);
}

export const median = (values: readonly number[]): number => quantile([...values].sort((a, b) => a - b), 0.5);

/** crypto.randomUUID exists on secure origins only; this interface must work on plain HTTP. */
export function uid(): string {
  const raw = crypto.getRandomValues(new Uint8Array(9));
  return btoa(String.fromCharCode(...raw)).replaceAll("+", "a").replaceAll("/", "b");
}
