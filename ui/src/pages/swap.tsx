// One swap: what was asked, who had to go, and where the time went.
import { load } from "../lib/actions";
import { clockTime, duration, median, plainError, seconds } from "../lib/format";
import { now } from "../lib/link";
import { href, route } from "../lib/router";
import { swap, swapFailed, swapRevision, swaps } from "../lib/state";
import { Waterfall } from "../lib/waterfall";
import { Btn, Empty, Facts, Panel, Problem, Spinner, useLoad } from "../lib/widgets";

const KIND: Record<string, string> = {
  queued: "draining",
  draining: "draining",
  drain: "draining",
  stopping: "draining",
  stop: "draining",
  start: "loading",
  spawning: "loading",
  spawn: "loading",
  health: "loading",
  health_check: "loading",
  loading: "loading",
  ready: "ready",
  first_token: "busy",
};

const NAMES: Record<string, string> = { queued: "waited for its turn", stop: "unloaded others", start: "started its server" };
const phaseName = (name: string): string => NAMES[name] ?? name.replaceAll("_", " ").replaceAll("-", " ");

export function SwapPage() {
  const id = route.value.query.get("id") ?? "";
  const { data, error, loading, reload } = useLoad(async () => (id ? swap(id) : null), [id, swapRevision.value]);
  const all = useLoad(() => swaps(), [swapRevision.value]);
  const others = (all.data ?? []).filter((item) => data && item.model === data.model && item.id !== data.id && !swapFailed(item) && item.end);
  const usual = new Map<string, number>();
  for (const name of new Set(others.flatMap((item) => item.phases.map((phase) => phase.name)))) {
    usual.set(
      name,
      median(others.flatMap((item) => item.phases.filter((phase) => phase.name === name && phase.end).map((phase) => (phase.end as number) - phase.start))),
    );
  }
  return (
    <div class="page swap-page">
      <div class="page-head">
        <div class="grow">
          <p class="crumb"><a href={href("")}>Overview</a></p>
          <h1>{data ? `Swap to ${data.model}` : id ? "Swap" : "Swaps"}</h1>
        </div>
        {data && swapFailed(data) && <Btn primary onClick={() => void load(data.model)}>Load again</Btn>}
      </div>
      {error && <Problem text={error} retry={reload} />}
      {!data && loading && <Spinner />}
      {!data && !loading && !error && id && <Empty title="The server no longer knows this swap" />}
      {!id && all.data && !all.data.length && <Empty title="No model was loaded yet" />}
      {data && (
        <>
          {data.error && <Problem text={`${plainError(data.error)}${data.exit_code === null ? "" : ` (exit code ${data.exit_code})`}`} />}
          <Panel title="What happened">
            <Facts
              items={[
                ["Model", <a href={href("model", { id: data.model })}>{data.model}</a>],
                ["Began", clockTime(data.start)],
                ["Took", data.end ? seconds(data.end - data.start) : `${seconds(now.value - data.start)} so far`],
                ["Result", swapFailed(data) ? "failed" : data.end ? "ready" : "under way"],
                ["Requested by", data.trigger],
                ["Unloaded", data.evicted.length ? data.evicted.join(", ") : "nothing"],
                ["Why", data.explanation],
                ["Usual load", others.length ? `${seconds(median(others.map((item) => (item.end as number) - item.start)))} (median of ${others.length})` : ""],
              ]}
            />
          </Panel>
          {data.phases.length > 0 && (
            <Panel title="Where the time went">
              <Waterfall rows={data.phases.map((phase) => ({ label: phaseName(phase.name), kind: KIND[phase.name] ?? "loading", start: phase.start, end: phase.end ?? now.value, usual: usual.get(phase.name) }))} />
            </Panel>
          )}
          {data.log_tail && (
            <Panel title="Last lines of its log" aside={<a href={href("logs", { src: data.model })}>Whole log</a>}>
              <pre class="code" tabIndex={0}>{data.log_tail.trimEnd().split("\n").slice(-40).join("\n")}</pre>
            </Panel>
          )}
        </>
      )}
      {(all.data ?? []).length > (id ? 1 : 0) && (
        <Panel title="Recent swaps" class="flush">
          <div class="table-scroll" tabIndex={0} role="region" aria-label="Table of recent swaps">
            <table class="table">
              <thead>
                <tr>
                  <th>Began</th>
                  <th>Model</th>
                  <th>Result</th>
                  <th class="num">Took</th>
                  <th>Unloaded</th>
                </tr>
              </thead>
              <tbody>
                {(all.data ?? []).slice(0, 30).map((item) => (
                  <tr key={item.id}>
                    <td><a href={href("swap", { id: item.id })} aria-current={item.id === id ? "true" : undefined}>{clockTime(item.start)}</a></td>
                    <td>{item.model}</td>
                    <td>{swapFailed(item) ? `failed: ${plainError(item.error) || item.outcome}` : item.end ? "ready" : "under way"}</td>
                    <td class="num">{item.end ? duration(item.end - item.start) : "–"}</td>
                    <td>{item.evicted.join(", ") || "–"}</td>
                  </tr>
                ))}
              </tbody>
            </table>
          </div>
        </Panel>
      )}
    </div>
  );
}
