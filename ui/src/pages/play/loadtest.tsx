// Load tests are run by the server: a browser has six connections to it, a test wants a hundred.
import { useSignal } from "@preact/signals";
import { useEffect } from "preact/hooks";
import { ApiError, get, listOf, send } from "../../lib/api";
import { count, duration, known, rate } from "../../lib/format";
import { ModelSelect } from "../../lib/modelselect";
import { pref } from "../../lib/prefs";
import { Bar, Btn, Empty, Field, IconButton, Panel, Problem, attempt, saveFile } from "../../lib/widgets";

interface Spread {
  p50: number;
  p90?: number;
  p95: number;
  p99: number;
}

interface Shot {
  lane: number;
  began_ms: number;
  ttft_ms: number | null;
  duration_ms: number;
  status: number;
}

interface Result {
  id: string;
  state: string;
  model: string;
  concurrency: number;
  max_tokens: number;
  done: number;
  total: number;
  elapsed_ms: number;
  load_ms?: number | null;
  results: {
    errors: number;
    statuses?: Record<string, number>;
    requests_per_second: number | null;
    tokens_per_second: number | null;
    ttft_ms: Spread | null;
    itl_ms: Spread | null;
    duration_ms: Spread | null;
  };
  /** The last requests, one by one; only of a run that the server still knows. */
  shots?: Shot[];
  /** When this browser saw it end. */
  at?: number;
}

const order = pref("loadtest.order", { model: "", prompt: "Write a short story about a llama.", concurrency: "8", requests: "24", max_tokens: "128" });
const kept = pref<Result[]>("loadtest.results", []);

const active = (run: { state: string } | null): boolean => run?.state === "running" || run?.state === "loading";
const key = (run: Result): string => `${run.id}/${run.at ?? 0}`;

function Spreads({ run }: { run: Result }) {
  const rows: [string, Spread | null][] = [
    ["First token", run.results.ttft_ms],
    ["Between tokens", run.results.itl_ms],
    ["Whole request", run.results.duration_ms],
  ];
  return (
    <table class="plain">
      <thead>
        <tr>
          <th scope="col" />
          <th scope="col">p50</th>
          <th scope="col">p95</th>
          <th scope="col">p99</th>
        </tr>
      </thead>
      <tbody>
        {rows.map(([name, spread]) => (
          <tr key={name}>
            <th scope="row">{name}</th>
            {(["p50", "p95", "p99"] as const).map((p) => (
              <td key={p} class="num">{spread ? duration(spread[p]) : "–"}</td>
            ))}
          </tr>
        ))}
      </tbody>
    </table>
  );
}

/** Each request as a bar: lighter until its first token. One row for each of those at once. */
function Gantt({ run }: { run: Result }) {
  const asTable = useSignal(false);
  const shots = run.shots ?? [];
  if (!shots.length) return null;
  const rows = Math.max(...shots.map((shot) => shot.lane)) + 1;
  const end = Math.max(...shots.map((shot) => shot.began_ms + shot.duration_ms), 1);
  const [w, h] = [1000, rows > 24 ? 6 : 12];
  const x = (ms: number) => (ms / end) * w;
  const say = (shot: Shot) => `${shot.status === 200 ? "" : `failed (${shot.status || "no answer"}), `}began after ${duration(shot.began_ms)}, first token ${duration(shot.ttft_ms)}, took ${duration(shot.duration_ms)}`;
  return (
    <section class="gantt" aria-label="Requests over time">
      <div class="row">
        <h3 class="grow">Requests over time</h3>
        <Btn small aria-pressed={asTable.value} onClick={() => (asTable.value = !asTable.value)}>Table</Btn>
      </div>
      <svg viewBox={`0 0 ${w} ${rows * (h + 2)}`} preserveAspectRatio="none" style={{ height: `${Math.min(340, rows * (h + 2))}px` }} role="img" aria-label={`${shots.length} requests in ${rows} rows over ${duration(end)}; the table has them one by one`}>
        {shots.map((shot, i) => {
          const first = shot.ttft_ms ?? shot.duration_ms;
          return (
            <g key={i} transform={`translate(${x(shot.began_ms)} ${shot.lane * (h + 2)})`}>
              <title>{say(shot)}</title>
              <rect class={shot.status === 200 ? "g-wait" : "g-bad"} width={Math.max(1, x(first))} height={h} />
              <rect class={shot.status === 200 ? "g-run" : "g-bad"} x={x(first)} width={Math.max(0, x(shot.duration_ms - first) - 1)} height={h} />
            </g>
          );
        })}
      </svg>
      <p class="legend" aria-hidden="true">
        <span><i class="swatch g-wait" /> until the first token</span>
        <span><i class="swatch g-run" /> answering</span>
        <span><i class="swatch g-bad" /> failed</span>
        <span class="grow" />
        <span class="num">0 to {duration(end)}</span>
      </p>
      {asTable.value && (
        <div class="table-scroll short" tabIndex={0} role="region" aria-label="Requests of the test">
          <table class="table">
            <thead><tr>{["Row", "Began", "First token", "Took", "Status"].map((name) => <th key={name} class="num">{name}</th>)}</tr></thead>
            <tbody>
              {shots.map((shot, i) => (
                <tr key={i}>{[shot.lane + 1, duration(shot.began_ms), duration(shot.ttft_ms), duration(shot.duration_ms), shot.status || "none"].map((cell, k) => <td key={k} class="num">{cell}</td>)}</tr>
              ))}
            </tbody>
          </table>
        </div>
      )}
    </section>
  );
}

