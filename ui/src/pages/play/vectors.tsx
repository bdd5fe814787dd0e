// Reranking and embeddings.
import { signal, useSignal } from "@preact/signals";
import { send } from "../../lib/api";
import { session } from "../../lib/chat";
import { count, duration } from "../../lib/format";
import { Icon } from "../../lib/icons";
import { ModelSelect } from "../../lib/modelselect";
import { pref } from "../../lib/prefs";
import { Btn, IconButton, Problem, Segmented, onEnter, saveFile } from "../../lib/widgets";
import { RunButton, runJob } from "./job";

const HEADERS = { "X-Session-ID": session };
const rerankModel = pref("rerank.model", "");
const SAMPLES = [
  "A llama is a domesticated South American camelid.",
  "The capital of Peru is Lima.",
  "Bread is baked from flour, water and yeast.",
  "Alpacas are bred for their fibre.",
  "A reverse proxy forwards requests to servers behind it.",
];

// Kept outside the components: a look at another page throws away nothing that was typed.
const query = signal("Which animals are kept for wool?");
const documents = signal<string[]>(SAMPLES);
const text = signal(SAMPLES.join("\n"));

function listOfTexts(json: string): string[] {
  const list: unknown = JSON.parse(json);
  if (!Array.isArray(list) || list.some((item) => typeof item !== "string")) throw new Error("The documents must be a JSON list of strings");
  return list as string[];
}

export function Rerank() {
  const scores = useSignal<Map<number, number>>(new Map());
  const order = useSignal<"none" | "desc" | "asc">("none");
  const mode = useSignal<"table" | "json">("table");
  const json = useSignal("");
  const note = useSignal("");
  const error = useSignal("");
  const busy = useSignal<AbortController | null>(null);
  const run = async () => {
    const began = performance.now();
    await runJob(busy, error, async (signal) => {
      if (mode.peek() === "json") documents.value = listOfTexts(json.peek());
      const kept = documents.peek().map((text, index) => [text, index] as const).filter(([text]) => text.trim());
      const answer = await send<{ results: { index: number; relevance_score: number }[]; usage?: { total_tokens?: number; prompt_tokens?: number } }>(
        "POST",
        "/v1/rerank",
        { model: rerankModel.peek(), query: query.peek(), documents: kept.map(([text]) => text) },
        HEADERS,
        signal,
      );
      if (!answer.results?.length) throw new Error("The answer holds no score");
      scores.value = new Map(answer.results.map((item) => [kept[item.index]?.[1] ?? item.index, item.relevance_score]));
      const used = answer.usage?.total_tokens ?? answer.usage?.prompt_tokens;
      note.value = `${used ? `${count(used)} tokens, ` : ""}${duration(performance.now() - began)}`;
      if (order.peek() === "none") order.value = "desc";
    });
  };
  const rows = documents.value.map((text, index) => ({ text, index, score: scores.value.get(index) }));
  if (order.value !== "none") {
    rows.sort((a, b) => ((b.score ?? Number.NEGATIVE_INFINITY) - (a.score ?? Number.NEGATIVE_INFINITY)) * (order.value === "desc" ? 1 : -1));
  }
  return (
    <div class="stack">
      <div class="toolbar">
        <ModelSelect label="Reranking model" hint value={rerankModel.value} onChange={(id) => (rerankModel.value = id)} fits={(model) => !!model.capabilities?.reranker} />
        <Segmented
          label="Documents as"
          value={mode.value}
          options={[["table", "Table"], ["json", "JSON"]]}
          onChange={(value) => {
            if (value === "json") json.value = JSON.stringify(documents.peek(), null, 1);
            else {
              try {
                const next = listOfTexts(json.peek());
                if (next.join("\n") !== documents.peek().join("\n")) scores.value = new Map();
                documents.value = next;
                error.value = "";
              } catch (problem) {
                error.value = `${(problem as Error).message}; the table shows the last valid list`;
              }
            }
            mode.value = value;
          }}
        />
        <span class="grow" />
        <span class="muted num">{note.value}</span>
        <Btn
          onClick={() => {
            documents.value = SAMPLES;
            scores.value = new Map();
            order.value = "none";
          }}
        >
          Reset
        </Btn>
      </div>
      <div class="row promptrow">
        <input class="input grow" aria-label="Query" value={query.value} onInput={(event) => (query.value = event.currentTarget.value)} onKeyDown={onEnter(() => void run())} />
        <RunButton busy={busy} label="Rank" disabled={!query.value.trim()} run={run} />
      </div>
      {error.value && <Problem text={error.value} />}
      {mode.value === "json" ? (
        <textarea class="input mono" rows={14} aria-label="Documents as JSON" value={json.value} onInput={(event) => (json.value = event.currentTarget.value)} />
      ) : (
        <div class="panel flush">
          <table class="table">
            <thead>
              <tr>
                <th>Document</th>
                <th class="num" aria-sort={order.value === "none" ? "none" : order.value === "desc" ? "descending" : "ascending"}>
                  <button type="button" onClick={() => (order.value = order.value === "none" ? "desc" : order.value === "desc" ? "asc" : "none")}>
                    Score {order.value === "desc" ? "↓" : order.value === "asc" ? "↑" : ""}
                  </button>
                </th>
                <th><span class="sr">Remove</span></th>
              </tr>
            </thead>
            <tbody>
              {rows.map((row) => (
                <tr key={row.index}>
                  <td>
                    <input
                      class="input small full"
                      aria-label={`Document ${row.index + 1}`}
                      value={row.text}
                      onInput={(event) => (documents.value = documents.value.map((old, i) => (i === row.index ? event.currentTarget.value : old)))}
                    />
                  </td>
                  <td class="num">{row.score === undefined ? "–" : row.score.toFixed(4)}</td>
                  <td class="act">
                    <IconButton
                      icon="close"
                      size={13}
                      label={`Remove document ${row.index + 1}`}
                      onClick={() => {
                        documents.value = documents.value.filter((_, i) => i !== row.index);
                        scores.value = new Map();
                      }}
                    />
                  </td>
                </tr>
              ))}
            </tbody>
          </table>
          <div class="pad"><Btn small onClick={() => (documents.value = [...documents.value, ""])}><Icon name="plus" size={13} /> Document</Btn></div>
        </div>
      )}
    </div>
  );
}

