// Requests in progress: the table of those being served and the queue of those waiting.
import { effect, signal, useComputed } from "@preact/signals";
import { Fragment } from "preact";
import { memo } from "./memo";
import { cancelRequest, cancelling } from "./actions";
import { bytes, clock, count, duration, known, plural, rate } from "./format";
import { now } from "./link";
import { href } from "./router";
import { type Group, bySession } from "./sessions";
import { inflight, models, phaseOf, sessionOf } from "./state";
import { Bar, Empty, IconButton } from "./widgets";
import type { Inflight } from "./types";

export const elapsed = (entry: Inflight, at: number): number => entry.elapsed_ms + Math.max(0, at - entry.received);

function Elapsed({ entry }: { entry: Inflight }) {
  return <>{clock(elapsed(entry, now.value) / 1000)}</>;
}

const header = (entry: Inflight, name: string): string =>
  Object.entries(entry.req_headers ?? {}).find(([key]) => key.toLowerCase() === name)?.[1] ?? "";

const PHASE: Record<string, [string, string]> = {
  queued: ["queued", "draining"],
  loading: ["loading", "loading"],
  prefill: ["prefill", "busy"],
  decode: ["decode", "ready"],
};

function Phase({ entry }: { entry: Inflight }) {
  const phase = phaseOf(entry);
  const [word, kind] = PHASE[phase] ?? [phase, "busy"];
  const progress = entry.prompt_progress;
  const part = known(progress) ? (progress <= 1 ? progress * 100 : progress) : null;
  return (
    <span class="phase">
      <span class={`chip s-${kind}`}>
        {word}
        {phase === "queued" && known(entry.queue_pos) ? ` #${entry.queue_pos}` : ""}
        {phase === "prefill" && part !== null ? ` ${Math.round(part)} %` : ""}
      </span>
      {phase === "prefill" && part !== null && <Bar value={part} max={100} label="Prompt read" />}
    </span>
  );
}

const Row = memo(function Row({ entry, showModel, grouped }: { entry: Inflight; showModel: boolean; grouped: boolean }) {
  const session = sessionOf(entry);
  return (
    <tr role="row" data-row class={grouped ? "in-session" : undefined}>
      {showModel && <td role="cell" class="strong nobreak"><a href={href("model", { id: entry.model })} data-open>{entry.model}</a></td>}
      <td role="cell" title={entry.reason && reasonFor(entry)}><Phase entry={entry} /></td>
      <td role="cell" class="num" data-label="Elapsed"><Elapsed entry={entry} /></td>
      <td role="cell" class="num" data-label="TTFT">{duration(entry.ttft_ms)}</td>
      <td role="cell" class="num" data-label="Tokens">{count(entry.tokens_out)}</td>
      <td role="cell" class="num" data-label="t/s">{rate(entry.tps)}</td>
      <td role="cell" class="num wide-only" data-label="Sent">{bytes(entry.resp_bytes)}</td>
      <td role="cell" class="clip" data-label="Request" title={`${entry.method} ${entry.req_path}`}>{entry.req_path}</td>
      <td role="cell" class="clip roomy" data-label="Client" title={header(entry, "user-agent")}>{entry.remote_ip}</td>
      <td role="cell" class="clip roomy" data-label="Session" title={session}>{session || "–"}</td>
      <td role="cell" class="act">
        <IconButton
          icon="close"
          label={`Cancel request ${entry.id} to ${entry.model}`}
          disabled={cancelling.value.has(entry.id)}
          onClick={() => void cancelRequest(entry.id, entry.model)}
        />
      </td>
    </tr>
  );
});

function SessionHead({ group, columns }: { group: Group<Inflight>; columns: number }) {
  const { session, entries } = group;
  const waits = inflight.value.filter((entry) => phaseOf(entry) === "queued" && sessionOf(entry) === session).length;
  const facts = [
    plural(entries.length, "request"),
    waits ? `${waits} waiting` : "",
    `${count(entries.reduce((sum, entry) => sum + (entry.tokens_out ?? 0), 0))} tokens`,
    `${rate(entries.reduce((sum, entry) => sum + (entry.tps ?? 0), 0))} t/s`,
  ];
  return (
    <tr role="row" class="session-head">
      <th role="cell" colSpan={columns} scope="rowgroup">
        <a href={href("requests", { session })}>{session}</a> <span class="muted num">{facts.filter(Boolean).join(" · ")}</span>
      </th>
    </tr>
  );
}

