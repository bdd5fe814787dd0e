// One model: what runs, how it runs, its log beside it.
import { useSignal } from "@preact/signals";
import { pin, restart } from "../lib/actions";
import { apiKey, pathId } from "../lib/api";
import { Sparkline } from "../lib/chart";
import { clock, clockTime, duration, known, median, plural, rate, seconds } from "../lib/format";
import { Icon } from "../lib/icons";
import { LogView } from "../lib/logview";
import { now } from "../lib/link";
import { Manage } from "../lib/manage";
import { memory, memoryText, useMemory } from "../lib/memory";
import { href, prefix, route } from "../lib/router";
import { Queue, RunningTable, speed } from "../lib/running";
import { inflight, models, modelsKnown, phaseOf, stateShown, swapFailed, swapRevision, swaps } from "../lib/state";
import { Btn, CopyButton, Empty, Facts, FailedMark, Panel, Problem, Segmented, Spinner, StateChip, TabLinks, useLoad } from "../lib/widgets";
import { Capabilities, LoadButton, ownPage } from "./models";
import { ttlLeft, useDetail } from "./overview";
import { RequestsView } from "./requests";

const KEY = "LLAMASWAP_API_KEY";

/** With `keyed` the snippet reads the key from the environment: a page is no place to show it. */
export function snippet(kind: string, id: string, keyed: boolean): string {
  const base = new URL(prefix, location.href).href.replace(/\/$/, "");
  if (kind === "curl") {
    const header = keyed ? `  -H "Authorization: Bearer $${KEY}" \\\n` : "";
    return `curl ${base}/v1/chat/completions \\\n${header}  -H 'Content-Type: application/json' \\\n  -d '${JSON.stringify({ model: id, messages: [{ role: "user", content: "Hello" }] })}'`;
  }
  const [imports, key] = keyed ? ["import os\n\n", `os.environ["${KEY}"]`] : ["", '"none"'];
  if (kind === "openai") {
    return `${imports}from openai import OpenAI\n\nclient = OpenAI(base_url="${base}/v1", api_key=${key})\nanswer = client.chat.completions.create(\n    model="${id}",\n    messages=[{"role": "user", "content": "Hello"}],\n)\nprint(answer.choices[0].message.content)`;
  }
  return `${imports}from anthropic import Anthropic\n\nclient = Anthropic(base_url="${base}", api_key=${key})\nanswer = client.messages.create(\n    model="${id}",\n    max_tokens=1024,\n    messages=[{"role": "user", "content": "Hello"}],\n)\nprint(answer.content[0].text)`;
}

function Snippets({ id }: { id: string }) {
  const kind = useSignal<"curl" | "openai" | "anthropic">("curl");
  const text = () => snippet(kind.value, id, apiKey() !== "");
  return (
    <Panel
      title="Use it"
      aside={
        <>
          <Segmented
            label="Client"
            value={kind.value}
            options={[["curl", "curl"], ["openai", "OpenAI"], ["anthropic", "Anthropic"]]}
            onChange={(value) => (kind.value = value)}
          />
          <CopyButton text={text} label="Copy this snippet" />
        </>
      }
    >
      <pre class="code" tabIndex={0}>{text()}</pre>
    </Panel>
  );
}

function LoadHistory({ times }: { times: number[] }) {
  if (!times.length) return null;
  const recent = times.slice(-24);
  const top = Math.max(...recent);
  return (
    <div class="loadhist">
      <div class="loadbars" role="img" aria-label={`Load times: ${recent.map((t) => seconds(t)).join(", ")}`}>
        {recent.map((t, i) => (
          <span key={i} style={{ height: `${Math.max(6, (t / top) * 100)}%` }} title={seconds(t)} />
        ))}
      </div>
      <p class="muted">{plural(times.length, "load")}, median {duration(median(times))}, last {duration(times.at(-1))}</p>
    </div>
  );
}

