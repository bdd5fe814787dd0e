// Requests of one session under one head; those of no session, or alone in theirs, stand for themselves.

export interface Group<T> {
  session: string;
  entries: T[];
}

/** In order of the first request of each; a session with one request has no head, so its name is "". */
export function bySession<T>(entries: readonly T[], sessionOf: (entry: T) => string): Group<T>[] {
  const groups: Group<T>[] = [];
  const known = new Map<string, Group<T>>();
  for (const entry of entries) {
    const session = sessionOf(entry);
    const group = session ? known.get(session) : undefined;
    if (group) {
      group.entries.push(entry);
      continue;
    }
    const made = { session, entries: [entry] };
    if (session) known.set(session, made);
    groups.push(made);
  }
  return groups.map((group) => (group.entries.length > 1 ? group : { ...group, session: "" }));
}
