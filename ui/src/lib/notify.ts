// Notifications of the browser, for those who asked for them in Settings.
import { on } from "./link";
import { notifyFailed, notifyLoaded } from "./prefs";
import { go } from "./router";
import type { ModelStatus } from "./types";

function show(model: string, text: string): void {
  if (!("Notification" in window) || Notification.permission !== "granted") return;
  // Several tabs show one: the later replaces the earlier.
  const shown = new Notification(text, { tag: `llamaswap-${model}` });
  shown.onclick = () => {
    window.focus();
    go("model", { id: model });
  };
}

const states = new Map<string, string>();

on<ModelStatus[]>("modelStatus", (models) => {
  for (const { id, state, failed = "", peerID } of models) {
    const now = `${state} ${failed}`;
    const before = peerID ? now : states.get(id);
    states.set(id, now);
    if (before === undefined || before === now) continue;
    if (state === "ready" && before.startsWith("starting") && notifyLoaded.peek()) show(id, `${id} is loaded`);
    if (failed && !before.endsWith(failed) && notifyFailed.peek()) show(id, `${id} failed: ${failed}`);
  }
});
