// The small parts every page is made of.
import { signal, useSignal } from "@preact/signals";
import type { ComponentChildren, ComponentProps } from "preact";
import { useEffect, useErrorBoundary, useLayoutEffect, useRef, useState } from "preact/hooks";
import { DASH, plainError, shortFailure } from "./format";
import { Icon } from "./icons";
import { reopened, status, whyUnknown } from "./link";
import { href } from "./router";

let ids = 0;

/** An id that no other component has, lazily loaded ones included. */
const useOwnId = (): string => useState(() => `u${++ids}`)[0];

// -- toasts ---------------------------------------------------------------------------------------------

interface Toast {
  id: number;
  kind: "info" | "ok" | "error";
  text: string;
  action?: { label: string; run: () => void };
}

const toasts = signal<Toast[]>([]);
let toastId = 0;

export function toast(kind: Toast["kind"], text: string, action?: Toast["action"]): void {
  const id = ++toastId;
  toasts.value = [...toasts.peek().slice(-3), { id, kind, text, action }];
  if (kind !== "error") setTimeout(() => dismiss(id), 4500);
}

function dismiss(id: number): void {
  toasts.value = toasts.peek().filter((item) => item.id !== id);
}

export function Toasts() {
  return (
    <div class="toasts" role="status" aria-live="polite">
      {toasts.value.map((item) => (
        <div key={item.id} class={`toast ${item.kind}`}>
          <Icon name={item.kind === "error" ? "error" : item.kind === "ok" ? "check" : "info"} />
          <span class="grow">{item.text}</span>
          {item.action && (
            <Btn small
              onClick={() => {
                dismiss(item.id);
                item.action?.run();
              }}
            >
              {item.action.label}
            </Btn>
          )}
          <IconButton icon="close" label="Dismiss" onClick={() => dismiss(item.id)} />
        </div>
      ))}
    </div>
  );
}

/** Runs a call; a failure becomes a toast with Retry. True when it went well. */
export async function attempt(what: string, call: () => Promise<unknown>, done?: string): Promise<boolean> {
  try {
    await call();
    if (done) toast("ok", done);
    return true;
  } catch (error) {
    if ((error as Error).name === "AbortError") return false;
    toast("error", `${what}: ${(error as Error).message}`, { label: "Retry", run: () => void attempt(what, call, done) });
    return false;
  }
}

// -- buttons and small marks ------------------------------------------------------------------------------

type ButtonProps = ComponentProps<"button"> & { small?: boolean; primary?: boolean; danger?: boolean };

export function Btn({ small, primary, danger, class: more, ...rest }: ButtonProps) {
  const names = ["btn", small && "small", primary && "primary", danger && "danger", more].filter(Boolean);
  return <button type="button" class={names.join(" ")} {...rest} />;
}

export function IconButton(props: {
  icon: string;
  label: string;
  onClick?: (event: MouseEvent) => void;
  disabled?: boolean;
  pressed?: boolean;
  class?: string;
  size?: number;
}) {
  return (
    <button
      type="button"
      class={`iconbtn ${props.class ?? ""}`}
      aria-label={props.label}
      title={props.label}
      aria-pressed={props.pressed}
      disabled={props.disabled}
      onClick={props.onClick}
    >
      <Icon name={props.icon} size={props.size ?? 16} />
    </button>
  );
}

export const STATE_WORD: Record<string, string> = {
  ready: "ready",
  busy: "busy",
  starting: "loading",
  loading: "loading",
  stopping: "unloading",
  draining: "draining",
  stopped: "not loaded",
  shutdown: "shut down",
  failed: "failed",
  "": "peer",
};
const STATE_KIND: Record<string, string> = { starting: "loading", stopping: "draining" };
const STATE_MARK: Record<string, string> = { ready: "●", busy: "◆", loading: "◐", draining: "◒", failed: "✕", off: "○" };

export const stateKind = (state: string): string => {
  const kind = STATE_KIND[state] ?? state;
  return kind in STATE_MARK ? kind : "off";
};

/** A model's state: shape, word and colour together. */
export function StateChip({ state, extra }: { state: string; extra?: string }) {
  const kind = stateKind(state);
  return (
    <span class={`chip s-${kind}`}>
      <span aria-hidden="true">{STATE_MARK[kind]}</span>
      {STATE_WORD[state] ?? state}
      {extra ? ` ${extra}` : ""}
    </span>
  );
}

/** Why a model is not loaded, with the way to its log; nothing if it did not fail. */
export function FailedMark({ model }: { model: { id: string; state: string; failed?: string } }) {
  if (!model.failed || model.state !== "stopped") return null;
  return (
    <a class="chip s-failed" href={href("logs", { src: model.id })} title={`${plainError(model.failed)}. Opens its log`}>
      <span aria-hidden="true">✕</span>
      <span class="clip">failed: {shortFailure(model.failed)}</span>
    </a>
  );
}

