// Finished requests: filters live in the address, statistics follow the filter, a drawer shows one request.
import { useSignal } from "@preact/signals";
import { useEffect, useRef } from "preact/hooks";
import { ApiError, errorText, get, request, url } from "../lib/api";
import { ago, clockTime, count, duration, plainError, plural, rate, short, time } from "../lib/format";
import { Histogram } from "../lib/histogram";
import { Icon } from "../lib/icons";
import { memo } from "../lib/memo";
import { now, reopened, whyUnknown } from "../lib/link";
import { PHASE_WORDS, phasesOf } from "../lib/phases";
import { pref } from "../lib/prefs";
import { href, route, setQuery } from "../lib/router";
import { activityRevision, activitySettled, localModels, models } from "../lib/state";
import { useWindow } from "../lib/table";
import { Btn, Dialog, Empty, Field, IconButton, Panel, Problem, Spinner, StatusCode, copyText, saveFile, toast, useLoad } from "../lib/widgets";
import { RequestDrawer } from "../lib/drawer";
import type { ActivityPage, ActivityRow, Stats } from "../lib/types";

interface Column {
  id: string;
  label: string;
  sort?: string;
  num?: boolean;
  hint?: string;
  on: boolean;
  cell: (row: ActivityRow) => string;
}

const tokens = (value: number): string => (value > 0 ? count(value) : "–");

export const COLUMNS: Column[] = [
  { id: "id", label: "ID", sort: "id", num: true, on: false, cell: (r) => String(r.id) },
  { id: "time", label: "Time", sort: "time", on: true, cell: (r) => clockTime(time(r.timestamp)) },
  { id: "model", label: "Model", sort: "model", on: true, cell: (r) => r.model },
  { id: "status", label: "Status", sort: "resp_status_code", on: true, cell: (r) => String(r.resp_status_code) },
  { id: "path", label: "Path", sort: "req_path", on: true, cell: (r) => r.req_path },
  { id: "type", label: "Content type", sort: "resp_content_type", on: false, cell: (r) => r.resp_content_type },
  { id: "waited", label: "Waited", num: true, hint: "Until its turn, without the load of its model", on: true, cell: (r) => duration(r.queued_ms || undefined) },
  { id: "loaded", label: "Loaded", sort: "loaded", num: true, hint: "How long it waited for the load of its model", on: true, cell: (r) => duration(r.loaded_ms || undefined) },
  { id: "first", label: "First token", sort: "first_token", num: true, hint: "From the request to the first data of the answer", on: true, cell: (r) => duration(r.ttft_ms) },
  { id: "cached", label: "Cached", sort: "cached", num: true, hint: "Prompt tokens taken from the cache", on: false, cell: (r) => tokens(r.tokens.cache_tokens) },
  { id: "prompt", label: "Prompt", sort: "prompt", num: true, hint: "New prompt tokens processed", on: true, cell: (r) => tokens(r.tokens.input_tokens) },
  { id: "generated", label: "Generated", sort: "generated", num: true, hint: "Tokens generated", on: true, cell: (r) => tokens(r.tokens.output_tokens) },
  {
    id: "drafted",
    label: "Drafted",
    sort: "drafted",
    num: true,
    hint: "Draft tokens accepted by the model",
    on: false,
    cell: (r) =>
      r.tokens.draft_tokens > 0
        ? `${Math.round((r.tokens.draft_acc_tokens / r.tokens.draft_tokens) * 100)} % (${r.tokens.draft_acc_tokens}/${r.tokens.draft_tokens})`
        : "–",
  },
  { id: "prefill", label: "Prefill t/s", sort: "prompt_speed", num: true, on: false, cell: (r) => rate(r.tokens.prompt_per_second) },
  { id: "decode", label: "Decode t/s", sort: "gen_speed", num: true, on: true, cell: (r) => rate(r.tokens.tokens_per_second) },
  { id: "duration", label: "Duration", sort: "duration", num: true, on: true, cell: (r) => duration(r.duration_ms) },
  { id: "phases", label: "Breakdown", hint: "Where the time went", on: true, cell: (r) => phasesOf(r).map((part) => `${PHASE_WORDS[part.name]} ${duration(part.ms)}`).join(", ") },
  { id: "session", label: "Session", on: false, cell: (r) => r.session ?? "–" },
  { id: "client", label: "Client", on: false, cell: (r) => r.client ?? "–" },
  { id: "key", label: "Key", on: true, cell: (r) => r.key ?? "–" },
  {
    id: "meta",
    label: "Metadata",
    on: false,
    cell: (r) =>
      Object.entries(r.metadata ?? {})
        .map(([key, value]) => `${key}=${value}`)
        .join(" ") || "–",
  },
];

