// What a request of this browser waits for before its first token, and for how long yet.
import { useSignal } from "@preact/signals";
import { useEffect } from "preact/hooks";
import { maybe } from "./api";
import { session } from "./chat";
import { seconds } from "./format";
import { now } from "./link";
import { inflight, models, phaseOf, plan, residency } from "./state";
import type { Memory } from "./types";

interface Load {
  /** When it began; null while the model is not being loaded. */
  since: number | null;
  usual: number | null;
}

/** How long its loads take, ms: what this process saw, else what was learned before. */
async function usualLoad(model: string): Promise<number | null> {
  const found = (await plan(model))?.eta_ms;
  if (found) return found;
  const learned = (await maybe<Memory>("/api/memory").catch(() => null))?.needs?.[model]?.load_seconds;
  return learned ? learned * 1000 : null;
}

/** How far the load of a model is, by the server's clock of its states and the loads it remembers. */
function useLoadOf(model: string): Load {
  const load = useSignal<Load>({ since: null, usual: null });
  const state = models.value.find((item) => item.id === model)?.state;
  useEffect(() => {
    let alive = true;
    load.value = { since: state === "starting" ? Date.now() : null, usual: null };
    if (!model) return;
    void usualLoad(model).then((usual) => { if (alive) load.value = { ...load.peek(), usual }; });
    void residency(Date.now() - 3_600_000).then(
      (found) => {
        const open = found?.find((item) => item.model === model && item.state === "starting" && item.t1 === null);
        if (alive && open) load.value = { ...load.peek(), since: open.t0 };
      },
      () => undefined,
    );
    return () => { alive = false; };
  }, [model, state]);
  return load.value;
}

/** One line for an answer that has not begun. `loading` is what the server itself wrote about the load. */
export function Waiting({ model, loading }: { model: string; loading?: string }) {
  const mine = inflight.value.filter((entry) => entry.session === session);
  const entry = mine.find((item) => item.model === model) ?? mine.at(-1);
  const phase = entry ? phaseOf(entry) : "";
  const behind = phase === "queued" ? (entry?.waits_for?.[0] ?? "") : "";
  const load = useLoadOf(phase === "loading" ? (entry?.server ?? entry?.model ?? "") : behind);
  const passed = load.since === null ? 0 : Math.max(0, Math.max(now.value, Date.now()) - load.since);
  let text = loading || "waiting for the first token";
  if (behind && load.since === null) text = `queued until ${entry?.waits_for?.join(", ")} has finished`;
  else if (behind) text = `queued behind ${behind} (${round(passed)}${load.usual ? ` of about ${round(load.usual)}` : ""})`;
  else if (phase === "queued") text = `queued${entry?.queue_pos ? `, number ${entry.queue_pos}` : ""}${entry?.reason ? `: ${entry.reason}` : ""}`;
  else if (phase === "loading" && load.usual && passed < load.usual) text = `loading, about ${round(load.usual - passed)} left`;
  else if (phase === "loading") text = `loading for ${seconds(passed)}${load.usual ? `, usually ${round(load.usual)}` : ""}`;
  else if (entry?.prompt_progress) text = `reading the prompt, ${Math.round(entry.prompt_progress * 100)} %`;
  return <span class="muted typing plaintext">{text}</span>;
}

const round = (ms: number): string => (ms < 60_000 ? `${Math.max(1, Math.round(ms / 1000))} s` : seconds(ms));
