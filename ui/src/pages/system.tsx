// The machine over time, what it is made of, and the settings of this browser.
import { useSignal } from "@preact/signals";
import { maybe } from "../lib/api";
import { Chart } from "../lib/chart";
import { bytes, clockTime, gib } from "../lib/format";
import { now } from "../lib/link";
import { gpuLabel, gpus, sys, usePerformance, watched } from "../lib/perf";
import { pref } from "../lib/prefs";
import { href, route } from "../lib/router";
import { alignTo } from "../lib/timeline";
import { Btn, CopyButton, Empty, Facts, Panel, Problem, Segmented, Spinner, TabLinks, useLoad } from "../lib/widgets";
import { Settings } from "./settings";
import type { GpuSample, Hardware, SysSample } from "../lib/types";

const span = pref<string>("system.span", "15");

function Charts() {
  usePerformance();
  const zoom = useSignal<[number, number] | null>(null);
  if (watched.value === false) {
    return <Empty title="This server does not watch the machine"><p>Set performance.disabled to false in the configuration to have it do so.</p></Empty>;
  }
  if (!sys.value.length && !gpus.value.size) return <Spinner />;
  const right = Math.ceil(now.value / 5000) * 5000;
  const [from, to] = zoom.value ?? [right - Number(span.value) * 60_000, right];
  const hostSamples = sys.value.filter((item) => item.t >= from - 15_000 && item.t <= to + 15_000);
  const hostTimes = hostSamples.map((item) => item.t);
  const gpuSeries = [...gpus.value.values()].map((list) => list.filter((item) => item.t >= from - 15_000 && item.t <= to + 15_000)).filter((list) => list.length);
  const gpuTimes = gpuSeries[0]?.map((item) => item.t) ?? [];
  const select = (a: number, b: number) => (zoom.value = [a, b]);
  const gpuChart = (name: string, unit: string, pick: (s: GpuSample) => number | null, options: { max?: number; limit?: number } = {}) => (
    <Chart
      title={name}
      unit={unit}
      times={gpuTimes}
      from={from}
      to={to}
      sync="system"
      onSelect={select}
      {...options}
      series={gpuSeries.map((list) => ({
        label: gpuLabel(list[0]?.s as GpuSample),
        values: alignTo(gpuTimes, list.map((item) => [item.t, pick(item.s) ?? Number.NaN])).map((v) => (v === null || Number.isNaN(v) ? null : v)),
      }))}
    />
  );
  const hostChart = (name: string, unit: string, series: [string, (s: SysSample) => number][], max?: number, digits = 1) => (
    <Chart title={name} unit={unit} times={hostTimes} from={from} to={to} sync="system" onSelect={select} max={max} digits={digits} series={series.map(([label, pick]) => ({ label, values: hostSamples.map((item) => pick(item.s)) }))} />
  );
  const any = (pick: (s: GpuSample) => number) => gpuSeries.some((list) => list.some((item) => pick(item.s) > 0));
  const last = hostSamples.at(-1)?.s;
  const cores = last?.cpu_util_per_core?.length ?? 0;
  const average = (s: SysSample) => (s.cpu_util_per_core?.length ? s.cpu_util_per_core.reduce((a, b) => a + b, 0) / s.cpu_util_per_core.length : 0);
  const nets = (last?.net_io ?? []).map((item) => item.name);
  const netRate = (name: string, key: "bytes_recv" | "bytes_sent") =>
    hostSamples.map((item, i) => {
      const before = hostSamples[i - 1];
      const a = before?.s.net_io?.find((net) => net.name === name);
      const b = item.s.net_io?.find((net) => net.name === name);
      if (!before || !a || !b || b[key] < a[key]) return null;
      return ((b[key] - a[key]) * 8) / 1e6 / ((item.t - before.t) / 1000);
    });
  return (
    <>
      <div class="toolbar">
        <Segmented
          label="Time span"
          value={span.value}
          options={[["5", "5 min"], ["15", "15 min"], ["60", "1 h"]]}
          onChange={(value) => {
            zoom.value = null;
            span.value = value;
          }}
        />
        {zoom.value && <Btn small onClick={() => (zoom.value = null)}>{clockTime(from)} to {clockTime(to)}: back to live</Btn>}
        <span class="muted hide-phone">Drag in a chart to zoom; all charts follow.</span>
      </div>
      {gpuSeries.length > 0 && (
        <Panel title="GPUs" aside={<span class="muted">{gpuSeries.map((list) => `${gpuLabel(list[0]?.s as GpuSample)} ${list[0]?.s.name}`).join(", ")}</span>}>
          <div class="chart-grid">
            {gpuChart("Memory", "GiB", (s) => s.mem_used_mb / 1024, { limit: Math.max(...gpuSeries.map((list) => (list.at(-1)?.s.mem_total_mb ?? 0) / 1024)) })}
            {gpuChart("Utilisation", "%", (s) => s.gpu_util_pct, { max: 100 })}
            {any((s) => s.temp_c) && gpuChart("Temperature", "°C", (s) => s.temp_c)}
            {any((s) => s.vram_temp_c) && gpuChart("Memory temperature", "°C", (s) => s.vram_temp_c)}
            {any((s) => s.power_draw_w) && gpuChart("Power", "W", (s) => s.power_draw_w)}
            {any((s) => s.fan_speed_pct) && gpuChart("Fan", "%", (s) => s.fan_speed_pct, { max: 100 })}
          </div>
        </Panel>
      )}
      {last && (
        <Panel title="Host" aside={<span class="muted num">{`${gib(last.mem_used_mb)} of ${gib(last.mem_total_mb)} GiB memory${last.swap_total_mb ? `, ${gib(last.swap_used_mb)} of ${gib(last.swap_total_mb)} GiB swap` : ""}`}</span>}>
          <div class="chart-grid">
            {hostChart(`CPU, ${cores} cores`, "%", [["average", average], ["busiest core", (s) => Math.max(0, ...(s.cpu_util_per_core ?? []))]], 100)}
            {hostChart("Memory", "%", [["memory", (s) => (s.mem_total_mb ? (s.mem_used_mb / s.mem_total_mb) * 100 : 0)], ["swap", (s) => (s.swap_total_mb ? (s.swap_used_mb / s.swap_total_mb) * 100 : 0)]], 100)}
            {hostChart("Load average", "", [["1 min", (s) => s.load_avg_1], ["5 min", (s) => s.load_avg_5], ["15 min", (s) => s.load_avg_15]], undefined, 2)}
            {nets.length > 0 && (
              <Chart
                title="Network"
                unit="Mbit/s"
                times={hostTimes}
                from={from}
                to={to}
                sync="system"
                onSelect={select}
                digits={2}
                series={nets.slice(0, 4).flatMap((name) => [
                  { label: `${name} in`, values: netRate(name, "bytes_recv") },
                  { label: `${name} out`, values: netRate(name, "bytes_sent") },
                ])}
              />
            )}
          </div>
          <Cores values={last.cpu_util_per_core ?? []} />
        </Panel>
      )}
    </>
  );
}