const order = pref<string[]>("requests.columns", COLUMNS.filter((c) => c.on).map((c) => c.id));
const statsOpen = pref<boolean>("requests.stats", true);
const ROW = 29;

const FILTERS = ["model", "status", "path", "session", "client", "key", "q", "min_ms", "since", "start", "end", "min_id", "max_id"] as const;
const SINCE: [string, string][] = [["", "any time"], ["15m", "last 15 min"], ["1h", "last hour"], ["24h", "last 24 h"], ["7d", "last 7 days"]];

export function apiQuery(query: URLSearchParams): Record<string, string | string[]> {
  const out: Record<string, string | string[]> = {};
  for (const name of FILTERS) {
    const value = query.get(name);
    if (!value) continue;
    if (name === "since") {
      const [, amount, unit] = /^(\d+)([mhd])$/.exec(value) ?? [];
      const ms = Number(amount) * ({ m: 60_000, h: 3600_000, d: 86400_000 }[unit ?? "h"] ?? 0);
      if (ms) out.start = new Date(Date.now() - ms).toISOString();
    } else if (name === "model") out.model = value.split("|");
    else if (name === "status" && value === "error") out.has_error = "true";
    else out[name] = value;
  }
  return out;
}

const Row = memo(function Row({ row, columns, open }: { row: ActivityRow; columns: string; open: (id: number) => void }) {
  const shown = columns.split(" ").map((id) => COLUMNS.find((c) => c.id === id)).filter((c): c is Column => !!c);
  return (
    <tr role="row" data-row data-id={row.id} class={row.error_msg || row.resp_status_code >= 400 ? "row-bad" : ""} onClick={() => open(row.id)}>
      {shown.map((column, index) => {
        const text = column.cell(row);
        const inner =
          column.id === "status" ? (
            <><StatusCode code={row.resp_status_code} failed={Boolean(row.error_msg)} /> {row.error_msg && <span class="errmsg">{plainError(row.error_msg)}</span>}</>
          ) : column.id === "model" ? (
            <a href={href("model", { id: row.model })} onClick={(event) => event.stopPropagation()}>{text}</a>
          ) : column.id === "phases" ? (
            <span class="phasebar" role="img" aria-label={text || "unknown"}>
              {phasesOf(row).map((part) => <i key={part.name} class={`ph-${part.name}`} style={{ flexGrow: part.ms }} />)}
            </span>
          ) : (
            text
          );
        return (
          <td
            key={column.id}
            role="cell"
            class={`${column.num ? "num" : "clip"} col-${column.id}`}
            data-label={column.label}
            title={column.id === "status" ? row.error_msg : column.num ? undefined : text}
          >
            {index === 0 ? (
              <button
                type="button"
                class="rowlink"
                data-open
                aria-label={`Request ${row.id}: ${text}`}
                onClick={(event) => {
                  event.stopPropagation();
                  open(row.id);
                }}
              >
                {inner}
              </button>
            ) : (
              inner
            )}
          </td>
        );
      })}
      <td role="cell" class="col-capture">{row.has_capture && <span class="tag" title="Request and answer were captured">capture</span>}</td>
    </tr>
  );
});

function ColumnMenu({ onClose }: { onClose: () => void }) {
  const all = [...order.value, ...COLUMNS.map((c) => c.id).filter((id) => !order.value.includes(id))];
  const move = (id: string, by: number) => {
    const list = [...order.value];
    const at = list.indexOf(id);
    const to = at + by;
    if (at < 0 || to < 0 || to >= list.length) return;
    list.splice(at, 1);
    list.splice(to, 0, id);
    order.value = list;
  };
  return (
    <Dialog title="Columns" class="narrow" onClose={onClose} footer={<Btn onClick={() => (order.value = COLUMNS.filter((c) => c.on).map((c) => c.id))}>Defaults</Btn>}>
      <ul class="plainlist columns">
        {all.map((id) => {
          const column = COLUMNS.find((c) => c.id === id);
          if (!column) return null;
          const on = order.value.includes(id);
          return (
            <li key={id}>
              <label class="check grow">
                <input
                  type="checkbox"
                  checked={on}
                  disabled={on && order.value.length === 1}
                  onChange={() => (order.value = on ? order.value.filter((item) => item !== id) : [...order.value, id])}
                />
                {column.label}
              </label>
              {on && (
                <>
                  <Btn small aria-label={`Move ${column.label} left`} onClick={() => move(id, -1)}>↑</Btn>
                  <Btn small aria-label={`Move ${column.label} right`} onClick={() => move(id, 1)}>↓</Btn>
                </>
              )}
            </li>
          );
        })}
      </ul>
    </Dialog>
  );
}

