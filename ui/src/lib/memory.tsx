// The memory of the devices and the models: fetched while something shows it and the page is visible.
import { signal } from "@preact/signals";
import { useEffect } from "preact/hooks";
import { ApiError, get } from "./api";
import { megabytes } from "./format";
import { status } from "./link";
import type { Memory, MemoryDevice } from "./types";

export const memory = signal<Memory | null>(null);

let users = 0;
let timer: ReturnType<typeof setTimeout> | undefined;

async function poll(): Promise<void> {
  clearTimeout(timer);
  if (!users) return;
  if (document.visibilityState === "visible" && status.peek().state === "open") {
    try {
      const fresh = await get<Memory>("/api/memory");
      if (JSON.stringify(fresh) !== JSON.stringify(memory.peek())) memory.value = fresh;
    } catch (error) {
      if (error instanceof ApiError && error.status === 404) return;
    }
  }
  timer = setTimeout(() => void poll(), memory.peek() ? 5000 : 1000);
}

export function useMemory(): void {
  useEffect(() => {
    users += 1;
    if (users === 1) void poll();
    return () => { users -= 1; };
  }, []);
}

/** Whether a size is only expected: a lease holds what it says. */
const isEstimate = (source: string): boolean => source !== "measured" && source !== "lease";

/** MiB that a model uses on all devices together, or is expected to need. */
export function memoryOf(model: string): { mib: number; estimated: boolean } | null {
  const rows = (memory.value?.devices ?? []).flatMap((device) => device.models.filter((row) => row.model === model));
  if (rows.length) return { mib: rows.reduce((sum, row) => sum + row.mib, 0), estimated: rows.some((row) => isEstimate(row.source)) };
  const need = memory.value?.needs[model];
  return need ? { mib: need.ram_mib + (need.gpus[0] ?? []).reduce((a, b) => a + b, 0), estimated: true } : null;
}

export const memoryText = (model: string): string => {
  const found = memoryOf(model);
  return found ? `${found.estimated ? "~" : ""}${megabytes(found.mib)}` : "";
};

export const deviceLabel = (device: MemoryDevice): string => device.device.toUpperCase();

/** One bar of a device's memory: models, other programs, what is free, and what stays free. */
export function DeviceBar({ device }: { device: MemoryDevice }) {
  // A model has one colour on all devices.
  const names = [...new Set((memory.value?.devices ?? []).flatMap((each) => each.models.map((row) => row.model)))];
  const reserve = Math.min(device.reserve_mib, device.free_mib);
  const parts = [
    ...device.models.map((row) => ({
      kind: `f${(names.indexOf(row.model) % 6) + 1}`,
      mib: row.mib,
      name: row.model,
      note: [isEstimate(row.source) ? `estimated: ${row.source}` : "", row.squeezed ? "squeezed to fit" : ""].filter(Boolean).join(", "),
      about: isEstimate(row.source),
    })),
    { kind: "rest", mib: device.foreign_mib, name: "other programs", note: device.foreign_by, about: false },
    { kind: "free", mib: device.free_mib - reserve, name: "free", note: "", about: false },
    { kind: "reserve", mib: reserve, name: "reserve", note: "", about: false },
  ].filter((part) => part.mib > 0);
  const words = parts.map((part) => `${part.name}${part.note && ` (${part.note})`} ${part.about ? "~" : ""}${megabytes(part.mib)}`);
  return (
    <>
      <div class="stack-bar" role="img" aria-label={`${deviceLabel(device)} memory: ${words.join(", ")}`}>
        {parts.map((part, index) => (
          <div key={part.kind + part.name} class={`fill ${part.kind}`} style={{ width: `${(part.mib / Math.max(1, device.total_mib)) * 100}%` }} title={words[index]}>
            <span>{/^f\d$/.test(part.kind) ? part.name : ""}</span>
          </div>
        ))}
      </div>
      <div class="device-facts">
        {parts.map((part, index) => (
          <span key={part.kind + part.name}><i class={`swatch ${part.kind}`} aria-hidden="true" />{words[index]}</span>
        ))}
      </div>
    </>
  );
}
