// What the API keys and models have used: limits of each key, sums over a time, a bar for each day or hour.
import { useSignal } from "@preact/signals";
import { get, request, url } from "../lib/api";
import { count, duration, plural, short } from "../lib/format";
import { Icon } from "../lib/icons";
import { now } from "../lib/link";
import { href, route, setQuery } from "../lib/router";
import type { KeyList, Usage, UsageRow } from "../lib/types";
import { Bar, Btn, Empty, Panel, Problem, Segmented, Spinner, attempt, saveFile, useLoad } from "../lib/widgets";

const SPANS = [["1", "24 h"], ["7", "7 days"], ["30", "30 days"], ["365", "1 year"]] as const;
const GROUPS = [["key,model", "Key and model"], ["key", "Key"], ["model", "Model"], ["client", "Client"]] as const;
const LABELS: Record<string, string> = { key: "Key", model: "Model", client: "Client" };
const HEIGHT = 80;

const tokens = (row: UsageRow): number => row.input_tokens + row.output_tokens;

const windowText = (s: number): string => (s % 86400 ? duration(s * 1000) : s === 86400 ? "24 h" : plural(s / 86400, "day"));

function Keys({ list }: { list: KeyList }) {
  if (!list.keys.length) {
    return <Empty title="No key has a name"><p><code>llamaswap keys add NAME</code> makes a key with a name and limits.</p></Empty>;
  }
  return (
    <div class="scroll" tabIndex={0} role="region" aria-label="Keys">
      <table class="plain">
        <thead><tr><th scope="col">Key</th><th scope="col">May</th><th scope="col">Models</th><th scope="col">Budget</th><th scope="col">Last minute</th><th scope="col">Refused</th><th scope="col">Expires</th></tr></thead>
        <tbody>
          {list.keys.map((key) => (
            <tr key={key.name} data-key={key.name}>
              <th scope="row"><a href={href("requests", { key: key.name })}>{key.name}</a></th>
              <td>{key.scopes.includes("admin") ? "everything" : key.scopes.join(", ")}</td>
              <td>{key.models.join(", ") || "all"}</td>
              <td>
                {key.budget_tokens ? (
                  <>
                    {short(key.used)} of {short(key.budget_tokens)} in {windowText(key.window_s)}
                    <Bar value={key.used} max={key.budget_tokens} label={`Budget of ${key.name}`} />
                  </>
                ) : `${short(key.used)} used`}
              </td>
              <td>
                {count(key.requests_last_minute)}{key.rpm ? ` of ${count(key.rpm)}` : ""} requests, {short(key.tokens_last_minute)}{key.tpm ? ` of ${short(key.tpm)}` : ""} tokens
              </td>
              <td class="num">{count(key.refused)}</td>
              <td>{key.expired ? <b>expired</b> : key.expires.slice(0, 10) || "–"}</td>
            </tr>
          ))}
        </tbody>
      </table>
    </div>
  );
}

/** A bar for each hour or day of the span, also for those without a request. */
function Chart({ rows, unit, since }: { rows: UsageRow[]; unit: "hour" | "day"; since: number }) {
  const step = unit === "hour" ? 3600 : 86400;
  const first = Math.floor(since / 1000 / step) * step;
  const bars = Array.from({ length: Math.floor((now.value / 1000 - first) / step) + 1 }, (_, index) => {
    const at = first + index * step;
    return { at, sum: rows.filter((row) => row[unit] === at).reduce((all, row) => all + tokens(row), 0) };
  });
  const top = Math.max(1, ...bars.map((bar) => bar.sum));
  const when = (at: number): string => new Date(at * 1000).toLocaleString([], unit === "hour" ? { hour: "2-digit", minute: "2-digit" } : { dateStyle: "short", timeZone: "UTC" });
  return (
    <figure class="hist">
      <figcaption>Tokens per {unit} <span class="muted">at most {short(top)}</span></figcaption>
      <svg viewBox={`0 0 ${bars.length} ${HEIGHT}`} preserveAspectRatio="none" role="img" aria-label={`Tokens per ${unit}: ${bars.filter((bar) => bar.sum).map((bar) => `${when(bar.at)} ${count(bar.sum)}`).join(", ") || "none"}`}>
        {bars.map((bar, index) => (
          <rect key={bar.at} x={index + 0.1} y={HEIGHT - (bar.sum / top) * HEIGHT} width={0.8} height={(bar.sum / top) * HEIGHT}>
            <title>{`${when(bar.at)}: ${count(bar.sum)} tokens`}</title>
          </rect>
        ))}
      </svg>
      <div class="hist-legend"><span>{when(first)}</span><span>{when(bars[bars.length - 1]?.at ?? first)}</span></div>
    </figure>
  );
}

