// Machine samples: fetched while something shows them and the page is visible, each time only what is new.
import { signal } from "@preact/signals";
import { useEffect } from "preact/hooks";
import { ApiError, get } from "./api";
import { time } from "./format";
import { status } from "./link";
import type { GpuSample, Performance, SysSample } from "./types";

export interface Stamped<T> {
  t: number;
  s: T;
}

const KEPT_MS = 24 * 3600_000;
export const sys = signal<Stamped<SysSample>[]>([]);
export const gpus = signal<Map<number, Stamped<GpuSample>[]>>(new Map());
/** null until the server has said whether it watches the machine. */
export const watched = signal<boolean | null>(null);

let users = 0;
let timer: ReturnType<typeof setTimeout> | undefined;
let newest = "";

async function poll(): Promise<void> {
  clearTimeout(timer);
  if (!users) return;
  if (document.visibilityState === "visible" && status.peek().state === "open") {
    try {
      const answer = await get<Performance>("/api/performance", { after: newest || undefined, max_points: 900 });
      watched.value = answer.enabled;
      take(answer);
    } catch (error) {
      if (error instanceof ApiError && [404, 503].includes(error.status)) {
        watched.value = false;
        return;
      }
    }
  }
  timer = setTimeout(() => void poll(), watched.peek() === null ? 1000 : 5000);
}

function take(answer: Performance): void {
  const since = Date.now() - KEPT_MS;
  if (answer.sys_stats?.length) {
    const last = sys.peek().at(-1)?.t ?? 0;
    const fresh = answer.sys_stats.map((s) => ({ t: time(s.timestamp), s })).filter((item) => item.t > last);
    sys.value = [...sys.peek().filter((item) => item.t > since), ...fresh];
    newest = answer.sys_stats.at(-1)?.timestamp ?? newest;
  }
  if (answer.gpu_stats?.length) {
    const next = new Map(gpus.peek());
    for (const s of answer.gpu_stats) {
      const t = time(s.timestamp);
      const list = next.get(s.id) ?? [];
      if (t > (list.at(-1)?.t ?? 0)) next.set(s.id, [...list.filter((item) => item.t > since), { t, s }]);
      if (!answer.sys_stats?.length) newest = s.timestamp;
    }
    gpus.value = next;
  }
}

export function usePerformance(): void {
  useEffect(() => {
    users += 1;
    if (users === 1) void poll();
    return () => { users -= 1; };
  }, []);
}

export const gpuLabel = (s: GpuSample): string => `GPU${s.id}`;
