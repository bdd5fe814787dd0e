// Tools of the MCP servers that the configuration names. The server passes each message on; what runs is decided here.
import { signal } from "@preact/signals";
import { ApiError, errorText, maybe, request } from "./api";
import type { Endpoint } from "./chat";
import { pref } from "./prefs";

export interface McpTool {
  server: string;
  name: string;
  description: string;
  schema: unknown;
}

/** The servers whose tools a chat offers to its model; none until they are chosen. */
export const chosenServers = pref<string[]>("chat.mcp", []);
/** Whether tool calls run without a question. */
export const runAlone = pref<boolean>("chat.mcp.auto", false);
export const tools = signal<McpTool[]>([]);
export const mcpError = signal("");

const VERSION = "2025-06-18";
const MOST_PAGES = 10;
const sessions = new Map<string, string>();
let last = 0;

interface Reply {
  result?: Record<string, unknown>;
  error?: { message?: string };
}

type Result = Record<string, unknown>;

async function post(server: string, method: string, params: unknown, more: { note?: boolean; signal?: AbortSignal } = {}): Promise<Result> {
  const session = sessions.get(server);
  const id = ++last;
  const response = await request(`/api/mcp/${encodeURIComponent(server)}`, {
    method: "POST",
    headers: { "Content-Type": "application/json", "MCP-Protocol-Version": VERSION, ...(session ? { "Mcp-Session-Id": session } : {}) },
    body: JSON.stringify({ jsonrpc: "2.0", method, params, ...(more.note ? {} : { id }) }),
    signal: more.signal,
  }).catch((error: Error) => {
    // So that the server can stop the tool.
    if (more.signal?.aborted) post(server, "notifications/cancelled", { requestId: id, reason: "stopped by the user" }, { note: true }).catch(() => undefined);
    throw error;
  });
  const text = await response.text();
  if (!response.ok) throw new ApiError(response.status, errorText(response.status, text));
  const fresh = response.headers.get("Mcp-Session-Id");
  if (fresh) sessions.set(server, fresh);
  const reply = JSON.parse(text) as Reply;
  if (reply.error) throw new Error(reply.error.message ?? "the MCP server refused it");
  return reply.result ?? {};
}

async function initialize(server: string): Promise<void> {
  sessions.delete(server);
  await post(server, "initialize", { protocolVersion: VERSION, capabilities: {}, clientInfo: { name: "llamaswap", version: "1" } });
  await post(server, "notifications/initialized", {}, { note: true });
}

/** Sends a request in the server's session. A session that the server has ended, which it answers with 404, is begun
 * again once. */
async function send(server: string, method: string, params: unknown, signal?: AbortSignal): Promise<Result> {
  try {
    return await post(server, method, params, { signal });
  } catch (error) {
    if (!(error instanceof ApiError && error.status === 404 && sessions.has(server))) throw error;
    await initialize(server);
    return post(server, method, params, { signal });
  }
}

async function toolsOf(server: string): Promise<McpTool[]> {
  await initialize(server);
  const found: McpTool[] = [];
  let cursor: unknown;
  for (let page = 0; page < MOST_PAGES; page++) {
    const { tools: list = [], nextCursor } = (await send(server, "tools/list", cursor ? { cursor } : {})) as { tools?: Record<string, unknown>[]; nextCursor?: unknown };
    for (const tool of list) found.push({ server, name: String(tool.name), description: String(tool.description ?? ""), schema: tool.inputSchema ?? { type: "object" } });
    cursor = nextCursor;
    if (!cursor) break;
  }
  return found;
}

export const listServers = async (): Promise<string[]> => (await maybe<{ servers: string[] }>("/api/mcp"))?.servers ?? [];

let connected = "";

/** Fetches the tools of the chosen servers, once for each choice. The first of several tools with one name is taken. */
export async function connect(again = false): Promise<void> {
  const wanted = chosenServers.peek().join("\n");
  if (wanted === connected && !again) return;
  connected = wanted;
  mcpError.value = "";
  const found = await Promise.all(
    chosenServers.peek().map((server) =>
      toolsOf(server).catch((error: Error) => {
        mcpError.value = `${server}: ${error.message}`;
        return [];
      }),
    ),
  );
  if (wanted !== connected) return;
  const names = new Set<string>();
  tools.value = found.flat().filter((tool) => !names.has(tool.name) && names.add(tool.name));
  if (mcpError.peek()) connected = "";
}

/** The tools as a request's body names them. */
export const toolsFor = (endpoint: Endpoint): unknown[] =>
  tools.peek().map(({ name, description, schema }) =>
    endpoint === "messages"
      ? { name, description, input_schema: schema }
      : endpoint === "responses"
        ? { type: "function", name, description, parameters: schema }
        : { type: "function", function: { name, description, parameters: schema } },
  );

export const isKnown = (name: string): boolean => tools.peek().some((tool) => tool.name === name);

/** What a tool answers; a tool that fails answers with its error, for the model to read. */
export async function callTool(name: string, args: string, signal: AbortSignal): Promise<string> {
  const tool = tools.peek().find((item) => item.name === name);
  if (!tool) return `There is no tool ${name}.`;
  try {
    const result = await send(tool.server, "tools/call", { name, arguments: JSON.parse(args || "{}") as unknown }, signal);
    const parts = (result.content ?? []) as { type: string; text?: string }[];
    const text = parts.map((part) => part.text ?? `(${part.type})`).join("\n");
    return result.isError ? `Error: ${text}` : text || JSON.stringify(result.structuredContent ?? {});
  } catch (error) {
    return `Error: ${(error as Error).message}`;
  }
}
