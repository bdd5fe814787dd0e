// The landing page: what is loaded, what is running, what is wrong; then how it came to be.
import { useSignal } from "@preact/signals";
import type { ComponentType } from "preact";
import { useEffect } from "preact/hooks";
import { asked, cancelRequest, load, pin, restart, unload, unloadAll } from "../lib/actions";
import { maybe } from "../lib/api";
import { ago, clock, gib, known, median, percent, plainError, plural, rate, seconds, time } from "../lib/format";
import { Icon } from "../lib/icons";
import { now, stale, status, whyUnknown } from "../lib/link";
import { gpuLabel, gpus, sys, usePerformance, watched } from "../lib/perf";
import { DeviceBar, deviceLabel, memory, memoryText, useMemory } from "../lib/memory";
import { Figures } from "../lib/figures";
import { SPANS, span, useMetrics, zoom } from "../lib/metrics";
import { part } from "../lib/parts";
import { pref } from "../lib/prefs";
import { href } from "../lib/router";
import { elapsed, Queue, RunningTable, speed } from "../lib/running";
import { activityRevision, inflight, loadedModels, localModels, modelDetail, models, modelsKnown, phaseOf, residency, servedBy, stateShown, swapFailed, swapRevision, swaps, waiting } from "../lib/state";
import { Sparkline } from "../lib/chart";
import { Bar, Btn, Empty, IconButton, Panel, Segmented, StateChip } from "../lib/widgets";
import { Timeline } from "../lib/timeline";
import type { ActivityPage, GpuSample, HostList, MemoryDevice, ModelDetail, ModelStatus, Swap } from "../lib/types";

const details = new Map<string, { at: number; detail: ModelDetail }>();

async function lastUse(id: string): Promise<number | undefined> {
  const page = await maybe<ActivityPage>("/api/metrics/activity", { model: [id], limit: 1 }).catch(() => null);
  const row = page?.data[0];
  return row ? time(row.timestamp) : undefined;
}

/** A model's details, refetched when its state changes and every half minute. */
export function useDetail(id: string, state: string): { at: number; detail: ModelDetail } | undefined {
  const latest = useSignal(details.get(id));
  const requests = servedBy(id).length;
  useEffect(() => {
    let alive = true;
    const fetchIt = () =>
      modelDetail(id).then(
        async (detail) => {
          if (!detail) return;
          if (detail.ttl_s && !known(detail.ttl_left_s)) detail.last_used = await lastUse(id);
          const record = { at: Date.now(), detail };
          details.set(id, record);
          if (alive) latest.value = record;
        },
        () => undefined,
      );
    void fetchIt();
    const timer = setInterval(() => document.visibilityState === "visible" && fetchIt(), 30_000);
    return () => {
      alive = false;
      clearInterval(timer);
    };
  }, [id, state, requests]);
  return latest.value;
}

/** Seconds until an idle model is unloaded: the server's word, else counted from its last request or its start. */
export function ttlLeft(detail: ModelDetail, at: number, time_: number): number | null {
  if (!detail.ttl_s) return null;
  const since = Math.max(0, time_ - at) / 1000;
  if (known(detail.ttl_left_s)) return Math.max(0, detail.ttl_left_s - since);
  const up = (detail.uptime_s ?? 0) + since;
  const idle = detail.last_used ? Math.min(up, Math.max(0, time_ - detail.last_used) / 1000) : up;
  return Math.max(0, detail.ttl_s - idle);
}

function Ttl({ record, busy }: { record: { at: number; detail: ModelDetail }; busy: boolean }) {
  const { detail, at } = record;
  if (detail.pinned) return <span class="tag">kept loaded</span>;
  if (!detail.ttl_s) return null;
  if (busy) return <span title="The countdown starts when the model is idle">ttl {clock(detail.ttl_s)} once idle</span>;
  const left = ttlLeft(detail, at, now.value);
  return <span title="Unloads when it has been idle for this long">ttl {clock(left)}</span>;
}

