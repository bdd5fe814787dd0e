// The configuration: shown with masked secrets, checked by the server's own loader, saved where that is allowed.
import { signal, useSignal } from "@preact/signals";
import { useEffect, useRef } from "preact/hooks";
import { ApiError, errorText, maybe, request, send } from "../lib/api";
import { DiffView } from "../lib/diffview";
import type { Editor } from "../lib/editor";
import { Icon } from "../lib/icons";
import { activeOn } from "../lib/actions";
import { plural } from "../lib/format";
import { on } from "../lib/link";
import type { Schema } from "../lib/schema";
import { features } from "../lib/state";
import { CopyButton, Dialog, Empty, Problem, Spinner, saveFile, toast } from "../lib/widgets";
import type { Impact, Problem as Fault } from "../lib/types";

interface Checked {
  valid?: boolean;
  errors?: Fault[];
  warnings?: Fault[];
  impact?: Impact;
}

interface Shown {
  text: string;
  tag: string;
}

// The text that was in force before the last save, so that it can be put back. Only in this tab's memory.
const previous = signal<string | null>(null);

async function read(): Promise<Shown> {
  const response = await request("/api/config", { headers: { Accept: "application/yaml, application/json" } });
  const text = await response.text();
  if (!response.ok) throw new ApiError(response.status, errorText(response.status, text));
  return { text, tag: response.headers.get("ETag") ?? "" };
}

const YAML = { "Content-Type": "application/yaml" };

