// The conversations of this browser, and the one that is open: kept outside the pages, so that an answer goes on while
// another page is shown.
import { effect, signal } from "@preact/signals";
import { type Attachment, type Endpoint, type Message, NO_PARAMS, NUMBERS, PATHS, type Params, build, run } from "./chat";
import { type ToolCall, messagesOf, requestTurns, toolsAnswered } from "./convo";
import { replayed } from "./drawer";
import { uid } from "./format";
import { all, clear, put, remove } from "./idb";
import { callTool, connect, isKnown, mcpError, runAlone, toolsFor } from "./mcp";
import { firstModel } from "./modelselect";
import { defaultModel, keepDays, pref } from "./prefs";
import { toast } from "./widgets";

export interface Conversation {
  id: string;
  title: string;
  updated: number;
  model: string;
  params: Params;
  messages: Message[];
}

export const lastModel = pref<string>("chat.model", "");
export const params = pref<Params>("chat.params", NO_PARAMS);
const lastOpen = pref<string>("chat.open", "");

const fresh = (): Conversation => ({ id: uid(), title: "", updated: Date.now(), model: defaultModel.peek() || lastModel.peek(), params: params.peek(), messages: [] });

export const conversation = signal<Conversation>(fresh());
export const saved = signal<Conversation[]>([]);
export const busy = signal<AbortController | null>(null);
export const draft = signal("");
export const files = signal<Attachment[]>([]);
let opened = false;
const MOST_ROUNDS = 10; // of tool calls that run without a question
const MOST_RESULT = 100_000; // characters of what a tool answers
/** The tool calls that run now, each with what stops it. */
export const running = signal<ReadonlyMap<ToolCall, AbortController>>(new Map());

/** Stops the answer and the tools that run. */
export function stop(): void {
  busy.peek()?.abort();
  for (const abort of running.peek().values()) abort.abort();
}

const fail = (what: string, error: unknown): void => toast("error", `${what}: ${(error as Error).message}`);

export async function openStore(): Promise<void> {
  if (opened) return;
  opened = true;
  try {
    const stored = (await all<Conversation>("conversations")).sort((a, b) => b.updated - a.updated);
    const oldest = keepDays.peek() ? Date.now() - keepDays.peek() * 86_400_000 : 0;
    for (const item of stored) if (item.updated < oldest) void remove("conversations", item.id);
    saved.value = stored.filter((item) => item.updated >= oldest);
    const last = saved.value.find((item) => item.id === lastOpen.peek());
    if (last && !conversation.peek().messages.length && !replayed.peek()) conversation.value = last;
  } catch (error) {
    fail("Conversations cannot be read", error);
  }
}

async function store(record: Conversation): Promise<void> {
  try {
    await put("conversations", record);
  } catch (error) {
    fail("This conversation could not be stored", error);
  }
}

export async function save(): Promise<void> {
  const current = conversation.peek();
  if (!current.messages.length) return;
  const record = { ...current, updated: Date.now(), title: current.title || (current.messages[0]?.text ?? "").slice(0, 80) || "Untitled" };
  conversation.value = record;
  saved.value = [record, ...saved.peek().filter((item) => item.id !== record.id)];
  lastOpen.value = record.id;
  await store(record);
}

/** Puts a conversation in the place of its older version. */
async function keep(record: Conversation): Promise<void> {
  saved.value = saved.peek().map((other) => (other.id === record.id ? record : other));
  await store(record);
}

export function change(update: Partial<Conversation>): void {
  conversation.value = { ...conversation.peek(), ...update };
}

export function choose(model: string): void {
  change({ model });
  lastModel.value = model;
}

export function begin(): void {
  stop();
  conversation.value = fresh();
  lastOpen.value = "";
}

export function pick(item: Conversation): void {
  if (item.id === conversation.peek().id) return;
  stop();
  conversation.value = item;
  lastOpen.value = item.id;
  params.value = { ...NO_PARAMS, ...item.params };
}

export function rename(item: Conversation, title: string): void {
  if (!title.trim()) return;
  const record = { ...item, title: title.trim() };
  if (conversation.peek().id === item.id) change({ title: record.title });
  void keep(record);
}

export function forget(item: Conversation): void {
  saved.value = saved.peek().filter((other) => other.id !== item.id);
  void remove("conversations", item.id);
  if (conversation.peek().id === item.id) begin();
}

