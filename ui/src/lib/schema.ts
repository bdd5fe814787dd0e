// What may stand at a place of a YAML text, by its JSON schema. A small reader of indentation is enough for that.

export interface Schema {
  $ref?: string;
  $defs?: Record<string, Schema>;
  definitions?: Record<string, Schema>;
  type?: string | string[];
  properties?: Record<string, Schema>;
  additionalProperties?: Schema | boolean;
  patternProperties?: Record<string, Schema>;
  items?: Schema;
  enum?: unknown[];
  const?: unknown;
  default?: unknown;
  description?: string;
  anyOf?: Schema[];
  oneOf?: Schema[];
  allOf?: Schema[];
}

export interface Offer {
  label: string;
  detail: string;
  info: string;
  nested: boolean;
}

/** The keys above a place, outermost first; a list item is "-". */
export function pathAt(lines: readonly string[], row: number, indent: number): string[] {
  const path: string[] = [];
  let limit = indent;
  for (let i = row - 1; i >= 0 && limit > 0; i--) {
    const line = lines[i] as string;
    if (!line.trim() || line.trim().startsWith("#")) continue;
    const own = line.length - line.trimStart().length;
    if (own >= limit) continue;
    const item = /^\s*(?:- +)*(?:"([^"]+)"|'([^']+)'|([^\s:#"'][^:#]*?))\s*:(?:\s|$)/.exec(line);
    if (item) {
      path.unshift((item[1] ?? item[2] ?? item[3] ?? "").trim());
      limit = own;
    }
  }
  return path;
}

export function resolve(schema: Schema, root: Schema): Schema[] {
  if (schema.$ref) {
    const parts = schema.$ref.replace(/^#\//, "").split("/");
    let at: unknown = root;
    for (const part of parts) at = (at as Record<string, unknown> | undefined)?.[part];
    return at ? resolve(at as Schema, root) : [];
  }
  const inner = [...(schema.anyOf ?? []), ...(schema.oneOf ?? []), ...(schema.allOf ?? [])];
  return [schema, ...inner.flatMap((one) => resolve(one, root))];
}

export function descend(root: Schema, path: readonly string[]): Schema[] {
  let here = resolve(root, root);
  for (const key of path) {
    const next: Schema[] = [];
    for (const schema of here.flatMap((one) => [one, ...(one.items ? resolve(one.items, root) : [])])) {
      const own = schema.properties?.[key];
      if (own) next.push(...resolve(own, root));
      else if (typeof schema.additionalProperties === "object") next.push(...resolve(schema.additionalProperties, root));
      else for (const pattern of Object.values(schema.patternProperties ?? {})) next.push(...resolve(pattern, root));
    }
    here = next;
  }
  return here;
}

const kind = (schemas: Schema[]): string => [...new Set(schemas.flatMap((one) => one.type ?? []))].join(" or ");

export function keysAt(root: Schema, path: readonly string[]): Offer[] {
  const offers = new Map<string, Offer>();
  for (const schema of descend(root, path).flatMap((one) => [one, ...(one.items ? resolve(one.items, root) : [])])) {
    for (const [label, inner] of Object.entries(schema.properties ?? {})) {
      const all = resolve(inner, root);
      const fallback = all.find((one) => one.default !== undefined)?.default;
      offers.set(label, {
        label,
        detail: kind(all),
        info: `${all.find((one) => one.description)?.description ?? ""}${fallback === undefined || fallback === null ? "" : `\nDefault: ${JSON.stringify(fallback)}`}`.trim(),
        nested: all.some((one) => one.properties || one.type === "object"),
      });
    }
  }
  return [...offers.values()];
}

export function valuesAt(root: Schema, path: readonly string[]): string[] {
  const values = new Set<string>();
  for (const schema of descend(root, path)) {
    for (const value of schema.enum ?? []) values.add(String(value));
    if (schema.const !== undefined) values.add(String(schema.const));
    if (schema.type === "boolean") for (const word of ["true", "false"]) values.add(word);
  }
  return [...values];
}
