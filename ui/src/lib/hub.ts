// The one connection to the server's event stream. It runs in a SharedWorker, so that ten tabs cost one
// connection out of the browser's six; without SharedWorker each visible tab runs its own.
import { type Mark, TimedText } from "./logtimes";
import { SseParser } from "./sse";

export type LinkState = "connecting" | "open" | "down" | "auth";

export interface HubStatus {
  state: LinkState;
  /** When the last byte arrived; what is on screen is from then. */
  since: number;
  retryAt: number | null;
  error: string;
}

export interface HubEvent {
  type: string;
  data: unknown;
}

export type FromHub = { kind: "status"; status: HubStatus } | { kind: "events"; events: HubEvent[] };
export type ToHub =
  | { kind: "hello"; prefix: string; key: string; topics: string[] }
  | { kind: "topics"; topics: string[] }
  | { kind: "key"; key: string }
  | { kind: "retry" }
  | { kind: "bye" };

interface Client {
  post(message: FromHub): void;
  topics: Set<string>;
}

interface Entry {
  id: string;
}

const LOG_KEPT = 120_000;
const FLUSH_MS = 60;
const SILENCE_MS = 40_000;
const BASE_TOPICS = ["models", "inflight", "activity", "swaps"];

export class Hub {
  private clients = new Map<number, Client>();
  private status: HubStatus = { state: "connecting", since: Date.now(), retryAt: null, error: "" };
  private abort: AbortController | null = null;
  private timer: ReturnType<typeof setTimeout> | undefined;
  private watch: ReturnType<typeof setInterval> | undefined;
  private flushTimer: ReturnType<typeof setTimeout> | undefined;
  private pending: HubEvent[] = [];
  private delay = 500;
  private lastId: string | null = null;
  private beats = false;
  private open: string[] = [];
  private next = 1;
  private prefix = "/";
  private key = "";
  // What a tab that joins later must be told.
  private latest = new Map<string, HubEvent>();
  private running = new Map<string, Entry>();
  private logs = new Map<string, TimedText>();
  private freshLogs = new Set<string>();

  join(post: (message: FromHub) => void): number {
    const number = this.next++;
    this.clients.set(number, { post, topics: new Set() });
    return number;
  }

  handle(number: number, message: ToHub): void {
    const client = this.clients.get(number);
    if (!client) return;
    if (message.kind === "hello") {
      client.topics = new Set(message.topics);
      const changed = this.prefix !== message.prefix || this.key !== message.key;
      this.prefix = message.prefix;
      this.key = message.key;
      client.post({ kind: "status", status: this.status });
      client.post({ kind: "events", events: this.snapshot(message.topics) });
      if (!this.abort || changed || this.lacks()) this.connect();
    } else if (message.kind === "topics") {
      const added = message.topics.filter((topic) => !client.topics.has(topic));
      client.topics = new Set(message.topics);
      const known = added.filter((topic) => this.logs.has(topic.slice(5)));
      if (known.length) client.post({ kind: "events", events: this.logSnapshot(known) });
      if (this.lacks()) this.connect();
    } else if (message.kind === "key") {
      this.key = message.key;
      this.connect();
    } else if (message.kind === "retry") {
      this.delay = 500;
      this.connect();
    } else {
      this.clients.delete(number);
      if (!this.clients.size) this.close();
    }
  }

  private wanted(): string[] {
    const topics = new Set(BASE_TOPICS);
    for (const client of this.clients.values()) for (const topic of client.topics) topics.add(topic);
    return [...topics].sort();
  }

  private lacks(): boolean {
    return this.wanted().some((topic) => !this.open.includes(topic));
  }

  private snapshot(topics: string[]): HubEvent[] {
    const events = [...this.latest.values()];
    if (this.latest.size) events.push({ type: "inflight", data: { operation: "snapshot", requests: [...this.running.values()] } });
    return events.concat(this.logSnapshot(topics.filter((topic) => this.logs.has(topic.slice(5)))));
  }

  private logSnapshot(topics: string[]): HubEvent[] {
    return topics.map((topic) => {
      const source = topic.slice(5);
      const log = this.logs.get(source);
      return { type: "logData", data: { source, data: log?.text() ?? "", times: log?.times() ?? [], reset: true } };
    });
  }

  private close(): void {
    clearTimeout(this.timer);
    clearInterval(this.watch);
    this.abort?.abort();
    this.abort = null;
    this.open = [];
  }

