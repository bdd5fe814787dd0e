// Two to four models answer one prompt, side by side.
import { signal, useSignal } from "@preact/signals";
import { useEffect } from "preact/hooks";
import { type Message, NO_PARAMS, type Params, build, run } from "../../lib/chat";
import { DiffView } from "../../lib/diffview";
import { Icon } from "../../lib/icons";
import { ModelSelect } from "../../lib/modelselect";
import { pref } from "../../lib/prefs";
import { listed, models, plan } from "../../lib/state";
import { Btn, Dialog, IconButton, Segmented, onEnter, toast } from "../../lib/widgets";
import { AnswerBody, statsLine } from "./bubble";
import { ParamsForm } from "./params";

const chosen = pref<string[]>("compare.models", ["", ""]);
const prompt = pref<string>("compare.prompt", "");
const settings = pref<Params>("compare.params", NO_PARAMS);
/** A column's own settings; null where those for all hold. */
const own = pref<(Params | null)[]>("compare.own", []);
const order = pref<"auto" | "parallel" | "sequential">("compare.order", "auto");
const answers = signal<(Message | null)[]>([]);
const working = signal<AbortController | null>(null);
const active = signal<ReadonlySet<number>>(new Set());

/** Whether loading one of them would put another out. */
async function collide(ids: string[]): Promise<boolean> {
  // Only local models are loaded here; selectors and peers have no plan.
  const local = ids.filter((id) => models.peek().some((model) => model.id === id && !model.peerID));
  const previews = await Promise.all(local.map((id) => plan(id)));
  return previews.some((preview) => preview?.evicts.some((item) => ids.includes(item.model)));
}

/** Whether one of them is still to be loaded: whether it fits beside the others is then only known afterwards. */
const cold = (ids: string[]): boolean =>
  ids.some((id) => models.peek().some((model) => model.id === id && !model.peerID && model.state !== "ready"));

async function start(): Promise<void> {
  const columns = chosen.peek().map((id, i) => ({ id, i })).filter(({ id }) => id);
  const ids = columns.map(({ id }) => id);
  if (ids.length < 2 || !prompt.peek().trim() || working.peek()) {
    if (ids.length < 2) toast("error", "Choose two models at least");
    return;
  }
  const abort = new AbortController();
  working.value = abort;
  answers.value = chosen.peek().map(() => null);
  const one = async (index: number): Promise<void> => {
    const model = chosen.peek()[index] as string;
    const set = (message: Message) => { answers.value = answers.peek().map((old, i) => (i === index ? message : old)); };
    let last: Message = { role: "assistant", text: "", model };
    active.value = new Set([...active.peek(), index]);
    set(last);
    try {
      const { path, body } = build(model, [{ role: "user", text: prompt.peek() }], own.peek()[index] ?? settings.peek());
      await run(path, body, abort.signal, ({ answer, stats }) => {
        last = { role: "assistant", model, text: answer.text, reasoning: answer.reasoning.startsWith("\u2501") ? undefined : answer.reasoning || undefined, loading: answer.loading || undefined, tools: [...answer.tools], stats, error: answer.error || undefined };
        set(last);
      });
    } catch (error) {
      set({ ...last, error: (error as Error).name === "AbortError" ? "Stopped" : (error as Error).message });
    }
    const left = new Set(active.peek());
    left.delete(index);
    active.value = left;
  };
  const apart = order.peek() === "sequential" || (order.peek() === "auto" && (cold(ids) || (await collide(ids))));
  if (apart) for (const { i } of columns) await (abort.signal.aborted ? null : one(i));
  else await Promise.all(columns.map(({ i }) => one(i)));
  working.value = null;
}

