// The one request that a tab of the playground makes at a time: the button that starts or stops it, and its error.
import type { Signal } from "@preact/signals";
import { Icon } from "../../lib/icons";
import { Btn } from "../../lib/widgets";

type Busy = Signal<AbortController | null>;

/** Does the work unless it is being done; what it fails with becomes the error, unless it was stopped. */
export async function runJob(busy: Busy, error: Signal<string>, work: (signal: AbortSignal) => Promise<void>): Promise<void> {
  if (busy.peek()) return;
  const abort = new AbortController();
  busy.value = abort;
  error.value = "";
  try {
    await work(abort.signal);
  } catch (problem) {
    if ((problem as Error).name !== "AbortError") error.value = (problem as Error).message;
  }
  busy.value = null;
}

export function RunButton({ busy, label, disabled, run }: { busy: Busy; label: string; disabled?: boolean; run: () => Promise<void> }) {
  if (busy.value) return <Btn danger onClick={() => busy.value?.abort()}><Icon name="stop" size={13} /> Stop</Btn>;
  return <Btn primary disabled={disabled} onClick={() => void run()}>{label}</Btn>;
}