export async function forgetAll(): Promise<void> {
  await clear("conversations");
  saved.value = [];
  begin();
}

export async function bring(file: File | undefined): Promise<void> {
  if (!file) return;
  try {
    const parsed = JSON.parse(await file.text()) as Conversation | Conversation[];
    for (const item of Array.isArray(parsed) ? parsed : [parsed]) {
      if (!Array.isArray(item.messages)) throw new Error("this is not an exported conversation");
      const copy = { ...fresh(), ...item, id: uid() };
      await put("conversations", copy);
      saved.value = [copy, ...saved.peek()];
    }
  } catch (error) {
    fail("Importing", error);
  }
}

function setLast(message: Message): void {
  change({ messages: [...conversation.peek().messages.slice(0, -1), message] });
}

const withoutNotice = (text: string): string | undefined => (text && !text.startsWith("\u2501") ? text : undefined);

/** Asks for an answer to the conversation as it is; `before` is the part of it that a stopped answer has already. */
export async function answer(others: Message[] = [], before?: Message): Promise<void> {
  const { model, messages, id: home } = conversation.peek();
  const settings = params.peek();
  const abort = new AbortController();
  busy.value = abort;
  let last: Message = { role: "assistant", text: before?.text ?? "", reasoning: before?.reasoning, model, others };
  change({ messages: [...messages, last], params: settings });
  void save();
  const here = () => conversation.peek().id === home;
  const stopped = new Promise<never>((_, reject) => abort.signal.addEventListener("abort", () => reject(abort.signal.reason as Error)));
  try {
    await Promise.race([connect(), stopped]);
    if (mcpError.peek()) toast("error", `The model gets no tools of ${mcpError.peek()}`);
    const request = build(model, before ? [...messages, { ...before, error: undefined }] : messages, settings, toolsFor(settings.endpoint));
    await run(request.path, request.body, abort.signal, ({ answer: got, stats }) => {
      last = {
        role: "assistant",
        text: (before?.text ?? "") + got.text,
        reasoning: (got.text || !got.loading ? withoutNotice(got.reasoning) : undefined) ?? before?.reasoning,
        loading: got.loading || undefined,
        tools: got.tools.length ? [...got.tools] : undefined,
        stats,
        model,
        others,
        error: got.error || undefined,
      };
      if (here()) setLast(last);
    });
  } catch (error) {
    last = { ...last, error: (error as Error).name === "AbortError" ? "Stopped" : (error as Error).message };
    if (here()) setLast(last);
  }
  if (busy.peek() === abort) busy.value = null;
  if (!here()) {
    // Another conversation is open: what arrived is kept in its own, unless that was deleted.
    const own = saved.peek().find((item) => item.id === home);
    if (own) await keep({ ...own, messages: [...messages, last] });
    return;
  }
  await save();
  const calls = last.error ? [] : (last.tools ?? []);
  if (runAlone.peek() && calls.length && calls.every((call) => isKnown(call.name)) && rounds() < MOST_ROUNDS) {
    for (let i = 0; i < calls.length && here(); i++) if (!(await runTool(conversation.peek().messages.length - 1, i, true))) break;
  }
}

/** Answers in a row that called tools: a model that goes on and on is asked about, not left to itself. */
function rounds(): number {
  const { messages } = conversation.peek();
  return messages.length - 1 - messages.findLastIndex((message) => message.role === "user");
}

/** Runs a tool call, or tells the model that it was declined; with the last result the model goes on. False for a call
 * that was stopped: it can be run again. */
export async function runTool(index: number, call: number, run: boolean): Promise<boolean> {
  const home = conversation.peek().id;
  const tool = conversation.peek().messages[index]?.tools?.[call];
  if (!tool || tool.result !== undefined || running.peek().has(tool)) return false;
  const abort = new AbortController();
  running.value = new Map([...running.peek(), [tool, abort]]);
  const result = run ? await callTool(tool.name, tool.args, abort.signal) : "The user declined to run this tool.";
  running.value = new Map([...running.peek()].filter(([other]) => other !== tool));
  if (abort.signal.aborted) return false;
  const { id, messages } = conversation.peek();
  const message = messages[index];
  if (id !== home || !message?.tools) return false;
  const tools = message.tools.map((old, i) => (i === call ? { ...old, result: result.slice(0, MOST_RESULT) } : old));
  change({ messages: messages.map((old, i) => (i === index ? { ...old, tools } : old)) });
  await save();
  if (index === messages.length - 1 && tools.every((item) => item.result !== undefined)) await answer();
  return true;
}

