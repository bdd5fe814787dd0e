// The configuration: shown with masked secrets, checked by the server's own loader, saved where that is allowed.
import { useSignal } from "@preact/signals";
import { useEffect, useRef } from "preact/hooks";
import { ApiError, errorText, maybe, request } from "../lib/api";
import { type Checked, YAML, checkConfig, readConfig } from "../lib/configtext";
import { DiffView } from "../lib/diffview";
import { Draft } from "../lib/draft";
import type { Editor } from "../lib/editor";
import { Icon } from "../lib/icons";
import { plural } from "../lib/format";
import { on } from "../lib/link";
import { type Block, FoundHere, chosenBlocks } from "../lib/found";
import { ImpactList } from "../lib/impact";
import { insertUnder, lineOf } from "../lib/insert";
import { part } from "../lib/parts";
import type { Schema } from "../lib/schema";
import { route, setQuery } from "../lib/router";
import { features } from "../lib/state";
import { type Version, undoable } from "../lib/undoable";
import { VersionsDialog, listVersions } from "../lib/versions";
import { Btn, CopyButton, Dialog, Empty, Problem, Spinner, saveFile, toast } from "../lib/widgets";

// Outlives the page: what is not saved is still there when it is opened again, and the browser asks before it leaves.
const draft = new Draft();
addEventListener("beforeunload", (event) => { if (draft.dirty.peek()) event.preventDefault(); });