function Loading({ model, detail }: { model: ModelStatus; detail: ModelDetail | undefined }) {
  const began = useSignal(Date.now());
  useEffect(() => {
    residency(Date.now() - 5000).then(
      (list) => {
        const current = list?.find((item) => item.model === model.id && item.state === "starting" && item.t1 === null);
        if (current) began.value = current.t0;
      },
      () => undefined,
    );
  }, [model.state]);
  const spent = Math.max(0, now.value - began.value);
  const usual = detail?.load_ms?.length ? median(detail.load_ms) : 0;
  return (
    <div class="loading-line">
      <span class="num">
        {seconds(spent)}
        {usual ? ` of about ${seconds(usual)}` : ""}
      </span>
      {usual > 0 && <Bar value={Math.min(spent, usual * 0.98)} max={usual} label={`${model.id} loading`} kind="loading" />}
    </div>
  );
}

function LoadedRow({ model }: { model: ModelStatus }) {
  const record = useDetail(model.id, model.state);
  const detail = record?.detail;
  const mine = servedBy(model.id);
  const active = mine.filter((entry) => phaseOf(entry) !== "queued").length;
  const waits = mine.length - active;
  const tps = mine.reduce((sum, entry) => sum + (known(entry.tps) ? entry.tps : 0), 0);
  const use = memoryText(model.id);
  const history = speed.value.get(model.id);
  return (
    <li class="loaded" data-row data-model={model.id}>
      <div class="loaded-main">
        <a class="loaded-name" href={href("model", { id: model.id })} data-open title={model.name || model.id}>{model.id}</a>
        <StateChip state={stateShown(model, active)} />
        {model.replica_of && <span class="tag">replica</span>}
      </div>
      <div class="loaded-facts">
        {model.state === "starting" && <Loading model={model} detail={detail} />}
        {active > 0 && model.state !== "starting" && <span>{active} active</span>}
        {waits > 0 && <span>{waits} waiting</span>}
        {tps > 0 && <span class="num"><b>{rate(tps)}</b> t/s</span>}
        {history && <Sparkline values={history} label={`Speed of ${model.id} over the last minute`} />}
        {model.state === "ready" && record && <Ttl record={record} busy={active > 0} />}
        {use && <span>{use}</span>}
        {known(detail?.port) && <span class="muted wide-only">port {detail?.port}</span>}
      </div>
      <div class="actions">
        {model.state === "ready" && detail && detail.pinned !== undefined && record && (
          <IconButton
            icon="pin"
            label={detail.pinned ? `Let ${model.id} unload when idle` : `Keep ${model.id} loaded`}
            pressed={detail.pinned}
            onClick={() => void pin(model.id, !detail.pinned).then((done) => done && (swapRevision.value += 1))}
          />
        )}
        {model.state === "ready" && <IconButton icon="restart" label={`Restart ${model.id}`} onClick={() => void restart(model.id)} />}
        <a class="iconbtn" href={href("logs", { src: model.id })} aria-label={`Logs of ${model.id}`} title="Logs"><Icon name="logs" /></a>
        <Btn small onClick={() => void unload(model.id)} disabled={model.state === "stopping"}>{model.state === "starting" ? "Cancel" : "Unload"}</Btn>
      </div>
    </li>
  );
}

function LoadedNow() {
  const list = loadedModels.value;
  const cold = localModels.value.length - list.length;
  return (
    <Panel
      title="Loaded now"
      aside={
        <>
          <a href={href("models")}>{plural(localModels.value.length, "model")}</a>
          {list.length > 0 && <Btn small onClick={() => void unloadAll()}>Unload all</Btn>}
        </>
      }
    >
      {list.length ? (
        <ul class="plainlist">
          {list.map((model) => (
            <LoadedRow key={model.id} model={model} />
          ))}
        </ul>
      ) : (
        <Empty title={modelsKnown.value ? "No model is loaded" : whyUnknown()}>
          {modelsKnown.value && cold > 0 && <p>A request loads the model it names. Or load one here:</p>}
          <div class="row wrap center">
            {localModels.value.slice(0, 6).map((model) => (
              <button type="button" key={model.id} class="btn small" disabled={asked.value.has(model.id)} onClick={() => void load(model.id)}>
                <Icon name="play" size={12} /> <span class="clip">{model.id}</span>
              </button>
            ))}
          </div>
          {modelsKnown.value && !localModels.value.length && <p>No model is configured.</p>}
        </Empty>
      )}
    </Panel>
  );
}