export function RunningTable({ model }: { model?: string }) {
  const list = useComputed(() => inflight.value.filter((entry) => phaseOf(entry) !== "queued"));
  const shown = model ? list.value.filter((entry) => entry.model === model) : list.value;
  if (!shown.length) return <Empty title="Nothing is running" />;
  return (
    <div class="table-scroll" tabIndex={0} role="region" aria-label="Running requests">
      <table class="table cards" role="table">
        <thead role="rowgroup">
          <tr role="row">
            {!model && <th role="columnheader">Model</th>}
            <th role="columnheader">Phase</th>
            <th role="columnheader" class="num">Elapsed</th>
            <th role="columnheader" class="num" title="Time to first token">TTFT</th>
            <th role="columnheader" class="num">Tokens</th>
            <th role="columnheader" class="num">t/s</th>
            <th role="columnheader" class="num wide-only">Sent</th>
            <th role="columnheader">Request</th>
            <th role="columnheader" class="roomy">Client</th>
            <th role="columnheader" class="roomy">Session</th>
            <th role="columnheader"><span class="sr">Cancel</span></th>
          </tr>
        </thead>
        <tbody role="rowgroup">
          {bySession(shown, sessionOf).map((group) => (
            <Fragment key={group.session || group.entries[0]?.id}>
              {group.session && <SessionHead group={group} columns={model ? 10 : 11} />}
              {group.entries.map((entry) => <Row key={entry.id} entry={entry} showModel={!model} grouped={!!group.session} />)}
            </Fragment>
          ))}
        </tbody>
      </table>
    </div>
  );
}

/** Why a request waits, in words; the server's own words win. */
export function reasonFor(entry: Inflight): string {
  if (entry.reason) return entry.waits_for?.some((id) => !entry.reason?.includes(id)) ? `${entry.reason} (${entry.waits_for.join(", ")})` : entry.reason;
  const own = models.value.find((item) => item.id === entry.model);
  if (own?.state === "starting") return "its model is loading";
  if (own?.state === "stopping") return "its model is unloading first";
  if (own?.state === "ready") return "all slots of its model are in use";
  const others = models.value.filter((item) => item.state === "ready" || item.state === "stopping");
  return others.length ? `${others.map((item) => item.id).join(", ")} must make room` : "its model is about to load";
}

export function Queue({ model }: { model?: string }) {
  const list = useComputed(() =>
    inflight.value.filter((entry) => phaseOf(entry) === "queued").sort((a, b) => (a.queue_pos ?? 0) - (b.queue_pos ?? 0)),
  );
  const shown = model ? list.value.filter((entry) => entry.model === model) : list.value;
  if (!shown.length) return null;
  return (
    <ol class="queue" aria-label="Waiting requests">
      {shown.map((entry, index) => (
        <li key={entry.id} data-row>
          <span class="chip s-draining">#{known(entry.queue_pos) ? entry.queue_pos : index + 1}</span>
          <a href={href("model", { id: entry.model })} class="strong" data-open>{entry.model}</a>
          <span class="num"><Elapsed entry={entry} /></span>
          <span class="grow muted">{reasonFor(entry)}</span>
          <IconButton
            icon="close"
            label={`Cancel waiting request ${entry.id} to ${entry.model}`}
            disabled={cancelling.value.has(entry.id)}
            onClick={() => void cancelRequest(entry.id, entry.model)}
          />
        </li>
      ))}
    </ol>
  );
}

// -- live speed of each model: sixty points, one a second ----------------------------------------------------

export const speed = signal<ReadonlyMap<string, readonly number[]>>(new Map());

effect(() => {
  void now.value;
  const sums = new Map<string, number>();
  for (const entry of inflight.peek()) if (known(entry.tps)) sums.set(entry.model, (sums.get(entry.model) ?? 0) + entry.tps);
  const before = speed.peek();
  if (!sums.size && !before.size) return;
  const next = new Map<string, readonly number[]>();
  for (const model of new Set([...before.keys(), ...sums.keys()])) {
    const list = [...(before.get(model) ?? []), sums.get(model) ?? 0].slice(-60);
    if (list.some((value) => value > 0)) next.set(model, list);
  }
  speed.value = next;
});
