// Text that a model goes on with, or fills a gap in: no chat template, the words as they are.
import { signal } from "@preact/signals";
import { type Stats, completion, run } from "../../lib/chat";
import { Icon } from "../../lib/icons";
import { ModelSelect } from "../../lib/modelselect";
import { pref } from "../../lib/prefs";
import { Btn, CopyButton, Field, Problem, Segmented, onEnter } from "../../lib/widgets";
import { statsLine } from "./bubble";
import { NumberFields } from "./params";

const model = pref<string>("complete.model", "");
const mode = pref<"go" | "fill">("complete.mode", "go");
const before = pref<string>("complete.before", "");
const after = pref<string>("complete.after", "");
const numbers = pref<Record<string, string>>("complete.numbers", {});
const stop = pref<string>("complete.stop", "");
const got = signal<{ text: string; stats?: Stats } | null>(null);
const error = signal("");
const working = signal<AbortController | null>(null);

async function start(): Promise<void> {
  if (working.peek() || !model.peek() || !before.peek()) return;
  const abort = new AbortController();
  working.value = abort;
  error.value = "";
  got.value = { text: "" };
  const { path, body } = completion(model.peek(), before.peek(), mode.peek() === "fill" ? after.peek() : null, numbers.peek(), stop.peek());
  try {
    await run(path, body, abort.signal, ({ answer, stats }) => {
      got.value = { text: answer.text, stats };
      if (answer.error) error.value = answer.error;
    });
  } catch (problem) {
    if ((problem as Error).name !== "AbortError") error.value = (problem as Error).message;
  }
  working.value = null;
}

function take(): void {
  before.value += got.peek()?.text ?? "";
  got.value = null;
}

export function Complete() {
  const fill = mode.value === "fill";
  const area = (label: string, box: typeof before, rows: number, hint: string) => (
    <Field label={label}>
      <textarea class="input mono" rows={rows} placeholder={hint} value={box.value} onInput={(event) => (box.value = event.currentTarget.value)} onKeyDown={onEnter(() => void start())} />
    </Field>
  );
  return (
    <div class="stack">
      <div class="toolbar">
        <ModelSelect label="Model" hint value={model.value} onChange={(id) => (model.value = id)} />
        <Segmented label="Mode" value={mode.value} options={[["go", "Continue"], ["fill", "Fill in the middle"]]} onChange={(value) => (mode.value = value)} />
        <span class="grow" />
        {working.value ? (
          <Btn danger onClick={() => working.value?.abort()}><Icon name="stop" size={13} /> Stop</Btn>
        ) : (
          <Btn primary disabled={!model.value || !before.value} onClick={() => void start()}><Icon name="send" size={13} /> Complete</Btn>
        )}
      </div>
      <div class="complete">
        <div class="stack">
          {area(fill ? "Before the gap" : "Text", before, fill ? 7 : 11, fill ? "def add(a, b):\n    " : "Once upon a time")}
          {got.value && (
            <section class="panel answer" aria-label="Completion" aria-live="polite">
              <div class="row">
                <span class="num muted grow">{statsLine(got.value.stats) || (working.value ? "waiting for the first token" : "")}</span>
                <CopyButton text={() => got.peek()?.text ?? ""} />
                <Btn small disabled={!!working.value || !got.value.text} onClick={take}>{fill ? "Put into the gap" : "Add to the text"}</Btn>
              </div>
              <pre class="plaintext">{got.value.text}</pre>
            </section>
          )}
          {error.value && <Problem text={error.value} retry={() => void start()} />}
          {fill && area("After the gap", after, 5, "    return total")}
        </div>
        <aside class="stack" aria-label="Settings">
          <p class="muted">An empty field is not sent. {fill ? "Filling a gap needs a model made for it (llama.cpp's /infill)." : ""}</p>
          <NumberFields value={numbers.value} onChange={(next) => (numbers.value = next)} />
          <Field label="Stop sequences" hint="one per line">
            <textarea class="input" rows={2} value={stop.value} onInput={(event) => (stop.value = event.currentTarget.value)} />
          </Field>
        </aside>
      </div>
    </div>
  );
}