function GpuRow({ s, device }: { s: GpuSample; device: MemoryDevice | undefined }) {
  return (
    <div class="gpu">
      <div class="gpu-head">
        <b>{gpuLabel(s)}</b> <span class="muted clip">{s.name}</span>
        <span class="num right">{gib(s.mem_used_mb)} / {gib(s.mem_total_mb)} GiB</span>
      </div>
      {device ? <DeviceBar device={device} /> : <Bar value={s.mem_used_mb} max={s.mem_total_mb} label={`${gpuLabel(s)} memory`} kind="neutral" />}
      <div class="gpu-facts num">
        <span>{percent(s.gpu_util_pct)} busy</span>
        {s.temp_c > 0 && <span class={s.temp_c >= 87 ? "bad" : ""}>{Math.round(s.temp_c)} °C</span>}
        {s.vram_temp_c > 0 && <span>VRAM {Math.round(s.vram_temp_c)} °C</span>}
        {s.power_draw_w > 0 && <span>{Math.round(s.power_draw_w)} W</span>}
        {s.fan_speed_pct > 0 && <span>fan {Math.round(s.fan_speed_pct)} %</span>}
      </div>
    </div>
  );
}

function Machine() {
  const list = [...gpus.value.values()].map((samples) => samples.at(-1)?.s).filter((s): s is GpuSample => !!s);
  const host = sys.value.at(-1)?.s;
  const devices = new Map((memory.value?.devices ?? []).map((device) => [device.device, device]));
  const alone = [...devices.values()].filter((device) => !list.some((s) => device.device === `gpu${s.id}`));
  if (!devices.size && (watched.value === false || (!list.length && !host))) return null;
  const cpu = host?.cpu_util_per_core?.length
    ? host.cpu_util_per_core.reduce((a, b) => a + b, 0) / host.cpu_util_per_core.length
    : null;
  return (
    <Panel title="Machine" aside={<a href={href("system")}>System</a>}>
      <div class="machine">
        {list.map((s) => (
          <GpuRow key={s.id} s={s} device={devices.get(`gpu${s.id}`)} />
        ))}
        {alone.map((device) => (
          <div class="gpu" key={device.device}>
            <div class="gpu-head">
              <b>{deviceLabel(device)}</b> <span class="muted clip">{device.device === "ram" ? "" : device.name}</span>
              <span class="num right">{gib(device.total_mib - device.free_mib)} / {gib(device.total_mib)} GiB</span>
            </div>
            <DeviceBar device={device} />
          </div>
        ))}
        {host && (
          <>
            {!devices.has("ram") && (
              <div class="meter-line">
                <span>Memory</span>
                <Bar value={host.mem_used_mb} max={host.mem_total_mb} label="Memory" kind="neutral" />
                <span class="num">{gib(host.mem_used_mb)} / {gib(host.mem_total_mb)} GiB</span>
              </div>
            )}
            <div class="meter-line">
              <span>CPU</span>
              <Bar value={cpu ?? 0} max={100} label="CPU" kind="neutral" />
              <span class="num">{percent(cpu)}, load {host.load_avg_1.toFixed(1)}</span>
            </div>
          </>
        )}
        {(memory.value?.advice ?? []).map((sentence) => <p key={sentence} class="muted advice"><Icon name="info" size={13} /> {sentence}</p>)}
      </div>
    </Panel>
  );
}

interface Notice {
  key: string;
  kind: "error" | "warn";
  at: number;
  title: string;
  text: string;
  link?: string;
  retry?: string;
  request?: { id: string; model: string };
}

/** Who gave an answer up got what they wanted. */
const WISHED = new Set(["client disconnected", "request cancelled"]);
const dismissed = pref<string[]>("dismissed", []);

