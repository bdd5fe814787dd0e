// When the lines of a log were written: the server says it of its history, the arrival here of the rest.

/** A line number and the epoch milliseconds at which it was written; valid until the next one. */
export type Mark = [number, number];

/** Text with the time of each part; what is told to a tab that joins later. */
export class TimedText {
  private parts: { at: number; text: string }[] = [];
  private size = 0;

  constructor(private readonly kept: number) {}

  add(text: string, at: number): void {
    const last = this.parts.at(-1);
    // A second is fine enough to find a line by.
    if (last && at - last.at >= 0 && at - last.at < 1000) last.text += text;
    else this.parts.push({ at, text });
    this.size += text.length;
    while (this.size > this.kept * 1.5) {
      const first = this.parts[0] as { at: number; text: string };
      const over = this.size - this.kept;
      if (first.text.length <= over) this.parts.shift();
      else first.text = first.text.slice(first.text.indexOf("\n", over) + 1 || over);
      this.size = this.parts.reduce((sum, part) => sum + part.text.length, 0);
    }
  }

  addHistory(text: string, times: Mark[] | undefined): void {
    const lines = text.split(/(?<=\n)/);
    let from = 0;
    let at = 0;
    for (const [line, when] of [...(times ?? []), [lines.length, 0] as Mark]) {
      if (line > from) this.add(lines.slice(from, line).join(""), at);
      from = Math.max(from, line);
      at = when;
    }
  }

  text(): string {
    return this.parts.map((part) => part.text).join("");
  }

  times(): Mark[] {
    let line = 0;
    const marks: Mark[] = [];
    for (const { at, text } of this.parts) {
      marks.push([line, at]);
      line += text.split("\n").length - 1;
    }
    return marks;
  }
}

/** The time of a line of a history; 0 where nobody knows. */
export function timeOf(line: number, marks: Mark[]): number {
  let at = 0;
  for (const [from, when] of marks) {
    if (from > line) break;
    at = when;
  }
  return at;
}

export const lineHash = (text: string): string => {
  let sum = 0;
  for (const char of text) sum = (sum * 31 + (char.codePointAt(0) ?? 0)) >>> 0;
  return sum.toString(36);
};

/** Which of these lines an address means: that text nearest to its time, or the first one from that time on; -1: none. */
export function findLine(lines: { text: string; at: number }[], at: number, hash: string): number {
  let best = -1;
  for (let i = 0; i < lines.length; i++) {
    const line = lines[i] as { text: string; at: number };
    if (hash) {
      if (lineHash(line.text) !== hash) continue;
      if (best < 0 || Math.abs(line.at - at) < Math.abs((lines[best] as { at: number }).at - at)) best = i;
    } else if (line.at && line.at >= at) return i;
  }
  return best;
}
