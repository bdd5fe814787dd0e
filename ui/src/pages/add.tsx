// Add a model: found on this machine, downloaded from Hugging Face or written by hand; then its settings, and what they
// become in the configuration, checked before it is saved.
import { signal, useSignal } from "@preact/signals";
import { useEffect } from "preact/hooks";
import { ApiError, maybe, send } from "../lib/api";
import { ChangeDialog } from "../lib/changedialog";
import { readConfig } from "../lib/configtext";
import type { Shown } from "../lib/draft";
import { type Entry, type FormField, blockOf, entryOf, flagValue, flagsOf, formFields, withFlag } from "../lib/entry";
import { type Block, FoundHere, chosenBlocks } from "../lib/found";
import { megabytes } from "../lib/format";
import { Icon } from "../lib/icons";
import { disabledEntries, enabled, insertUnder } from "../lib/insert";
import { memory, useMemory } from "../lib/memory";
import { go, route, setQuery } from "../lib/router";
import type { Schema } from "../lib/schema";
import { features } from "../lib/state";
import { Btn, CopyButton, Field, Panel, Segmented, toast, useLoad } from "../lib/widgets";
import { Hub } from "./hub";

const EMPTY = "  my-model:\n    cmd: |\n      llama-server\n      --port ${PORT}\n      -m /path/to/model.gguf\n";
/** The fields that are always shown; the others are under "All settings". */
const USUAL = ["aliases", "ttl", "description"];
const LABEL: Record<string, string> = { aliases: "Aliases", ttl: "Unload after", description: "Description" };

interface Change {
  title: string;
  before: Shown;
  after: string;
  model: string;
}

/** What was filled in outlives a look at another page. */
const form = signal<Entry | null>(null);
const change = signal<Change | null>(null);

/** Opens the check and the save of a text made from the current one. */
async function review(title: string, model: string, edit: (text: string) => string | null): Promise<void> {
  try {
    const before = await readConfig();
    const after = edit(before.text);
    if (after === null) toast("error", "The configuration writes this section in braces: change it in the editor");
    else change.value = { title, before, after, model };
  } catch (error) {
    toast("error", (error as Error).message);
  }
}

function add(blocks: Block[]): void {
  const [first] = blocks;
  if (blocks.length === 1 && first?.section === "models") form.value = entryOf(first.yaml);
  else void review(`Add ${blocks.map((block) => block.name).join(", ")}`, "", (text) => blocks.reduce<string | null>((so, block) => so && insertUnder(so, block.section, block.yaml), text || "\n"));
}

export function AddModel() {
  const source = route.value.query.get("from") ?? "here";
  if (features.value.config_edit === false) {
    return (
      <div class="page">
        <h1>Add a model</h1>
        <p>This server does not allow edits of its configuration. Start it with <code>--allow-config-edit</code> (the demo: <code>llamaswap demo --allow-config-edit</code>), or add an entry below <code>models:</code> in its file; <code>llamaswap init</code> writes one from what the machine has.</p>
      </div>
    );
  }
  return (
    <div class="page">
      <div class="page-head">
        <h1 class="grow">Add a model</h1>
        {form.value && <Btn onClick={() => (form.value = null)}><Icon name="left" size={14} /> Choose another</Btn>}
      </div>
      {form.value ? (
        <EntryForm entry={form.value} />
      ) : (
        <>
          <Segmented
            label="Where it comes from"
            value={source}
            options={[["here", "On this machine"], ["hub", "Hugging Face"], ["own", "Own command"]]}
            onChange={(value) => (value === "own" ? (form.value = entryOf(EMPTY)) : setQuery({ from: value }))}
          />
          {source === "hub" ? <Hub use={(yaml) => (form.value = entryOf(yaml))} /> : <Panel title="Found on this machine"><div class="pad0"><FoundHere word="Add" insert={add} /></div></Panel>}
          <Disabled />
        </>
      )}
      {change.value && (
        <ChangeDialog
          title={change.value.title}
          before={change.value.before}
          after={change.value.after}
          onClose={() => (change.value = null)}
          done={() => {
            const model = change.peek()?.model;
            form.value = change.value = null;
            if (model) go("model", { id: model });
            else go("models");
          }}
        />
      )}
    </div>
  );
}

/** The models that were disabled on this page. */
function Disabled() {
  const { data } = useLoad(readConfig, []);
  const names = disabledEntries(data?.text ?? "").map((entry) => entry.name);
  if (!names.length) return null;
  return (
    <Panel title="Disabled models">
      <ul class="plainlist pad0">
        {names.map((name) => (
          <li key={name} class="row">
            <b class="grow">{name}</b>
            <Btn small onClick={() => void review(`Enable ${name}`, name, (text) => enabled(text, name))}>Enable</Btn>
          </li>
        ))}
      </ul>
    </Panel>
  );
}

