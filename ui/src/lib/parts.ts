// The parts of the page that are fetched when they are first needed. The server has only those of its own version.
import { prefix } from "./router";
import { toast } from "./widgets";

const own = document.querySelector<HTMLScriptElement>("script[type=module]")?.src ?? "";

/** Why a part could not be fetched. */
export async function whyMissing(): Promise<string> {
  const manifest = fetch(`${prefix}ui/manifest.json`, { cache: "no-store" }).then((response) => response.json() as Promise<{ script: string }>);
  const older = await manifest.then(({ script }) => !own.endsWith(script), () => false);
  return older ? "This page is older than the server, which was updated: reload it." : "A part of this page could not be fetched. Reload it when the server can be reached.";
}

/** Uses a part once it is there; if it cannot be fetched, says so and offers to reload the page. */
export function part<T>(load: Promise<T>, use: (part: T) => void, failed?: () => void): void {
  load.then(use, () => (failed?.(), whyMissing().then((why) => toast("error", why, { label: "Reload", run: () => location.reload() }))));
}
