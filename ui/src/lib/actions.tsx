// What an operator can do, with one wording and one confirmation rule everywhere: ask only when work would be lost.
import { effect, signal } from "@preact/signals";
import { ApiError, pathId, send } from "./api";
import { DASH, plainError, plural, seconds } from "./format";
import { on, reopened } from "./link";
import { go } from "./router";
import { inflight, loadedModels, models, plan, setProfile } from "./state";
import { attempt, confirm, toast } from "./widgets";
import type { PlanPreview } from "./types";

/** Models a load was asked for here, until they are ready or the load has failed. */
export const asked = signal<ReadonlySet<string>>(new Set());

function mark(model: string, on: boolean): void {
  const next = new Set(asked.peek());
  if (on) next.add(model);
  else next.delete(model);
  asked.value = next;
}

effect(() => {
  for (const model of models.value) if (model.state === "ready" && asked.peek().has(model.id)) mark(model.id, false);
});
reopened.subscribe(() => (asked.value = new Set()));

/** Says once why a load that was asked for here came to nothing. */
function notLoaded(model: string, error: string, log: boolean): void {
  if (!asked.peek().has(model)) return;
  mark(model, false);
  const reason = plainError(error).split("\n")[0] as string;
  const text = reason.startsWith("cannot load") ? `C${reason.slice(1)}` : `${model} was not loaded: ${reason}`;
  toast("error", text, log ? { label: "Open its log", run: () => go("logs", { src: model }) } : { label: "Retry", run: () => void load(model) });
}

on<{ model: string; error: string }>("loadFailed", ({ model, error }) => notLoaded(model, error, !!models.peek().find((item) => item.id === model)?.failed));

/** Asks the server to load it; `verb` is load or restart. */
async function begin(model: string, verb: string): Promise<boolean> {
  mark(model, true);
  try {
    await post(`/api/models/${verb}/${pathId(model)}`);
    return true;
  } catch (error) {
    notLoaded(model, (error as Error).message, error instanceof ApiError && error.status === 500);
    return false;
  }
}

export const activeOn = (model: string): number => inflight.peek().filter((entry) => (entry.server ?? entry.model) === model).length;

export function planText(preview: PlanPreview): string {
  const parts: string[] = [];
  if (preview.action === "refuse" && preview.reason) return preview.reason;
  if (preview.running) parts.push("already loaded");
  else parts.push(preview.eta_ms ? `loads in about ${seconds(preview.eta_ms)}` : "will be loaded");
  if (preview.evicts.length) {
    const names = preview.evicts.map((item) => (item.active ? `${item.model} (${item.active} active)` : item.model));
    parts.push(`unloads ${names.join(", ")}`);
  }
  if (preview.waits_for.length) parts.push(`waits for ${preview.waits_for.join(", ")}`);
  if (preview.reason && !preview.running) parts.push(preview.reason);
  return parts.join("; ");
}

async function post(path: string): Promise<void> {
  await send("POST", path);
}

export async function load(model: string): Promise<void> {
  const preview = await plan(model);
  const busy = preview?.evicts.filter((item) => item.active) ?? [];
  if (busy.length) {
    const yes = await confirm(
      `Load ${model}?`,
      <p>
        This unloads{" "}
        {busy.map((item, index) => (
          <>
            {index ? ", " : ""}
            <b>{item.model}</b> ({plural(item.active, "active request")})
          </>
        ))}
        . {preview?.waits_for.length ? "The load waits until their requests have ended." : "Requests in progress finish first."}
      </p>,
      "Load",
    );
    if (!yes) return;
  }
  await begin(model, "load");
}

/** `sure`: whether the click itself is deliberate enough when nothing is in progress. */
export async function unload(model: string, sure = true): Promise<void> {
  const active = activeOn(model);
  if (active || !sure) {
    const what = active ? `${plural(active, "request")} in progress will be cut off.` : "Nothing is in progress on it.";
    const yes = await confirm(`Unload ${model}?`, <p>{what}</p>, "Unload", true);
    if (!yes) return;
  }
  mark(model, false);
  await attempt(`Unloading ${model}`, () => post(`/api/models/unload/${pathId(model)}`), `${model} unloaded`);
}

export async function unloadMany(models: string[]): Promise<boolean> {
  const active = models.reduce((sum, model) => sum + activeOn(model), 0);
  const yes =
    !active ||
    (await confirm(`Unload ${plural(models.length, "model")}?`, <p>{plural(active, "request")} in progress will be cut off.</p>, "Unload", true));
  if (yes) await Promise.all(models.map((model) => attempt(`Unloading ${model}`, () => post(`/api/models/unload/${pathId(model)}`))));
  return yes;
}

export async function unloadAll(): Promise<void> {
  const active = inflight.peek().length;
  const yes =
    !active ||
    (await confirm("Unload everything?", <p>{plural(active, "request")} in progress will be cut off.</p>, "Unload all", true));
  if (!yes) return;
  const names = loadedModels.peek().length;
  await attempt("Unloading", () => post("/api/models/unload"), `${plural(names, "model")} unloaded`);
}

export async function restart(model: string): Promise<void> {
  const active = activeOn(model);
  const yes =
    !active ||
    (await confirm(`Restart ${model}?`, <p>{plural(active, "request")} in progress will be cut off.</p>, "Restart", true));
  if (!yes) return;
  if (await begin(model, "restart")) toast("ok", `${model} is restarting`);
}

export async function pin(model: string, on: boolean): Promise<boolean> {
  return attempt(on ? `Pinning ${model}` : `Unpinning ${model}`, () =>
    send(on ? "POST" : "DELETE", `/api/models/pin/${pathId(model)}`),
  );
}

export const cancelling = signal<ReadonlySet<string>>(new Set());

export async function cancelRequest(id: string, model: string): Promise<void> {
  cancelling.value = new Set([...cancelling.peek(), id]);
  const done = await attempt(`Cancelling the request to ${model || DASH}`, () =>
    post(`/api/inflight/${encodeURIComponent(id)}/cancel`),
  );
  if (!done) {
    const left = new Set(cancelling.peek());
    left.delete(id);
    cancelling.value = left;
  }
}

export const switching = signal(false);

export async function switchProfile(name: string | null): Promise<void> {
  switching.value = true;
  const done = await attempt("Switching the profile", () => setProfile(name));
  switching.value = false;
  if (done) toast("ok", name ? `Profile ${name} is active` : "No profile is active");
}
