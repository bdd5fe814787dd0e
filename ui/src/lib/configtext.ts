// The configuration's text at the server: read, checked, replaced.
import { ApiError, errorText, request, send } from "./api";
import type { Shown } from "./draft";
import type { Impact, Problem } from "./types";

export interface Checked {
  valid?: boolean;
  errors?: Problem[];
  warnings?: Problem[];
  impact?: Impact;
}

export const YAML = { "Content-Type": "application/yaml" };

export async function readConfig(): Promise<Shown> {
  const response = await request("/api/config", { headers: { Accept: "application/yaml, application/json" } });
  const text = await response.text();
  if (!response.ok) throw new ApiError(response.status, errorText(response.status, text));
  return { text, tag: response.headers.get("ETag") ?? "" };
}

export const checkConfig = (text: string): Promise<Checked> => send<Checked>("POST", "/api/config/validate", text, YAML);

/** Replaces the text that was read as `before`; throws with the reason where that is refused. */
export async function writeConfig(text: string, before: Shown): Promise<void> {
  const response = await request("/api/config", { method: "PUT", body: text, headers: { ...YAML, "If-Match": before.tag } });
  const body = await response.text();
  if (response.ok) return;
  if (response.status === 412) throw new Error("The configuration was changed elsewhere meanwhile. Nothing was saved; close this and try again.");
  if (response.status === 422) throw new Error((JSON.parse(body) as Checked).errors?.[0]?.message ?? "The server refused this configuration");
  throw new Error(errorText(response.status, body));
}