export function ModelPage() {
  const id = route.value.query.get("id") ?? "";
  const tab = route.value.query.get("tab") ?? "logs";
  const model = models.value.find((item) => item.id === id) ?? models.value.find((item) => item.aliases?.includes(id));
  if (!model) {
    return (
      <div class="page">
        <h1>{id || "Model"}</h1>
        {modelsKnown.value ? (
          <Empty title="There is no model of this name"><p><a href={href("models")}>All models</a></p></Empty>
        ) : (
          <Spinner />
        )}
      </div>
    );
  }
  const local = !model.peerID;
  return (
    <div class="page model-page">
      <div class="page-head">
        <div class="grow">
          <p class="crumb"><a href={href("models")}>Models</a></p>
          <h1>{model.id}</h1>
          <div class="model-sub">
            {model.name && model.name !== model.id && <span>{model.name}</span>}
            {model.description && <span class="muted">{model.description}</span>}
            {model.aliases?.length ? <span class="muted">also {model.aliases.join(", ")}</span> : null}
            {model.tags?.map((tag) => <span key={tag} class="tag">{tag}</span>)}
            <Capabilities model={model} />
          </div>
        </div>
        {local ? <Head key={model.id} id={model.id} /> : <span class="tag">at {model.peerID}</span>}
      </div>
      {local && <Body key={model.id} id={model.id} tab={tab} />}
      {!local && (
        <>
          <Snippets id={model.id} />
          <RequestsView model={model.id} />
        </>
      )}
    </div>
  );
}

function Head({ id }: { id: string }) {
  const model = models.value.find((item) => item.id === id);
  const record = useDetail(id, model?.state ?? "");
  if (!model) return null;
  const active = inflight.value.some((entry) => entry.model === id && phaseOf(entry) !== "queued");
  const pinnedNow = record?.detail.pinned ?? false;
  return (
    <div class="row wrap head-actions">
      {stateShown(model, active) === "failed" ? <FailedMark model={model} /> : <StateChip state={stateShown(model, active)} />}
      {model.state === "ready" && (
        <>
          <Btn aria-pressed={pinnedNow} onClick={() => void pin(id, !pinnedNow).then((done) => done && (swapRevision.value += 1))}>
            <Icon name="pin" size={14} /> {pinnedNow ? "Kept loaded" : "Keep loaded"}
          </Btn>
          <Btn onClick={() => void restart(id)}><Icon name="restart" size={14} /> Restart</Btn>
        </>
      )}
      <a class="btn" href={ownPage(id)} target="_blank" rel="noopener noreferrer"><Icon name="link" size={14} /> Server's own UI</a>
      <a class="btn" href={href("playground", { tab: "chat", model: id })}><Icon name="playground" size={14} /> Try</a>
      {!model.replica_of && <Manage id={id} />}
      <LoadButton model={model} small={false} />
    </div>
  );
}

