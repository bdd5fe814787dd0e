// One message of a chat, and what can be done with it.
import { useSignal } from "@preact/signals";
import type { Message, Stats } from "../../lib/chat";
import { busy, edited, proceed, regenerate, runTool, running, turnTo } from "../../lib/conversation";
import type { ToolCall } from "../../lib/convo";
import { count, duration, plural, rate, seconds } from "../../lib/format";
import { Icon } from "../../lib/icons";
import { Markdown } from "../../lib/markdownview";
import { isKnown } from "../../lib/mcp";
import { Waiting } from "../../lib/waiting";
import { Btn, IconButton, Spinner, copyText } from "../../lib/widgets";

/** How the three protocols say that an answer reached its limit. */
const CUT = ["length", "max_tokens", "incomplete"];

export function statsLine(stats: Stats | undefined): string {
  if (!stats) return "";
  return [
    stats.output !== undefined ? `${stats.estimated ? "about " : ""}${plural(stats.output, "token")}` : "",
    stats.rate ? `${rate(stats.rate)} t/s` : "",
    stats.ttft !== undefined ? `first after ${duration(stats.ttft)}` : "",
    stats.input !== undefined ? `${count(stats.input)} prompt${stats.cached && stats.cached > 0 ? ` (${count(stats.cached)} cached)` : ""}` : "",
    stats.promptRate ? `prefill ${rate(stats.promptRate)} t/s` : "",
    stats.loading ? `model ready after ${duration(stats.loading)}` : "",
    duration(stats.total),
    CUT.includes(stats.finish ?? "") ? "cut off at the limit" : stats.finish && !["stop", "end_turn", "completed", "tool_calls", "tool_use"].includes(stats.finish) ? stats.finish : "",
  ]
    .filter(Boolean)
    .join(" · ");
}

export function AnswerBody({ message, final, raw, tool }: { message: Message; final: boolean; raw: boolean; tool?: (call: number, run: boolean) => void }) {
  return (
    <>
      {message.reasoning && (
        <details class="reasoning" open={!final && !message.text}>
          <summary>{message.stats?.thought ? `Thought for ${seconds(Math.max(100, message.stats.thought))}` : final ? "Thoughts" : "Thinking"}</summary>
          <pre class="plaintext">{message.reasoning}</pre>
        </details>
      )}
      {raw ? <pre class="plaintext">{message.text}</pre> : message.text ? <Markdown text={message.text} final={final} /> : null}
      {message.tools?.map((call, i) => <ToolView key={i} tool={call} answer={final && tool ? (run) => tool(i, run) : undefined} />)}
      {message.error && <p class="bad" role="alert">{message.error}</p>}
      {!final && !message.text && !message.reasoning && <Waiting model={message.model ?? ""} loading={message.loading} />}
    </>
  );
}

/** `answer` runs the call or declines it; without it the call is only shown. */
function ToolView({ tool, answer }: { tool: ToolCall; answer?: (run: boolean) => void }) {
  const runs = running.value.get(tool);
  const open = tool.result === undefined && answer && isKnown(tool.name);
  return (
    <div class="tool">
      <details open={open || undefined}>
        <summary>Tool call: <code>{tool.name}</code>{tool.result === undefined ? "" : tool.result.startsWith("Error: ") ? ", failed" : ", answered"}</summary>
        <pre class="code" tabIndex={0}>{pretty(tool.args)}</pre>
        {tool.result !== undefined && <pre class="code" tabIndex={0} aria-label="Answer of the tool">{pretty(tool.result)}</pre>}
      </details>
      {open && !runs && (
        <div class="row">
          <Btn small primary onClick={() => answer(true)}>Run {tool.name}</Btn>
          <Btn small onClick={() => answer(false)}>Decline</Btn>
        </div>
      )}
      {open && runs && (
        <span class="row muted"><Spinner label="The tool runs" /> running <Btn small onClick={() => runs.abort()}>Stop {tool.name}</Btn></span>
      )}
    </div>
  );
}

function pretty(text: string): string {
  try {
    return JSON.stringify(JSON.parse(text), null, 1);
  } catch {
    return text;
  }
}

const cutOff = (message: Message): boolean => !!message.text && !message.tools && (message.error !== undefined || CUT.includes(message.stats?.finish ?? ""));

export function Bubble({ message, index, last }: { message: Message; index: number; last: boolean }) {
  const raw = useSignal(false);
  const editing = useSignal<string | null>(null);
  const working = last && busy.value !== null && message.role === "assistant";
  const send = (): void => {
    const text = editing.peek();
    editing.value = null;
    if (text?.trim()) void edited(index, text);
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
              <Btn small primary onClick={send}>Send</Btn>
            </div>
          </div>
        )
      ) : (
        <AnswerBody message={message} final={!working} raw={raw.value} tool={last ? (call, run) => void runTool(index, call, run) : undefined} />
      )}
      <footer class="bubble-foot">
        {message.role === "assistant" && <span class="num muted grow">{working && !message.text && !message.reasoning ? "" : statsLine(message.stats)}</span>}
        {message.others && message.others.length > 0 && !working && (
          <>
            <IconButton icon="left" label="Earlier answer" size={14} onClick={() => turnTo(index, -1)} />
            <span class="muted">{message.others.length + 1} answers</span>
            <IconButton icon="right" label="Other answer" size={14} onClick={() => turnTo(index, 1)} />
          </>
        )}
        {!working && (
          <>
            {message.role === "assistant" && last && cutOff(message) && <Btn small onClick={() => proceed(index)}><Icon name="play" size={12} /> Continue</Btn>}
            {last && !busy.value && <IconButton icon="restart" label="Regenerate" size={14} onClick={() => regenerate(index)} />}
            {message.role === "user" && !busy.value && <IconButton icon="edit" label="Edit this message" size={14} onClick={() => (editing.value = message.text)} />}
            <IconButton icon="copy" label="Copy this message" size={14} onClick={() => void copyText(message.text)} />
            {message.role === "assistant" && <IconButton icon="logs" label="Show the raw text" size={14} pressed={raw.value} onClick={() => (raw.value = !raw.value)} />}
          </>
        )}
      </footer>
    </article>
  );
}