export async function submit(text: string, attachments: Attachment[]): Promise<void> {
  if (busy.peek() || (!text.trim() && !attachments.length)) return;
  if (!conversation.peek().model) change({ model: await firstModel().catch(() => "") });
  if (!conversation.peek().model) {
    toast("error", "Choose a model first");
    return;
  }
  // Only what is sent leaves the box.
  [draft.value, files.value] = ["", []];
  const messages = [...conversation.peek().messages, { role: "user" as const, text, attachments: attachments.length ? attachments : undefined }];
  change({ messages });
  await answer();
}

/** Another answer to the question before this one, which stays beside it; after a question or answers of tools, the next. */
export function regenerate(index: number): void {
  const { messages } = conversation.peek();
  const old = messages[index] as Message;
  if (old.role === "user" || toolsAnswered(old)) return void answer();
  change({ messages: messages.slice(0, index) });
  void answer([...(old.others ?? []), { ...old, others: undefined }]);
}

/** Goes on with an answer that was stopped or cut off. */
export function proceed(index: number): void {
  const { messages } = conversation.peek();
  const old = messages[index] as Message;
  change({ messages: messages.slice(0, index) });
  void answer(old.others, old);
}

export function turnTo(index: number, step: number): void {
  const messages = [...conversation.peek().messages];
  const old = messages[index] as Message;
  const ring = [...(old.others ?? []), { ...old, others: undefined }];
  const shown = step > 0 ? ring.shift() : ring.pop();
  if (!shown) return;
  messages[index] = { ...shown, others: step > 0 ? [...ring] : [ring.pop() as Message, ...ring].filter(Boolean) };
  change({ messages });
  void save();
}

export async function edited(index: number, text: string): Promise<void> {
  const before = conversation.peek();
  if (index < before.messages.length - 1) {
    // What followed stays available as its own conversation.
    const copy = { ...before, id: uid(), title: `${before.title || "Untitled"} (before the edit)` };
    saved.value = [...saved.peek(), copy];
    void put("conversations", copy).catch(() => undefined);
  }
  change({ messages: [...before.messages.slice(0, index), { ...(before.messages[index] as Message), text }] });
  await answer();
}

export function takeReplay(): void {
  const request = replayed.peek();
  if (!request) return;
  replayed.value = null;
  const turns = requestTurns(request.body) ?? [];
  const system = turns.filter((turn) => turn.role === "system").map((turn) => turn.parts.map((part) => part.text).join("\n")).join("\n");
  const endpoint = (Object.keys(PATHS) as Endpoint[]).find((name) => request.path.endsWith(PATHS[name])) ?? "completions";
  const numbers: Record<string, string> = {};
  for (const [name] of NUMBERS) if (typeof request.body[name] === "number") numbers[name] = String(request.body[name]);
  params.value = { ...NO_PARAMS, endpoint, system, numbers, tools: request.body.tools ? JSON.stringify(request.body.tools, null, 1) : "" };
  conversation.value = { ...fresh(), model: String(request.body.model ?? lastModel.peek()), messages: messagesOf(turns) };
  toast("info", "This is the request's conversation: Regenerate sends it again");
}

// A conversation that was begun before there was a default model takes it.
effect(() => {
  const model = defaultModel.value;
  if (model && !conversation.peek().messages.length) change({ model });
});

const DAY = 86_400_000;

/** Conversations by the day they were last used, newest first. */
export function byDate(list: readonly Conversation[], now: number): [string, Conversation[]][] {
  const midnight = new Date(now).setHours(0, 0, 0, 0);
  const groups: [string, number][] = [["Today", midnight], ["Yesterday", midnight - DAY], ["Last 7 days", midnight - 7 * DAY], ["Last 30 days", midnight - 30 * DAY], ["Older", 0]];
  let until = Number.POSITIVE_INFINITY;
  return groups
    .map(([name, from]): [string, Conversation[]] => {
      const members = list.filter((item) => item.updated >= from && item.updated < until);
      until = from;
      return [name, members];
    })
    .filter(([, members]) => members.length);
}
