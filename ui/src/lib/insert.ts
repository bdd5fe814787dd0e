// Puts a ready-made block into a configuration without reading it as YAML: comments and order stay as they are.

const KEY = /^([A-Za-z_$][\w$-]*)\s*:(.*)$/;
const indentOf = (line: string): number => line.length - line.trimStart().length;
const idle = (line: string): boolean => !line.trim() || line.trim().startsWith("#");

/**
 * The text with a block below a top-level key, at the end of what is there. The block is indented by two spaces; it
 * takes the indentation of its new neighbours. null where the section is not written as a block.
 */
export function insertUnder(text: string, section: string, block: string): string | null {
  const lines = text.replace(/\s+$/, "").split(/\r?\n/);
  if (lines.length === 1 && !lines[0]) lines.pop();
  const fresh = block.replace(/\s+$/, "").split("\n");
  const at = lines.findIndex((line) => KEY.exec(line)?.[1] === section);
  if (at < 0) {
    const gap = lines.length ? [""] : [];
    return [...lines, ...gap, `${section}:`, ...fresh, ""].join("\n");
  }
  const rest = (KEY.exec(lines[at] as string)?.[2] ?? "").replace(/(^|\s)#.*$/, "").trim();
  if (["{}", "null", "~"].includes(rest)) lines[at] = `${section}:`;
  else if (rest) return null;
  let end = at + 1;
  for (let i = at + 1; i < lines.length; i++) {
    const line = lines[i] as string;
    if (idle(line)) continue;
    if (indentOf(line) === 0) break;
    end = i + 1;
  }
  const neighbour = lines.slice(at + 1, end).find((line) => !idle(line));
  const pad = " ".repeat(neighbour ? indentOf(neighbour) : 2);
  const moved = fresh.map((line) => (line.startsWith("  ") ? pad + line.slice(2) : line.trim() ? pad + line.trimStart() : ""));
  return [...lines.slice(0, end), ...moved, ...lines.slice(end), ""].join("\n");
}

/** Where the entry of a name stands below a top-level key: its first line and the one after its last. */
function place(lines: readonly string[], section: string, name: string): [number, number] | null {
  const at = lines.findIndex((line) => KEY.exec(line)?.[1] === section);
  if (at < 0) return null;
  const names = [name, JSON.stringify(name), `'${name.replaceAll("'", "''")}'`].map((text) => `${text}:`);
  const first = lines.slice(at + 1).find((line) => !idle(line));
  const depth = first ? indentOf(first) : 0;
  if (!depth) return null;
  for (let i = at + 1; i < lines.length; i++) {
    const line = lines[i] as string;
    if (!idle(line) && indentOf(line) === 0) return null;
    if (indentOf(line) !== depth || !names.some((text) => line.trim() === text || line.trim().startsWith(`${text} `))) continue;
    let end = i + 1;
    for (let k = i + 1; k < lines.length; k++) {
      const next = lines[k] as string;
      if (!next.trim()) continue;
      if (indentOf(next) <= depth) break;
      end = k + 1;
    }
    return [i, end];
  }
  return null;
}

/** The number of an entry's first line, from 1; 0 where it cannot be told. */
export const lineOf = (text: string, section: string, name: string): number => (place(text.split("\n"), section, name)?.[0] ?? -1) + 1;

const OFF = "#off ";

/** The text without an entry; null where it cannot be told apart. */
export function without(text: string, section: string, name: string): string | null {
  const lines = text.split("\n");
  const found = place(lines, section, name);
  return found && [...lines.slice(0, found[0]), ...lines.slice(found[1])].join("\n");
}

/** The text with an entry as comments, which `enabled` takes back. */
export function disabled(text: string, section: string, name: string): string | null {
  const lines = text.split("\n");
  const found = place(lines, section, name);
  return found && lines.map((line, i) => (i >= found[0] && i < found[1] && line.trim() ? line.replace(/^\s*/, `$&${OFF}`) : line)).join("\n");
}

/** The entries that `disabled` has made comments: name, first line and the one after the last. */
export function disabledEntries(text: string): { name: string; begin: number; end: number }[] {
  const lines = text.split("\n");
  const entries: { name: string; begin: number; end: number }[] = [];
  let depth = 0;
  lines.forEach((line, i) => {
    if (!line.trim().startsWith(OFF)) return;
    const last = entries.at(-1);
    if (last && indentOf(line) > depth && lines.slice(last.end, i).every((between) => !between.trim())) {
      last.end = i + 1;
      return;
    }
    depth = indentOf(line);
    entries.push({ name: line.trim().slice(OFF.length).replace(/:\s*(#.*)?$/, "").replace(/^["']|["']$/g, ""), begin: i, end: i + 1 });
  });
  return entries;
}

export function enabled(text: string, name: string): string {
  const found = disabledEntries(text).find((entry) => entry.name === name);
  if (!found) return text;
  return text.split("\n").map((line, i) => (i >= found.begin && i < found.end ? line.replace(/^(\s*)#off /, "$1") : line)).join("\n");
}