const embedModel = pref("embeddings.model", "");

export function cosine(a: readonly number[], b: readonly number[]): number {
  let dot = 0;
  let x = 0;
  let y = 0;
  for (let i = 0; i < a.length; i++) {
    const p = a[i] as number;
    const q = b[i] ?? 0;
    dot += p * q;
    x += p * p;
    y += q * q;
  }
  return x && y ? dot / Math.sqrt(x * y) : 0;
}

export function Embeddings() {
  const vectors = useSignal<{ texts: string[]; list: number[][]; note: string } | null>(null);
  const error = useSignal("");
  const busy = useSignal<AbortController | null>(null);
  const run = async () => {
    const texts = text.peek().split("\n").map((line) => line.trim()).filter(Boolean).slice(0, 32);
    if (!texts.length) return;
    const began = performance.now();
    await runJob(busy, error, async (signal) => {
      const answer = await send<{ data: { index: number; embedding: number[] }[]; usage?: { prompt_tokens?: number } }>(
        "POST",
        "/v1/embeddings",
        { model: embedModel.peek(), input: texts },
        HEADERS,
        signal,
      );
      const list = [...(answer.data ?? [])].sort((a, b) => a.index - b.index).map((item) => item.embedding);
      if (!list.length) throw new Error("The answer holds no vector");
      const used = answer.usage?.prompt_tokens;
      vectors.value = { texts, list, note: `${list[0]?.length ?? 0} dimensions${used ? `, ${count(used)} tokens` : ""}, ${duration(performance.now() - began)}` };
    });
  };
  const shown = vectors.value;
  return (
    <div class="stack">
      <div class="toolbar">
        <ModelSelect label="Embedding model" hint value={embedModel.value} onChange={(id) => (embedModel.value = id)} fits={(model) => /embed|bge|e5|minilm|gte/i.test(model.id)} />
        <span class="grow" />
        {shown && <span class="muted num">{shown.note}</span>}
        {shown && <IconButton icon="download" label="Download the vectors" onClick={() => saveFile("embeddings.json", JSON.stringify(shown.list), "application/json")} />}
      </div>
      <textarea class="input" rows={6} aria-label="Texts, one per line" value={text.value} onInput={(event) => (text.value = event.currentTarget.value)} />
      <div class="row">
        <RunButton busy={busy} label="Embed" run={run} />
      </div>
      {error.value && <Problem text={error.value} retry={() => void run()} />}
      {shown && (
        <div class="table-scroll" tabIndex={0} role="region" aria-label="Cosine similarity">
          <table class="plain matrix">
            <caption class="sr">Cosine similarity of each pair of texts</caption>
            <thead>
              <tr>
                <th scope="col">Cosine</th>
                {shown.texts.map((_, i) => (
                  <th key={i} scope="col" class="num">{i + 1}</th>
                ))}
              </tr>
            </thead>
            <tbody>
              {shown.list.map((a, i) => (
                <tr key={i}>
                  <th scope="row" class="clip">{i + 1} {shown.texts[i]}</th>
                  {shown.list.map((b, k) => {
                    const value = cosine(a, b);
                    return (
                      <td key={k} class="num" style={{ background: `color-mix(in srgb, var(--accent) ${Math.round(Math.max(0, value) * 38)}%, transparent)` }}>
                        {value.toFixed(2)}
                      </td>
                    );
                  })}
                </tr>
              ))}
            </tbody>
          </table>
        </div>
      )}
    </div>
  );
}
