// What the server told us: one signal per topic, filled by the event stream.
import { computed, signal } from "@preact/signals";
import { get, listOf, maybe, pathId, send } from "./api";
import { time } from "./format";
import { on, status } from "./link";
import type { Features, Inflight, ListedModel, ModelDetail, ModelStatus, PlanPreview, Profiles, Residency, Swap, SwapPhase } from "./types";

export const models = signal<ModelStatus[]>([]);
export const modelsKnown = signal(false);
export const inflight = signal<Inflight[]>([]);
export const sessionHeaders = signal<string[]>(["X-Session-ID"]);
export const profiles = signal<Profiles>({ active: null, profiles: [] });
export const features = signal<Features>({});
export const version = signal<{ version: string; commit: string; build_date: string } | null>(null);
/** Rises with each finished request; pages that show them refetch. */
export const activityRevision = signal(0);
/** The same, at most every two seconds: for what is counted over many of them. */
export const activitySettled = signal(0);
export const lastActivity = signal(0);
/** Rises with each change of a model's state or swap. */
export const swapRevision = signal(0);
export const listed = signal<ListedModel[]>([]);

export const localModels = computed(() => models.value.filter((model) => !model.peerID && !(model.replica_of && model.state === "stopped")));
/** The requests that a model's own server or a replica of it serves. */
export const servedBy = (id: string): Inflight[] => inflight.value.filter((entry) => (entry.server ?? entry.model) === id);
export const peerModels = computed(() => models.value.filter((model) => model.peerID));
export const loadedModels = computed(() =>
  localModels.value.filter((model) => ["ready", "starting", "stopping"].includes(model.state)),
);
export const waiting = computed(() => inflight.value.filter((entry) => phaseOf(entry) === "queued"));

const collator = new Intl.Collator("en", { numeric: true, sensitivity: "base" });
export const byName = (a: { id: string }, b: { id: string }): number => collator.compare(a.id, b.id);

const same = (a: unknown, b: unknown): boolean => JSON.stringify(a) === JSON.stringify(b);

on<ModelStatus[]>("modelStatus", (fresh) => {
  const before = new Map(models.peek().map((model) => [model.peerID + model.id, model]));
  let moved = fresh.length !== before.size;
  // Unchanged models keep their object, so that unchanged rows are not rendered again.
  const merged = fresh.map((model) => {
    const old = before.get(model.peerID + model.id);
    if (old && same(old, model)) return old;
    moved = true;
    return model;
  });
  modelsKnown.value = true;
  if (!moved) return;
  models.value = merged.sort(byName);
  swapRevision.value += 1;
});

type Change = { operation: string; requests?: Inflight[]; request?: Inflight; id?: string };

on<Change>("inflight", (change) => {
  const received = Date.now();
  const list = inflight.peek();
  if (change.operation === "snapshot") inflight.value = (change.requests ?? []).map((entry) => ({ ...entry, received }));
  else if (change.operation === "upsert" && change.request) {
    const fresh = { ...change.request, received };
    const at = list.findIndex((entry) => entry.id === fresh.id);
    inflight.value = at < 0 ? [...list, fresh] : list.map((entry, index) => (index === at ? fresh : entry));
  } else if (change.operation === "remove") inflight.value = list.filter((entry) => entry.id !== change.id);
});

on<{ activity?: { session_id?: string[] } }>("uiConfig", (config) => {
  sessionHeaders.value = config.activity?.session_id ?? [];
});

on<{ active: string | null }>("profileChanged", ({ active }) => {
  if (profiles.peek().active !== active) profiles.value = { ...profiles.peek(), active };
});

on("configReloaded", () => void refreshStatic().then(refreshListed, () => undefined));

on<{ id: number }>("activity", ({ id }) => {
  lastActivity.value = Math.max(lastActivity.peek(), id ?? 0);
  activityRevision.value += 1;
});

let settling = false;
activityRevision.subscribe(() => {
  if (settling) return;
  settling = true;
  setTimeout(() => ((settling = false), (activitySettled.value = activityRevision.peek())), 2000);
});

on("swap", () => (swapRevision.value += 1));

export function phaseOf(entry: Inflight): string {
  if (entry.phase) return entry.phase === "streaming" ? "decode" : entry.phase;
  const model = models.value.find((item) => item.id === entry.model);
  if (model && model.state === "starting") return "loading";
  if (Object.keys(entry.resp_headers ?? {}).length) return "decode";
  return model && model.state !== "ready" && !model.peerID ? "queued" : "prefill";
}

/** What a model's mark says: also that it sleeps, or has `active` requests. */
export const stateShown = (model: ModelStatus, active: number | boolean): string =>
  model.asleep && model.state === "stopped" ? "asleep" : model.failed && model.state === "stopped" ? "failed" : model.state === "ready" && active ? "busy" : model.state;

