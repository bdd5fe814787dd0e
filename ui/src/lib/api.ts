// Calls to the server. Addresses are relative to where the interface is served, so a path prefix is no matter.
import { signal } from "@preact/signals";
import { plainError } from "./format";
import { prefix } from "./router";

export class ApiError extends Error {
  constructor(readonly status: number, message: string, readonly body: unknown = null) {
    super(message);
  }
}

/** The server asked for a key and ours (if any) was refused. */
export const keyNeeded = signal(false);

let declined = false; // whether the question was closed since the key was last changed

/** The server refused a request: ask for a key, unless the person has just closed that question. */
export function askForKey(): void {
  if (!declined) keyNeeded.value = true;
}

/** The person has closed the question. */
export function declineKey(): void {
  declined = true;
  keyNeeded.value = false;
}

// "omit" keeps the browser's own password box away. It changes only where something in front of the server
// turns out to need cookies.
let credentials: RequestCredentials = "omit";

export function apiKey(): string {
  try {
    return sessionStorage.getItem("llamaswap.key") ?? localStorage.getItem("llamaswap.key") ?? "";
  } catch {
    return "";
  }
}

export function setApiKey(key: string, remember: boolean): void {
  declined = false;
  try {
    sessionStorage.removeItem("llamaswap.key");
    localStorage.removeItem("llamaswap.key");
    if (key) (remember ? localStorage : sessionStorage).setItem("llamaswap.key", key);
  } catch {
    // Without storage the key lives until the page is reloaded; asking again is the worst case.
  }
}

/** A model id inside a path: slashes stay slashes, everything else is escaped. */
export const pathId = (id: string): string => id.split("/").map(encodeURIComponent).join("/");

export function url(path: string, params?: Record<string, string | number | string[] | null | undefined>): string {
  const query = new URLSearchParams();
  for (const [key, value] of Object.entries(params ?? {})) {
    if (Array.isArray(value)) for (const item of value) query.append(key, item);
    else if (value !== null && value !== undefined && value !== "") query.set(key, String(value));
  }
  const text = query.toString();
  return `${prefix}${path.replace(/^\//, "")}${text ? `?${text}` : ""}`;
}

export function authHeaders(): Record<string, string> {
  const key = apiKey();
  return key ? { Authorization: `Bearer ${key}` } : {};
}

export function errorText(status: number, text: string): string {
  try {
    const body = JSON.parse(text) as Record<string, unknown>;
    const error = body.error as Record<string, unknown> | string | undefined;
    const found =
      (typeof error === "object" && error !== null ? error.message : error) ?? body.message ?? body.detail ?? body.msg;
    if (typeof found === "string" && found) return plainError(found);
  } catch {
    // Not JSON: the text itself is the message.
  }
  const plain = text.trim();
  return plain && plain.length < 400 && !plain.startsWith("<") ? plain : `HTTP ${status}`;
}

export async function request(path: string, init: RequestInit = {}): Promise<Response> {
  const target = path.startsWith(prefix) ? path : url(path);
  const headers = { ...authHeaders(), ...((init.headers as Record<string, string>) ?? {}) };
  let response: Response;
  try {
    response = await fetch(target, { ...init, headers, credentials, cache: "no-store" });
  } catch (error) {
    if ((error as Error).name === "AbortError") throw error;
    throw new ApiError(0, "The server cannot be reached");
  }
  if (response.status === 401) {
    const ours = (response.headers.get("WWW-Authenticate") ?? "").includes("llama");
    if (!ours && credentials === "omit") {
      credentials = "same-origin";
      return request(path, init);
    }
    askForKey();
  }
  return response;
}

async function parsed<T>(response: Response): Promise<T> {
  const text = await response.text();
  if (!response.ok) {
    let body: unknown = null;
    try {
      body = JSON.parse(text);
    } catch {
      body = text;
    }
    throw new ApiError(response.status, errorText(response.status, text), body);
  }
  try {
    return JSON.parse(text) as T;
  } catch {
    return text as unknown as T;
  }
}

type Query = Record<string, string | number | string[] | null | undefined>;

export async function get<T>(path: string, params?: Query, signal?: AbortSignal): Promise<T> {
  return parsed<T>(await request(url(path, params), { headers: { Accept: "application/json" }, signal }));
}

const absent = new Set<string>();

/** For addresses that only newer servers have: null where the server does not know them. */
export async function maybe<T>(path: string, params?: Query): Promise<T | null> {
  const family = path.split("/").slice(0, 3).join("/");
  if (absent.has(family)) return null;
  try {
    return await get<T>(path, params);
  } catch (error) {
    if (error instanceof ApiError && [404, 405, 501, 503].includes(error.status)) {
      if (family === path && error.status !== 503) absent.add(family);
      return null;
    }
    throw error;
  }
}

export async function send<T>(method: string, path: string, body?: unknown, headers: Record<string, string> = {}, signal?: AbortSignal): Promise<T> {
  const init: RequestInit = { method, headers: { Accept: "application/json", ...headers }, signal };
  if (body !== undefined) {
    if (typeof body === "string" || body instanceof FormData) init.body = body;
    else {
      init.body = JSON.stringify(body);
      init.headers = { ...(init.headers as Record<string, string>), "Content-Type": "application/json" };
    }
  }
  return parsed<T>(await request(path, init));
}

/** The list in a payload that may be bare or wrapped. */
export function listOf<T>(payload: unknown, ...keys: string[]): T[] {
  if (Array.isArray(payload)) return payload as T[];
  if (payload && typeof payload === "object") {
    for (const key of [...keys, "data", "items"]) {
      const inner = (payload as Record<string, unknown>)[key];
      if (Array.isArray(inner)) return inner as T[];
    }
  }
  return [];
}