/** `failed`: the response broke off after its status, which says nothing of that. */
export function StatusCode({ code, failed }: { code: number; failed: boolean }) {
  const kind = code >= 200 && code < 300 ? (failed ? "failed" : "ready") : code === 499 || code === 0 ? "draining" : code >= 500 ? "failed" : "loading";
  const mark = kind === "ready" ? "✓" : kind === "draining" ? "–" : kind === "failed" ? "✕" : "!";
  return (
    <span class={`chip s-${kind}`}>
      <span aria-hidden="true">{mark}</span>
      {code || "none"}
    </span>
  );
}

export function Bar({ value, max, label, kind = "" }: { value: number; max: number; label: string; kind?: string }) {
  const share = max > 0 ? Math.min(100, Math.max(0, (value / max) * 100)) : 0;
  return (
    <div class={`bar ${kind}`} role="meter" aria-label={label} aria-valuenow={Math.round(share)} aria-valuemin={0} aria-valuemax={100}>
      <div style={{ width: `${share}%` }} />
    </div>
  );
}

export function Empty({ title, children }: { title: string; children?: ComponentChildren }) {
  return (
    <div class="empty">
      <p class="empty-title">{title}</p>
      {children}
    </div>
  );
}

export function Spinner({ label = "Loading" }: { label?: string }) {
  if (status.value.state === "auth") return <span class="muted">{whyUnknown()}</span>;
  return <span class="spinner" role="status"><span class="sr">{label}</span></span>;
}

export function Panel(props: {
  title: ComponentChildren;
  aside?: ComponentChildren;
  class?: string;
  children?: ComponentChildren;
}) {
  const id = useOwnId();
  return (
    <section class={`panel ${props.class ?? ""}`} aria-labelledby={id}>
      <header class="panel-head">
        <h2 id={id}>{props.title}</h2>
        {props.aside && <div class="panel-aside">{props.aside}</div>}
      </header>
      {props.children}
    </section>
  );
}

export function Facts({ items }: { items: [string, ComponentChildren][] }) {
  return (
    <dl class="facts">
      {items
        .filter(([, value]) => value !== null && value !== undefined && value !== "" && value !== DASH)
        .map(([name, value]) => (
          <div key={name}>
            <dt>{name}</dt>
            <dd>{value}</dd>
          </div>
        ))}
    </dl>
  );
}

/** `group`: what it holds has a label of its own, as buttons have. */
export function Field(props: { label: string; hint?: string; children: ComponentChildren; class?: string; group?: boolean }) {
  const Box = props.group ? "div" : "label";
  return (
    <Box class={`field ${props.class ?? ""}`}>
      <span class="field-label">
        {props.label}
        {props.hint && <span class="hint"> {props.hint}</span>}
      </span>
      {props.children}
    </Box>
  );
}

export function Segmented<T extends string>(props: {
  label: string;
  value: T;
  options: readonly (readonly [T, string])[];
  onChange: (value: T) => void;
}) {
  return (
    <div class="segmented" role="group" aria-label={props.label}>
      {props.options.map(([value, label]) => (
        <button type="button" key={value} aria-pressed={value === props.value} onClick={() => props.onChange(value)}>{label}</button>
      ))}
    </div>
  );
}

/** Links that look like tabs: each tab is an address. */
export function TabLinks(props: { label: string; items: { key: string; text: string; href: string }[]; current: string }) {
  const nav = useRef<HTMLElement>(null);
  useEffect(() => {
    const current = nav.current?.querySelector<HTMLElement>("[aria-current]");
    if (current && nav.current) nav.current.scrollLeft = current.offsetLeft - 60;
  }, [props.current]);
  return (
    <nav class="tabs" aria-label={props.label} ref={nav}>
      {props.items.map((item) => (
        <a key={item.key} href={item.href} aria-current={item.key === props.current ? "page" : undefined}>{item.text}</a>
      ))}
    </nav>
  );
}

// -- dialogs ----------------------------------------------------------------------------------------------