function Saved() {
  const picked = useSignal<string[]>([]);
  const best = (pick: (run: Result) => number | null, high: boolean): number | null => {
    const values = kept.value.map(pick).filter((value): value is number => value !== null);
    return values.length ? (high ? Math.max(...values) : Math.min(...values)) : null;
  };
  const top = best((run) => run.results.tokens_per_second, true);
  const compared = kept.value.filter((run) => picked.value.includes(key(run)));
  return (
    <>
      <Panel
        class="flush"
        title="Saved results"
        aside={
          kept.value.length > 0 && (
            <>
              <IconButton icon="download" label="Download as JSON" onClick={() => saveFile("loadtests.json", JSON.stringify(kept.value, null, 1), "application/json")} />
              <Btn small onClick={() => (kept.value = [])}>Forget all</Btn>
            </>
          )
        }
      >
        {kept.value.length ? (
          <div class="table-scroll" tabIndex={0} role="region" aria-label="Saved load tests">
            <table class="table">
              <thead>
                <tr>
                  <th><span class="sr">Compare</span></th>
                  <th>Model</th>
                  <th>Result</th>
                  <th class="num">Parallel</th>
                  <th class="num">Requests</th>
                  <th class="num">Errors</th>
                  <th class="num">t/s</th>
                  <th class="num">First token p50</th>
                  <th class="num">p95</th>
                  <th class="num">Took</th>
                </tr>
              </thead>
              <tbody>
                {kept.value.map((run) => (
                  <tr key={key(run)}>
                    <td>
                      <input
                        type="checkbox"
                        aria-label={`Compare the test of ${run.model}`}
                        checked={picked.value.includes(key(run))}
                        onChange={() => (picked.value = picked.value.includes(key(run)) ? picked.value.filter((item) => item !== key(run)) : [...picked.value, key(run)].slice(-3))}
                      />
                    </td>
                    <td>{run.model}</td>
                    <td>{run.state}</td>
                    <td class="num">{run.concurrency}</td>
                    <td class="num">{run.done}/{run.total}</td>
                    <td class={`num ${run.results.errors ? "bad" : ""}`}>{run.results.errors}</td>
                    <td class={`num ${run.results.tokens_per_second === top ? "strong" : ""}`}>{rate(run.results.tokens_per_second)}</td>
                    <td class="num">{duration(run.results.ttft_ms?.p50)}</td>
                    <td class="num">{duration(run.results.ttft_ms?.p95)}</td>
                    <td class="num">{duration(run.elapsed_ms)}</td>
                  </tr>
                ))}
              </tbody>
            </table>
          </div>
        ) : (
          <Empty title="Finished tests are kept here, in this browser" />
        )}
      </Panel>
      {compared.length > 1 && (
        <div class="columns-grid">
          {compared.map((run) => (
            <Panel key={key(run)} title={`${run.model}, ${run.concurrency} at once`}>
              <p class="num">{rate(run.results.tokens_per_second)} t/s, {rate(run.results.requests_per_second)} requests/s</p>
              <Spreads run={run} />
            </Panel>
          ))}
        </div>
      )}
    </>
  );
}

