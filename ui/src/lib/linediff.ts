// A line diff (longest common subsequence after trimming what both ends share).

export interface DiffLine {
  kind: "same" | "add" | "del";
  text: string;
}

export function lineDiff(before: string, after: string): DiffLine[] {
  const a = before.split("\n");
  const b = after.split("\n");
  let head = 0;
  while (head < a.length && head < b.length && a[head] === b[head]) head += 1;
  let tail = 0;
  while (tail < a.length - head && tail < b.length - head && a[a.length - 1 - tail] === b[b.length - 1 - tail]) tail += 1;
  const left = a.slice(head, a.length - tail);
  const right = b.slice(head, b.length - tail);
  const out: DiffLine[] = a.slice(0, head).map((text) => ({ kind: "same", text }));
  // Beyond this the table would cost more than the picture is worth: show the middle as replaced.
  if (left.length * right.length > 4_000_000) {
    out.push(...left.map((text): DiffLine => ({ kind: "del", text })), ...right.map((text): DiffLine => ({ kind: "add", text })));
  } else {
    const width = right.length + 1;
    const table = new Uint32Array((left.length + 1) * width);
    const at = (i: number, j: number) => table[i * width + j] as number;
    for (let i = left.length - 1; i >= 0; i--) {
      for (let j = right.length - 1; j >= 0; j--) {
        table[i * width + j] = left[i] === right[j] ? at(i + 1, j + 1) + 1 : Math.max(at(i + 1, j), at(i, j + 1));
      }
    }
    let i = 0;
    let j = 0;
    while (i < left.length || j < right.length) {
      if (i < left.length && j < right.length && left[i] === right[j]) {
        out.push({ kind: "same", text: left[i] as string });
        i += 1;
        j += 1;
      } else if (i < left.length && (j >= right.length || at(i + 1, j) >= at(i, j + 1))) {
        out.push({ kind: "del", text: left[i] as string });
        i += 1;
      } else {
        out.push({ kind: "add", text: right[j] as string });
        j += 1;
      }
    }
  }
  out.push(...a.slice(a.length - tail).map((text): DiffLine => ({ kind: "same", text })));
  return out;
}

/** Unchanged stretches folded to a few lines of surroundings; null stands for a fold. */
export function folded(lines: DiffLine[], around = 3): (DiffLine | null)[] {
  const keep = new Uint8Array(lines.length);
  lines.forEach((line, i) => {
    if (line.kind === "same") return;
    for (let k = Math.max(0, i - around); k <= Math.min(lines.length - 1, i + around); k++) keep[k] = 1;
  });
  const out: (DiffLine | null)[] = [];
  lines.forEach((line, i) => {
    if (keep[i]) out.push(line);
    else if (out.at(-1) !== null) out.push(null);
  });
  return out;
}