export function Compare() {
  // Whose settings are open: a column, or (-1) all of them.
  const form = useSignal<number | null>(null);
  const difference = useSignal(false);
  const warning = useSignal("");
  const ids = chosen.value;
  const offered = listed.value.length;
  useEffect(() => {
    // Empty columns begin with models that are not shown yet.
    const real = listed.peek().filter((model) => (model.meta?.llamaswap?.type ?? "model") === "model");
    const free = [...real, ...listed.peek()].map((model) => model.id).filter((id) => !chosen.peek().includes(id));
    if (offered && chosen.peek().includes("")) chosen.value = chosen.peek().map((id) => id || free.shift() || "");
  }, [offered, ids.length]);
  const states = models.value.map((model) => model.state).join();
  useEffect(() => {
    warning.value = "";
    const real = ids.filter(Boolean);
    if (real.length < 2) return;
    if (cold(real)) warning.value = "Not all of them are loaded: they are asked one after the other unless you choose otherwise.";
    let alive = true;
    void collide(real).then((yes) => {
      if (alive && yes) warning.value = "These models do not fit together: asked one after the other, each load puts another out.";
    });
    return () => { alive = false; };
  }, [ids.join("\n"), states]);
  const first = answers.value[0];
  return (
    <div class="stack">
      <div class="toolbar">
        <Segmented
          label="Order"
          value={order.value}
          options={[["auto", "Automatic"], ["parallel", "Parallel"], ["sequential", "Sequential"]]}
          onChange={(value) => (order.value = value)}
        />
        <Btn onClick={() => (form.value = -1)}><Icon name="settings" size={14} /> Settings</Btn>
        <Btn aria-pressed={difference.value} onClick={() => (difference.value = !difference.value)}><Icon name="diff" size={14} /> Differences</Btn>
        <Btn disabled={ids.length >= 4} onClick={() => (chosen.value = [...ids, ""])}>
          <Icon name="plus" size={14} /> Model
        </Btn>
      </div>
      {warning.value && <p class="muted"><Icon name="warn" size={14} /> {warning.value}</p>}
      <div class="row promptrow">
        <textarea
          class="input"
          rows={3}
          aria-label="Prompt for all"
          placeholder="One prompt for all of them"
          value={prompt.value}
          onInput={(event) => (prompt.value = event.currentTarget.value)}
          onKeyDown={onEnter(() => void start())}
        />
        {working.value ? (
          <Btn danger onClick={() => working.value?.abort()}><Icon name="stop" size={13} /> Stop</Btn>
        ) : (
          <Btn primary disabled={!prompt.value.trim()} onClick={() => void start()}><Icon name="send" size={13} /> Ask</Btn>
        )}
      </div>
      <div class="columns-grid">
        {ids.map((id, index) => {
          const message = answers.value[index];
          return (
            <section key={index} class="panel column" aria-label={`Answer ${index + 1}`}>
              <div class="row pad0">
                <ModelSelect optional label={`Model ${index + 1}`} value={id} onChange={(next) => (chosen.value = chosen.peek().map((old, i) => (i === index ? next : old)))} />
                <span class="grow" />
                <IconButton icon="settings" label={own.value[index] ? `Own settings of column ${index + 1}` : `Settings of column ${index + 1}`} pressed={!!own.value[index]} onClick={() => (form.value = index)} />
                {ids.length > 2 && (
                  <IconButton
                    icon="close"
                    disabled={!!working.value}
                    label={`Remove column ${index + 1}`}
                    onClick={() => {
                      chosen.value = ids.filter((_, i) => i !== index);
                      answers.value = answers.value.filter((_, i) => i !== index);
                      own.value = ids.map((_, i) => own.value[i] ?? null).filter((_, i) => i !== index);
                    }}
                  />
                )}
              </div>
              <p class="num muted">{statsLine(message?.stats) || " "}</p>
              {message &&
                (difference.value && index > 0 && first && !active.value.has(index) ? (
                  <DiffView label={`Differences from answer 1`} before={first.text} after={message.text} />
                ) : (
                  <AnswerBody message={message} final={!active.value.has(index)} raw={false} />
                ))}
              {!message && working.value && <p class="muted">waits for its turn</p>}
            </section>
          );
        })}
      </div>
      {form.value !== null && <ColumnForm index={form.value} onClose={() => (form.value = null)} />}
    </div>
  );
}

function ColumnForm({ index, onClose }: { index: number; onClose: () => void }) {
  const mine = own.value[index] ?? null;
  const set = (next: Params | null) => {
    if (index < 0) settings.value = next ?? NO_PARAMS;
    else own.value = chosen.peek().map((_, i) => (i === index ? next : (own.peek()[i] ?? null)));
  };
  return (
    <Dialog title={index < 0 ? "Settings for all columns" : `Settings of column ${index + 1}`} onClose={onClose}>
      {index >= 0 && (
        <label class="check">
          <input type="checkbox" checked={mine === null} onChange={(event) => set(event.currentTarget.checked ? null : settings.peek())} />
          The same as for all columns
        </label>
      )}
      {(index < 0 || mine) && <ParamsForm value={mine ?? settings.value} onChange={set} />}
    </Dialog>
  );
}