function Body({ id, tab }: { id: string; tab: string }) {
  const model = models.value.find((item) => item.id === id);
  const record = useDetail(id, `${model?.state}${swapRevision.value}`);
  const detail = record?.detail;
  const history = useLoad(() => swaps(), [swapRevision.value]);
  const mine = (history.data ?? []).filter((item) => item.model === id || item.evicted.includes(id)).slice(0, 8);
  const since = record ? Math.max(0, now.value - record.at) / 1000 : 0;
  const running = inflight.value.filter((entry) => entry.model === id);
  useMemory();
  const need = memory.value?.needs[id];
  const line = speed.value.get(id);
  const up = model?.state === "ready" || model?.state === "starting";
  return (
    <>
      {detail?.last_error && model?.state !== "ready" && (
        <div class="stack">
          <Problem text={`${detail.last_error}${known(detail.exit_code) ? ` (exit code ${detail.exit_code})` : ""}`} />
          {detail.log_tail && <pre class="code tailbox" tabIndex={0}>{detail.log_tail.split("\n").slice(-20).join("\n")}</pre>}
        </div>
      )}
      <div class="model-grid">
        <div class="col">
          <Panel title="Process">
            <Facts
              items={[
                ["pid", up && known(detail?.pid) ? String(detail?.pid) : ""],
                ["Port", known(detail?.port) ? String(detail?.port) : ""],
                ["Up for", up && known(detail?.uptime_s) ? clock((detail?.uptime_s ?? 0) + since) : ""],
                [
                  "Unloads in",
                  detail?.pinned
                    ? "kept loaded"
                    : model?.state !== "ready"
                      ? ""
                      : !detail?.ttl_s
                        ? "never by itself"
                        : running.length
                          ? `${clock(detail.ttl_s)} once idle`
                          : clock(ttlLeft(detail, record?.at ?? now.value, now.value)),
                ],
                ["Memory", [memoryText(id), need && `${need.source}${need.samples ? ` from ${plural(need.samples, "sample")}` : ""}`].filter(Boolean).join("; ")],
                ["Replicas", models.value.filter((item) => item.replica_of === id).map((item) => `${item.id} (${item.state})`).join(", ")],
                ["Replica of", model?.replica_of ? <a href={href("model", { id: model.replica_of })}>{model.replica_of}</a> : ""],
                ["Slots", known(detail?.slots) && detail?.slots ? String(detail.slots) : ""],
                ["Groups", detail?.groups?.join(", ")],
                ["Address", detail?.proxy],
                ["Speed now", line ? <Sparkline values={line} label="Speed over the last minute" /> : ""],
              ]}
            />
            {detail?.cmd && (
              <div class="command">
                <div class="row">
                  <h3 class="grow">Effective command</h3>
                  <CopyButton text={detail.cmd} label="Copy the command" />
                </div>
                <pre class="code wrapped" tabIndex={0}>{breakCommand(detail.cmd)}</pre>
              </div>
            )}
            {detail?.load_ms && <LoadHistory times={detail.load_ms} />}
            {!detail && <Spinner />}
          </Panel>
          {mine.length > 0 && (
            <Panel title="Swaps">
              <ul class="plainlist swaplist">
                {mine.map((item) => (
                  <li key={item.id}>
                    <span class={`chip s-${swapFailed(item) ? "failed" : item.end ? "ready" : "loading"}`}>
                      {swapFailed(item) ? "✕ failed" : item.end ? "✓ done" : "◐ under way"}
                    </span>
                    <a href={href("swap", { id: item.id })}>{item.model === id ? "load" : `made room for ${item.model}`}</a>
                    <span class="muted num">{clockTime(item.start)}, {duration((item.end ?? now.value) - item.start)}</span>
                  </li>
                ))}
              </ul>
            </Panel>
          )}
          <Snippets id={id} />
        </div>
        <div class="col">
          {running.length > 0 && (
            <Panel title="In progress" aside={<span class="count">{running.length}</span>}>
              <RunningTable model={id} />
              <Queue model={id} />
            </Panel>
          )}
          <TabLinks
            label="About this model"
            current={tab}
            items={[
              { key: "logs", text: "Log", href: href("model", { id }) },
              { key: "requests", text: "Requests", href: href("model", { id, tab: "requests" }) },
            ]}
          />
          {tab === "requests" ? <RequestsView model={id} /> : <LogView sources={[id]} compact />}
          <p class="muted right">
            {tab !== "requests" && <a href={href("logs", { src: id })}>Open in Logs</a>} <span class="sr">{pathId(id)}</span>
            {line && tab !== "requests" && <span class="num"> {rate(line.at(-1))} t/s</span>}
          </p>
        </div>
      </div>
    </>
  );
}

/** A long command reads better with one option a line. */
const breakCommand = (text: string): string => (text.includes("\n") ? text : text.replace(/ (--?[a-zA-Z])/g, " \\\n  $1"));
