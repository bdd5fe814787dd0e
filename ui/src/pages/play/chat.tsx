// Chat: several conversations kept in this browser, figures on every answer, nothing sent that was not set.
import { useSignal } from "@preact/signals";
import { useEffect, useRef } from "preact/hooks";
import { type Attachment, build } from "../../lib/chat";
import { begin, busy, choose, conversation, draft, files, openStore, params, running, stop, submit, takeReplay } from "../../lib/conversation";
import { curl } from "../../lib/drawer";
import { count, short } from "../../lib/format";
import { Icon } from "../../lib/icons";
import { ModelSelect } from "../../lib/modelselect";
import { route, setQuery } from "../../lib/router";
import { listed, models } from "../../lib/state";
import { Bar, Btn, CopyButton, Dialog, IconButton, saveFile, toast } from "../../lib/widgets";
import { Bubble } from "./bubble";
import { History } from "./history";
import { ParamsForm } from "./params";
import { ToolsForm } from "./toolsform";

const MOST_FILES = 8;

const asUrl = (file: File): Promise<string> =>
  new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result as string);
    reader.onerror = () => reject(reader.error as Error);
    reader.readAsDataURL(file);
  });

/** A file's text; null if it is not text. */
async function asText(file: File): Promise<string | null> {
  try {
    const text = new TextDecoder("utf-8", { fatal: true }).decode(await file.arrayBuffer());
    return text.includes("\0") ? null : text;
  } catch {
    return null;
  }
}

async function attach(list: File[]): Promise<Attachment[]> {
  const out: Attachment[] = [];
  for (const file of list) {
    const { name } = file;
    if (file.size > 20 * 1048576) toast("error", `${name} is larger than 20 MiB and was not attached`);
    else if (file.type.startsWith("image/")) out.push({ kind: "image", name, data: await asUrl(file) });
    else if (file.type.startsWith("audio/")) out.push({ kind: "audio", name, data: await asUrl(file) });
    else {
      const data = await asText(file);
      if (data === null) toast("error", `${name} was not attached: only text, pictures and audio can be`);
      else out.push({ kind: "text", name, data });
    }
  }
  return out;
}

function Composer() {
  const large = useSignal(false);
  const picker = useRef<HTMLInputElement>(null);
  const take = async (list: Iterable<File>) => {
    // The browser empties its list as soon as the event is over.
    const fresh = await attach([...list]);
    if (files.peek().length + fresh.length > MOST_FILES) toast("error", `At most ${MOST_FILES} files go with a message`);
    files.value = [...files.peek(), ...fresh].slice(0, MOST_FILES);
  };
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
          {busy.value || running.value.size ? (
            <Btn danger onClick={stop}><Icon name="stop" size={13} /> Stop</Btn>
          ) : (
            <Btn primary onClick={send} disabled={!draft.value.trim() && !files.value.length}><Icon name="send" size={13} /> Send</Btn>
          )}
        </div>
      </div>
    </div>
  );
}

export function Chat() {
  const settings = useSignal(false);
  const shelf = useSignal(false);
  const shown = useSignal(false);
  const pane = useRef<HTMLDivElement>(null);
  const inner = useRef<HTMLDivElement>(null);
  const follow = useSignal(true);
  const place = useRef({ top: 0, height: 0 });
  const toEnd = () => {
    follow.value = true;
    if (pane.current) pane.current.scrollTop = pane.current.scrollHeight;
  };
  const current = conversation.value;
  useEffect(() => {
    const wanted = route.peek().query.get("model");
    // Now, and again for the conversation that the store brings back.
    const ask = () => { if (wanted) choose(wanted); };
    ask();
    if (wanted) setQuery({ model: null });
    void openStore().then(ask).then(takeReplay);
  }, []);
  // Text grows also after it was set: formulas, colours and pictures come later.
  useEffect(() => {
    const grown = new ResizeObserver(() => { if (follow.peek()) toEnd(); });
    grown.observe(inner.current as Element);
    grown.observe(pane.current as Element);
    return () => grown.disconnect();
  }, []);
  const turns = current.messages.filter((message) => message.role === "user").length;
  useEffect(toEnd, [current.id, turns]);
  const model = current.model;
  const context = listed.value.find((item) => item.id === model)?.context_length ?? models.value.find((item) => item.id === model)?.context_length;
  const latest = [...current.messages].reverse().find((message) => message.stats?.context)?.stats;
  const used = latest?.context ?? 0;
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
          <ModelSelect label="Model" hint value={model} onChange={choose} />
          <span class="grow" />
          {context && context > 0 && (
            <span class="row context" title={`The conversation has ${count(used)} of the ${count(context)} tokens that the model can read`}>
              <Bar value={used} max={context} label="Context used" kind={used > context * 0.85 ? "loading" : ""} />
              <span class="num muted">{short(used)} of {short(context)}</span>
            </span>
          )}
          <button type="button" class="btn only-phone-flex" onClick={() => (shelf.value = true)}>History</button>
          <Btn onClick={() => (settings.value = true)}><Icon name="settings" size={14} /> Settings{setCount ? ` (${setCount})` : ""}</Btn>
          <IconButton icon="info" label="Show the request" disabled={!current.messages.length} onClick={() => (shown.value = true)} />
          <IconButton icon="download" label="Export this conversation" disabled={!current.messages.length} onClick={() => saveFile(`${current.title || "conversation"}.json`, JSON.stringify(current, null, 1), "application/json")} />
          <Btn
            onClick={begin}
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
            const { scrollTop: top, scrollHeight: height, clientHeight } = event.currentTarget;
            if (height - top - clientHeight < 40) follow.value = true;
            else if (top < place.current.top && height >= place.current.height) follow.value = false;
            place.current = { top, height };
          }}
        >
          <div class="turnlist" ref={inner}>
            {current.messages.map((message, index) => (
              <Bubble key={`${current.id}${index}`} message={message} index={index} last={index === current.messages.length - 1} />
            ))}
          </div>
          {!current.messages.length && <p class="muted chat-empty">Ask {model || "a model"} something.</p>}
        </div>
        {!follow.value && <Btn small class="to-end" onClick={toEnd}><Icon name="bottom" size={14} /> To the end</Btn>}
        <Composer />
      </div>
      {settings.value && (
        <Dialog title="Settings of this chat" onClose={() => (settings.value = false)}>
          <ParamsForm value={params.value} onChange={(next) => (params.value = next)} />
          <ToolsForm />
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