function useNotices(): Notice[] {
  const failures = useSignal<Swap[]>([]);
  const errors = useSignal<ActivityPage["data"]>([]);
  const revision = swapRevision.value;
  const activity = activityRevision.value;
  const online = status.value.state === "open";
  useEffect(() => {
    if (online) swaps().then((list) => list && (failures.value = list), () => undefined);
  }, [revision, online]);
  useEffect(() => {
    if (!online) return;
    const timer = setTimeout(
      () =>
        maybe<ActivityPage>("/api/metrics/activity", { has_error: "true", limit: 25 }).then(
          (page) => page?.data && (errors.value = page.data.filter((row) => !WISHED.has(row.error_msg ?? "") && (row.error_msg || row.resp_status_code >= 400))),
          () => undefined,
        ),
      errors.peek().length || activity ? 1000 : 0,
    );
    return () => clearTimeout(timer);
  }, [activity, online]);

  const list: Notice[] = [];
  const at = now.value;
  const settled = new Set<string>();
  for (const swap of failures.value.slice(0, 50)) {
    if (settled.has(swap.model)) continue;
    settled.add(swap.model);
    if (!swapFailed(swap) || at - swap.start > 24 * 3600_000) continue;
    list.push({
      key: `swap-${swap.id}-${swap.start}`,
      kind: "error",
      at: swap.end ?? swap.start,
      title: `Load failed: ${swap.model}`,
      text: plainError(swap.error) || (swap.exit_code !== null ? `exited with ${swap.exit_code}` : swap.outcome),
      link: href("swap", { id: swap.id }),
      retry: swap.model,
    });
  }
  // What failed without a swap: a command that cannot be run, a server that ended while it was ready.
  for (const model of localModels.value) {
    if (!model.failed || model.state !== "stopped" || list.some((item) => item.retry === model.id)) continue;
    list.push({ key: `failed-${model.id}-${model.failed}`, kind: "error", at: 0, title: `${model.id} failed`, text: plainError(model.failed), link: href("logs", { src: model.id }), retry: model.id });
  }
  const groups = new Map<string, ActivityPage["data"]>();
  for (const row of errors.value) {
    if (at - time(row.timestamp) > 3600_000) continue;
    const key = `${row.model}\n${row.error_msg ?? row.resp_status_code}`;
    groups.set(key, [...(groups.get(key) ?? []), row]);
  }
  for (const rows of [...groups.values()].slice(0, 5)) {
    const row = rows[0] as ActivityPage["data"][number];
    list.push({
      key: `request-${row.id}`,
      kind: row.resp_status_code >= 500 ? "error" : "warn",
      at: time(row.timestamp),
      title: `${row.resp_status_code >= 400 ? row.resp_status_code : "Failed response"} from ${row.model || "no model"}${rows.length > 1 ? `, ${rows.length} times` : ""}`,
      text: plainError(row.error_msg ?? "") || row.req_path,
      link: href("requests", rows.length > 1 ? { model: row.model, status: "error" } : { status: "error", open: row.id }),
    });
  }
  const late = waiting.value.filter((entry) => elapsed(entry, at) > 60_000);
  if (late.length) {
    const oldest = Math.max(...late.map((entry) => elapsed(entry, at)));
    list.push({
      key: `queue-${late[0]?.id}`,
      kind: "warn",
      at,
      title: `${plural(late.length, "request")} waiting for long`,
      text: `the oldest has waited ${seconds(oldest)} for ${late[0]?.model}`,
    });
  }
  for (const samples of gpus.value.values()) {
    const s = samples.at(-1)?.s;
    if (!s) continue;
    if (s.temp_c >= 87) list.push({ key: `hot-${s.id}`, kind: "warn", at, title: `${gpuLabel(s)} is at ${Math.round(s.temp_c)} °C`, text: "it may slow itself down" });
    if (s.mem_total_mb && s.mem_used_mb / s.mem_total_mb > 0.985) {
      list.push({ key: `full-${s.id}`, kind: "warn", at, title: `${gpuLabel(s)} memory is full`, text: `${gib(s.mem_total_mb - s.mem_used_mb)} GiB left` });
    }
  }
  const host = sys.value.at(-1)?.s;
  if (host && host.mem_total_mb && host.mem_used_mb / host.mem_total_mb > 0.96) {
    list.push({ key: "memory", kind: "warn", at, title: "Main memory is nearly full", text: `${gib(host.mem_free_mb)} GiB free` });
  }
  return list.filter((item) => !dismissed.value.includes(item.key)).sort((a, b) => b.at - a.at);
}

