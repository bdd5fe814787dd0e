// Where the time of a finished request went. No DOM here, so Node can test it.
import { count, duration, median } from "./format";
import type { ActivityRow } from "./types";

export interface Phase {
  name: "queue" | "load" | "prefill" | "decode" | "answer";
  ms: number;
}

export const PHASE_WORDS: Record<Phase["name"], string> = {
  queue: "Waited for its turn",
  load: "Loaded the model",
  prefill: "Read the prompt",
  decode: "Generated",
  answer: "Answered",
};

/** The parts of a request's duration, in order. Without a stream the speed of the prompt tells prefill from decode. */
export function phasesOf(row: ActivityRow): Phase[] {
  const queue = Math.min(row.queued_ms ?? 0, row.duration_ms);
  const load = Math.min(row.loaded_ms ?? 0, row.duration_ms - queue);
  const rest = row.duration_ms - queue - load;
  const { input_tokens: read, prompt_per_second: speed } = row.tokens;
  const first = row.ttft_ms ?? -1;
  const prefill = first >= 0 ? first - queue - load : speed > 0 && read > 0 ? (read / speed) * 1000 : -1;
  const parts: Phase[] = [{ name: "queue", ms: queue }, { name: "load", ms: load }];
  if (prefill < 0) parts.push({ name: "answer", ms: rest });
  else {
    const shown = Math.min(Math.max(0, prefill), rest);
    parts.push({ name: "prefill", ms: shown }, { name: "decode", ms: rest - shown });
  }
  return parts.filter((part) => part.ms > 0);
}

/** What each phase usually takes in these requests; a phase that few of them have is unusual and has no usual time. */
export function usualPhases(rows: readonly ActivityRow[]): Map<Phase["name"], number> {
  const found = new Map<Phase["name"], number[]>();
  for (const part of rows.flatMap(phasesOf)) found.set(part.name, [...(found.get(part.name) ?? []), part.ms]);
  return new Map([...found].filter(([, values]) => values.length * 2 > rows.length).map(([name, values]) => [name, median(values)]));
}

/** The phase that took most of the time, in words. */
export function mostOf(row: ActivityRow): string {
  const [most] = phasesOf(row).sort((a, b) => b.ms - a.ms);
  if (!most) return "";
  const took = `${duration(most.ms)} of ${duration(row.duration_ms)}`;
  if (most.name === "queue") return `Most of the time it waited for its turn: ${took}.`;
  if (most.name === "load") return `Most of the time its model was being loaded: ${took}.`;
  if (most.name === "prefill") return `Most of the time the server read the prompt of ${count(row.tokens.input_tokens)} tokens: ${took}.`;
  if (most.name === "decode") return `Most of the time the server generated ${count(row.tokens.output_tokens)} tokens: ${took}.`;
  return "";
}