function Cores({ values }: { values: number[] }) {
  if (!values.length) return null;
  return (
    <div class="cores" role="img" aria-label={`Use of each core now: ${values.map((v) => `${Math.round(v)} %`).join(", ")}`}>
      {values.map((value, i) => (
        <span key={i} title={`core ${i}: ${Math.round(value)} %`}><i style={{ height: `${Math.max(3, value)}%` }} /></span>
      ))}
    </div>
  );
}

const missing = "not detected";
// Many models begin with the name of their vendor.
const words = (...parts: (string | number | null | undefined)[]): string => parts.filter((part, i) => part !== null && part !== undefined && part !== "" && !`${parts[i + 1] ?? ""}`.startsWith(`${part}`)).join(" ") || missing;

export function hardwareText(info: Hardware): string {
  const lines = [
    `System: ${words(info.operating_system?.name, info.operating_system?.version)}, kernel ${info.operating_system?.kernel ?? missing}, ${info.architecture?.name ?? missing}, ${info.environment?.kind ?? missing}`,
    `CPU: ${words(info.cpu?.vendor, info.cpu?.model)}, ${info.cpu?.physical_core_count ?? "?"} cores, ${info.cpu?.logical_thread_count ?? "?"} threads`,
    `Memory: ${info.memory?.capacity_bytes ? bytes(info.memory.capacity_bytes) : missing}`,
    ...(info.accelerators ?? []).map(
      (item) =>
        `Accelerator ${item.index}: ${words(item.vendor, item.model)}, ${item.memory?.capacity_bytes ? bytes(item.memory.capacity_bytes) : missing} ${item.memory?.kind ?? ""}, driver ${words(item.driver?.name, item.driver?.version)}`,
    ),
  ];
  return lines.join("\n");
}