export function Dialog(props: {
  title: ComponentChildren;
  onClose: () => void;
  children: ComponentChildren;
  footer?: ComponentChildren;
  class?: string;
}) {
  const box = useRef<HTMLDialogElement>(null);
  const id = useOwnId();
  useLayoutEffect(() => {
    const dialog = box.current;
    const before = document.activeElement as HTMLElement | null;
    if (dialog && !dialog.open) dialog.showModal();
    return () => {
      dialog?.close();
      before?.focus?.();
    };
  }, []);
  return (
    <dialog
      ref={box}
      class={`dialog ${props.class ?? ""}`}
      aria-labelledby={id}
      onCancel={(event) => {
        event.preventDefault();
        props.onClose();
      }}
      onMouseDown={(event) => { if (event.target === box.current) props.onClose(); }}
    >
      <div class="dialog-inner">
        <header class="dialog-head">
          <h2 id={id}>{props.title}</h2>
          <IconButton icon="close" label="Close" onClick={props.onClose} />
        </header>
        <div class="dialog-body">{props.children}</div>
        {props.footer && <footer class="dialog-foot">{props.footer}</footer>}
      </div>
    </dialog>
  );
}

interface Question {
  title: string;
  body: ComponentChildren;
  yes: string;
  danger?: boolean;
  answer: (yes: boolean) => void;
}

const question = signal<Question | null>(null);

export function confirm(title: string, body: ComponentChildren, yes: string, danger = false): Promise<boolean> {
  return new Promise((resolve) => {
    question.value = {
      title,
      body,
      yes,
      danger,
      answer: (value) => {
        question.value = null;
        resolve(value);
      },
    };
  });
}

export function Confirm() {
  const asked = question.value;
  if (!asked) return null;
  return (
    <Dialog
      title={asked.title}
      class="narrow"
      onClose={() => asked.answer(false)}
      footer={
        <>
          <Btn onClick={() => asked.answer(false)}>Cancel</Btn>
          <button type="button" class={`btn ${asked.danger ? "danger" : "primary"}`} onClick={() => asked.answer(true)}>{asked.yes}</button>
        </>
      }
    >
      {asked.body}
    </Dialog>
  );
}

// -- clipboard, download ----------------------------------------------------------------------------------

export async function copyText(text: string): Promise<void> {
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    // Plain-HTTP origins have no clipboard API; a selected text area does.
    const area = document.createElement("textarea");
    area.value = text;
    area.className = "offscreen";
    const host = document.querySelector("dialog[open]") ?? document.body;
    host.append(area);
    area.select();
    const done = document.execCommand("copy");
    area.remove();
    if (!done) {
      toast("error", "The browser did not allow copying");
      return;
    }
  }
  toast("ok", "Copied");
}

export function CopyButton({ text, label = "Copy" }: { text: string | (() => string); label?: string }) {
  return <IconButton icon="copy" label={label} onClick={() => void copyText(typeof text === "string" ? text : text())} />;
}

export function saveFile(name: string, content: BlobPart, type = "text/plain"): void {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([content], { type }));
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}

// -- loading data -------------------------------------------------------------------------------------------

export interface Loaded<T> {
  data: T | undefined;
  error: string;
  loading: boolean;
  reload: () => void;
}

/** Fetches on mount, whenever a dependency changes and when the server is back; keeps the old data on screen meanwhile. */
export function useLoad<T>(call: (signal: AbortSignal) => Promise<T>, deps: readonly unknown[]): Loaded<T> {
  const state = useSignal<{ data?: T; error: string; loading: boolean }>({ error: "", loading: true });
  const again = useSignal(0);
  useEffect(() => {
    const abort = new AbortController();
    state.value = { ...state.peek(), loading: true };
    call(abort.signal).then(
      (data) => { if (!abort.signal.aborted) state.value = { data, error: "", loading: false }; },
      (error: Error) => {
        if (!abort.signal.aborted) state.value = { ...state.peek(), error: error.message, loading: false };
      },
    );
    return () => abort.abort();
  }, [...deps, again.value, reopened.value]);
  return {
    data: state.value.data,
    error: state.value.error,
    loading: state.value.loading,
    reload: () => { again.value += 1; },
  };
}

export function Problem({ text, retry, retryLabel = "Retry" }: { text: string; retry?: () => void; retryLabel?: string }) {
  return (
    <div class="problem" role="alert">
      <Icon name="warn" />
      <span class="grow">{text}</span>
      {retry && <Btn small onClick={retry}>{retryLabel}</Btn>}
    </div>
  );
}

/** One page's fault must not take the shell along. */
export function Guard({ children }: { children: ComponentChildren }) {
  const [error, reset] = useErrorBoundary();
  if (error) {
    console.error(error);
    return <Problem text={`This page failed: ${(error as Error).message}`} retry={reset} />;
  }
  return <>{children}</>;
}

export const onEnter =
  (run: () => void) =>
  (event: KeyboardEvent): void => {
    // keyCode 229: an input method is composing, Enter belongs to it.
    if (event.key === "Enter" && !event.shiftKey && !event.isComposing && event.keyCode !== 229) {
      event.preventDefault();
      run();
    }
  };
