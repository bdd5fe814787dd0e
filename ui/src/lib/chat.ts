// Requests to the chat endpoints and their streamed answers, timed.
import { ApiError, errorText, request } from "./api";
import { Answer, type ToolCall, type Usage, parsed, stillLoading, toolsAnswered } from "./convo";
import { sseOf } from "./sse";
import { uid } from "./format";

export type Endpoint = "completions" | "messages" | "responses";

export const PATHS: Record<Endpoint, string> = { completions: "/v1/chat/completions", messages: "/v1/messages", responses: "/v1/responses" };

export interface Attachment {
  kind: "image" | "audio" | "text";
  name: string;
  /** A data URL for images and audio, the text itself otherwise. */
  data: string;
}

export interface Message {
  role: "user" | "assistant";
  text: string;
  attachments?: Attachment[];
  reasoning?: string;
  loading?: string;
  tools?: ToolCall[];
  error?: string;
  stats?: Stats;
  model?: string;
  /** Earlier answers to the same question. */
  others?: Message[];
}

export interface Stats {
  ttft?: number;
  total: number;
  input?: number;
  output?: number;
  /** Of the model's context, what prompt and answer take. */
  context?: number;
  cached?: number;
  rate?: number;
  promptRate?: number;
  thought?: number;
  /** Time until the model was loaded, that in the queue included, where the server told of it. */
  loading?: number;
  finish?: string;
  estimated?: boolean;
}

/** Sampling settings; what is empty is not sent, so that the operator's own defaults apply. */
export interface Params {
  endpoint: Endpoint;
  system: string;
  numbers: Record<string, string>;
  stop: string;
  schema: string;
  tools: string;
  extra: string;
}

export const NO_PARAMS: Params = { endpoint: "completions", system: "", numbers: {}, stop: "", schema: "", tools: "", extra: "" };

export const NUMBERS: [string, string, string][] = [
  ["temperature", "Temperature", "0 to 2"],
  ["max_tokens", "Max tokens", "of the answer"],
  ["top_p", "Top p", "0 to 1"],
  ["top_k", "Top k", ""],
  ["min_p", "Min p", "0 to 1"],
  ["repeat_penalty", "Repeat penalty", ""],
  ["presence_penalty", "Presence penalty", ""],
  ["frequency_penalty", "Frequency penalty", ""],
  ["seed", "Seed", ""],
];

type Json = Record<string, unknown>;

function base64(url: string): [string, string] {
  const [head = "", data = ""] = url.split(",", 2);
  return [/^data:([^;]+)/.exec(head)?.[1] ?? "application/octet-stream", data];
}

function content(message: Message, endpoint: Endpoint): unknown {
  const files = message.attachments ?? [];
  const texts = files.filter((file) => file.kind === "text").map((file) => `File ${file.name}:\n${file.data}\n\n`);
  const text = texts.join("") + message.text;
  const media = files.filter((file) => file.kind !== "text");
  if (endpoint === "responses") {
    const kind = message.role === "assistant" ? "output_text" : "input_text";
    return [{ type: kind, text }, ...media.filter((file) => file.kind === "image").map((file) => ({ type: "input_image", image_url: file.data }))];
  }
  if (!media.length) return text;
  return [
    { type: "text", text },
    ...media.map((file) => {
      const [type, data] = base64(file.data);
      if (file.kind === "audio") return { type: "input_audio", input_audio: { data, format: type.includes("wav") ? "wav" : "mp3" } };
      return endpoint === "messages"
        ? { type: "image", source: { type: "base64", media_type: type, data } }
        : { type: "image_url", image_url: { url: file.data } };
    }),
  ];
}

/** The figures that were set, and only those. `limit` is what this endpoint calls the most tokens. */
function given(numbers: Record<string, string>, limit: string): Json {
  const set = Object.entries(numbers).filter(([, value]) => value.trim() !== "" && !Number.isNaN(Number(value)));
  return Object.fromEntries(set.map(([name, value]) => [name === "max_tokens" ? limit : name, Number(value)]));
}

/** A request without a chat: text to go on with, or with a suffix (not null) the gap before it. */
export function completion(model: string, text: string, suffix: string | null, numbers: Record<string, string>, stop: string): { path: string; body: Json } {
  const stops = stop.split("\n").filter(Boolean);
  const common = { model, stream: true, ...(stops.length ? { stop: stops } : {}) };
  if (suffix !== null) return { path: "/infill", body: { ...common, input_prefix: text, input_suffix: suffix, ...given(numbers, "n_predict") } };
  return { path: "/v1/completions", body: { ...common, prompt: text, stream_options: { include_usage: true }, ...given(numbers, "max_tokens") } };
}

/** A message as this endpoint wants it; an answer whose tool calls all have results becomes several. */
function turnsOf(message: Message, endpoint: Endpoint): Json[] {
  const { role, text, tools = [] } = message;
  if (!toolsAnswered(message)) return [{ role, content: content(message, endpoint) }];
  const id = (tool: ToolCall, i: number): string => tool.id || `call_${i}`;
  if (endpoint === "responses") {
    return [
      ...(text ? [{ role, content: content(message, endpoint) }] : []),
      ...tools.map((tool, i) => ({ type: "function_call", call_id: id(tool, i), name: tool.name, arguments: tool.args || "{}" })),
      ...tools.map((tool, i) => ({ type: "function_call_output", call_id: id(tool, i), output: tool.result })),
    ];
  }
  if (endpoint === "messages") {
    const uses = tools.map((tool, i) => ({ type: "tool_use", id: id(tool, i), name: tool.name, input: parsed(tool.args) }));
    return [
      { role, content: [...(text ? [{ type: "text", text }] : []), ...uses] },
      { role: "user", content: tools.map((tool, i) => ({ type: "tool_result", tool_use_id: id(tool, i), content: tool.result })) },
    ];
  }
  const calls = tools.map((tool, i) => ({ id: id(tool, i), type: "function", function: { name: tool.name, arguments: tool.args || "{}" } }));
  return [{ role, content: text, tool_calls: calls }, ...tools.map((tool, i) => ({ role: "tool", tool_call_id: id(tool, i), content: tool.result }))];
}

