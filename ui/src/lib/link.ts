// The page's end of the event stream: joins the SharedWorker's hub (or runs one itself), hands out events once
// per animation frame, and keeps the clock that every ticking figure on screen reads.
import { effect, signal } from "@preact/signals";
import { apiKey, askForKey } from "./api";
import { type FromHub, Hub, type HubEvent, type HubStatus, type ToHub } from "./hub";
import { prefix } from "./router";

declare const __WORKER__: string;

export const status = signal<HubStatus>({ state: "connecting", since: Date.now(), retryAt: null, error: "" });
/** Rises when the link is back: what was fetched before may have changed, or be another server's. */
export const reopened = signal(0);
/** True once the link has been down long enough to say so. */
export const stale = signal(false);
/** Advances each second while the page is visible and the link is up; frozen otherwise. */
export const now = signal(Date.now());

/** Why nothing is known yet, if that is not just a matter of time; else `other`. */
export const whyUnknown = (other = "Waiting for the server"): string => (status.value.state === "auth" ? "Unknown without a key" : other);

const listeners = new Map<string, Set<(data: never) => void>>();
const topics = new Map<string, number>();
let post: (message: ToHub) => void = () => undefined;

export function on<T>(type: string, listener: (data: T) => void): () => void {
  const set = listeners.get(type) ?? new Set();
  listeners.set(type, set);
  set.add(listener as (data: never) => void);
  return () => set.delete(listener as (data: never) => void);
}

let opened = false;
let queue: HubEvent[] = [];
let scheduled = false;

function deliver(): void {
  scheduled = false;
  const events = queue;
  queue = [];
  for (const event of events) {
    for (const listener of listeners.get(event.type) ?? []) (listener as (data: unknown) => void)(event.data);
  }
}

function receive(message: FromHub): void {
  if (message.kind === "status") {
    if (message.status.state === "open") {
      // Also what a page asked for before the first connection failed, if the server was away then.
      if (opened && status.peek().state !== "open") reopened.value += 1;
      opened = true;
    } else if (message.status.state === "down") opened = true;
    status.value = message.status;
    if (message.status.state === "auth") askForKey();
    return;
  }
  queue.push(...message.events);
  if (scheduled) return;
  scheduled = true;
  if (document.visibilityState === "visible") requestAnimationFrame(deliver);
  else setTimeout(deliver, 1000);
}

/** Asks for a topic for as long as the returned function has not been called. */
export function subscribe(topic: string): () => void {
  topics.set(topic, (topics.get(topic) ?? 0) + 1);
  tellTopics();
  return () => {
    const left = (topics.get(topic) ?? 1) - 1;
    if (left > 0) topics.set(topic, left);
    else topics.delete(topic);
    tellTopics();
  };
}

let telling = false;

function tellTopics(): void {
  if (telling) return;
  telling = true;
  queueMicrotask(() => {
    telling = false;
    post({ kind: "topics", topics: [...topics.keys()] });
  });
}

const hello = (): ToHub => ({ kind: "hello", prefix: new URL(prefix, location.href).href, key: apiKey(), topics: [...topics.keys()] });

export function useKey(): void {
  post({ kind: "key", key: apiKey() });
}

export function retry(): void {
  post({ kind: "retry" });
}

function ownHub(): void {
  const hub = new Hub();
  let number = 0;
  post = (message) => hub.handle(number, message);
  const arrive = () => {
    number = hub.join(receive);
    post(hello());
  };
  arrive();
  // Without a shared connection a hidden tab gives its own up: a browser has six for this server.
  document.addEventListener("visibilitychange", () => {
    if (document.visibilityState === "visible") arrive();
    else post({ kind: "bye" });
  });
}

export function start(): void {
  if (typeof SharedWorker === "undefined") {
    // Locks and channels are there on secure origins only; elsewhere each visible tab has its own connection.
    if ("locks" in navigator && typeof BroadcastChannel !== "undefined") {
      void import("./leader").then(({ share }) => (post = share(`llamaswap ${prefix}`, receive, hello)), ownHub);
    } else ownHub();
  } else {
    try {
      const worker = new SharedWorker(new URL(__WORKER__, import.meta.url), { type: "module", name: "llamaswap" });
      let heard = false;
      worker.port.onmessage = (event: MessageEvent<FromHub>) => {
        heard = true;
        receive(event.data);
      };
      worker.onerror = () => { if (!heard) ownHub(); };
      post = (message) => worker.port.postMessage(message);
      post(hello());
      addEventListener("pagehide", () => post({ kind: "bye" }));
      addEventListener("pageshow", (event) => { if ((event as PageTransitionEvent).persisted) location.reload(); });
    } catch {
      ownHub();
    }
  }
  let downSince = 0;
  let openSince = 0;
  const look = () => {
    const state = status.peek().state;
    // A server that takes connections and drops them at once is not back yet.
    if (state !== "open") openSince = 0;
    else openSince ||= Date.now();
    if (state === "auth" || (openSince && Date.now() - openSince > 700)) downSince = 0;
    else if (state !== "open") downSince ||= Date.now();
    stale.value = downSince > 0 && Date.now() - downSince > 900;
    if (state === "open" && !stale.peek() && document.visibilityState === "visible" && Date.now() - now.peek() > 900) now.value = Date.now();
  };
  effect(() => {
    void status.value;
    look();
  });
  setInterval(look, 500);
  document.addEventListener("visibilitychange", look);
}
