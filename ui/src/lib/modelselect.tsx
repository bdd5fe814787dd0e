// One way to choose a model: loaded ones first, and what choosing a cold one would cost.
import { useSignal } from "@preact/signals";
import { useEffect } from "preact/hooks";
import { planText } from "./actions";
import { listed, loadedModels, models, plan, refreshListed } from "./state";
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
  const groups: [string, ListedModel[]][] = [
    ["Profile", list.filter((model) => kind(model) === "profile")],
    ["Loaded", list.filter((model) => kind(model) === "model" && loaded.has(model.id))],
    ["Selectors", list.filter((model) => kind(model) === "selector")],
    ["Not loaded", list.filter((model) => ["model", "alias"].includes(kind(model)) && !loaded.has(model.id))],
    ["At peers", list.filter((model) => kind(model) === "peer")],
  ];
  if (props.fits) {
    const fitting = list.filter(props.fits);
    if (fitting.length) {
      for (const group of groups) group[1] = group[1].filter((model) => !fitting.includes(model));
      groups.unshift(["Made for this", fitting]);
    }
  }
  useEffect(() => {
    if (!props.value && list.length && !props.optional) {
      const first = groups.find(([, members]) => members.length)?.[1][0];
      if (first) props.onChange(first.id);
    }
  }, [list.length > 0]);
  const known = list.some((model) => model.id === props.value);
  return (
    <div class="modelselect">
      <select class="input" aria-label={props.label} value={props.value} onChange={(event) => props.onChange(event.currentTarget.value)}>
        {props.empty ? <option value="">{props.empty}</option> : !list.length && <option value="">no models</option>}
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
      {props.hint && <PlanHint model={props.value} />}
    </div>
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