export function sessionOf(entry: { req_headers: Record<string, string>; session?: string | null }): string {
  if (entry.session) return entry.session;
  for (const name of sessionHeaders.value) {
    const found = Object.entries(entry.req_headers ?? {}).find(([key]) => key.toLowerCase() === name.toLowerCase());
    if (found?.[1]) return found[1];
  }
  return "";
}

export async function refreshStatic(): Promise<void> {
  const [found, ver, prof] = await Promise.all([
    maybe<Features>("/api/features"),
    maybe<{ version: string; commit: string; build_date: string }>("/api/version"),
    maybe<Profiles>("/api/profiles"),
  ]);
  features.value = found ?? { performance: true, hardware: true, captures: true };
  version.value = ver;
  if (prof && Array.isArray(prof.profiles)) profiles.value = prof;
}

export async function refreshListed(): Promise<void> {
  const answer = await get<{ data: ListedModel[] }>("/api/names");
  listed.value = listOf<ListedModel>(answer).filter((model) => model.id);
}

let lastState = "";
status.subscribe((value) => {
  if (value.state === "open" && lastState !== "open") refreshStatic().catch(() => undefined);
  lastState = value.state;
});

const text = (value: unknown): string => (typeof value === "string" ? value : value ? JSON.stringify(value) : "");
const when = (value: unknown): number | null => {
  const ms = time(value);
  return Number.isFinite(ms) && ms > 0 ? ms : null;
};

export async function residency(since: number): Promise<Residency[] | null> {
  const answer = await maybe<unknown>("/api/residency", { since: new Date(since).toISOString() });
  if (!answer) return null;
  return listOf<Record<string, unknown>>(answer).map((item) => ({
    model: text(item.model),
    state: text(item.state),
    t0: when(item.t0) ?? 0,
    t1: when(item.t1),
    reason: text(item.reason),
    swap_id: item.swap_id === null || item.swap_id === undefined ? null : String(item.swap_id),
    busy: firstNumber(item.busy) ?? undefined,
    vram_mb: firstNumber(item.vram_mb),
  }));
}

function swapOf(item: Record<string, unknown>): Swap {
  const phases = listOf<Record<string, unknown>>(item.phases).map((phase) => ({ name: text(phase.name), start: when(phase.start) ?? 0, end: when(phase.end) })) as SwapPhase[];
  const { kind, id } = (item.trigger ?? {}) as Record<string, unknown>;
  return {
    id: String(item.id ?? ""),
    model: text(item.model),
    trigger: [text(kind), id && `#${text(id)}`].filter(Boolean).join(" "),
    evicted: listOf<unknown>(item.evicted).map(text),
    explanation: text(item.reason),
    outcome: text(item.outcome),
    error: text(item.error),
    exit_code: firstNumber(item.exit_code),
    log_tail: text(item.log_tail),
    start: when(item.began) ?? phases[0]?.start ?? 0,
    end: when(item.ended),
    phases,
  };
}

export async function swaps(): Promise<Swap[] | null> {
  const answer = await maybe<unknown>("/api/swaps");
  return answer ? listOf<Record<string, unknown>>(answer).map(swapOf).sort((a, b) => b.start - a.start) : null;
}

export async function swap(id: string): Promise<Swap | null> {
  const answer = await maybe<Record<string, unknown>>(`/api/swaps/${encodeURIComponent(id)}`);
  return answer && swapOf(answer);
}

/** A load that was given up because nobody wanted it any more did not fail. */
export const swapFailed = (item: Swap): boolean =>
  item.error !== "abandoned" && (/fail|error|crash|lost|abort/.test(item.outcome) || (!!item.error && item.outcome !== "ready"));

export async function plan(model: string): Promise<PlanPreview | null> {
  const answer = await maybe<PlanPreview>("/api/plan", { model }).catch(() => null);
  return answer && typeof answer === "object" ? { ...answer, eta_ms: answer.eta_ms || null } : null;
}

const firstNumber = (value: unknown): number | null => (typeof value === "number" ? value : null);

export async function modelDetail(id: string): Promise<ModelDetail | null> {
  const answer = await maybe<Record<string, unknown>>(`/api/models/${pathId(id)}`);
  if (!answer || typeof answer !== "object") return null;
  const { cmd, log_tail: tail } = answer;
  return {
    ...(answer as Partial<ModelDetail>),
    id,
    cmd: Array.isArray(cmd) ? cmd.map(String).map(quoted).join(" ") : text(cmd),
    last_error: text(answer.last_error) || null,
    log_tail: Array.isArray(tail) ? tail.join("\n") : text(tail),
  };
}

const quoted = (word: string): string => (/^[\w@%+=:,./-]+$/.test(word) ? word : `'${word.replaceAll("'", "'\\''")}'`);

export const setProfile = (name: string | null): Promise<unknown> => send("PUT", "/api/profiles/active", { name });
