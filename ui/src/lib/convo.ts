// Conversations out of requests and responses, for the three chat protocols: whole documents and streams alike.
import type { Attachment, Message } from "./chat";
import { plainError } from "./format";
import { SseParser } from "./sse";

export interface ToolCall {
  name: string;
  args: string;
  id?: string;
  /** What it answered, once it has run or was declined. */
  result?: string;
}

export interface Part {
  kind: "text" | "image" | "audio" | "tool" | "result" | "other";
  text: string;
}

export interface Turn {
  role: string;
  parts: Part[];
  reasoning?: string;
  tools?: ToolCall[];
  /** What tools answered, each by the id of its call. */
  results?: { id: string; text: string }[];
}

export interface Usage {
  input?: number;
  output?: number;
  cached?: number;
  /** The cached tokens are not part of the input. */
  apart?: boolean;
  promptRate?: number;
  rate?: number;
  promptMs?: number;
  finish?: string;
}

type Json = Record<string, unknown>;
const obj = (value: unknown): Json => (value && typeof value === "object" ? (value as Json) : {});
const str = (value: unknown): string => (typeof value === "string" ? value : value === undefined || value === null ? "" : JSON.stringify(value, null, 1));
const num = (value: unknown): number | undefined => (typeof value === "number" ? value : undefined);

function parts(content: unknown): Part[] {
  if (typeof content === "string") return content ? [{ kind: "text", text: content }] : [];
  if (!Array.isArray(content)) return content ? [{ kind: "other", text: str(content) }] : [];
  return content.map((item): Part => {
    if (typeof item === "string") return { kind: "text", text: item };
    const part = obj(item);
    switch (part.type) {
      case "text":
      case "input_text":
      case "output_text":
        return { kind: "text", text: str(part.text) };
      case "image_url":
        return { kind: "image", text: str(obj(part.image_url).url ?? part.image_url) };
      case "input_image":
        return { kind: "image", text: str(part.image_url) };
      case "image": {
        const source = obj(part.source);
        return { kind: "image", text: source.url ? str(source.url) : `data:${str(source.media_type)};base64,${str(source.data)}` };
      }
      case "input_audio":
        return { kind: "audio", text: `data:audio/${str(obj(part.input_audio).format)};base64,${str(obj(part.input_audio).data)}` };
      case "tool_result":
        return { kind: "result", text: parts(part.content).map((inner) => inner.text).join("\n") };
      case "thinking":
        return { kind: "other", text: str(part.thinking) };
      default:
        return { kind: "other", text: str(item) };
    }
  });
}

function toolCalls(value: unknown): ToolCall[] {
  return Array.isArray(value)
    ? value.map((item) => {
        const call = obj(obj(item).function ?? item);
        return { name: str(call.name), args: str(call.arguments ?? call.input), id: str(obj(item).call_id ?? obj(item).id) || undefined };
      })
    : [];
}

const blocks = (content: unknown, type: string): Json[] => (Array.isArray(content) ? content.map(obj).filter((block) => block.type === type) : []);
const textOf = (content: unknown): string => parts(content).map((part) => part.text).join("\n");

/** The turns a request body carries; null when it is no conversation. */
export function requestTurns(body: unknown): Turn[] | null {
  const json = obj(body);
  const turns: Turn[] = [];
  if (json.system) turns.push({ role: "system", parts: parts(json.system) });
  if (json.instructions) turns.push({ role: "system", parts: parts(json.instructions) });
  if (Array.isArray(json.messages)) {
    for (const item of json.messages) {
      const message = obj(item);
      turns.push({
        role: str(message.role),
        parts: parts(Array.isArray(message.content) ? message.content.filter((block) => obj(block).type !== "tool_use") : message.content),
        reasoning: str(message.reasoning_content ?? message.reasoning) || undefined,
        tools: [...toolCalls(message.tool_calls), ...toolCalls(blocks(message.content, "tool_use"))],
        results:
          message.role === "tool"
            ? [{ id: str(message.tool_call_id), text: textOf(message.content) }]
            : blocks(message.content, "tool_result").map((block) => ({ id: str(block.tool_use_id), text: textOf(block.content) })),
      });
    }
    return turns;
  }
  if (typeof json.input === "string" && ("max_output_tokens" in json || "instructions" in json)) {
    return [...turns, { role: "user", parts: parts(json.input) }];
  }
  if (Array.isArray(json.input) && json.input.some((item) => obj(item).role || obj(item).type)) {
    for (const item of json.input) {
      const message = obj(item);
      if (message.type === "function_call") turns.push({ role: "assistant", parts: [], tools: toolCalls([message]) });
      else if (message.type === "function_call_output") turns.push({ role: "tool", parts: [{ kind: "result", text: str(message.output) }], results: [{ id: str(message.call_id), text: str(message.output) }] });
      else turns.push({ role: str(message.role) || "user", parts: parts(message.content) });
    }
    return turns;
  }
  if (typeof json.prompt === "string") return [...turns, { role: "user", parts: parts(json.prompt) }];
  return null;
}

