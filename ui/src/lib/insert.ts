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
