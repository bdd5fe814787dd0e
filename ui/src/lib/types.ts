// Every payload the server sends, in one place. Fields marked optional come from newer servers only.

export type ModelState = "stopped" | "starting" | "ready" | "stopping" | "shutdown" | "unknown" | "";

export interface ModelStatus {
  id: string;
  name: string;
  description: string;
  state: ModelState;
  unlisted: boolean;
  peerID: string;
  aliases?: string[];
  tags?: string[];
  capabilities?: Record<string, boolean>;
  context_length?: number;
  /** Stopped, but its server sleeps and is woken faster than one is started. */
  asleep?: boolean;
  /** Why it failed when it was last started or used. */
  failed?: string;
  /** The model of which this is a further server. */
  replica_of?: string;
}

export interface Inflight {
  id: string;
  timestamp: string;
  model: string;
  /** The replica that serves it, if that is not the model itself. */
  server?: string;
  req_path: string;
  method: string;
  req_headers: Record<string, string>;
  remote_ip: string;
  resp_headers: Record<string, string>;
  resp_bytes: number;
  elapsed_ms: number;
  metadata?: Record<string, string>;
  phase?: string;
  queue_pos?: number | null;
  reason?: string;
  waits_for?: string[];
  ttft_ms?: number | null;
  tokens_out?: number | null;
  tps?: number | null;
  prompt_progress?: number | null;
  session?: string | null;
  /** When this browser received the entry; the clock of its elapsed time. */
  received: number;
}

export interface Tokens {
  cache_tokens: number;
  draft_tokens: number;
  draft_acc_tokens: number;
  input_tokens: number;
  output_tokens: number;
  prompt_per_second: number;
  tokens_per_second: number;
}

export interface ActivityRow {
  id: number;
  timestamp: string;
  model: string;
  req_path: string;
  resp_content_type: string;
  resp_status_code: number;
  tokens: Tokens;
  duration_ms: number;
  has_capture: boolean;
  error_msg?: string;
  metadata?: Record<string, string>;
  session?: string;
  client?: string;
  key?: string;
  /** Until the first data of its stream, from its arrival. */
  ttft_ms?: number | null;
  queued_ms?: number;
  loaded_ms?: number;
}

export interface ActivityPage {
  data: ActivityRow[];
  page: number;
  limit: number;
  total: number;
  total_pages: number;
}

export interface HistogramData {
  bins: number[];
  min: number;
  max: number;
  binSize: number;
  p50: number;
  p95: number;
  p99: number;
}

export interface Stats {
  total_requests: number;
  total_input_tokens: number;
  total_output_tokens: number;
  total_cache_tokens: number;
  prompt_histogram: HistogramData | null;
  gen_histogram: HistogramData | null;
  first_token_p95_ms?: number | null;
  /** Sums over time; `start` is in seconds. */
  series?: { start: number; requests: number; errors: number; failed: number; output_tokens: number; first_token_p95_ms: number | null }[];
  /** At which speed each model generated over time. */
  speeds?: { model: string; start: number; requests: number; p10: number; p50: number; p90: number }[];
}

export interface Capture {
  id: number;
  req_path: string;
  req_headers: Record<string, string> | null;
  req_body: string | null;
  resp_headers: Record<string, string> | null;
  resp_body: string | null;
}

export interface Profiles {
  active: string | null;
  profiles: { id: string; description: string; pins: Record<string, string> }[];
}

export interface Peer {
  id: string;
  proxy: string;
  state: string;
  since: string | null;
  checked: string | null;
  error: string | null;
}

export interface SysSample {
  timestamp: string;
  cpu_util_per_core: number[];
  mem_total_mb: number;
  mem_used_mb: number;
  mem_free_mb: number;
  swap_total_mb: number;
  swap_used_mb: number;
  load_avg_1: number;
  load_avg_5: number;
  load_avg_15: number;
  net_io: { name: string; bytes_recv: number; bytes_sent: number }[] | null;
}

export interface GpuSample {
  timestamp: string;
  id: number;
  name: string;
  uuid: string;
  temp_c: number;
  vram_temp_c: number;
  gpu_util_pct: number;
  mem_util_pct: number;
  mem_used_mb: number;
  mem_total_mb: number;
  fan_speed_pct: number;
  power_draw_w: number;
}

export interface Performance {
  enabled: boolean;
  sys_stats: SysSample[] | null;
  gpu_stats: GpuSample[] | null;
}

export interface MemoryDevice {
  device: string;
  name: string;
  total_mib: number;
  free_mib: number;
  reserve_mib: number;
  foreign_mib: number;
  foreign_by: string;
  models: { model: string; mib: number; source: string; squeezed: boolean }[];
}