const ofKind = (turn: Turn, kind: string): string[] => turn.parts.filter((part) => part.kind === kind).map((part) => part.text);

/** Whether all the tools that an answer calls have answered. */
export const toolsAnswered = (message: Message): boolean => Boolean(message.tools?.length) && (message.tools ?? []).every((tool) => tool.result !== undefined);

/** The messages of a request that was captured: the answers of tools stand with their calls, as in a chat. */
export function messagesOf(turns: readonly Turn[]): Message[] {
  const messages: Message[] = [];
  for (const turn of turns) {
    for (const { id, text } of turn.results ?? []) {
      const calls = messages.findLast((message) => message.tools)?.tools ?? [];
      const call = calls.find((tool) => tool.id === id) ?? calls.find((tool) => tool.result === undefined);
      if (call) call.result = text;
    }
    if (turn.role !== "user" && turn.role !== "assistant") continue;
    const text = ofKind(turn, "text").join("\n");
    const attachments = ofKind(turn, "image").filter((data) => data.startsWith("data:")).map((data): Attachment => ({ kind: "image", name: "picture", data }));
    const tools = turn.tools?.map((tool) => ({ ...tool }));
    const before = messages.at(-1);
    if (!text && tools?.length && before?.role === "assistant" && !before.tools?.some((tool) => tool.result !== undefined)) {
      before.tools = [...(before.tools ?? []), ...tools]; // the Responses API has an item for each call
    } else if (text || attachments.length || tools?.length) {
      messages.push({ role: turn.role, text, attachments, tools: tools?.length ? tools : undefined });
    }
  }
  return messages;
}

/** One assistant answer, grown by the events of a stream or filled by a document. */
export class Answer {
  text = "";
  reasoning = "";
  /** What the server wrote while it loaded the model. */
  loading = "";
  tools: ToolCall[] = [];
  usage: Usage = {};
  error = "";
  private index = new Map<string, ToolCall>();

  private tool(key: string, name: string, args: string, id = ""): void {
    let call = this.index.get(key);
    if (!call) {
      call = { name: "", args: "" };
      this.index.set(key, call);
      this.tools.push(call);
    }
    if (name) call.name = name;
    if (id) call.id = id;
    call.args += args;
  }

  private count(raw: unknown): void {
    const usage = obj(raw);
    const input = num(usage.prompt_tokens) ?? num(usage.input_tokens);
    const output = num(usage.completion_tokens) ?? num(usage.output_tokens);
    const cached =
      num(usage.cache_read_input_tokens) ??
      num(obj(usage.input_tokens_details).cached_tokens) ??
      num(obj(usage.prompt_tokens_details).cached_tokens);
    if (input) this.usage.input = input;
    if (output) this.usage.output = output;
    if (cached !== undefined) this.usage.cached = cached;
    if (usage.cache_read_input_tokens !== undefined) this.usage.apart = true;
  }

  private timings(raw: unknown): void {
    const timings = obj(raw);
    if (!Object.keys(timings).length) return;
    if (this.usage.input === undefined) {
      this.usage.input = num(timings.prompt_n);
      this.usage.cached = num(timings.cache_n);
      this.usage.apart = true;
    }
    this.usage.output = num(timings.predicted_n) ?? this.usage.output;
    this.usage.promptRate = num(timings.prompt_per_second);
    this.usage.promptMs = num(timings.prompt_ms);
    this.usage.rate = num(timings.predicted_per_second);
  }

