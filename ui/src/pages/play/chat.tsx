// Chat: several conversations kept in this browser, figures on every answer, nothing sent that was not set.
import { signal, useSignal } from "@preact/signals";
import { useEffect, useRef } from "preact/hooks";
import { type Attachment, type Endpoint, type Message, NO_PARAMS, NUMBERS, PATHS, type Params, type Stats, build, run } from "../../lib/chat";
import { requestTurns } from "../../lib/convo";
import { replayed, curl } from "../../lib/drawer";
import { count, duration, plural, rate, uid } from "../../lib/format";
import { Icon } from "../../lib/icons";
import { all, put, remove } from "../../lib/idb";
import { Markdown } from "../../lib/markdownview";
import { ModelSelect, firstModel } from "../../lib/modelselect";
import { pref } from "../../lib/prefs";
import { route, setQuery } from "../../lib/router";
import { listed, models } from "../../lib/state";
import { Bar, Btn, CopyButton, Dialog, Field, IconButton, Segmented, confirm, copyText, saveFile, toast } from "../../lib/widgets";

export interface Conversation {
  id: string;
  title: string;
  updated: number;
  model: string;
  params: Params;
  messages: Message[];
}

const lastModel = pref<string>("chat.model", "");
const params = pref<Params>("chat.params", NO_PARAMS);
const lastOpen = pref<string>("chat.open", "");

const fresh = (): Conversation => ({ id: uid(), title: "", updated: Date.now(), model: lastModel.peek(), params: params.peek(), messages: [] });

// Kept outside the component: an answer goes on while another page is shown.
const conversation = signal<Conversation>(fresh());
const saved = signal<Conversation[]>([]);
const loaded = signal(false);
const busy = signal<AbortController | null>(null);
const draft = signal("");
const files = signal<Attachment[]>([]);

async function openStore(): Promise<void> {
  if (loaded.peek()) return;
  loaded.value = true;
  try {
    saved.value = (await all<Conversation>("conversations")).sort((a, b) => b.updated - a.updated);
    const last = saved.value.find((item) => item.id === lastOpen.peek());
    if (last && !conversation.peek().messages.length && !replayed.peek()) conversation.value = last;
  } catch (error) {
    toast("error", `Conversations cannot be read: ${(error as Error).message}`);
  }
}

async function save(): Promise<void> {
  const current = conversation.peek();
  if (!current.messages.length) return;
  const record = { ...current, updated: Date.now(), title: current.title || (current.messages[0]?.text ?? "").slice(0, 80) || "Untitled" };
  conversation.value = record;
  saved.value = [record, ...saved.peek().filter((item) => item.id !== record.id)];
  lastOpen.value = record.id;
  try {
    await put("conversations", record);
  } catch (error) {
    toast("error", `This conversation could not be stored: ${(error as Error).message}`);
  }
}

function change(update: Partial<Conversation>): void {
  conversation.value = { ...conversation.peek(), ...update };
}

function setLast(message: Message): void {
  const messages = [...conversation.peek().messages];
  messages[messages.length - 1] = message;
  change({ messages });
}

async function answer(others: Message[] = []): Promise<void> {
  const { model, messages } = conversation.peek();
  const settings = params.peek();
  let request: ReturnType<typeof build>;
  try {
    request = build(model, messages, settings);
  } catch (error) {
    toast("error", (error as Error).message);
    return;
  }
  const abort = new AbortController();
  const home = conversation.peek().id;
  busy.value = abort;
  change({ messages: [...messages, { role: "assistant", text: "", model, others }], params: settings });
  void save();
  let last: Message = { role: "assistant", text: "", model, others };
  const here = () => conversation.peek().id === home;
  try {
    await run(request.path, request.body, abort.signal, ({ answer: got, stats }) => {
      last = { role: "assistant", text: got.text, reasoning: got.text || !got.loading ? withoutNotice(got.reasoning) : undefined, loading: got.loading || undefined, tools: got.tools.length ? [...got.tools] : undefined, stats, model, others, error: got.error || undefined };
      if (here()) setLast(last);
    });
  } catch (error) {
    const stopped = (error as Error).name === "AbortError";
    last = { ...last, error: stopped ? "Stopped" : (error as Error).message };
    if (here()) setLast(last);
  }
  busy.value = null;
  if (here()) await save();
}