function EntryForm({ entry }: { entry: Entry }) {
  const schema = useLoad(() => maybe<Schema>("/api/config/schema"), []);
  const fields = schema.data ? formFields(schema.data) : [];
  const set = (update: Partial<Entry>) => (form.value = { ...entry, ...update });
  const flags = flagsOf(entry.cmd);
  const yaml = blockOf(entry, fields);
  const flagField = (label: string, hint: string, names: string[]) =>
    names.length > 0 && (
      <Field label={label} hint={hint}>
        <input class="input" inputMode="numeric" placeholder="the engine decides" value={flagValue(entry.cmd, names)} onInput={(event) => set({ cmd: withFlag(entry.cmd, names, event.currentTarget.value) })} />
      </Field>
    );
  const field = (item: FormField) => (
    <SchemaField key={item.key} field={item} value={entry.values[item.key] ?? ""} onChange={(value) => set({ values: { ...entry.values, [item.key]: value } })} />
  );
  const insert = (text: string) => insertUnder(text || "\n", "models", yaml);
  return (
    <div class="add-grid">
      <Panel title="Settings">
        <div class="stack">
          <Field label="ID" hint="the name that requests use">
            <input class="input" value={entry.id} onInput={(event) => set({ id: event.currentTarget.value })} />
          </Field>
          {flags.context.length > 0 && (
            <div class="cols2">
              {flagField("Context", "tokens", flags.context)}
              {flagField("GPU layers", "99 for all", flags.layers)}
            </div>
          )}
          <Field label="Command" hint="one flag per line">
            <textarea class="input mono" rows={Math.min(14, entry.cmd.split("\n").length + 1)} spellcheck={false} value={entry.cmd} onInput={(event) => set({ cmd: event.currentTarget.value })} />
          </Field>
          <MemoryNeeded cmd={entry.cmd} />
          {fields.filter((item) => USUAL.includes(item.key)).sort((a, b) => USUAL.indexOf(a.key) - USUAL.indexOf(b.key)).map(field)}
          <details>
            <summary>All settings</summary>
            <div class="stack pad-top">{fields.filter((item) => !USUAL.includes(item.key)).map(field)}</div>
          </details>
        </div>
      </Panel>
      <Panel title="In the configuration" aside={<CopyButton text={`models:\n${yaml}`} />}>
        <div class="stack">
          <pre class="code" tabIndex={0}>{`models:\n${yaml}`}</pre>
          <div class="row wrap end">
            <Btn
              onClick={() => {
                chosenBlocks.value = [{ name: entry.id, section: "models", yaml }];
                form.value = null;
                go("config");
              }}
            >
              Open in the editor
            </Btn>
            <Btn primary disabled={!entry.id.trim() || !entry.cmd.trim()} onClick={() => void review(`Add ${entry.id}`, entry.id, insert)}>Review and save</Btn>
          </div>
        </div>
      </Panel>
    </div>
  );
}

function SchemaField({ field, value, onChange }: { field: FormField; value: string; onChange: (value: string) => void }) {
  const { key, kind, info } = field;
  return (
    <Field label={LABEL[key] ?? key} hint={kind === "list" ? `${info} One per line.` : info}>
      {kind === "list" ? (
        <textarea class="input" rows={2} value={value} onInput={(event) => onChange(event.currentTarget.value)} />
      ) : kind === "choice" || kind === "flag" ? (
        <select class="input" value={value} onChange={(event) => onChange(event.currentTarget.value)}>
          <option value="">not set</option>
          {(kind === "flag" ? ["true", "false"] : field.choices).map((choice) => <option key={choice} value={choice}>{choice}</option>)}
        </select>
      ) : (
        <input class="input" inputMode={kind === "number" ? "numeric" : undefined} placeholder="not set" value={value} onInput={(event) => onChange(event.currentTarget.value)} />
      )}
    </Field>
  );
}

interface Estimate {
  known: boolean;
  why: string;
  needs: { device: string; mib: number }[];
}

/** What the command will need, beside what is free. */
function MemoryNeeded({ cmd }: { cmd: string }) {
  useMemory();
  const found = useSignal<Estimate | null>(null);
  useEffect(() => {
    let alive = true;
    const timer = setTimeout(() => {
      void send<Estimate>("POST", "/api/memory/estimate", { cmd }).then(
        (answer) => { if (alive) found.value = answer; },
        (error) => { if (alive && !(error instanceof ApiError && error.status === 404)) found.value = { known: false, why: "", needs: [] }; },
      );
    }, 600);
    return () => {
      alive = false;
      clearTimeout(timer);
    };
  }, [cmd]);
  if (!found.value) return null;
  if (!found.value.known) return <p class="muted">How much memory it needs is known after its first load.</p>;
  return (
    <ul class="plainlist" aria-label="Memory">
      {found.value.needs.map((need, i) => <MemoryLine key={i} {...need} />)}
      <li class="muted">{found.value.why}</li>
    </ul>
  );
}

export function MemoryLine({ device, mib }: { device: string; mib: number }) {
  const devices = memory.value?.devices ?? [];
  const fitting = devices.filter((item) => (device ? item.device === device : item.device !== "ram"));
  const best = fitting.sort((a, b) => b.free_mib - a.free_mib)[0];
  const name = device === "ram" ? "RAM" : (device || "a GPU").replace("gpu", "GPU");
  const verdict = !best ? "" : mib > best.total_mib ? "more than there is" : mib > best.free_mib ? "fits after others are unloaded" : "fits";
  return (
    <li class="row wrap">
      <b>{megabytes(mib)} of {name}</b>
      {best && <span class={verdict === "more than there is" ? "bad" : "muted"}>{verdict}: {megabytes(best.free_mib)} of {megabytes(best.total_mib)} free</span>}
    </li>
  );
}