function ExportDialog({ total, onClose }: { total: number; onClose: () => void }) {
  const format = useSignal("csv");
  const busy = useSignal(false);
  const run = async (copy: boolean) => {
    busy.value = true;
    try {
      const response = await request(url("/api/metrics/export", { ...apiQuery(route.value.query), format: format.value }));
      const text = await response.text();
      if (!response.ok) throw new ApiError(response.status, errorText(response.status, text));
      if (copy) await copyText(text);
      else saveFile(`requests.${{ csv: "csv", jsonl: "jsonl", md: "md" }[format.value]}`, text);
    } catch (error) {
      toast("error", `Exporting: ${(error as Error).message}`);
    }
    busy.value = false;
  };
  return (
    <Dialog
      title="Export"
      class="narrow"
      onClose={onClose}
      footer={
        <>
          {busy.value && <Spinner label="Fetching" />}
          <Btn disabled={busy.value} onClick={() => void run(true)}><Icon name="copy" /> Copy</Btn>
          <Btn primary disabled={busy.value} onClick={() => void run(false)}><Icon name="download" /> Download</Btn>
        </>
      }
    >
      <p>{plural(total, "request")} as filtered. Figures that a server did not report stay blank.</p>
      <Field label="Format">
        <select class="input" value={format.value} onChange={(event) => (format.value = event.currentTarget.value)}>
          <option value="csv">CSV</option>
          <option value="jsonl">JSON lines</option>
          <option value="md">Markdown table</option>
        </select>
      </Field>
    </Dialog>
  );
}

