// Keyboard: the palette, "g" then a letter, "/" for the filter, rows by j and k. Nothing fires while typing, and
// nothing destructive happens at a single key without a confirmation.
import { signal } from "@preact/signals";
import { load, unload } from "./actions";
import { NAV, go } from "./router";

export const paletteOpen = signal(false);
export const helpOpen = signal(false);

const PAGES: Record<string, string> = Object.fromEntries(NAV.map(({ key, page }) => [key, page]));

export const HELP: [string, string][] = [
  ["Ctrl K", "Command palette"],
  ["g o / g m / g r", "Overview, Models, Requests"],
  ["g p / g l / g u / g c / g s", "Playground, Logs, Usage, Config, System"],
  ["/", "Jump to the filter or search box"],
  ["j  k", "Next and previous row"],
  ["Enter", "Open the selected row"],
  ["l", "Load the selected model"],
  ["u", "Unload the selected model"],
  ["Ctrl S", "Review and save the configuration"],
  ["?", "This list"],
  ["Esc", "Close a dialog, leave a field"],
];

function typing(target: EventTarget | null): boolean {
  const element = target as HTMLElement | null;
  return !!element?.closest?.("input, textarea, select, [contenteditable=''], [contenteditable=true], .cm-editor");
}

const rows = (): HTMLElement[] => [...document.querySelectorAll<HTMLElement>("main [data-row]")].filter((row) => row.offsetParent !== null);

function move(step: number): void {
  const all = rows();
  if (!all.length) return;
  const at = all.findIndex((row) => row.contains(document.activeElement) || row.dataset.selected === "true");
  const next = all[Math.max(0, Math.min(all.length - 1, at < 0 ? 0 : at + step))] as HTMLElement;
  for (const row of all) delete row.dataset.selected;
  next.dataset.selected = "true";
  (next.querySelector<HTMLElement>("[data-open]") ?? next).focus();
  next.scrollIntoView({ block: "nearest" });
}

export function installKeys(): () => void {
  let chord = -Infinity;
  const down = (event: KeyboardEvent) => {
    if ((event.ctrlKey || event.metaKey) && event.key.toLowerCase() === "k") {
      event.preventDefault();
      paletteOpen.value = !paletteOpen.value;
      return;
    }
    if (event.ctrlKey || event.metaKey || event.altKey || event.isComposing) return;
    if (typing(event.target)) {
      if (event.key === "Escape") (event.target as HTMLElement).blur();
      return;
    }
    if (document.querySelector("dialog[open]")) return;
    if (event.timeStamp - chord < 1200 && event.key in PAGES) {
      chord = -Infinity;
      event.preventDefault();
      go(PAGES[event.key] as string);
      return;
    }
    const selected = document.querySelector<HTMLElement>("main [data-selected=true], main [data-row]:focus-within");
    const model = selected?.dataset.model;
    if (event.key === "g") chord = event.timeStamp;
    else if (event.key === "/") {
      const box = document.querySelector<HTMLInputElement>("main [data-filter]");
      if (box) {
        event.preventDefault();
        box.focus();
        box.select();
      }
    } else if (event.key === "?") helpOpen.value = true;
    else if (event.key === "j") move(1);
    else if (event.key === "k") move(-1);
    else if (event.key === "l" && model) void load(model);
    else if (event.key === "u" && model) void unload(model, false);
  };
  document.addEventListener("keydown", down);
  return () => document.removeEventListener("keydown", down);
}
