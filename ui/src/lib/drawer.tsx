// One finished request: facts, error, the captured conversation, and what can be done with it.
import { signal, useSignal } from "@preact/signals";
import { ApiError, get, maybe } from "./api";
import { DiffView } from "./diffview";
import { clockTime, count, duration, plainError, rate, time } from "./format";
import { Icon } from "./icons";
import { Answer, type Turn, requestTurns, responseAnswer } from "./convo";
import { PHASE_WORDS, mostOf, phasesOf, usualPhases } from "./phases";
import { go, href, prefix } from "./router";
import { localModels } from "./state";
import { Waterfall } from "./waterfall";
import { Btn, CopyButton, Dialog, Facts, IconButton, Problem, Segmented, Spinner, StatusCode, copyText, saveFile, useLoad } from "./widgets";
import type { ActivityPage, ActivityRow, Capture } from "./types";

const marked = signal<number | null>(null);
/** A captured request handed to the playground. */
export const replayed = signal<{ path: string; body: Record<string, unknown> } | null>(null);

function raw(base64: string | null): Uint8Array | null {
  if (base64 === null) return null;
  const text = atob(base64);
  const out = new Uint8Array(text.length);
  for (let i = 0; i < text.length; i++) out[i] = text.charCodeAt(i);
  return out;
}

const decode = (bytes: Uint8Array | null): string => (bytes ? new TextDecoder().decode(bytes) : "");

function pretty(text: string): string {
  try {
    return JSON.stringify(JSON.parse(text), null, 2);
  } catch {
    return text;
  }
}

export function Turns({ turns }: { turns: Turn[] }) {
  return (
    <div class="turns">
      {turns.map((turn, i) => (
        <article key={i} class={`turn ${turn.role}`}>
          <h3 class="muted">{turn.role || "message"}</h3>
          {turn.reasoning && (
            <details class="reasoning">
              <summary>Thoughts</summary>
              <pre class="plaintext">{turn.reasoning}</pre>
            </details>
          )}
          {turn.parts.map((part, k) =>
            part.kind === "image" && part.text.startsWith("data:") ? (
              <img key={k} class="thumb" src={part.text} alt="Part of the message" />
            ) : part.kind === "audio" ? (
              <audio key={k} controls src={part.text} />
            ) : (
              <pre key={k} class={`plaintext ${part.kind}`}>{part.kind === "image" ? `image: ${part.text}` : part.text}</pre>
            ),
          )}
          {turn.tools?.map((tool, k) => (
            <pre key={k} class="plaintext tool">{tool.name}({tool.args})</pre>
          ))}
        </article>
      ))}
    </div>
  );
}

function asTurn(answer: Answer): Turn {
  return {
    role: "assistant",
    parts: answer.text ? [{ kind: "text", text: answer.text }] : answer.error ? [{ kind: "other", text: answer.error }] : [],
    reasoning: answer.reasoning || undefined,
    tools: answer.tools,
  };
}

function Headers({ title, headers }: { title: string; headers: Record<string, string> | null }) {
  if (!headers) return null;
  const names = Object.keys(headers).sort();
  return (
    <details>
      <summary>{title} ({names.length})</summary>
      <table class="plain headers">
        <tbody>
          {names.map((name) => (
            <tr key={name}>
              <th scope="row">{name}</th>
              <td>{headers[name]}</td>
            </tr>
          ))}
        </tbody>
      </table>
    </details>
  );
}

function Body({ title, bytes, type }: { title: string; bytes: Uint8Array | null; type: string }) {
  const mode = useSignal<"pretty" | "raw">("pretty");
  if (!bytes) return <p class="muted">{title}: not captured</p>;
  if (!bytes.length) return <p class="muted">{title}: empty</p>;
  if (type.startsWith("image/")) {
    const src = `data:${type};base64,${btoa(Array.from(bytes, (byte) => String.fromCharCode(byte)).join(""))}`;
    return <img class="capture-image" src={src} alt={title} />;
  }
  if (/^(audio|video)\/|octet-stream/.test(type)) return <p class="muted">{`${title}: ${count(bytes.length)} bytes of ${type}`}</p>;
  const text = decode(bytes);
  const shown = mode.value === "pretty" ? pretty(text) : text;
  return (
    <details open={title === "Request body"}>
      <summary>{title} <span class="muted">{count(bytes.length)} bytes</span></summary>
      <div class="row end">
        <Segmented label="Form" value={mode.value} options={[["pretty", "Pretty"], ["raw", "Raw"]]} onChange={(value) => (mode.value = value)} />
        <CopyButton text={shown} />
      </div>
      <pre class="code" tabIndex={0}>{shown.length > 400_000 ? `${shown.slice(0, 400_000)}\n…` : shown}</pre>
    </details>
  );
}

