// What an operator can do, with one wording and one confirmation rule everywhere: ask only when work would be lost.
import { signal } from "@preact/signals";
import { pathId, send } from "./api";
import { DASH, plural, seconds } from "./format";
import { inflight, loadedModels, plan, setProfile } from "./state";
import { attempt, confirm, toast } from "./widgets";
import type { PlanPreview } from "./types";

/** Models a load was asked for here, until the server reports a change. */
export const asked = signal<ReadonlySet<string>>(new Set());

function mark(model: string, on: boolean): void {
  const next = new Set(asked.peek());
  if (on) next.add(model);
  else next.delete(model);
  asked.value = next;
}

export const activeOn = (model: string): number => inflight.peek().filter((entry) => (entry.server ?? entry.model) === model).length;

export function planText(preview: PlanPreview): string {
  const parts: string[] = [];
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
  mark(model, true);
  await attempt(`Loading ${model}`, () => post(`/api/models/load/${pathId(model)}`));
  mark(model, false);
}

/** `sure`: whether the click itself is deliberate enough when nothing is in progress. */
export async function unload(model: string, sure = true): Promise<void> {
  const active = activeOn(model);
  if (active || !sure) {
    const what = active ? `${plural(active, "request")} in progress will be cut off.` : "Nothing is in progress on it.";
    const yes = await confirm(`Unload ${model}?`, <p>{what}</p>, "Unload", true);
    if (!yes) return;
  }
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
  await attempt(`Restarting ${model}`, () => post(`/api/models/restart/${pathId(model)}`), `${model} is restarting`);
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