export function ConfigPage() {
  const shown = useSignal<Shown | null>(null);
  const draft = useSignal("");
  const error = useSignal("");
  const missing = useSignal(false);
  const editable = useSignal(false);
  const checked = useSignal<Checked | null>(null);
  const checking = useSignal(false);
  const saving = useSignal(false);
  const review = useSignal(false);
  const outside = useSignal(false);
  const host = useRef<HTMLDivElement>(null);
  const editor = useRef<Editor | null>(null);
  const schema = useRef<Schema | null>(null);

  const open = async () => {
    error.value = "";
    try {
      const [text, status] = await Promise.all([read(), maybe<{ editable?: boolean }>("/api/config/status")]);
      editable.value = status?.editable ?? features.value.config_edit ?? false;
      shown.value = text;
      draft.value = text.text;
      outside.value = false;
      checked.value = null;
      editor.current?.replace(text.text);
    } catch (problem) {
      if (problem instanceof ApiError && problem.status === 404) missing.value = true;
      else error.value = (problem as Error).message;
    }
  };

  useEffect(() => {
    void open();
    maybe<Schema>("/api/config/schema").then((found) => (schema.current = found), () => undefined);
    return on("configReloaded", () => (outside.value = true));
  }, []);

  const ready = shown.value !== null;
  useEffect(() => {
    const box = host.current;
    if (!ready || !box) return;
    let alive = true;
    void import("../lib/editor").then(({ open: create }) => {
      if (!alive) return;
      editor.current = create({
        host: box,
        text: draft.peek(),
        readOnly: !editable.peek(),
        label: "Configuration",
        schema: () => schema.current,
        changed: (text) => (draft.value = text),
      });
    });
    return () => {
      alive = false;
      editor.current?.destroy();
      editor.current = null;
    };
  }, [ready, editable.value]);

  const dirty = ready && draft.value !== shown.value?.text;

  const check = async (): Promise<Checked | null> => {
    checking.value = true;
    try {
      const answer = await send<Checked>("POST", "/api/config/validate", draft.peek(), YAML);
      checked.value = answer;
      editor.current?.mark([...(answer.errors ?? []), ...(answer.warnings ?? []).map((item) => ({ ...item, severity: "warning" }))]);
      return answer;
    } catch (problem) {
      checked.value = { valid: false, errors: [{ message: (problem as Error).message }] };
      return null;
    } finally {
      checking.value = false;
    }
  };

  useEffect(() => {
    if (!dirty) return;
    const timer = setTimeout(() => void check(), 700);
    return () => clearTimeout(timer);
  }, [draft.value]);

  const put = async (text: string, tag: string): Promise<string | null> => {
    const response = await request("/api/config", { method: "PUT", body: text, headers: { ...YAML, "If-Match": tag } });
    const body = await response.text();
    if (response.ok) return response.headers.get("ETag") ?? "";
    if (response.status === 422) {
      checked.value = JSON.parse(body) as Checked;
      editor.current?.mark(checked.value.errors ?? []);
      toast("error", "The server refused this configuration; see the marked lines");
    } else if (response.status === 412) {
      outside.value = true;
      toast("error", "The file was changed by somebody else meanwhile. Nothing was saved.");
    } else toast("error", `Saving: ${errorText(response.status, body)}`);
    return null;
  };

  const save = async () => {
    const before = shown.peek();
    if (!before) return;
    saving.value = true;
    const tag = await put(draft.peek(), before.tag).catch((problem: Error) => (toast("error", problem.message), null));
    saving.value = false;
    if (tag === null) return;
    review.value = false;
    previous.value = before.text;
    toast("ok", "Saved and loaded");
    await open();
  };

  const rollback = async () => {
    const now = shown.peek();
    const text = previous.peek();
    if (!now || text === null) return;
    const tag = await put(text, now.tag).catch((problem: Error) => (toast("error", problem.message), null));
    if (tag === null) return;
    previous.value = null;
    toast("ok", "The configuration from before the save is back in force");
    await open();
  };

  const faults = [...(checked.value?.errors ?? []).map((item) => ({ ...item, severity: "error" })), ...(checked.value?.warnings ?? []).map((item) => ({ ...item, severity: "warning" }))];
  const impact = checked.value?.impact;

  return (
    <div class="page config-page">
      <div class="page-head">
        <h1>Config</h1>
        <span class="muted grow">{ready && (editable.value ? (dirty ? "changed, not saved" : "as in force") : "read-only: editing is not enabled on this server")}</span>
        {ready && (
          <>
            <CopyButton text={() => draft.peek()} label="Copy the text" />
            <button type="button" class="btn" onClick={() => saveFile("config.yaml", draft.peek(), "application/yaml")}>
              <Icon name="download" size={14} /> Download
            </button>
            {editable.value && (
              <>
                {previous.value !== null && (
                  <button type="button" class="btn" onClick={() => void rollback()}>
                    Undo the last save
                  </button>
                )}
                <button type="button" class="btn" disabled={!dirty} onClick={() => void open()}>
                  Discard
                </button>
                <button type="button" class="btn primary" disabled={!dirty || checking.value} onClick={() => void check().then((answer) => (review.value = !!answer?.valid))}>
                  Review and save
                </button>
              </>
            )}
          </>
        )}
      </div>
      {error.value && <Problem text={error.value} retry={() => void open()} />}
      {missing.value && <Empty title="This server does not show its configuration" />}
      {outside.value && (
        <div class="problem" role="alert">
          <Icon name="warn" />
          <span class="grow">The configuration was loaded anew since this page read it.</span>
          <button type="button" class="btn small" onClick={() => void open()}>
            Read it again
          </button>
        </div>
      )}
      {!ready && !error.value && !missing.value && <Spinner />}
      {ready && (
        <div class="config-grid">
          <div class="editor" ref={host} />
          {(faults.length > 0 || (dirty && impact)) && (
            <aside class="panel faults" aria-label="Findings" aria-live="polite">
              {faults.length > 0 && (
                <ul class="plainlist">
                  {faults.map((fault, i) => (
                    <li key={i} class="notice">
                      <span class={fault.severity === "error" ? "bad" : ""}>
                        <Icon name={fault.severity === "error" ? "error" : "warn"} />
                      </span>
                      <div class="grow">
                        <div>
                          {fault.line ? (
                            <button type="button" class="linkish" onClick={() => editor.current?.goTo(fault.line as number)}>
                              line {fault.line}
                            </button>
                          ) : null}{" "}
                          {fault.message}
                        </div>
                        {(fault.hint || fault.path) && <div class="muted">{[fault.path, fault.hint].filter(Boolean).join(": ")}</div>}
                      </div>
                    </li>
                  ))}
                </ul>
              )}
              {dirty && impact && <ImpactList impact={impact} />}
            </aside>
          )}
        </div>
      )}
      {review.value && shown.value && (
        <Dialog
          title="What this changes"
          class="wide"
          onClose={() => (review.value = false)}
          footer={
            <>
              <button type="button" class="btn" onClick={() => (review.value = false)}>
                Back
              </button>
              <button type="button" class="btn primary" disabled={saving.value} onClick={() => void save()}>
                Save and load
              </button>
            </>
          }
        >
          {impact && <ImpactList impact={impact} />}
          <p class="muted">The file in force is kept beside the new one as a .bak copy.</p>
          <DiffView label="Changes" before={shown.value.text} after={draft.value} />
        </Dialog>
      )}
    </div>
  );
}

function ImpactList({ impact }: { impact: Impact }) {
  const groups: [string, string[]][] = [
    ["Will restart", impact.restart ?? []],
    ["New", impact.add ?? []],
    ["Removed", impact.remove ?? []],
  ];
  const some = groups.filter(([, list]) => list.length);
  return (
    <div class="impact">
      <h3>What saving touches</h3>
      {some.length ? (
        some.map(([name, list]) => (
          <p key={name}>
            {name}:{" "}
            {list.map((model, i) => (
              <>
                {i ? ", " : ""}
                <b>{model}</b>
                {name !== "New" && activeOn(model) ? <span class="bad"> ({plural(activeOn(model), "active request")})</span> : null}
              </>
            ))}
          </p>
        ))
      ) : (
        <p>No model restarts.</p>
      )}
    </div>
  );
}
