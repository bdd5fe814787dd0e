// Preferences: one versioned key in localStorage, one signal for each preference.
import { type Signal, effect, signal } from "@preact/signals";

const KEY = "llamaswap.v1";

function read(): Record<string, unknown> {
  try {
    const stored = localStorage.getItem(KEY);
    if (stored) return JSON.parse(stored) as Record<string, unknown>;
    // The Go program's interface kept its mode under this key; a returning visitor keeps the choice.
    const mode = localStorage.getItem("theme-mode")?.replaceAll('"', "");
    return mode === "dark" || mode === "light" ? { theme: mode } : {};
  } catch {
    return {};
  }
}

const values = read();
const known = new Map<string, Signal<unknown>>();

function save(name: string, value: unknown): void {
  try {
    // Other tabs write here too: only what was changed in this one is this one's to say.
    localStorage.setItem(KEY, JSON.stringify(Object.assign(values, read(), { [name]: value })));
  } catch {
    // A full or forbidden store costs the preference, nothing else.
  }
}

export function pref<T>(name: string, initial: T): Signal<T> {
  const existing = known.get(name);
  if (existing) return existing as Signal<T>;
  const made = signal<T>(name in values ? (values[name] as T) : initial);
  known.set(name, made as Signal<unknown>);
  let first = true;
  effect(() => {
    const value = made.value;
    if (first) first = false;
    else save(name, value);
  });
  return made;
}

/** Another tab changed a preference: follow it. */
addEventListener("storage", (raw) => {
  const event = raw as StorageEvent;
  if (event.key !== KEY || !event.newValue) return;
  try {
    const fresh = JSON.parse(event.newValue) as Record<string, unknown>;
    for (const name of ["theme", "accent", "density", "title"]) {
      const made = known.get(name);
      if (made && name in fresh) made.value = fresh[name];
    }
  } catch {
    // Written by something else; ours stays.
  }
});

export type Theme = "system" | "light" | "dark";
export const theme = pref<Theme>("theme", "system");
/** The theme that is seen now. */
export const darkNow = (): boolean => theme.value === "dark" || (theme.value === "system" && matchMedia("(prefers-color-scheme: dark)").matches);
export const accent = pref<string>("accent", "teal");
export type Density = "compact" | "normal" | "spacious";
export const density = pref<Density>("density", "normal");
export const title = pref<string>("title", "llamaswap");
/** The model that a new chat begins with; empty: the one used last. */
export const defaultModel = pref<string>("chat.default", "");
/** Conversations that were not used for so many days are removed; 0 keeps them. */
export const keepDays = pref<number>("chat.keep", 0);
/** Which events the browser shows as a notification. */
export const notifyLoaded = pref<boolean>("notify.loaded", false);
export const notifyFailed = pref<boolean>("notify.failed", false);