export function StatsStrip({ query }: { query: Record<string, string | string[]> }) {
  const key = JSON.stringify(query);
  const { data } = useLoad((signal) => get<Stats>("/api/metrics/stats", query, signal), [key.replace(/"start":"[^"]*"/, ""), activitySettled.value]);
  if (!data) return null;
  return (
    <div class="stats">
      <dl class="totals">
        {(
          [
            ["Requests", data.total_requests],
            ["Cached", data.total_cache_tokens],
            ["Prompt", data.total_input_tokens],
            ["Generated", data.total_output_tokens],
          ] as const
        ).map(([label, value]) => (
          <div key={label}>
            <dt>{label}</dt>
            <dd title={count(value)}>{short(value)}</dd>
          </div>
        ))}
      </dl>
      <Histogram title="Prefill" data={data.prompt_histogram} kind="prefill" />
      <Histogram title="Decode" data={data.gen_histogram} kind="decode" />
    </div>
  );
}

export function Requests() {
  return (
    <div class="page requests-page">
      <div class="page-head"><h1>Requests</h1></div>
      <RequestsView />
    </div>
  );
}

export function RequestsView({ model }: { model?: string }) {
  const { query: address } = route.value;
  const query = new URLSearchParams(address);
  if (model) query.set("model", model);
  const rows = useSignal<ActivityRow[]>([]);
  const total = useSignal(0);
  const fresh = useSignal(0);
  const error = useSignal("");
  const loading = useSignal(true);
  const menu = useSignal<"" | "columns" | "export">("");
  // What is typed is a search after a pause; until then it is the box's own, however often the page is drawn.
  const typed = useSignal<string | null>(null);
  const host = useRef<HTMLDivElement>(null);
  const paged = useRef(false);
  const seen = useRef(0);
  const asked = useRef(0);
  const sort = query.get("sort") ?? "id";
  const dir = query.get("order") ?? "desc";
  const open = query.get("open");
  const filterKey = [...FILTERS, "sort", "order"].map((name) => query.get(name) ?? "").join("\u0001");

  const fetchPage = async (more: boolean): Promise<void> => {
    const params: Record<string, string | number | string[]> = { ...apiQuery(query), limit: 100, sort, order: dir };
    const last = rows.peek().at(-1);
    if (more && last) {
      // By id a page starts where the last one ended, so rows that arrive meanwhile shift nothing.
      if (sort === "id" && dir === "desc") params.max_id = last.id - 1;
      else params.page = Math.floor(rows.peek().length / 100) + 1;
    }
    if (more && last && sort === "id" && last.id <= 1) return;
    loading.value = true;
    // Answers may overtake each other: only the one to the last question is shown.
    const turn = ++asked.current;
    try {
      const page = await get<ActivityPage>("/api/metrics/activity", params);
      if (turn !== asked.current) return;
      const kept = page.data;
      rows.value = more ? [...rows.peek(), ...kept] : kept;
      if (!more) {
        total.value = page.total;
        fresh.value = 0;
        paged.current = false;
      } else paged.current = true;
      error.value = "";
    } catch (problem) {
      if (turn !== asked.current) return;
      error.value = (problem as Error).message;
    }
    loading.value = false;
  };

  useEffect(() => { void fetchPage(false); }, [filterKey, model, reopened.value]);
  useEffect(() => {
    if (typed.value === null) return;
    const timer = setTimeout(() => (setQuery({ q: typed.peek() }), (typed.value = null)), 400);
    return () => clearTimeout(timer);
  }, [typed.value]);

  const revision = activityRevision.value;
  useEffect(() => {
    const added = revision - seen.current;
    seen.current = revision;
    if (!revision || added <= 0) return;
    const scrolled = (host.current?.scrollTop ?? 0) > 20;
    if (paged.current || scrolled || sort !== "id" || dir !== "desc") {
      fresh.value += added;
      return;
    }
    const timer = setTimeout(() => void fetchPage(false), 700);
    return () => clearTimeout(timer);
  }, [revision]);

  const win = useWindow(host, rows.value.length, ROW);
  const columns = order.value.filter((id) => !(model && id === "model") && !(id === "key" && !rows.value.some((row) => row.key))).join(" ");
  const openRow = (id: number) => setQuery({ open: id }, !!open);
  const active = FILTERS.filter((name) => address.get(name) && !(model && name === "model"));
  const sortBy = (column: Column) => {
    if (!column.sort) return;
    setQuery({ sort: column.sort, order: sort === column.sort && dir === "desc" ? "asc" : "desc" });
  };
  const drawerList = rows.value;
  const at = open ? drawerList.findIndex((row) => String(row.id) === open) : -1;

  return (
    <>
      <div class="toolbar filters" role="search">
        <input
          class="input grow"
          type="search"
          data-filter
          placeholder="Search model, path, error…"
          aria-label="Search requests"
          value={typed.value ?? address.get("q") ?? ""}
          onInput={(event) => (typed.value = event.currentTarget.value)}
        />
        {!model && (
          <select class="input" aria-label="Model" value={address.get("model") ?? ""} onChange={(event) => setQuery({ model: event.currentTarget.value })}>
            <option value="">every model</option>
            {(address.get("model") ?? "").includes("|") && <option value={address.get("model") ?? ""}>{address.get("model")}</option>}
            {models.value.map((item) => (
              <option key={item.peerID + item.id}>{item.id}</option>
            ))}
          </select>
        )}
        <select class="input" aria-label="Status" value={address.get("status") ?? ""} onChange={(event) => setQuery({ status: event.currentTarget.value })}>
          <option value="">any status</option>
          <option value="error">with an error</option>
          <option value="2xx">2xx</option>
          <option value="4xx">4xx</option>
          <option value="5xx">5xx</option>
          {/^\d{3}$/.test(address.get("status") ?? "") && <option>{address.get("status")}</option>}
        </select>
        <select class="input" aria-label="Time" value={address.get("since") ?? ""} onChange={(event) => setQuery({ since: event.currentTarget.value })}>
          {SINCE.map(([value, label]) => (
            <option key={value} value={value}>{label}</option>
          ))}
        </select>
        <MoreFilters />
        {active.length > 0 && (
          <Btn onClick={() => setQuery(Object.fromEntries(FILTERS.filter((n) => !(model && n === "model")).map((n) => [n, null])))}>
            Clear {plural(active.length, "filter")}
          </Btn>
        )}
        <IconButton icon="overview" label="Statistics" pressed={statsOpen.value} onClick={() => (statsOpen.value = !statsOpen.value)} />
        <IconButton icon="columns" label="Columns" onClick={() => (menu.value = "columns")} />
        <IconButton icon="download" label="Export" onClick={() => (menu.value = "export")} />
      </div>
      {statsOpen.value && <StatsStrip query={apiQuery(query)} />}
      {error.value && <Problem text={`Requests: ${error.value}`} retry={() => void fetchPage(false)} />}
      <Panel
        class="flush"
        title={<span>{total.value ? plural(total.value, "request") : "Requests"}</span>}
        aside={
          <>
            {fresh.value > 0 && <Btn small primary onClick={() => (host.current?.scrollTo(0, 0), void fetchPage(false))}>{fresh.value} new</Btn>}
            {loading.value && <Spinner />}
            {rows.value[0] && <span class="muted">latest {ago(time(rows.value[0].timestamp), now.value)}</span>}
          </>
        }
      >
        {rows.value.length ? (
          <div class="table-scroll tall" ref={host} tabIndex={0} role="region" aria-label="Finished requests">
            <table class="table cards requests" role="table">
              <thead role="rowgroup">
                <tr role="row">
                  {columns.split(" ").map((id) => {
                    const column = COLUMNS.find((c) => c.id === id);
                    if (!column) return null;
                    const sorted = sort === column.sort || (column.id === "time" && sort === "id");
                    return (
                      <th
                        key={id}
                        role="columnheader"
                        class={column.num ? "num" : ""}
                        title={column.hint}
                        aria-sort={sort === column.sort ? (dir === "asc" ? "ascending" : "descending") : undefined}
                      >
                        {column.sort ? (
                          <button type="button" onClick={() => sortBy(column)}>
                            {column.label}
                            {sorted && <span aria-hidden="true">{dir === "asc" ? " ↑" : " ↓"}</span>}
                          </button>
                        ) : (
                          column.label
                        )}
                      </th>
                    );
                  })}
                  <th role="columnheader"><span class="sr">Capture</span></th>
                </tr>
              </thead>
              <tbody role="rowgroup">
                {win.before > 0 && <tr aria-hidden="true" style={{ height: `${win.before}px` }} />}
                {rows.value.slice(win.from, win.to).map((row) => (
                  <Row key={row.id} row={row} columns={columns} open={openRow} />
                ))}
                {win.after > 0 && <tr aria-hidden="true" style={{ height: `${win.after}px` }} />}
              </tbody>
            </table>
            {rows.value.length < total.value && (
              <div class="row center pad"><Btn disabled={loading.value} onClick={() => void fetchPage(true)}>Older requests</Btn></div>
            )}
          </div>
        ) : (
          !loading.value && (
            <Empty title={active.length ? "No request matches these filters" : whyUnknown("No request has finished yet")}>
              {!active.length && localModels.value[0] && (
                <p>Send one from the <a href={href("playground")}>playground</a>, or point a client at this server.</p>
              )}
            </Empty>
          )
        )}
      </Panel>
      {menu.value === "columns" && <ColumnMenu onClose={() => (menu.value = "")} />}
      {menu.value === "export" && <ExportDialog total={total.value} onClose={() => (menu.value = "")} />}
      {open && (
        <RequestDrawer
          id={Number(open)}
          row={drawerList[at]}
          previous={at > 0 ? () => openRow((drawerList[at - 1] as ActivityRow).id) : undefined}
          next={at >= 0 && at < drawerList.length - 1 ? () => openRow((drawerList[at + 1] as ActivityRow).id) : undefined}
          onClose={() => (history.state ? history.back() : setQuery({ open: null }))}
        />
      )}
    </>
  );
}

function MoreFilters() {
  const shown = useSignal(false);
  const { query } = route.value;
  const extra = ["path", "session", "client", "key", "min_ms"].filter((name) => query.get(name)).length;
  const box = (name: string, label: string, numeric = false) => (
    <Field label={label}>
      <input class="input" type="text" inputMode={numeric ? "numeric" : "text"} value={query.get(name) ?? ""} onChange={(event) => setQuery({ [name]: event.currentTarget.value })} />
    </Field>
  );
  return (
    <>
      <Btn onClick={() => (shown.value = true)}><Icon name="filter" size={14} /> More{extra ? ` (${extra})` : ""}</Btn>
      {shown.value && (
        <Dialog title="More filters" class="narrow" onClose={() => (shown.value = false)}>
          <div class="stack">
            {box("path", "Path contains")}
            {box("session", "Session")}
            {box("client", "Client address")}
            {box("key", "Name of the API key")}
            {box("min_ms", "Took at least (ms)", true)}
          </div>
        </Dialog>
      )}
    </>
  );
}

