// Ctrl+K: go anywhere, load or unload anything. And the list of keys.
import { useSignal } from "@preact/signals";
import { useEffect, useRef } from "preact/hooks";
import { load, restart, switchProfile, unload, unloadAll } from "../lib/actions";
import { HELP, helpOpen, paletteOpen } from "../lib/keys";
import { type Theme, theme } from "../lib/prefs";
import { NAV, go } from "../lib/router";
import { localModels, models, profiles } from "../lib/state";
import { Dialog } from "../lib/widgets";

interface Command {
  label: string;
  hint: string;
  run: () => void;
}

function commands(): Command[] {
  const list: Command[] = NAV.map(({ label, page }) => ({ label, hint: "page", run: () => go(page) }));
  list.push({ label: "Add a model", hint: "page", run: () => go("add") });
  list.push({ label: "Requests with errors", hint: "page", run: () => go("requests", { status: "error" }) });
  for (const model of models.value) list.push({ label: model.id, hint: "open model", run: () => go("model", { id: model.id }) });
  for (const model of localModels.value) {
    if (model.state === "ready" || model.state === "starting") {
      list.push({ label: `Unload ${model.id}`, hint: "action", run: () => void unload(model.id) });
      list.push({ label: `Restart ${model.id}`, hint: "action", run: () => void restart(model.id) });
    } else list.push({ label: `Load ${model.id}`, hint: "action", run: () => void load(model.id) });
    list.push({ label: `Log of ${model.id}`, hint: "log", run: () => go("logs", { src: model.id }) });
    list.push({ label: `Chat with ${model.id}`, hint: "playground", run: () => go("playground", { tab: "chat", model: model.id }) });
  }
  list.push({ label: "Unload all models", hint: "action", run: () => void unloadAll() });
  for (const profile of profiles.value.profiles) {
    list.push({ label: `Profile ${profile.id}`, hint: "switch", run: () => void switchProfile(profile.id) });
  }
  if (profiles.value.active) list.push({ label: "No profile", hint: "switch", run: () => void switchProfile(null) });
  for (const mode of ["system", "light", "dark"] as Theme[]) {
    list.push({ label: `Theme: ${mode}`, hint: "appearance", run: () => (theme.value = mode) });
  }
  list.push({ label: "Keyboard shortcuts", hint: "help", run: () => (helpOpen.value = true) });
  return list;
}

/** Every typed letter in order; earlier and closer together is better, and every word as it was typed is best. */
export function score(name: string, typed: string): number {
  const label = name.toLowerCase();
  const words = typed.split(" ").filter(Boolean);
  if (words.every((word) => label.includes(word))) return 1000 - words.reduce((sum, word) => sum + label.indexOf(word), 0);
  const text = label.replaceAll(" ", "");
  let from = 0;
  let gaps = 0;
  for (const letter of words.join("")) {
    const next = text.indexOf(letter, from);
    if (next < 0) return -1;
    gaps += next - from;
    from = next + 1;
  }
  return 500 - gaps;
}

export function Palette() {
  if (helpOpen.value) return <Help />;
  return paletteOpen.value ? <Box /> : null;
}

function Box() {
  const typed = useSignal("");
  const at = useSignal(0);
  const list = useRef<HTMLUListElement>(null);
  const wanted = typed.value.trim().toLowerCase();
  const found = commands()
    .map((command) => ({ command, rank: wanted ? score(command.label, wanted) : 0 }))
    .filter((item) => item.rank >= 0)
    .sort((a, b) => b.rank - a.rank)
    .slice(0, 40)
    .map((item) => item.command);
  const close = () => (paletteOpen.value = false);
  const run = (command: Command | undefined) => {
    close();
    command?.run();
  };
  useEffect(() => { list.current?.querySelector("[aria-selected=true]")?.scrollIntoView({ block: "nearest" }); }, [at.value]);
  return (
    <Dialog title="Go to or do" class="palette" onClose={close}>
      <input
        class="input"
        type="text"
        role="combobox"
        aria-expanded="true"
        aria-controls="palette-list"
        aria-activedescendant={found[at.value] ? `palette-${at.value}` : undefined}
        aria-label="Command"
        placeholder="Type a page, a model or an action"
        autofocus
        value={typed.value}
        onInput={(event) => {
          typed.value = event.currentTarget.value;
          at.value = 0;
        }}
        onKeyDown={(event) => {
          if (event.key === "ArrowDown") at.value = Math.min(found.length - 1, at.value + 1);
          else if (event.key === "ArrowUp") at.value = Math.max(0, at.value - 1);
          else if (event.key === "Enter" && !event.isComposing) run(found[at.value]);
          else return;
          event.preventDefault();
        }}
      />
      <ul id="palette-list" role="listbox" aria-label="Commands" ref={list}>
        {found.map((command, index) => (
          <li
            key={command.label + command.hint}
            id={`palette-${index}`}
            role="option"
            aria-selected={index === at.value}
            onClick={() => run(command)}
            onMouseMove={() => (at.value = index)}
          >
            <span class="grow clip">{command.label}</span>
            <span class="muted">{command.hint}</span>
          </li>
        ))}
      </ul>
      {!found.length && <p class="muted">Nothing of that name</p>}
    </Dialog>
  );
}

function Help() {
  return (
    <Dialog title="Keyboard" class="narrow" onClose={() => (helpOpen.value = false)}>
      <table class="plain keys">
        <tbody>
          {HELP.map(([keys, what]) => (
            <tr key={keys}>
              <th scope="row"><kbd>{keys}</kbd></th>
              <td>{what}</td>
            </tr>
          ))}
        </tbody>
      </table>
    </Dialog>
  );
}