function Attention({ notices }: { notices: Notice[] }) {
  const unknown = stale.value ? "Unknown while offline" : modelsKnown.value ? "" : whyUnknown();
  return (
    <Panel title="Attention" aside={notices.length > 0 ? <span class="count">{notices.length}</span> : <span class={unknown ? "muted" : "allwell"}>{unknown || <><Icon name="check" /> Nothing needs attention</>}</span>}>
      {notices.length ? (
        <ul class="plainlist notices" tabIndex={0} aria-label="What needs attention">
          {notices.map((item) => (
            <li key={item.key} class={`notice ${item.kind}`}>
              <Icon name={item.kind === "error" ? "error" : "warn"} />
              <div class="grow">
                <div class="notice-title">
                  {item.link ? <a href={item.link}>{item.title}</a> : item.title}
                  {item.at > 0 && <span class="muted num"> {ago(item.at, now.value)}</span>}
                </div>
                <div class="notice-text" title={item.text}>{item.text}</div>
              </div>
              {item.retry && <IconButton icon="restart" label={`Load ${item.retry} again`} onClick={() => void load(item.retry as string)} />}
              {item.request && (
                <IconButton icon="close" label="Cancel it" onClick={() => item.request && void cancelRequest(item.request.id, item.request.model)} />
              )}
              <IconButton icon="check" label={`Dismiss: ${item.title}`} onClick={() => (dismissed.value = [...dismissed.value, item.key].slice(-100))} />
            </li>
          ))}
        </ul>
      ) : null}
    </Panel>
  );
}

/** Fetched only where it is needed: on a server without models. */
function First() {
  const steps = useSignal<{ Part: ComponentType } | null>(null);
  useEffect(() => part(import("../lib/first"), ({ FirstSteps: Part }) => (steps.value = { Part })), []);
  const Part = steps.value?.Part;
  return Part ? <Part /> : null;
}

/** The panel is fetched only where the server has hosts. */
function Hosts() {
  const panel = useSignal<{ Part: ComponentType<{ first: HostList }>; first: HostList } | null>(null);
  const online = status.value.state === "open";
  useEffect(() => {
    if (!online || panel.peek()) return;
    maybe<HostList>("/api/hosts").then(async (first) => {
      if (first?.hosts.length) panel.value = { Part: (await import("../lib/hosts")).HostsPanel, first };
    }).catch(() => undefined);
  }, [online]);
  const found = panel.value;
  return found && <found.Part first={found.first} />;
}

export function Overview() {
  usePerformance();
  useMemory();
  useMetrics();
  const notices = useNotices();
  const running = inflight.value.length - waiting.value.length;
  return (
    <div class={`page overview ${stale.value ? "frozen" : ""}`}>
      <div class="page-head">
        <h1>Overview</h1>
        <p class="summary" aria-live="polite">
          <a href={href("models", { state: "loaded" })}><b>{loadedModels.value.length}</b> loaded</a>
          <span><b>{running}</b> running</span>
          <span><b>{waiting.value.length}</b> waiting</span>
          <span class={notices.length ? "bad" : ""}><b>{notices.length}</b> {notices.length === 1 ? "problem" : "problems"}</span>
        </p>
        <span class="grow" />
        <Segmented
          label="Time span"
          value={span.value}
          options={SPANS}
          onChange={(value) => (zoom.value = null, span.value = value)}
        />
      </div>
      {modelsKnown.value && !models.value.length && <First />}
      {models.value.length > 0 && <Figures />}
      <div class="overview-grid">
        <div class="col">
          <LoadedNow />
          <Panel title="Running" aside={running > 0 ? <span class="count">{running}</span> : <span class="muted">nothing</span>}>
            {running > 0 && <RunningTable />}
          </Panel>
          {waiting.value.length > 0 && (
            <Panel title="Waiting" aside={<span class="count">{waiting.value.length}</span>}>
              <Queue />
            </Panel>
          )}
        </div>
        <div class="col">
          <Attention notices={notices} />
          <Machine />
          <Hosts />
        </div>
      </div>
      <Timeline known={models.value.length > 0} />
    </div>
  );
}