export interface Host {
  host: string;
  address: string;
  online: boolean;
  drained: boolean;
  problem: string;
  seen_seconds: number | null;
  devices: { device: string; name: string; total_mib: number; foreign_mib: number }[];
  models: string[];
}

/** The hosts; none where the configuration has no `hosts`. */
export interface HostList {
  hosts: Host[];
  problem: string;
  missed: string[];
  findings: string[];
}

export interface Memory {
  mode: string;
  devices: MemoryDevice[];
  needs: Record<string, { ram_mib: number; gpus: number[][]; source: string; samples: number; p95_mib: number | null; load_seconds: number | null }>;
  advice: string[];
}

export interface Features {
  performance?: boolean;
  hardware?: boolean;
  config_edit?: boolean;
  captures?: boolean;
  store?: boolean;
  loadtest?: boolean;
}

export interface Residency {
  model: string;
  state: string;
  t0: number;
  t1: number | null;
  reason?: string;
  swap_id?: string | null;
  /** Of a segment that goes on: requests being served, and MiB of video memory. */
  busy?: number;
  vram_mb?: number | null;
}

export interface SwapPhase {
  name: string;
  start: number;
  end: number | null;
}

export interface Swap {
  id: string;
  model: string;
  trigger: string;
  evicted: string[];
  explanation: string;
  outcome: string;
  error: string;
  exit_code: number | null;
  log_tail: string;
  start: number;
  end: number | null;
  phases: SwapPhase[];
}

export interface PlanPreview {
  model: string;
  action?: string;
  running: boolean;
  evicts: { model: string; active: number }[];
  waits_for: string[];
  reason?: string;
  eta_ms: number | null;
}

export interface ModelDetail {
  id: string;
  name?: string;
  description?: string;
  state?: string;
  cmd?: string;
  proxy?: string;
  pid?: number | null;
  port?: number | null;
  uptime_s?: number | null;
  ttl_s?: number | null;
  ttl_left_s?: number | null;
  /** When its last request ended, epoch ms; found in the activity. */
  last_used?: number;
  pinned?: boolean;
  slots?: number | null;
  active?: number;
  groups?: string[];
  last_error?: string | null;
  log_tail?: string;
  exit_code?: number | null;
  load_ms?: number[];
  aliases?: string[];
}

/** What tells a model from the others, as far as the server knows it. */
export interface CatalogModel {
  id: string;
  pinned: boolean;
  groups: string[];
  context_length: number | null;
  quant: string | null;
  file_bytes: number | null;
  load_ms: number | null;
}

export interface ListedModel {
  id: string;
  name?: string;
  description?: string;
  capabilities?: Record<string, boolean>;
  context_length?: number;
  status?: { value: string };
  meta?: {
    llamaswap?: {
      type?: string;
      aliases?: string[];
      modelID?: string;
      peerID?: string;
      strategy?: string;
      targets?: string[];
      spillover?: number;
      [key: string]: unknown;
    };
    n_ctx?: number;
  };
}

export interface Hardware {
  captured_at?: string;
  architecture?: { name?: string | null };
  operating_system?: { family?: string | null; name?: string | null; version?: string | null; kernel?: string | null };
  environment?: { kind?: string | null; name?: string | null; version?: string | null };
  cpu?: {
    vendor?: string | null;
    model?: string | null;
    socket_count?: number | null;
    physical_core_count?: number | null;
    logical_thread_count?: number | null;
  };
  memory?: { capacity_bytes?: number | null };
  accelerators?: {
    index: number;
    kind?: string | null;
    vendor?: string | null;
    model?: string | null;
    architecture?: string | null;
    memory?: { kind?: string | null; capacity_bytes?: number | null } | null;
    driver?: { name?: string | null; version?: string | null } | null;
    power_limit_watts?: number | null;
  }[];
}

export interface Problem {
  message: string;
  path?: string;
  file?: string;
  line?: number | null;
  col?: number | null;
  hint?: string;
  severity?: string;
}

export interface Impact {
  restart: string[];
  add: string[];
  remove: string[];
}

export interface KeyInfo {
  name: string;
  scopes: string[];
  models: string[];
  rpm: number;
  tpm: number;
  budget_tokens: number;
  window_s: number;
  expires: string;
  expired: boolean;
  requests_last_minute: number;
  tokens_last_minute: number;
  used: number;
  refused: number;
}

export interface KeyList {
  keys: KeyInfo[];
  unnamed: number;
}

export interface UsageRow {
  [group: string]: string | number;
  requests: number;
  errors: number;
  input_tokens: number;
  output_tokens: number;
  cache_tokens: number;
  duration_ms: number;
}

export interface Usage {
  by: string[];
  rows: UsageRow[];
  complete: boolean;
}
