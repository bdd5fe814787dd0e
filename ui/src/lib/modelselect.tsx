// One way to choose a model: loaded ones first, and what choosing a cold one would cost.
import { useSignal } from "@preact/signals";
import { useEffect, useLayoutEffect } from "preact/hooks";
import { planText } from "./actions";
import { whyUnknown } from "./link";
import { pref } from "./prefs";
import { listed, loadedModels, models, plan, refreshListed } from "./state";
import { Dialog, IconButton, onEnter } from "./widgets";
import type { ListedModel } from "./types";

/** The model to begin with: a loaded one if there is any. */
export async function firstModel(): Promise<string> {
  if (!listed.peek().length) await refreshListed();
  const loaded = loadedModels.peek().map((model) => model.id);
  return (listed.peek().find((model) => loaded.includes(model.id)) ?? listed.peek()[0])?.id ?? "";
}

export function useListed(): void {
  const key = models.value.map((model) => `${model.id}${model.state}`).join();
  useEffect(() => {
    const timer = setTimeout(() => void refreshListed().catch(() => undefined), 200);
    return () => clearTimeout(timer);
  }, [key]);
}

const recent = pref<string[]>("models.recent", []);
const SEARCHED = 8; // models from which on the list can be searched

export function ModelSelect(props: {
  label: string;
  value: string;
  onChange: (id: string) => void;
  fits?: (model: ListedModel) => boolean;
  hint?: boolean;
  /** Who uses it chooses the first model itself. */
  optional?: boolean;
  /** What no model is called, if that is a choice. */
  empty?: string;
}) {
  const list = listed.value;
  const kind = (model: ListedModel) => model.meta?.llamaswap?.type ?? (model.meta?.llamaswap?.peerID ? "peer" : "model");
  const loaded = new Set(loadedModels.value.map((model) => model.id));
  const cold = list.filter((model) => ["model", "alias"].includes(kind(model)) && !loaded.has(model.id));
  const used = recent.value.flatMap((id) => cold.filter((model) => model.id === id));
  const groups: [string, ListedModel[]][] = [
    ["Profile", list.filter((model) => kind(model) === "profile")],
    ["Loaded", list.filter((model) => kind(model) === "model" && loaded.has(model.id))],
    ["Last used", used],
    ["Selectors", list.filter((model) => kind(model) === "selector")],
    ["Not loaded", cold.filter((model) => !used.includes(model))],
    ["At peers", list.filter((model) => kind(model) === "peer")],
  ];
  if (props.fits) {
    const fitting = list.filter(props.fits);
    if (fitting.length) {
      for (const group of groups) group[1] = group[1].filter((model) => !fitting.includes(model));
      groups.unshift(["Made for this", fitting]);
    }
  }
  useLayoutEffect(() => { // at once: an effect could come after the user's choice
    if (!props.value && list.length && !props.optional) {
      const first = groups.find(([, members]) => members.length)?.[1][0];
      if (first) props.onChange(first.id);
    }
  }, [list.length > 0]);
  const searching = useSignal(false);
  const choose = (id: string) => {
    recent.value = [id, ...recent.peek().filter((other) => other !== id)].slice(0, 5);
    props.onChange(id);
  };
  const known = list.some((model) => model.id === props.value);
  return (
    <div class="modelselect">
      <select class="input" aria-label={props.label} value={props.value} onChange={(event) => choose(event.currentTarget.value)}>
        {props.empty ? <option value="">{props.empty}</option> : !list.length && <option value="">{whyUnknown("no models")}</option>}
        {props.value && !known && <option value={props.value}>{props.value}</option>}
        {groups.map(([name, members]) =>
          members.length ? (
            <optgroup key={name} label={name}>
              {members.map((model) => (
                <option key={model.id} value={model.id}>
                  {loaded.has(model.id) ? "● " : ""}
                  {model.id}
                </option>
              ))}
            </optgroup>
          ) : null,
        )}
      </select>
      {list.length > SEARCHED && <IconButton icon="search" label="Search the models" onClick={() => (searching.value = true)} />}
      {searching.value && <Search label={props.label} groups={groups} loaded={loaded} choose={choose} onClose={() => (searching.value = false)} />}
      {props.hint && <PlanHint model={props.value} />}
    </div>
  );
}

function Search(props: { label: string; groups: [string, ListedModel[]][]; loaded: ReadonlySet<string>; choose: (id: string) => void; onClose: () => void }) {
  const typed = useSignal("");
  const words = typed.value.toLowerCase().split(" ").filter(Boolean);
  const fits = ({ id, name = "", description = "" }: ListedModel) => words.every((word) => `${id} ${name} ${description}`.toLowerCase().includes(word));
  const groups = props.groups.map(([name, members]) => [name, members.filter(fits)] as const).filter(([, members]) => members.length);
  const take = (id: string | undefined) => {
    if (!id) return;
    props.choose(id);
    props.onClose();
  };
  return (
    <Dialog title={props.label} class="palette" onClose={props.onClose}>
      <input class="input" type="search" autofocus aria-label="Search models" placeholder="Name or description" value={typed.value} onInput={(event) => (typed.value = event.currentTarget.value)} onKeyDown={onEnter(() => take(groups[0]?.[1][0]?.id))} />
      <div class="picks">
        {groups.map(([name, members]) => (
          <section key={name}>
            <h4>{name}</h4>
            {members.map((model) => (
              <button type="button" key={model.id} class="histitem" onClick={() => take(model.id)}>
                <span>{props.loaded.has(model.id) ? "● " : ""}{model.id}</span>
                {model.description && <span class="muted clip">{model.description}</span>}
              </button>
            ))}
          </section>
        ))}
        {!groups.length && <p class="muted">No model of that name</p>}
      </div>
    </Dialog>
  );
}

/** What sending to this model would set in motion. */
export function PlanHint({ model }: { model: string }) {
  const text = useSignal("");
  const state = models.value.find((item) => item.id === model)?.state;
  useEffect(() => {
    text.value = "";
    if (!model || state === "ready" || state === "starting" || state === undefined) return;
    let alive = true;
    void plan(model).then((preview) => { if (alive && preview && !preview.running) text.value = planText(preview); });
    return () => { alive = false; };
  }, [model, state]);
  return text.value ? <span class="muted planhint">{text.value}</span> : null;
}