  private connect(): void {
    this.close();
    const abort = new AbortController();
    this.abort = abort;
    this.open = this.wanted();
    // What is not followed any more has gaps from now on: it is asked for anew when somebody wants it.
    for (const source of this.logs.keys()) if (!this.open.includes(`logs:${source}`)) this.logs.delete(source);
    if (this.status.state !== "open") this.tell({ ...this.status, state: "connecting", retryAt: null });
    this.run(abort).catch((error: Error) => {
      if (this.abort !== abort) return;
      this.lost(error.name === "TypeError" ? "The server cannot be reached" : error.message);
    });
    this.watch = setInterval(() => {
      if (this.abort === abort && this.beats && Date.now() - this.status.since > SILENCE_MS) {
        abort.abort();
        this.lost("The event stream went silent");
      }
    }, 5000);
  }

  private async run(abort: AbortController): Promise<void> {
    const headers: Record<string, string> = { Accept: "text/event-stream" };
    if (this.key) headers.Authorization = `Bearer ${this.key}`;
    // New log topics need their history, so such a connection starts afresh instead of resuming.
    const fresh = this.open.some((topic) => topic.startsWith("logs:") && !this.logs.has(topic.slice(5)));
    if (this.lastId !== null && !fresh) headers["Last-Event-ID"] = this.lastId;
    else this.freshLogs = new Set(this.open.filter((topic) => topic.startsWith("logs:")).map((topic) => topic.slice(5)));
    const address = `${this.prefix}api/events?topics=${this.open.map(encodeURIComponent).join(",")}`;
    const response = await fetch(address, { headers, signal: abort.signal, cache: "no-store", credentials: "same-origin" });
    if (response.status === 401) {
      this.close();
      this.tell({ state: "auth", since: this.status.since, retryAt: null, error: "A key is needed" });
      return;
    }
    if (!response.ok || !response.body) throw new Error(`The event stream answered ${response.status}`);
    this.delay = 500;
    this.tell({ state: "open", since: Date.now(), retryAt: null, error: "" });
    const reader = response.body.getReader();
    const decoder = new TextDecoder();
    const parser = new SseParser();
    for (;;) {
      const { done, value } = await reader.read();
      if (this.abort !== abort) return;
      if (done) throw new Error("The server closed the event stream");
      this.status.since = Date.now();
      const text = decoder.decode(value, { stream: true });
      if (text.startsWith(":")) this.beats = true;
      for (const message of parser.feed(text)) {
        if (message.id !== null) this.lastId = message.id;
        this.take(message.data);
      }
    }
  }

  private take(text: string): void {
    let event: HubEvent;
    try {
      const envelope = JSON.parse(text) as HubEvent;
      event = { type: envelope.type, data: typeof envelope.data === "string" ? JSON.parse(envelope.data) : envelope.data };
    } catch {
      return;
    }
    if (event.type === "heartbeat") {
      this.beats = true;
      return;
    }
    if (event.type === "inflight") this.remember(event.data as { operation: string; requests?: Entry[]; request?: Entry; id?: string });
    else if (event.type === "logData") {
      const log = event.data as { source: string; data: string; reset?: boolean; times?: Mark[] };
      if (!this.open.includes(`logs:${log.source}`)) return;
      if (this.freshLogs.delete(log.source)) log.reset = true;
      const known = this.logs.get(log.source);
      const kept = known && !log.reset ? known : new TimedText(LOG_KEPT);
      if (log.reset) kept.addHistory(log.data, log.times);
      else kept.add(log.data, Date.now());
      this.logs.set(log.source, kept);
    } else if (["modelStatus", "uiConfig", "profileChanged"].includes(event.type)) this.latest.set(event.type, event);
    this.pending.push(event);
    this.flushTimer ??= setTimeout(() => this.flush(), FLUSH_MS);
  }

  private remember(change: { operation: string; requests?: Entry[]; request?: Entry; id?: string }): void {
    if (change.operation === "snapshot") {
      this.running = new Map((change.requests ?? []).map((entry) => [entry.id, entry]));
    } else if (change.operation === "upsert" && change.request) this.running.set(change.request.id, change.request);
    else if (change.operation === "remove" && change.id) this.running.delete(change.id);
  }

  private flush(): void {
    this.flushTimer = undefined;
    const events = this.pending;
    this.pending = [];
    for (const client of this.clients.values()) {
      const own = events.filter((event) => event.type !== "logData" || client.topics.has(`logs:${(event.data as { source: string }).source}`));
      if (own.length) client.post({ kind: "events", events: own });
    }
  }

  private lost(error: string): void {
    this.close();
    this.tell({ state: "down", since: this.status.since, retryAt: Date.now() + this.delay, error });
    this.timer = setTimeout(() => this.connect(), this.delay);
    this.delay = Math.min(this.delay * 2, 5000);
  }

  private tell(status: HubStatus): void {
    this.status = status;
    for (const client of this.clients.values()) client.post({ kind: "status", status: { ...status } });
  }
}