export function curl(path: string, body: string, headers: Record<string, string> | null): string {
  const origin = new URL(prefix, location.href).href.replace(/\/$/, "");
  const type = Object.entries(headers ?? {}).find(([name]) => name.toLowerCase() === "content-type")?.[1] ?? "application/json";
  const quote = (text: string) => `'${text.replaceAll("'", "'\\''")}'`;
  return `curl ${quote(origin + path)} \\\n  -H ${quote(`Content-Type: ${type}`)}${body ? ` \\\n  -d ${quote(body)}` : ""}`;
}

function CaptureView({ id }: { id: number }) {
  const view = useSignal<"chat" | "raw">("chat");
  const { data, error, loading, reload } = useLoad(
    (abort) =>
      get<Capture>(`/api/captures/${id}`, undefined, abort).catch((problem: Error) => {
        if (problem instanceof ApiError && problem.status === 404) return null;
        throw problem;
      }),
    [id],
  );
  if (error) return <Problem text={`The capture could not be fetched: ${error}`} retry={reload} />;
  if (loading && data === undefined) return <Spinner />;
  if (!data) return <p class="muted">The capture is gone: the server keeps the latest ones only.</p>;
  const reqBytes = raw(data.req_body);
  const respBytes = raw(data.resp_body);
  const header = (headers: Record<string, string> | null, name: string) =>
    Object.entries(headers ?? {}).find(([key]) => key.toLowerCase() === name)?.[1] ?? "";
  const reqText = decode(reqBytes);
  const type = header(data.resp_headers, "content-type");
  let body: unknown = null;
  try {
    body = JSON.parse(reqText);
  } catch {
    // Not JSON: shown as it is.
  }
  const turns = requestTurns(body);
  const answer = respBytes ? responseAnswer(decode(respBytes), type) : null;
  const chat = turns ? [...turns, ...(answer ? [asTurn(answer)] : [])] : null;
  const json = body as Record<string, unknown> | null;
  return (
    <div class="capture">
      <div class="row wrap">
        {chat && <Segmented label="View" value={view.value} options={[["chat", "Conversation"], ["raw", "Raw"]]} onChange={(value) => (view.value = value)} />}
        <span class="grow" />
        {turns && json && (
          <Btn small
            onClick={() => {
              replayed.value = { path: data.req_path, body: json };
              go("playground", { tab: "chat" });
            }}
          >
            <Icon name="play" size={13} /> Replay
          </Btn>
        )}
        <Btn small onClick={() => void copyText(curl(data.req_path, reqText, data.req_headers))}><Icon name="copy" size={13} /> curl</Btn>
        <Btn small onClick={() => saveFile(`capture-${id}.json`, JSON.stringify(data, null, 1), "application/json")}>
          <Icon name="download" size={13} /> JSON
        </Btn>
        {marked.value !== null && marked.value !== id ? null : (
          <Btn small aria-pressed={marked.value === id} onClick={() => (marked.value = marked.value === id ? null : id)}>
            <Icon name="diff" size={13} /> {marked.value === id ? "Marked; open another" : "Compare"}
          </Btn>
        )}
      </div>
      {marked.value !== null && marked.value !== id && <Comparison first={marked.value} second={data} />}
      {chat && view.value === "chat" ? (
        <Turns turns={chat} />
      ) : (
        <>
          <Headers title="Request headers" headers={data.req_headers} />
          <Body title="Request body" bytes={reqBytes} type={header(data.req_headers, "content-type")} />
          <Headers title="Response headers" headers={data.resp_headers} />
          <Body title="Response body" bytes={respBytes} type={type} />
        </>
      )}
    </div>
  );
}

function Comparison({ first, second }: { first: number; second: Capture }) {
  const { data, error } = useLoad((abort) => get<Capture>(`/api/captures/${first}`, undefined, abort), [first]);
  const both = (capture: Capture): [string, string] => {
    const response = decode(raw(capture.resp_body));
    return [pretty(decode(raw(capture.req_body))), responseAnswer(response, "")?.text ?? pretty(response)];
  };
  return (
    <section class="compare">
      <div class="row">
        <h3 class="grow">Compared with request {first} (−) and this one (+)</h3>
        <IconButton icon="close" label="Stop comparing" onClick={() => (marked.value = null)} />
      </div>
      {error && <Problem text={`Capture ${first}: ${error}`} />}
      {data && (
        <>
          <DiffView label="Requests compared" before={both(data)[0]} after={both(second)[0]} />
          <DiffView label="Answers compared" before={both(data)[1]} after={both(second)[1]} />
        </>
      )}
    </section>
  );
}

