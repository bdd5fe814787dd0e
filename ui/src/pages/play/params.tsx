// The settings of a request, and system prompts that are kept under a name.
import { useSignal } from "@preact/signals";
import { NO_PARAMS, NUMBERS, type Params } from "../../lib/chat";
import { pref } from "../../lib/prefs";
import { Btn, Field, Segmented } from "../../lib/widgets";

interface Preset {
  name: string;
  text: string;
}

const presets = pref<Preset[]>("chat.presets", []);

function Presets({ system, onPick }: { system: string; onPick: (text: string) => void }) {
  const name = useSignal("");
  const chosen = presets.value.find((item) => item.text === system);
  const keep = () => {
    const called = name.peek().trim();
    presets.value = [...presets.peek().filter((item) => item.name !== called), { name: called, text: system }];
    name.value = "";
  };
  return (
    <div class="row wrap">
      <select class="input small" aria-label="System prompt preset" value={chosen?.name ?? ""} onChange={(event) => onPick(presets.peek().find((item) => item.name === event.currentTarget.value)?.text ?? "")}>
        <option value="">{presets.value.length ? "No preset" : "No preset yet"}</option>
        {presets.value.map((item) => <option key={item.name} value={item.name}>{item.name}</option>)}
      </select>
      {chosen ? (
        <Btn small onClick={() => (presets.value = presets.peek().filter((item) => item !== chosen))}>Delete preset</Btn>
      ) : (
        <>
          <input class="input small" aria-label="Name of the preset" placeholder="Name" maxLength={60} value={name.value} onInput={(event) => (name.value = event.currentTarget.value)} />
          <Btn small disabled={!system.trim() || !name.value.trim()} onClick={keep}>Save as preset</Btn>
        </>
      )}
    </div>
  );
}

/** The figures of a request; an empty one is not sent. */
export function NumberFields({ value, onChange }: { value: Record<string, string>; onChange: (next: Record<string, string>) => void }) {
  return (
    <div class="cols2">
      {NUMBERS.map(([name, label, hint]) => (
        <Field key={name} label={label} hint={hint}>
          <input class="input" inputMode="decimal" placeholder="not sent" value={value[name] ?? ""} aria-invalid={Number.isNaN(Number(value[name] ?? 0))} onInput={(event) => onChange({ ...value, [name]: event.currentTarget.value })} />
        </Field>
      ))}
    </div>
  );
}

export function ParamsForm({ value, onChange }: { value: Params; onChange: (next: Params) => void }) {
  const set = (update: Partial<Params>) => onChange({ ...value, ...update });
  return (
    <div class="stack">
      <p class="muted">An empty field is not sent: the model's own setting applies.</p>
      <Segmented
        label="Endpoint"
        value={value.endpoint}
        options={[["completions", "Chat completions"], ["messages", "Anthropic messages"], ["responses", "Responses"]]}
        onChange={(endpoint) => set({ endpoint })}
      />
      <Field label="System prompt">
        <textarea class="input" rows={3} value={value.system} onInput={(event) => set({ system: event.currentTarget.value })} />
      </Field>
      <Presets system={value.system} onPick={(system) => set({ system })} />
      <NumberFields value={value.numbers} onChange={(numbers) => set({ numbers })} />
      <Field label="Stop sequences" hint="one per line">
        <textarea class="input" rows={2} value={value.stop} onInput={(event) => set({ stop: event.currentTarget.value })} />
      </Field>
      <Field label="Response schema" hint="JSON Schema">
        <textarea class="input mono" rows={3} value={value.schema} onInput={(event) => set({ schema: event.currentTarget.value })} />
      </Field>
      <Field label="Tools" hint="a JSON list">
        <textarea class="input mono" rows={3} value={value.tools} onInput={(event) => set({ tools: event.currentTarget.value })} />
      </Field>
      <Field label="Extra JSON" hint="merged into the request">
        <textarea class="input mono" rows={3} value={value.extra} onInput={(event) => set({ extra: event.currentTarget.value })} />
      </Field>
      <Btn onClick={() => onChange(NO_PARAMS)}>Reset</Btn>
    </div>
  );
}
