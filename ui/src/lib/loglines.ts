// Log text: lines out of chunks, ANSI colours, levels. No DOM here, so Node can test it.

export interface Span {
  text: string;
  style: string;
}

const BASIC = ["black", "red", "green", "yellow", "blue", "magenta", "cyan", "white"];

interface Pen {
  fg: string;
  bg: string;
  bold: boolean;
  dim: boolean;
  italic: boolean;
  underline: boolean;
  strike: boolean;
}

const blank = (): Pen => ({ fg: "", bg: "", bold: false, dim: false, italic: false, underline: false, strike: false });

function color256(n: number): string {
  if (n < 16) return `var(--ansi-${BASIC[n % 8]})`;
  if (n >= 232) {
    const v = 8 + (n - 232) * 10;
    return `rgb(${v} ${v} ${v})`;
  }
  const levels = [0, 95, 135, 175, 215, 255];
  const i = n - 16;
  return `rgb(${levels[Math.floor(i / 36)]} ${levels[Math.floor(i / 6) % 6]} ${levels[i % 6]})`;
}

function apply(pen: Pen, codes: number[]): void {
  for (let i = 0; i < codes.length; i++) {
    const code = codes[i] as number;
    if (code === 0) Object.assign(pen, blank());
    else if (code === 1) pen.bold = true;
    else if (code === 2) pen.dim = true;
    else if (code === 3) pen.italic = true;
    else if (code === 4) pen.underline = true;
    else if (code === 9) pen.strike = true;
    else if (code === 22) pen.bold = pen.dim = false;
    else if (code === 23) pen.italic = false;
    else if (code === 24) pen.underline = false;
    else if (code === 29) pen.strike = false;
    else if (code === 39) pen.fg = "";
    else if (code === 49) pen.bg = "";
    else if ((code >= 30 && code <= 37) || (code >= 90 && code <= 97)) pen.fg = `var(--ansi-${BASIC[code % 10]})`;
    else if ((code >= 40 && code <= 47) || (code >= 100 && code <= 107)) pen.bg = `var(--ansi-${BASIC[code % 10]})`;
    else if (code === 38 || code === 48) {
      let color = "";
      if (codes[i + 1] === 5) {
        color = color256(codes[i + 2] ?? 0);
        i += 2;
      } else if (codes[i + 1] === 2) {
        color = `rgb(${codes[i + 2] ?? 0} ${codes[i + 3] ?? 0} ${codes[i + 4] ?? 0})`;
        i += 4;
      }
      if (code === 38) pen.fg = color;
      else pen.bg = color;
    }
  }
}

function css(pen: Pen): string {
  let out = "";
  if (pen.fg) out += `color:${pen.fg};`;
  if (pen.bg) out += `background:${pen.bg};`;
  if (pen.bold) out += "font-weight:600;";
  if (pen.dim) out += "opacity:.8;";
  if (pen.italic) out += "font-style:italic;";
  const lines = [pen.underline && "underline", pen.strike && "line-through"].filter(Boolean);
  if (lines.length) out += `text-decoration:${lines.join(" ")};`;
  return out;
}

// Escape sequences: colours are read, every other one is dropped.
const ESCAPE = /\x1b(?:\[([0-9;:]*)([A-Za-z])|\][^\x07\x1b]*(?:\x07|\x1b\\)|[()][A-Z0-9]|.)/g;

export function ansi(line: string): Span[] {
  if (!line.includes("\x1b")) return [{ text: line, style: "" }];
  const spans: Span[] = [];
  const pen = blank();
  let from = 0;
  const push = (text: string) => { if (text) spans.push({ text, style: css(pen) }); };
  for (const match of line.matchAll(ESCAPE)) {
    push(line.slice(from, match.index));
    from = match.index + match[0].length;
    if (match[2] === "m") apply(pen, (match[1] || "0").split(/[;:]/).map(Number));
  }
  push(line.slice(from));
  return spans;
}

export const plain = (line: string): string => line.replace(ESCAPE, "");

export type Level = "debug" | "info" | "warn" | "error";
export const LEVELS: readonly Level[] = ["debug", "info", "warn", "error"];

const LEVEL_WORDS: [Level, RegExp][] = [
  ["error", /\[ERROR\]|\bERROR\b|\bFATAL\b|\bpanic:|\berror:|\bTraceback\b|^E /],
  ["warn", /\[WARN(?:ING)?\]|\bWARN(?:ING)?\b|\bwarning:|^W /],
  ["debug", /\[DEBUG\]|\bDEBUG\b|^D /],
];

export function level(line: string): Level {
  for (const [name, words] of LEVEL_WORDS) if (words.test(line)) return name;
  return "info";
}

/** Whole lines out of chunks; a carriage return starts the line again, as progress bars mean it to. */
export class Lines {
  private rest = "";

  feed(chunk: string): string[] {
    const parts = (this.rest + chunk).split("\n");
    this.rest = parts.pop() ?? "";
    return parts.map((line) => {
      const bare = line.endsWith("\r") ? line.slice(0, -1) : line;
      return bare.slice(bare.lastIndexOf("\r") + 1);
    });
  }

  reset(): void {
    this.rest = "";
  }
}

/** A matcher from a search box: plain text, or a regular expression between slashes. null: not valid. */
export function matcher(text: string): ((line: string) => boolean) | null {
  const trimmed = text.trim();
  if (!trimmed) return () => true;
  const regex = /^\/(.+)\/([a-z]*)$/.exec(trimmed);
  if (regex) {
    try {
      const made = new RegExp(regex[1] as string, regex[2]?.includes("c") ? "" : "i");
      return (line) => made.test(line);
    } catch {
      return null;
    }
  }
  const wanted = trimmed.toLowerCase();
  return (line) => line.toLowerCase().includes(wanted);
}