export function UsagePage() {
  const { query } = route.value;
  const days = SPANS.find(([value]) => value === query.get("days"))?.[0] ?? "7";
  const by = GROUPS.find(([value]) => value === query.get("by"))?.[0] ?? "key,model";
  const since = useSignal(0);
  since.value = Math.floor(Date.now() / 3600_000 - Number(days) * 24) * 3600_000;
  const params = { by, since: new Date(since.value).toISOString() };
  const unit = days === "1" ? "hour" : "day";
  const keys = useLoad((signal) => get<KeyList>("/api/keys", undefined, signal), []);
  const sums = useLoad((signal) => get<Usage>("/api/usage", params, signal), [days, by]);
  const series = useLoad((signal) => get<Usage>("/api/usage", { ...params, by: unit }, signal), [days]);
  const columns = sums.data?.by ?? [];
  const save = () => attempt("The table was not saved", async () => {
    const answer = await request(url("/api/usage", { ...params, format: "csv" }));
    if (!answer.ok) throw new Error(`HTTP ${answer.status}`);
    saveFile("usage.csv", await answer.text(), "text/csv");
  });
  const error = keys.error || sums.error || series.error;
  return (
    <div class="page">
      <h1 class="sr">Usage</h1>
      {error && <Problem text={error} retry={() => { keys.reload(); sums.reload(); series.reload(); }} />}
      <Panel title="Keys">{keys.data ? <Keys list={keys.data} /> : <Spinner />}</Panel>
      <Panel
        title="Use"
        aside={<>
          <Segmented label="Time" value={days} options={SPANS} onChange={(value) => setQuery({ days: value })} />
          <Segmented label="Sum by" value={by} options={GROUPS} onChange={(value) => setQuery({ by: value })} />
          <Btn small onClick={() => void save()}><Icon name="download" size={13} /> CSV</Btn>
        </>}
      >
        {series.data && <Chart rows={series.data.rows} unit={unit} since={since.value} />}
        {!sums.data ? <Spinner /> : !sums.data.rows.length ? <Empty title="Nothing was used in this time" /> : (
          <div class="scroll" tabIndex={0} role="region" aria-label="Sums">
            <table class="plain usage">
              <thead>
                <tr>
                  {columns.map((name) => <th scope="col" key={name}>{LABELS[name] ?? name}</th>)}
                  {["Requests", "Errors", "Prompt", "Generated", "Cached", "Time"].map((name) => <th scope="col" key={name}>{name}</th>)}
                </tr>
              </thead>
              <tbody>
                {sums.data.rows.map((row) => (
                  <tr key={columns.map((name) => row[name]).join("\n")}>
                    {columns.map((name) => <td key={name}>{String(row[name] || (name === "key" ? "no name" : "–"))}</td>)}
                    <td class="num">{count(row.requests)}</td>
                    <td class="num">{count(row.errors)}</td>
                    <td class="num">{count(row.input_tokens)}</td>
                    <td class="num">{count(row.output_tokens)}</td>
                    <td class="num">{count(row.cache_tokens)}</td>
                    <td class="num">{duration(row.duration_ms)}</td>
                  </tr>
                ))}
              </tbody>
            </table>
          </div>
        )}
      </Panel>
    </div>
  );
}