async function submit(text: string, attachments: Attachment[]): Promise<void> {
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

function takeReplay(): void {
  const request = replayed.peek();
  if (!request) return;
  replayed.value = null;
  const turns = requestTurns(request.body) ?? [];
  const system = turns.filter((turn) => turn.role === "system").map((turn) => turn.parts.map((part) => part.text).join("\n")).join("\n");
  const messages = turns
    .filter((turn) => turn.role === "user" || turn.role === "assistant")
    .map((turn): Message => ({
      role: turn.role as "user" | "assistant",
      text: turn.parts.filter((part) => part.kind === "text").map((part) => part.text).join("\n"),
      attachments: turn.parts.filter((part) => part.kind === "image" && part.text.startsWith("data:")).map((part) => ({ kind: "image" as const, name: "picture", data: part.text })),
    }));
  const endpoint = (Object.keys(PATHS) as Endpoint[]).find((name) => request.path.endsWith(PATHS[name])) ?? "completions";
  const numbers: Record<string, string> = {};
  for (const [name] of NUMBERS) if (typeof request.body[name] === "number") numbers[name] = String(request.body[name]);
  params.value = { ...NO_PARAMS, endpoint, system, numbers };
  conversation.value = { ...fresh(), model: String(request.body.model ?? lastModel.peek()), messages };
  toast("info", "Replay is ready: Regenerate sends it again");
}

const withoutNotice = (text: string): string | undefined => (text && !text.startsWith("\u2501") ? text : undefined);

export function statsLine(stats: Stats | undefined): string {
  if (!stats) return "";
  return [
    stats.output !== undefined ? `${stats.estimated ? "about " : ""}${plural(stats.output, "token")}` : "",
    stats.rate ? `${rate(stats.rate)} t/s` : "",
    stats.ttft !== undefined ? `first after ${duration(stats.ttft)}` : "",
    stats.input !== undefined ? `${count(stats.input)} prompt${stats.cached && stats.cached > 0 ? ` (${count(stats.cached)} cached)` : ""}` : "",
    stats.promptRate ? `prefill ${rate(stats.promptRate)} t/s` : "",
    stats.loading ? `loaded in ${duration(stats.loading)}` : "",
    duration(stats.total),
    stats.finish && !["stop", "end_turn", "completed"].includes(stats.finish) ? stats.finish : "",
  ]
    .filter(Boolean)
    .join(" · ");
}

export function AnswerBody({ message, final, raw }: { message: Message; final: boolean; raw: boolean }) {
  return (
    <>
      {message.reasoning && (
        <details class="reasoning" open={!final && !message.text}>
          <summary>
            Reasoning, {plural(message.reasoning.length, "character")}
            {message.stats?.thought ? `, ${duration(message.stats.thought)}` : ""}
          </summary>
          <pre class="plaintext">{message.reasoning}</pre>
        </details>
      )}
      {raw ? <pre class="plaintext">{message.text}</pre> : message.text ? <Markdown text={message.text} final={final} /> : null}
      {message.tools?.map((tool, i) => (
        <pre key={i} class="plaintext tool">{tool.name}({tool.args})</pre>
      ))}
      {message.error && <p class="bad" role="alert">{message.error}</p>}
      {!final && !message.text && !message.reasoning && <span class="muted typing plaintext">{message.loading || "waiting for the first token"}</span>}
    </>
  );
}

function Bubble({ message, index, last }: { message: Message; index: number; last: boolean }) {
  const raw = useSignal(false);
  const editing = useSignal<string | null>(null);
  const working = last && busy.value !== null && message.role === "assistant";
  const again = (): void => {
    const { messages } = conversation.peek();
    const old = messages[index] as Message;
    change({ messages: messages.slice(0, index) });
    void answer([...(old.others ?? []), { ...old, others: undefined }]);
  };
  const turnTo = (step: number): void => {
    const messages = [...conversation.peek().messages];
    const old = messages[index] as Message;
    const ring = [...(old.others ?? []), { ...old, others: undefined }];
    const shown = step > 0 ? ring.shift() : ring.pop();
    if (!shown) return;
    messages[index] = { ...shown, others: step > 0 ? [...ring] : [ring.pop() as Message, ...ring].filter(Boolean) };
    change({ messages });
    void save();
  };
  const edited = async (): Promise<void> => {
    const text = editing.peek();
    editing.value = null;
    if (text === null || !text.trim()) return;
    const before = conversation.peek();
    if (index < before.messages.length - 1) {
      // What followed stays available as its own conversation.
      const copy = { ...before, id: uid(), title: `${before.title || "Untitled"} (before the edit)` };
      saved.value = [...saved.peek(), copy];
      void put("conversations", copy).catch(() => undefined);
    }
    change({ messages: [...before.messages.slice(0, index), { ...message, text }] });
    await answer();
  };
  return (
    <article class={`bubble ${message.role}`} aria-label={message.role === "user" ? "You" : message.model}>
      {message.role === "assistant" && <h3 class="muted">{message.model}</h3>}
      {message.attachments?.map((file, i) =>
        file.kind === "image" ? (
          <img key={i} class="thumb" src={file.data} alt={file.name} />
        ) : file.kind === "audio" ? (
          <audio key={i} controls src={file.data} />
        ) : (
          <span key={i} class="tag">{file.name}, {count(file.data.length)} characters</span>
        ),
      )}
      {message.role === "user" ? (
        editing.value === null ? (
          <div class="plaintext usertext">{message.text}</div>
        ) : (
          <div class="stack">
            <textarea
              class="input"
              rows={4}
              aria-label="Edit the message"
              value={editing.value}
              onInput={(event) => (editing.value = event.currentTarget.value)}
            />
            <div class="row end">
              <Btn small onClick={() => (editing.value = null)}>Cancel</Btn>
              <Btn small primary onClick={() => void edited()}>Send</Btn>
            </div>
          </div>
        )
      ) : (
        <AnswerBody message={message} final={!working} raw={raw.value} />
      )}
      <footer class="bubble-foot">
        {message.role === "assistant" && <span class="num muted grow">{statsLine(message.stats)}</span>}
        {message.others && message.others.length > 0 && !working && (
          <>
            <IconButton icon="left" label="Earlier answer" size={14} onClick={() => turnTo(-1)} />
            <span class="muted">{message.others.length + 1} answers</span>
            <IconButton icon="right" label="Other answer" size={14} onClick={() => turnTo(1)} />
          </>
        )}
        {!working && (
          <>
            {message.role === "assistant" && last && <IconButton icon="restart" label="Regenerate" size={14} onClick={again} />}
            {message.role === "user" && !busy.value && <IconButton icon="edit" label="Edit this message" size={14} onClick={() => (editing.value = message.text)} />}
            <IconButton icon="copy" label="Copy this message" size={14} onClick={() => void copyText(message.text)} />
            {message.role === "assistant" && <IconButton icon="logs" label="Show the raw text" size={14} pressed={raw.value} onClick={() => (raw.value = !raw.value)} />}
          </>
        )}
      </footer>
    </article>
  );
}

/** The figures of a request; an empty one is not sent. */
export function NumberFields({ value, onChange }: { value: Record<string, string>; onChange: (next: Record<string, string>) => void }) {
  return (
    <div class="cols2">
      {NUMBERS.map(([name, label, hint]) => (
        <Field key={name} label={label} hint={hint}>
          <input class="input" inputMode="decimal" placeholder="not sent" value={value[name] ?? ""} aria-invalid={Number.isNaN(Number(value[name] ?? 0))} onInput={(event) => onChange({ ...value, [name]: event.currentTarget.value })} />
        </Field>
      ))}
    </div>
  );
}

export function ParamsForm({ value, onChange }: { value: Params; onChange: (next: Params) => void }) {
  const set = (update: Partial<Params>) => onChange({ ...value, ...update });
  return (
    <div class="stack">
      <p class="muted">An empty field is not sent: the model's own setting stays in force.</p>
      <Segmented
        label="Endpoint"
        value={value.endpoint}
        options={[["completions", "Chat completions"], ["messages", "Anthropic messages"], ["responses", "Responses"]]}
        onChange={(endpoint) => set({ endpoint })}
      />
      <Field label="System prompt">
        <textarea class="input" rows={3} value={value.system} onInput={(event) => set({ system: event.currentTarget.value })} />
      </Field>
      <NumberFields value={value.numbers} onChange={(numbers) => set({ numbers })} />
      <Field label="Stop at" hint="one a line">
        <textarea class="input" rows={2} value={value.stop} onInput={(event) => set({ stop: event.currentTarget.value })} />
      </Field>
      <Field label="Schema of the answer" hint="JSON Schema">
        <textarea class="input mono" rows={3} value={value.schema} onInput={(event) => set({ schema: event.currentTarget.value })} />
      </Field>
      <Field label="Tools" hint="a JSON list; calls are shown, not run">
        <textarea class="input mono" rows={3} value={value.tools} onInput={(event) => set({ tools: event.currentTarget.value })} />
      </Field>
      <Field label="Extra JSON" hint="merged into the request">
        <textarea class="input mono" rows={3} value={value.extra} onInput={(event) => set({ extra: event.currentTarget.value })} />
      </Field>
      <Btn onClick={() => onChange(NO_PARAMS)}>Reset</Btn>
    </div>
  );
}

async function attach(files: Iterable<File>): Promise<Attachment[]> {
  const out: Attachment[] = [];
  for (const file of files) {
    if (file.size > 20 * 1048576) {
      toast("error", `${file.name} is larger than 20 MiB`);
      continue;
    }
    const asUrl = () =>
      new Promise<string>((resolve, reject) => {
        const reader = new FileReader();
        reader.onload = () => resolve(reader.result as string);
        reader.onerror = () => reject(reader.error as Error);
        reader.readAsDataURL(file);
      });
    if (file.type.startsWith("image/")) out.push({ kind: "image", name: file.name, data: await asUrl() });
    else if (file.type.startsWith("audio/")) out.push({ kind: "audio", name: file.name, data: await asUrl() });
    else out.push({ kind: "text", name: file.name, data: await file.text() });
  }
  return out;
}

function Composer() {
  const large = useSignal(false);
  const picker = useRef<HTMLInputElement>(null);
  const take = async (list: Iterable<File>) => { files.value = [...files.value, ...(await attach(list))].slice(0, 8); };
  const send = () => {
    void submit(draft.peek(), files.peek());
  };
  return (
    <div
      class="composer"
      onDragOver={(event) => event.preventDefault()}
      onDrop={(event) => {
        event.preventDefault();
        void take(event.dataTransfer?.files ?? []);
      }}
    >
      {files.value.length > 0 && (
        <ul class="row wrap">
          {files.value.map((file, i) => (
            <li key={file.name + i} class="tag attach">
              {file.kind === "image" && <img src={file.data} alt="" />}
              {file.name}
              <IconButton icon="close" size={12} label={`Remove ${file.name}`} onClick={() => (files.value = files.value.filter((_, k) => k !== i))} />
            </li>
          ))}
        </ul>
      )}
      <div class="row">
        <textarea
          class="input"
          rows={large.value ? 14 : 2}
          aria-label="Message"
          placeholder="Message. Enter sends, Shift+Enter starts a new line"
          value={draft.value}
          onInput={(event) => (draft.value = event.currentTarget.value)}
          onPaste={(event) => {
            const list = [...(event.clipboardData?.files ?? [])];
            if (list.length) {
              event.preventDefault();
              void take(list);
            }
          }}
          onKeyDown={(event) => {
            // An input method's Enter picks a word; it does not send.
            if (event.key !== "Enter" || event.shiftKey || event.isComposing || event.keyCode === 229 || large.value) return;
            event.preventDefault();
            send();
          }}
        />
        <div class="composer-buttons">
          <input
            ref={picker}
            type="file"
            multiple
            hidden
            accept="image/*,audio/*,text/*,.md,.json,.yaml,.csv,.py,.ts,.rs,.go,.c,.cpp,.java"
            onChange={(event) => {
              void take(event.currentTarget.files ?? []);
              event.currentTarget.value = "";
            }}
          />
          <IconButton icon="clip" label="Attach pictures, audio or text" onClick={() => picker.current?.click()} />
          <IconButton icon="edit" label={large.value ? "Smaller editor" : "Larger editor"} pressed={large.value} onClick={() => (large.value = !large.value)} />
          {busy.value ? (
            <Btn danger onClick={() => busy.value?.abort()}><Icon name="stop" size={13} /> Stop</Btn>
          ) : (
            <Btn primary onClick={send} disabled={!draft.value.trim() && !files.value.length}><Icon name="send" size={13} /> Send</Btn>
          )}
        </div>
      </div>
    </div>
  );
}

function History({ onPick }: { onPick: () => void }) {
  const wanted = useSignal("");
  const picker = useRef<HTMLInputElement>(null);
  const list = saved.value.filter(
    (item) => !wanted.value || [item.title, ...item.messages.map((message) => message.text)].join("\n").toLowerCase().includes(wanted.value.toLowerCase()),
  );
  const pick = (item: Conversation) => {
    conversation.value = item;
    lastOpen.value = item.id;
    params.value = { ...NO_PARAMS, ...item.params };
    onPick();
  };
  const bring = async (file: File | undefined) => {
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
      toast("error", `Importing: ${(error as Error).message}`);
    }
  };
  return (
    <div class="history">
      <div class="row">
        <input class="input small grow" type="search" aria-label="Search conversations" placeholder="Search conversations" data-filter value={wanted.value} onInput={(event) => (wanted.value = event.currentTarget.value)} />
        <input ref={picker} type="file" hidden accept="application/json" onChange={(event) => void bring(event.currentTarget.files?.[0])} />
        <IconButton icon="upload" label="Import conversations" onClick={() => picker.current?.click()} />
        <IconButton icon="download" label="Export all conversations" disabled={!saved.value.length} onClick={() => saveFile("conversations.json", JSON.stringify(saved.value, null, 1), "application/json")} />
      </div>
      <ul class="plainlist">
        {list.map((item) => (
          <li key={item.id} class="row">
            <button type="button" class="grow histitem" aria-current={item.id === conversation.value.id ? "true" : undefined} onClick={() => pick(item)}>
              <span class="clip">{item.title}</span>
              <span class="muted clip">{item.model}</span>
            </button>
            <IconButton
              icon="trash"
              size={14}
              label={`Delete ${item.title}`}
              onClick={() =>
                void confirm("Delete this conversation?", <p>{item.title}</p>, "Delete", true).then((yes) => {
                  if (!yes) return;
                  saved.value = saved.peek().filter((other) => other.id !== item.id);
                  void remove("conversations", item.id);
                  if (conversation.peek().id === item.id) conversation.value = fresh();
                })
              }
            />
          </li>
        ))}
      </ul>
      {!list.length && <p class="muted pad">{saved.value.length ? "No conversation contains this" : "Conversations are kept in this browser"}</p>}
    </div>
  );
}