/** The log lines from a request's beginning to its end: its model's, and ours. */
function logsOf(row: ActivityRow): string {
  const end = time(row.timestamp);
  const own = localModels.peek().some((model) => model.id === row.model);
  return href("logs", { src: own ? `${row.model}|proxy` : "proxy", at: Math.floor(end - row.duration_ms), to: Math.ceil(end) });
}

const LANES: Record<string, string> = { queue: "draining", load: "loading", prefill: "busy", decode: "ready", answer: "ready" };

/** Where a request's time went, beside what is usual for its model. */
function TimeSpent({ row }: { row: ActivityRow }) {
  const { data } = useLoad(
    (abort) => get<ActivityPage>("/api/metrics/activity", { model: [row.model], path: row.req_path, has_error: "false", limit: 50 }, abort),
    [row.model, row.req_path],
  );
  const others = (data?.data ?? []).filter((item) => item.id !== row.id);
  const usual = usualPhases(others);
  let at = 0;
  const rows = phasesOf(row).map(({ name, ms }) => ({ label: PHASE_WORDS[name], kind: LANES[name] as string, start: at, end: (at += ms), usual: usual.get(name) }));
  if (!rows.length) return null;
  return (
    <section class="stack" aria-label="Where the time went">
      <h3>Where the time went</h3>
      <p>{mostOf(row)}</p>
      <Waterfall rows={rows} />
    </section>
  );
}

export function RequestDrawer(props: { id: number; row?: ActivityRow; previous?: () => void; next?: () => void; onClose: () => void }) {
  const fetched = useLoad(
    () =>
      props.row
        ? Promise.resolve(props.row)
        : maybe<ActivityPage>("/api/metrics/activity", { min_id: props.id, max_id: props.id, limit: 1 }).then((page) => page?.data[0]),
    [props.id, props.row],
  );
  const row = props.row ?? fetched.data;
  return (
    <Dialog
      title={
        <span class="row">
          Request {props.id}
          {row && <StatusCode code={row.resp_status_code} failed={Boolean(row.error_msg)} />}
          <IconButton icon="left" label="Newer request" disabled={!props.previous} onClick={props.previous} />
          <IconButton icon="right" label="Older request" disabled={!props.next} onClick={props.next} />
        </span>
      }
      class="drawer"
      onClose={props.onClose}
    >
      {!row && (fetched.loading ? <Spinner /> : <p class="muted">The server no longer has this request.</p>)}
      {row && (
        <>
          {row.error_msg && <Problem text={plainError(row.error_msg)} />}
          <Facts
            items={[
              ["Model", <a href={href("model", { id: row.model })}>{row.model}</a>],
              ["Ended", clockTime(time(row.timestamp))],
              ["Path", row.req_path],
              ["Duration", duration(row.duration_ms)],
              ["First token", duration(row.ttft_ms)],
              ["Cached", count(row.tokens.cache_tokens)],
              ["Prompt", count(row.tokens.input_tokens)],
              ["Generated", count(row.tokens.output_tokens)],
              ["Prefill", row.tokens.prompt_per_second > 0 ? `${rate(row.tokens.prompt_per_second)} t/s` : ""],
              ["Decode", row.tokens.tokens_per_second > 0 ? `${rate(row.tokens.tokens_per_second)} t/s` : ""],
              ["Drafted", row.tokens.draft_tokens > 0 ? `${row.tokens.draft_acc_tokens} of ${row.tokens.draft_tokens} accepted` : ""],
              ["Content type", row.resp_content_type],
              ["Client", row.client],
              ["API key", row.key],
              ["Session", row.session],
              ["Priority", row.metadata?.fifo_priority === "0" ? "" : row.metadata?.fifo_priority],
              ...Object.entries(row.metadata ?? {}).filter(([name]) => name !== "waited_ms" && name !== "fifo_priority"),
            ]}
          />
          <TimeSpent row={row} key={row.id} />
          <div class="row end"><a class="btn small" href={logsOf(row)}><Icon name="logs" size={13} /> Logs of that time</a></div>
          {row.has_capture ? <CaptureView id={row.id} key={row.id} /> : <p class="muted">This request was not captured, or its capture has made room for newer ones.</p>}
        </>
      )}
    </Dialog>
  );
}