  /** Takes one event or document; true when text, reasoning or a tool call grew. */
  take(event: unknown): boolean {
    const json = obj(event);
    const before = this.text.length + this.reasoning.length + this.tools.length;
    if (json.error) this.error = plainError(str(obj(json.error).message ?? json.error));
    this.count(json.usage);
    this.timings(json.timings);
    const type = str(json.type);
    const choice = Array.isArray(json.choices) ? obj(json.choices[0]) : null;
    if (choice) {
      const delta = obj(choice.delta ?? choice.message);
      this.text += typeof choice.text === "string" ? choice.text : parts(delta.content).map((part) => part.text).join("");
      this.reasoning += str(delta.reasoning_content ?? delta.reasoning);
      if (Array.isArray(delta.tool_calls)) {
        delta.tool_calls.forEach((item, i) => {
          const call = obj(item);
          const fn = obj(call.function);
          this.tool(`c${num(call.index) ?? i}`, str(fn.name), str(fn.arguments), str(call.id));
        });
      }
      if (choice.finish_reason) this.usage.finish = str(choice.finish_reason);
    } else if (type === "message_start") this.count(obj(json.message).usage);
    else if (type === "content_block_start") {
      const block = obj(json.content_block);
      if (block.type === "tool_use") this.tool(`b${str(json.index)}`, str(block.name), "", str(block.id));
      if (block.type === "text") this.text += str(block.text);
    } else if (type === "content_block_delta") {
      const delta = obj(json.delta);
      if (delta.type === "text_delta") this.text += str(delta.text);
      else if (delta.type === "thinking_delta") this.reasoning += str(delta.thinking);
      else if (delta.type === "input_json_delta") this.tool(`b${str(json.index)}`, "", str(delta.partial_json));
    } else if (type === "message_delta") {
      if (obj(json.delta).stop_reason) this.usage.finish = str(obj(json.delta).stop_reason);
    } else if (type === "message" && Array.isArray(json.content)) {
      json.content.forEach((item, i) => {
        const block = obj(item);
        if (block.type === "text") this.text += str(block.text);
        else if (block.type === "thinking") this.reasoning += str(block.thinking);
        else if (block.type === "tool_use") this.tool(`b${i}`, str(block.name), str(block.input), str(block.id));
      });
      if (json.stop_reason) this.usage.finish = str(json.stop_reason);
    } else if (type === "response.output_text.delta") this.text += str(json.delta);
    else if (/^response\.reasoning(_summary)?_text\.delta$/.test(type)) this.reasoning += str(json.delta);
    else if (type === "response.output_item.added" && obj(json.item).type === "function_call") {
      this.tool(`r${str(json.output_index)}`, str(obj(json.item).name), "", str(obj(json.item).call_id));
    } else if (type === "response.function_call_arguments.delta") this.tool(`r${str(json.output_index)}`, "", str(json.delta));
    else if (type === "response.completed" || type === "response.failed" || type === "response.incomplete") {
      const response = obj(json.response);
      this.count(response.usage);
      this.timings(response.timings);
      if (response.error) this.error = plainError(str(obj(response.error).message));
      this.usage.finish = str(response.status);
    } else if (json.object === "response" && Array.isArray(json.output)) {
      json.output.forEach((item, i) => {
        const entry = obj(item);
        if (entry.type === "message") this.text += parts(entry.content).map((part) => part.text).join("");
        else if (entry.type === "reasoning") this.reasoning += parts(entry.summary).map((part) => part.text).join("");
        else if (entry.type === "function_call") this.tool(`r${i}`, str(entry.name), str(entry.arguments), str(entry.call_id));
      });
    } else if (typeof json.content === "string" && ("stop" in json || "tokens_predicted" in json)) this.text += json.content;
    return this.text.length + this.reasoning.length + this.tools.length !== before;
  }
}

/** What is not JSON, as the end of a stream, is an empty object. */
export const parsed = (args: string): unknown => {
  try {
    return JSON.parse(args || "{}");
  } catch {
    return {};
  }
};

const RULE = "\u2501".repeat(5);

/** Takes a finished loading notice, with its blank end, out of the reasoning; true until something of the model's came. */
export function stillLoading(answer: Answer): boolean {
  if (answer.loading && !answer.reasoning.trim()) {
    answer.reasoning = "";
    return !answer.text && !answer.tools.length;
  }
  if (!answer.reasoning.startsWith(RULE.slice(0, answer.reasoning.length || 1))) return false;
  const end = answer.reasoning.indexOf(RULE, 6);
  answer.loading = answer.reasoning.slice(0, end < 0 ? undefined : end).replaceAll("\u2501", "").trim();
  if (end < 0 && !answer.text) return true;
  answer.reasoning = end < 0 ? "" : answer.reasoning.slice(end + 5).trimStart();
  return !answer.reasoning && !answer.text;
}

export function responseAnswer(text: string, contentType: string): Answer | null {
  const answer = new Answer();
  if (contentType.includes("event-stream") || /^(?:event|data):/m.test(text.slice(0, 200))) {
    const parser = new SseParser();
    for (const message of [...parser.feed(text), ...parser.end()]) answer.take(parsed(message.data));
    stillLoading(answer);
  } else {
    answer.take(parsed(text));
  }
  return answer.text || answer.reasoning || answer.tools.length || answer.error ? answer : null;
}