/** The request for these messages; `offered` are tools besides those of the settings. Throws when one of the JSON fields
 * is not JSON. */
export function build(model: string, messages: Message[], params: Params, offered: unknown[] = []): { path: string; body: Json } {
  const { endpoint } = params;
  const body: Json = { model, stream: true };
  const turns = messages
    .filter((message) => !message.error || message.text)
    .flatMap((message) => turnsOf(message, endpoint));
  if (endpoint === "responses") {
    body.input = turns;
    if (params.system) body.instructions = params.system;
  } else if (endpoint === "messages") {
    body.messages = turns;
    if (params.system) body.system = params.system;
    // This protocol has no request without a limit.
    body.max_tokens = 8192;
  } else {
    body.messages = params.system ? [{ role: "system", content: params.system }, ...turns] : turns;
    body.stream_options = { include_usage: true };
    // An answer that is to go on: vLLM wants it said, llama.cpp sees it.
    if (turns.at(-1)?.role === "assistant") Object.assign(body, { continue_final_message: true, add_generation_prompt: false });
  }
  Object.assign(body, given(params.numbers, endpoint === "responses" ? "max_output_tokens" : "max_tokens"));
  const stops = params.stop.split("\n").filter(Boolean);
  if (stops.length) body[endpoint === "messages" ? "stop_sequences" : "stop"] = stops;
  const json = (text: string, what: string): unknown => {
    try {
      return JSON.parse(text);
    } catch (error) {
      throw new Error(`${what} is not JSON: ${(error as Error).message}`);
    }
  };
  if (params.schema.trim()) {
    const schema = json(params.schema, "The response schema");
    if (endpoint === "responses") body.text = { format: { type: "json_schema", name: "answer", schema } };
    else body.response_format = { type: "json_schema", json_schema: { name: "answer", schema } };
  }
  const own = params.tools.trim() ? json(params.tools, "The list of tools") : [];
  if (!Array.isArray(own)) throw new Error("The list of tools is not a list");
  if (own.length + offered.length) body.tools = [...own, ...offered];
  if (params.extra.trim()) Object.assign(body, json(params.extra, "The extra JSON"));
  return { path: PATHS[endpoint], body };
}

export const session = `lspg-${uid().slice(0, 5)}`;

export interface Run {
  answer: Answer;
  stats: Stats;
}

/** Sends a request and reports what has arrived, at most once a frame. */
export async function run(path: string, body: Json, signal: AbortSignal, progress: (run: Run) => void): Promise<Run> {
  const answer = new Answer();
  const began = performance.now();
  const state: Run = { answer, stats: { total: 0 } };
  let first = 0;
  let thoughtUntil = 0;
  let pieces = 0;
  let frame = 0;
  let loadedAt = 0;
  const tell = (): void => {
    frame = 0;
    state.stats = measure(answer.usage, began, first, thoughtUntil, pieces);
    if (loadedAt && !answer.error) state.stats.loading = loadedAt - began;
    progress(state);
  };
  const response = await request(path, {
    method: "POST",
    headers: { "Content-Type": "application/json", "X-Session-ID": session },
    body: JSON.stringify(body),
    signal,
  });
  if (!response.ok) throw new ApiError(response.status, errorText(response.status, await response.text()));
  if (!(response.headers.get("content-type") ?? "").includes("event-stream")) {
    answer.take(JSON.parse(await response.text()));
    first = performance.now();
    tell();
    return state;
  }
  try {
    for await (const message of sseOf(response)) {
      const thinking = answer.text.length;
      if (answer.take(parsed(message.data))) {
        // The server's own words while it loads the model are not the model's.
        const waits = stillLoading(answer);
        if (answer.loading && !(waits && answer.reasoning)) loadedAt ||= performance.now();
        if (!waits) {
          pieces += 1;
          first ||= performance.now();
          if (!thinking && answer.text && answer.reasoning) thoughtUntil = performance.now();
        }
      }
      frame ||= requestAnimationFrame(tell);
    }
  } finally {
    if (frame) cancelAnimationFrame(frame);
    tell();
  }
  return state;
}

function measure(usage: Usage, began: number, first: number, thoughtUntil: number, pieces: number): Stats {
  const now = performance.now();
  const output = usage.output ?? (pieces || undefined);
  const span = (now - first) / 1000;
  return {
    ttft: first ? first - began : undefined,
    total: now - began,
    input: usage.input,
    output,
    context: usage.input === undefined ? undefined : usage.input + (usage.apart ? (usage.cached ?? 0) : 0) + (output ?? 0),
    cached: usage.cached,
    promptRate: usage.promptRate,
    rate: usage.rate ?? (first && output && output > 1 && span > 0.02 ? (output - 1) / span : undefined),
    thought: thoughtUntil && first ? thoughtUntil - first : undefined,
    finish: usage.finish,
    estimated: usage.output === undefined,
  };
}