export function LoadTest() {
  const run = useSignal<Result | null>(null);
  const error = useSignal("");
  const form = order.value;
  const set = (update: Partial<typeof form>) => (order.value = { ...order.peek(), ...update });
  useEffect(() => {
    get<unknown>("/api/loadtest").then(
      (answer) => {
        // The one that runs, else the last one: it is still worth a look after a reload.
        const runs = listOf<Result>(answer, "runs");
        const last = runs.find(active) ?? runs[0];
        if (last) return get<Result>(`/api/loadtest/${last.id}`).then((whole) => (run.value ??= whole));
      },
      () => undefined,
    );
  }, []);
  const id = active(run.value) ? (run.value?.id ?? "") : "";
  useEffect(() => {
    if (!id) return;
    const timer = setInterval(() => {
      get<Result>(`/api/loadtest/${id}`).then(
        (next) => {
          // Answers may overtake each other; a test ends once.
          if (run.peek()?.id !== id || !active(run.peek())) return;
          [run.value, error.value] = [next, ""];
          if (!active(next)) kept.value = [{ ...next, shots: undefined, at: Date.now() }, ...kept.peek()].slice(0, 40);
        },
        (problem: Error) => {
          error.value = problem.message;
          // A server that was started anew knows nothing of it.
          if (problem instanceof ApiError && problem.status === 404 && run.peek()?.id === id) run.value = { ...(run.peek() as Result), state: "lost" };
        },
      );
    }, 500);
    return () => clearInterval(timer);
  }, [id]);
  const start = async () => {
    error.value = "";
    try {
      run.value = await send<Result>("POST", "/api/loadtest", {
        model: form.model,
        prompt: form.prompt,
        concurrency: Number(form.concurrency) || 1,
        requests: Number(form.requests) || 1,
        max_tokens: Number(form.max_tokens) || 128,
      });
    } catch (problem) {
      error.value = (problem as Error).message;
    }
  };
  const box = (name: "concurrency" | "requests" | "max_tokens", label: string) => (
    <Field label={label}><input class="input" inputMode="numeric" value={form[name]} onInput={(event) => set({ [name]: event.currentTarget.value })} /></Field>
  );
  return (
    <div class="stack">
      <Panel title="Load test" aside={<span class="muted">The server sends the requests itself</span>}>
        <div class="stack">
          <div class="cols2 loadform">
            <Field label="Model"><ModelSelect label="Model to test" hint value={form.model} onChange={(model) => set({ model })} /></Field>
            {box("concurrency", "Parallel requests")}
            {box("requests", "Requests")}
            {box("max_tokens", "Max tokens each")}
          </div>
          <Field label="Prompt"><textarea class="input" rows={2} value={form.prompt} onInput={(event) => set({ prompt: event.currentTarget.value })} /></Field>
          <div class="row">
            {id ? (
              <Btn danger onClick={() => void attempt("Stopping the test", () => send("DELETE", `/api/loadtest/${id}`))}>Stop</Btn>
            ) : (
              <Btn primary disabled={!form.model} onClick={() => void start()}>Run</Btn>
            )}
          </div>
          {error.value && <Problem text={error.value} />}
        </div>
      </Panel>
      {run.value && (
        <Panel title={`${run.value.model}: ${run.value.state === "loading" ? "loading, not counted" : run.value.state}`} aside={<span class="num">{duration(run.value.elapsed_ms)}</span>}>
          <div class="stack" aria-live="polite">
            <div class="meter-line">
              <span class="num">{count(run.value.done)}/{count(run.value.total)}</span>
              <Bar value={run.value.done} max={run.value.total} label="Requests done" />
              <span class="num">
                {known(run.value.load_ms) && <span class="muted">first request, not counted, {duration(run.value.load_ms)}; </span>}
                <b>{rate(run.value.results.tokens_per_second)}</b> t/s, {rate(run.value.results.requests_per_second)} requests/s
                {run.value.results.errors > 0 && <span class="bad">, {run.value.results.errors} failed</span>}
              </span>
            </div>
            <Spreads run={run.value} />
          </div>
          <Gantt run={run.value} />
        </Panel>
      )}
      <Saved />
    </div>
  );
}