function Parts() {
  const { data, error, loading, reload } = useLoad(() => maybe<Hardware>("/api/hardware"), []);
  if (error) return <Problem text={error} retry={reload} />;
  if (loading && data === undefined) return <Spinner />;
  if (!data) return <Empty title="The hardware could not be detected" />;
  return (
    <>
      <Panel title="System" aside={<CopyButton text={() => hardwareText(data)} label="Copy as text, for a bug report" />}>
        <Facts
          items={[
            ["System", words(data.operating_system?.name, data.operating_system?.version)],
            ["Kernel", words(data.operating_system?.kernel)],
            ["Architecture", words(data.architecture?.name)],
            ["Environment", words(data.environment?.kind?.replaceAll("_", " "), data.environment?.name)],
            ["Memory", data.memory?.capacity_bytes ? bytes(data.memory.capacity_bytes) : missing],
            ["CPU", words(data.cpu?.vendor, data.cpu?.model)],
            ["Sockets", words(data.cpu?.socket_count)],
            ["Cores", words(data.cpu?.physical_core_count)],
            ["Threads", words(data.cpu?.logical_thread_count)],
          ]}
        />
      </Panel>
      {(data.accelerators ?? []).length ? (
        (data.accelerators ?? []).map((item) => (
          <Panel key={item.index} title={`${item.kind === "npu" ? "NPU" : "GPU"}${item.index} ${words(item.vendor, item.model)}`}>
            <Facts
              items={[
                ["Architecture", words(item.architecture)],
                ["Memory", item.memory?.capacity_bytes ? `${bytes(item.memory.capacity_bytes)} ${(item.memory.kind ?? "").replaceAll("_", " ")}` : missing],
                ["Driver", words(item.driver?.name, item.driver?.version)],
                ["Power limit", item.power_limit_watts ? `${item.power_limit_watts} W` : missing],
              ]}
            />
          </Panel>
        ))
      ) : (
        <Panel title="Accelerators"><Empty title="None was detected" /></Panel>
      )}
      <details>
        <summary>As text</summary>
        <pre class="code" tabIndex={0}>{hardwareText(data)}</pre>
      </details>
    </>
  );
}

export function System() {
  const tab = route.value.query.get("tab") ?? "charts";
  return (
    <div class="page">
      <h1>System</h1>
      <TabLinks
        label="System"
        current={tab}
        items={[
          { key: "charts", text: "Charts", href: href("system") },
          { key: "hardware", text: "Hardware", href: href("system", { tab: "hardware" }) },
          { key: "settings", text: "Settings", href: href("system", { tab: "settings" }) },
        ]}
      />
      {tab === "hardware" ? <Parts /> : tab === "settings" ? <Settings /> : <Charts />}
    </div>
  );
}
