// A model's entry in the configuration as a form: taken apart from the text that a search gives, written as text again.
// Commands and values stay text, so that what the form does not know is kept as it is.
import { type Schema, descend, resolve } from "./schema";

export interface Entry {
  id: string;
  /** One flag a line, as it stands below `cmd: |`. */
  cmd: string;
  /** Other keys, as the form shows them; an empty one is not written. */
  values: Record<string, string>;
  /** The lines of keys that have further keys below them, as they are. */
  rest: string[];
}

export interface FormField {
  key: string;
  kind: "text" | "number" | "flag" | "choice" | "list";
  info: string;
  choices: string[];
}

const plain = (text: string): boolean => /^[A-Za-z_/][\w ./@+-]*$/.test(text) && !/\s$/.test(text) && !/^(true|false|null|yes|no|on|off|y|n)$/i.test(text);

/** A text as a YAML value. */
export const scalar = (text: string): string => (plain(text) ? text : JSON.stringify(text));

const unquoted = (text: string): string => {
  const trimmed = text.trim();
  if (/^".*"$/.test(trimmed)) {
    try {
      return JSON.parse(trimmed) as string;
    } catch {
      return trimmed.slice(1, -1);
    }
  }
  return /^'.*'$/.test(trimmed) ? trimmed.slice(1, -1).replaceAll("''", "'") : trimmed;
};

/** A list within brackets as one item a line; other values as they are. */
const listed = (value: string): string =>
  /^\[.*\]$/.test(value) ? (value.slice(1, -1).match(/"(?:[^"\\]|\\.)*"|'[^']*'|[^\s,][^,]*/g) ?? []).map(unquoted).join("\n") : unquoted(value);

/** The entry of a block such as a search gives: a name, `cmd` as a block of lines, keys with simple values, and others. */
export function entryOf(block: string): Entry {
  const entry: Entry = { id: "", cmd: "", values: {}, rest: [] };
  const command: string[] = [];
  let key = "";
  for (const line of block.split("\n")) {
    if (/^ {6}/.test(line)) {
      if (key === "cmd") command.push(line.slice(6));
      else entry.rest.push(line);
    } else if (/^ {4}\S/.test(line)) {
      const at = line.indexOf(":");
      key = line.slice(4, at);
      const value = listed(line.slice(at + 1).trim());
      if (key === "cmd") command.push(...(value && value !== "|" ? [value] : []));
      else if (value) entry.values[key] = value;
      else entry.rest.push(line);
    } else if (/^ {2}[^\s#]/.test(line)) entry.id = unquoted(line.trim().replace(/:$/, ""));
  }
  entry.cmd = command.join("\n");
  return entry;
}

/** The entry as text below `models:`. */
export function blockOf(entry: Entry, fields: readonly FormField[]): string {
  const lines = [`  ${scalar(entry.id)}:`, "    cmd: |", ...entry.cmd.split("\n").filter((line) => line.trim()).map((line) => `      ${line}`)];
  for (const [key, value] of Object.entries(entry.values)) {
    if (!value.trim()) continue;
    const kind = fields.find((field) => field.key === key)?.kind;
    if (kind === "list") lines.push(`    ${key}:`, ...value.split("\n").filter((item) => item.trim()).map((item) => `      - ${scalar(item.trim())}`));
    else lines.push(`    ${key}: ${kind === "number" || kind === "flag" ? value.trim() : scalar(value.trim())}`);
  }
  return `${[...lines, ...entry.rest].join("\n")}\n`;
}

/** The keys of a model that a form can show, by the configuration's own schema. */
export function formFields(root: Schema): FormField[] {
  const fields = new Map<string, FormField>();
  for (const model of descend(root, ["models", "any"])) {
    for (const [key, inner] of Object.entries(model.properties ?? {})) {
      const all = resolve(inner, root);
      const types = new Set(all.flatMap((one) => one.type ?? []));
      const choices = all.flatMap((one) => one.enum ?? []).map(String).filter(Boolean);
      const items = all.find((one) => one.items);
      let kind: FormField["kind"] | null = null;
      if (key === "cmd" || types.has("object") || all.some((one) => one.properties)) kind = null;
      else if (types.has("integer") && items) kind = "number";
      else if (items) kind = resolve(items.items as Schema, root).some((one) => one.type === "object") ? null : "list";
      else if (choices.length) kind = "choice";
      else if (types.has("boolean")) kind = "flag";
      else if (types.has("integer")) kind = "number";
      else if (types.has("string")) kind = "text";
      if (kind) fields.set(key, { key, kind, choices, info: all.find((one) => one.description)?.description ?? "" });
    }
  }
  return [...fields.values()];
}

interface Flags {
  context: string[];
  layers: string[];
}

const ENGINES: [RegExp, Flags][] = [
  [/llama-server|llamafile/, { context: ["--ctx-size", "-c"], layers: ["--n-gpu-layers", "--gpu-layers", "-ngl"] }],
  [/vllm/, { context: ["--max-model-len"], layers: [] }],
  [/koboldcpp/, { context: ["--contextsize"], layers: ["--gpulayers"] }],
  [/sglang/, { context: ["--context-length"], layers: [] }],
];

/** What the engine of a command calls its context size and the layers on GPUs; empty where it has no such flag. */
export function flagsOf(cmd: string): Flags {
  const program = cmd.trim().split(/\s+/)[0] ?? "";
  return ENGINES.find(([name]) => name.test(program))?.[1] ?? { context: [], layers: [] };
}

const pattern = (names: readonly string[]): RegExp => new RegExp(`(^|\\s)(${names.join("|")})(?:=|\\s+)("[^"]*"|\\S+)`);

export const flagValue = (cmd: string, names: readonly string[]): string => (names.length ? (pattern(names).exec(cmd)?.[3] ?? "") : "");

/** The command with another value of a flag; without one the flag is taken out. */
export function withFlag(cmd: string, names: readonly string[], value: string): string {
  const known = pattern(names);
  if (!value.trim()) return cmd.replace(known, "").replace(/\n\s*\n/g, "\n");
  return known.test(cmd) ? cmd.replace(known, `$1$2 ${value.trim()}`) : `${cmd.replace(/\s+$/, "")}\n${names[0]} ${value.trim()}`;
}