export function ConfigPage() {
  const { shown, outside } = draft;
  const error = useSignal("");
  const missing = useSignal(false);
  const editable = useSignal(false);
  const checked = useSignal<Checked | null>(null);
  const checking = useSignal(0);
  const saving = useSignal(false);
  const dialog = useSignal<"" | "review" | "versions" | "found">("");
  const versions = useSignal<Version[]>([]);
  const host = useRef<HTMLDivElement>(null);
  const editor = useRef<Editor | null>(null);
  const schema = useRef<Schema | null>(null);

  const open = async (keep = false) => {
    error.value = "";
    const take = draft.ask(keep);
    try {
      const [text, status] = await Promise.all([readConfig(), maybe<{ editable?: boolean }>("/api/config/status")]);
      editable.value = status?.editable ?? features.value.config_edit ?? false;
      if (editable.peek()) void listVersions().then((found) => (versions.value = found), () => undefined);
      if (take(text)) {
        checked.value = null;
        editor.current?.replace(text.text);
      } else if (!keep) return;
      if (editable.peek() && chosenBlocks.peek().length) insert(chosenBlocks.peek());
      chosenBlocks.value = [];
    } catch (problem) {
      if (problem instanceof ApiError && problem.status === 404) missing.value = true;
      else error.value = (problem as Error).message;
    }
  };

  // What is thrown away goes at once, whatever the server does meanwhile.
  const discard = () => {
    editor.current?.replace(draft.discard());
    checked.value = null;
    error.value = "";
  };

  // What is typed here becomes a change of the new text: the review shows the difference, and saving overwrites it.
  const compare = () =>
    readConfig().then(({ text, tag }) => (draft.saved(text, tag), void review())).catch((problem: Error) => toast("error", problem.message));

  const write = (text: string) => {
    draft.typed(text);
    editor.current?.replace(text);
    dialog.value = "";
  };

  const insert = (blocks: Block[]) => {
    let text = draft.text.peek();
    const refused: string[] = [];
    for (const block of blocks) {
      const next = insertUnder(text, block.section, block.yaml);
      if (next === null) refused.push(block.name);
      else text = next;
    }
    if (refused.length) toast("error", `${refused.join(", ")}: its section is written in braces here; copy the text instead`);
    if (refused.length === blocks.length) return;
    write(text);
    toast("info", `Inserted ${blocks.length === 1 ? blocks[0]?.name : plural(blocks.length - refused.length, "entry", "entries")}: look it over, then save`);
  };

  // Also a save of our own is such an event: only another text is news.
  const reloaded = async () => {
    const tag = shown.peek()?.tag;
    if (!tag || saving.peek()) return;
    const response = await request("/api/config", { headers: { "If-None-Match": tag } }).catch(() => null);
    if (response?.status !== 200 || response.headers.get("ETag") === shown.peek()?.tag) return;
    if (draft.dirty.peek()) outside.value = true;
    else await open();
  };

  useEffect(() => {
    if (route.peek().query.has("find")) {
      dialog.value = "found";
      setQuery({ find: null });
    }
    void open(true);
    maybe<Schema>("/api/config/schema").then((found) => (schema.current = found), () => undefined);
    return on("configReloaded", () => void reloaded());
  }, []);

  const ready = shown.value !== null;
  useEffect(() => {
    const box = host.current;
    if (!ready || !box) return;
    let alive = true;
    part(import("../lib/editor"), ({ open: create }) => {
      if (!alive) return;
      editor.current = create({
        host: box,
        text: draft.text.peek(),
        readOnly: !editable.peek(),
        label: "Configuration",
        schema: () => schema.current,
        changed: (text) => draft.typed(text),
      });
      // The entry of a model that another page leads to.
      const line = lineOf(draft.text.peek(), "models", route.peek().query.get("at") ?? "");
      if (line) editor.current.goTo(line);
    });
    return () => {
      alive = false;
      editor.current?.destroy();
      editor.current = null;
    };
  }, [ready]);
  useEffect(() => editor.current?.lock(!editable.value), [editable.value]);

  const dirty = draft.dirty.value;

  // The findings for the text as it is now; null where the text went on meanwhile, or could not be checked.
  const check = async (): Promise<Checked | null> => {
    const text = draft.text.peek();
    const current = () => text === draft.text.peek() && draft.dirty.peek();
    checking.value += 1;
    try {
      const answer = await checkConfig(text);
      if (!current()) return null;
      checked.value = answer;
      editor.current?.mark([...(answer.errors ?? []), ...(answer.warnings ?? []).map((item) => ({ ...item, severity: "warning" }))]);
      return answer;
    } catch (problem) {
      if (current()) checked.value = { valid: false, errors: [{ message: (problem as Error).message }] };
      return null;
    } finally {
      checking.value -= 1;
    }
  };

  /** Errors are shown in place of the review, the first one where it stands. */
  const review = async () => {
    if (!draft.dirty.peek() || dialog.peek() || !editable.peek()) return;
    const answer = await check();
    if (answer?.valid) dialog.value = "review";
    else if (answer) {
      const errors = answer.errors ?? [];
      toast("error", `Not saved: ${errors[0]?.message ?? "the server refused this configuration"}${errors.length > 1 ? ` (and ${errors.length - 1} more)` : ""}`);
      const line = errors.find((item) => item.line)?.line;
      if (line) editor.current?.goTo(line);
    }
  };

  useEffect(() => {
    const key = (event: KeyboardEvent) => {
      if (!(event.ctrlKey || event.metaKey) || event.key.toLowerCase() !== "s") return;
      event.preventDefault(); // the browser would save the page
      void review();
    };
    addEventListener("keydown", key);
    return () => removeEventListener("keydown", key);
  });

  useEffect(() => {
    if (!dirty) {
      // Also typing or undoing may lead back to the current text; what was found elsewhere is no matter then.
      checked.value = null;
      editor.current?.mark([]);
      return;
    }
    const timer = setTimeout(() => void check(), 700);
    return () => clearTimeout(timer);
  }, [draft.text.value, dirty]);

  // What the server says of a text that is to be used: its new tag, or null with the reason told.
  const written = async (method: string, path: string, text?: string): Promise<string | null> => {
    const tag = shown.peek()?.tag;
    if (!tag || saving.peek()) return null;
    saving.value = true;
    try {
      const response = await request(path, { method, body: text, headers: { ...(text === undefined ? {} : YAML), "If-Match": tag } });
      const body = await response.text();
      if (response.ok) {
        // Which one came before is known only when they are read again.
        versions.value = [];
        return response.headers.get("ETag") ?? "";
      }
      if (response.status === 422 && text !== undefined) {
        checked.value = JSON.parse(body) as Checked;
        editor.current?.mark(checked.value.errors ?? []);
        toast("error", "The server refused this configuration; see the marked lines");
      } else if (response.status === 422) {
        toast("error", `This version can no longer be used: ${(JSON.parse(body) as Checked).errors?.[0]?.message ?? "the server refused it"}`);
      } else if (response.status === 412) {
        outside.value = true;
        toast("error", "The file has changed since this page read it. Nothing was saved.");
      } else toast("error", `Saving: ${errorText(response.status, body)}`);
    } catch (problem) {
      toast("error", (problem as Error).message);
    } finally {
      saving.value = false;
    }
    return null;
  };

  const save = async () => {
    const text = draft.text.peek();
    const tag = await written("PUT", "/api/config", text);
    // Also what was refused is told on the page itself, and mended there.
    dialog.value = "";
    if (tag === null) return;
    draft.saved(text, tag);
    toast("ok", "Saved and applied");
    if (!draft.dirty.peek()) await open();
  };

  const restore = async (version: Version, told: string) => {
    const tag = await written("POST", `/api/config/history/${encodeURIComponent(version.id)}/restore`);
    dialog.value = "";
    if (tag === null) return;
    discard();
    toast("ok", told);
    await open();
  };

  const faults = [...(checked.value?.errors ?? []).map((item) => ({ ...item, severity: "error" })), ...(checked.value?.warnings ?? []).map((item) => ({ ...item, severity: "warning" }))];
  const impact = checked.value?.impact;
  const before = undoable(versions.value);

  return (
    <div class="page config-page">
      <div class="page-head">
        <h1>Config</h1>
        <span class="muted grow">{ready && (editable.value ? (dirty ? "changed, not saved" : "no changes") : "read-only: editing is not enabled on this server")}</span>
        {ready && (
          <>
            <CopyButton text={() => draft.text.peek()} label="Copy the text" />
            <Btn class="hide-phone" onClick={() => saveFile("config.yaml", draft.text.peek(), "application/yaml")}><Icon name="download" size={14} /> Download</Btn>
            {editable.value && (
              <>
                <Btn onClick={() => (dialog.value = "found")}><Icon name="search" size={14} /> Find models</Btn>
                <Btn onClick={() => (dialog.value = "versions")}>Versions</Btn>
                {before && !dirty && (
                  <Btn disabled={saving.value} onClick={() => void restore(before, "The configuration from before the save is used again")}>Undo the last save</Btn>
                )}
                <Btn disabled={!dirty} onClick={discard}>Discard</Btn>
                <Btn primary disabled={!dirty || checking.value > 0} title="Ctrl S" onClick={() => void review()}>Review and save</Btn>
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
          <span class="grow">The configuration was reloaded after this page read it.</span>
          {dirty && <Btn small onClick={() => void compare()}>Compare and keep mine</Btn>}
          <Btn small onClick={() => void open()}>{dirty ? "Discard mine and read it again" : "Read it again"}</Btn>
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
                      <span class={fault.severity === "error" ? "bad" : ""}><Icon name={fault.severity === "error" ? "error" : "warn"} /></span>
                      <div class="grow">
                        <div>
                          {fault.line ? <button type="button" class="linkish" onClick={() => editor.current?.goTo(fault.line as number)}>line {fault.line}</button> : null} {fault.message}
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
      {dialog.value === "review" && shown.value && (
        <Dialog
          title="What this changes"
          class="wide"
          onClose={() => (dialog.value = "")}
          footer={
            <>
              <Btn onClick={() => (dialog.value = "")}>Back</Btn>
              <Btn primary disabled={saving.value} onClick={() => void save()}>Save and apply</Btn>
            </>
          }
        >
          {impact && <ImpactList impact={impact} />}
          <p class="muted">The current configuration is kept under Versions.</p>
          <DiffView label="Changes" before={shown.value.text} after={draft.text.value} />
        </Dialog>
      )}
      {dialog.value === "versions" && shown.value && (
        <VersionsDialog
          current={shown.value.text}
          busy={saving.value}
          restore={(version) => void restore(version, "The earlier configuration is used again")}
          edit={write}
          onClose={() => (dialog.value = "")}
        />
      )}
      {dialog.value === "found" && ready && (
        <Dialog title="What this machine has" class="wide" onClose={() => (dialog.value = "")}><FoundHere insert={insert} /></Dialog>
      )}
    </div>
  );
}