export function Chat() {
  const settings = useSignal(false);
  const shelf = useSignal(false);
  const shown = useSignal(false);
  const pane = useRef<HTMLDivElement>(null);
  const follow = useRef(true);
  const current = conversation.value;
  useEffect(() => {
    void openStore().then(takeReplay);
    const wanted = route.peek().query.get("model");
    if (wanted) {
      change({ model: wanted });
      lastModel.value = wanted;
      setQuery({ model: null });
    }
  }, []);
  useEffect(() => {
    if (follow.current && pane.current) pane.current.scrollTop = pane.current.scrollHeight;
  }, [current.messages]);
  const model = current.model;
  const context = listed.value.find((item) => item.id === model)?.context_length ?? models.value.find((item) => item.id === model)?.context_length;
  const latest = [...current.messages].reverse().find((message) => message.stats)?.stats;
  const used = (latest?.input ?? 0) + Math.max(0, latest?.cached ?? 0) + (latest?.output ?? 0);
  const requestText = (): string => {
    try {
      const { path, body } = build(model, current.messages.filter((m, i) => m.role === "user" || i < current.messages.length - 1), params.value);
      return curl(path, JSON.stringify(body, null, 1), null);
    } catch (error) {
      return (error as Error).message;
    }
  };
  const setCount = Object.values(params.value.numbers).filter((value) => value.trim()).length + [params.value.system, params.value.stop, params.value.schema, params.value.tools, params.value.extra].filter((value) => value.trim()).length;
  return (
    <div class="chat">
      <aside class="chat-side hide-phone" aria-label="Conversations"><History onPick={() => undefined} /></aside>
      <div class="chat-main">
        <div class="toolbar">
          <ModelSelect
            label="Model"
            hint
            value={model}
            onChange={(id) => {
              change({ model: id });
              lastModel.value = id;
            }}
          />
          <span class="grow" />
          {context && context > 0 && used > 0 && (
            <span class="row context" title={`${count(used)} of ${count(context)} tokens`}>
              <Bar value={used} max={context} label="Context used" />
              <span class="num muted">{Math.round((used / context) * 100)} % of context</span>
            </span>
          )}
          <button type="button" class="btn only-phone-flex" onClick={() => (shelf.value = true)}>History</button>
          <Btn onClick={() => (settings.value = true)}><Icon name="settings" size={14} /> Settings{setCount ? ` (${setCount})` : ""}</Btn>
          <IconButton icon="info" label="Show the request" disabled={!current.messages.length} onClick={() => (shown.value = true)} />
          <IconButton icon="download" label="Export this conversation" disabled={!current.messages.length} onClick={() => saveFile(`${current.title || "conversation"}.json`, JSON.stringify(current, null, 1), "application/json")} />
          <Btn
            onClick={() => {
              busy.value?.abort();
              conversation.value = fresh();
              lastOpen.value = "";
            }}
          >
            <Icon name="plus" size={14} /> New
          </Btn>
        </div>
        <div
          class="transcript"
          ref={pane}
          tabIndex={0}
          role="region"
          aria-label="Conversation"
          onScroll={(event) => {
            const box = event.currentTarget;
            follow.current = box.scrollHeight - box.scrollTop - box.clientHeight < 40;
          }}
        >
          {current.messages.map((message, index) => (
            <Bubble key={`${current.id}${index}`} message={message} index={index} last={index === current.messages.length - 1} />
          ))}
          {!current.messages.length && <p class="muted chat-empty">Ask {model || "a model"} something.</p>}
        </div>
        <Composer />
      </div>
      {settings.value && (
        <Dialog title="Settings of this chat" onClose={() => (settings.value = false)}>
          <ParamsForm value={params.value} onChange={(next) => (params.value = next)} />
        </Dialog>
      )}
      {shelf.value && <Dialog title="Conversations" onClose={() => (shelf.value = false)}><History onPick={() => (shelf.value = false)} /></Dialog>}
      {shown.value && (
        <Dialog title="The request" onClose={() => (shown.value = false)}>
          <div class="row end"><CopyButton text={requestText} /></div>
          <pre class="code" tabIndex={0}>{requestText()}</pre>
        </Dialog>
      )}
    </div>
  );
}
