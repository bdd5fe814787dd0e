// Every model there is: search, sort, pin, group, load and unload, one or many.
import { useSignal } from "@preact/signals";
import { useEffect } from "preact/hooks";
import { asked, load, planText, unload, unloadMany } from "../lib/actions";
import { maybe, pathId, url } from "../lib/api";
import { DASH, ago, bytes, clockTime, count, known, plural, rate, seconds, time } from "../lib/format";
import { FirstSteps } from "../lib/first";
import { Icon } from "../lib/icons";
import { now, reopened, whyUnknown } from "../lib/link";
import { memo } from "../lib/memo";
import { memoryOf, memoryText, useMemory } from "../lib/memory";
import { pref } from "../lib/prefs";
import { parameters, sizeText, weight } from "../lib/size";
import { href, route, setQuery } from "../lib/router";
import { activitySettled, byName, listed, loadedModels, localModels, models, modelsKnown, peerModels, plan, profiles, refreshListed, servedBy, stateShown, swapRevision } from "../lib/state";
import { Btn, Empty, FailedMark, IconButton, Panel, Segmented, Spinner, StateChip, useLoad } from "../lib/widgets";
import type { ActivityPage, CatalogModel, ModelStatus, Peer } from "../lib/types";

const pinned = pref<string[]>("models.pinned", []);
const unlisted = pref<boolean>("models.unlisted", false);
const dense = pref<boolean>("models.dense", false);
const grouping = pref<string>("models.group", "none");
const sorting = pref<string>("models.sort", "state");

const CAPABILITY: Record<string, string> = {
  vision: "vision",
  audio_transcriptions: "transcription",
  audio_speech: "speech",
  image_generation: "images",
  image_to_image: "image to image",
  function_calling: "tools",
  reranker: "rerank",
};

export function Capabilities({ model, context = true }: { model: { capabilities?: Record<string, boolean>; context_length?: number }; context?: boolean }) {
  const names = Object.entries(model.capabilities ?? {}).filter(([, on]) => on);
  return (
    <>
      {names.map(([name]) => (
        <span key={name} class="tag">{CAPABILITY[name] ?? name.replaceAll("_", " ")}</span>
      ))}
      {context && known(model.context_length) && model.context_length > 0 && (
        <span class="tag" title={`${count(model.context_length)} tokens of context`}>{tokensText(model.context_length)} context</span>
      )}
    </>
  );
}

const tokensText = (tokens: number): string => (tokens >= 1024 ? `${Math.round(tokens / 1024)}k` : String(tokens));

/** The model's own web page, served through this server. */
export const ownPage = (id: string): string =>
  id === "comfyui_auto" ? url("/comfyui/") : url(`/upstream/${pathId(id)}/`);

export function LoadButton({ model, small = true }: { model: ModelStatus; small?: boolean }) {
  const hint = useSignal("");
  const pending = asked.value.has(model.id) && model.state === "stopped";
  const look = () => {
    if (!hint.value) void plan(model.id).then((preview) => (hint.value = preview ? planText(preview) : ""));
  };
  useEffect(() => { hint.value = ""; }, [model.state, loadedModels.value]);
  if (model.state === "ready" || model.state === "starting") {
    return <Btn small={small} onClick={() => void unload(model.id)}><Icon name="power" size={13} /> {model.state === "starting" ? "Cancel" : "Unload"}</Btn>;
  }
  if (pending) return <Btn small={small} title="It loads as soon as there is room" onClick={() => void unload(model.id)}><Spinner label="Waiting to load" /> Cancel</Btn>;
  if (model.state === "stopping") return <Btn small={small} disabled><Spinner label="Unloading" /> Unloading</Btn>;
  return (
    <Btn
      small={small}
      disabled={model.state === "shutdown"}
      title={hint.value || undefined}
      onMouseEnter={look}
      onFocus={look}
      onClick={() => void load(model.id)}
    >
      <Icon name="play" size={13} /> {model.asleep ? "Wake" : "Load"}
      {hint.value && <span class="sr">, {hint.value}</span>}
    </Btn>
  );
}

const weightOf = (model: ModelStatus): number => weight(memoryOf(model.id)?.mib ?? 0, parameters(model.id, model.name));

function usePeers(wanted: boolean): Map<string, Peer> {
  const { data, reload } = useLoad(() => (wanted ? maybe<{ peers: Peer[] }>("/api/peers") : Promise.resolve(null)), [wanted]);
  const turn = Math.floor(now.value / 15_000);
  useEffect(() => { if (wanted) reload(); }, [turn]);
  return new Map((data?.peers ?? []).map((peer) => [peer.id, peer]));
}

const PEER: Record<string, [string, string, string]> = { up: ["ready", "●", "reachable"], down: ["failed", "✕", "not reachable"] };

function PeerChip({ peer }: { peer: Peer }) {
  const [kind, mark, word] = PEER[peer.state] ?? ["off", "○", "not asked yet"];
  const since = peer.since ? ` since ${clockTime(time(peer.since))}` : "";
  return <span class={`chip s-${kind}`} title={[word + since, peer.proxy, peer.error].filter(Boolean).join("; ")}><span aria-hidden="true">{mark}</span> {word}</span>;
}

interface Use {
  at: number;
  tps: number;
  n: number;
}

function useUses(): Map<string, Use> {
  const uses = useSignal<Map<string, Use>>(new Map());
  useEffect(() => {
    maybe<ActivityPage>("/api/metrics/activity", { limit: 500 }).then(
      (page) => {
        const next = new Map<string, Use>();
        for (const row of page?.data ?? []) {
          const old = next.get(row.model);
          const tps = row.tokens.tokens_per_second;
          if (!old) next.set(row.model, { at: time(row.timestamp), tps: tps > 0 ? tps : 0, n: 1 });
          else next.set(row.model, { at: old.at, tps: old.tps || (tps > 0 ? tps : 0), n: old.n + 1 });
        }
        uses.value = next;
      },
      () => undefined,
    );
  }, [activitySettled.value, reopened.value]);
  return uses.value;
}

/** The columns that tell models apart; a column of which nothing is known is left out. */
const FACTS: { id: string; label: string; hint: string; class: string; text: (fact: CatalogModel) => string }[] = [
  { id: "context", label: "Context", hint: "Tokens of context", class: "", text: (fact) => (fact.context_length ? tokensText(fact.context_length) : "") },
  { id: "quant", label: "Quant", hint: "Quantisation, by the name of its file", class: "", text: (fact) => fact.quant ?? "" },
  { id: "file", label: "File", hint: "Size of the file of its weights", class: "wide-only", text: (fact) => (fact.file_bytes ? bytes(fact.file_bytes) : "") },
  { id: "load", label: "Loads in", hint: "The median of its last loads", class: "wide-only", text: (fact) => (fact.load_ms ? seconds(fact.load_ms) : "") },
  { id: "groups", label: "Group", hint: "Groups, or sets of the matrix, that name it", class: "roomy", text: (fact) => (fact.groups.join() === "(default)" ? "" : fact.groups.join(", ")) },
];

function useCatalog(): Map<string, CatalogModel> {
  const { data } = useLoad(() => maybe<{ models: CatalogModel[] }>("/api/catalog"), [swapRevision.value, models.value.length]);
  return new Map((data?.models ?? []).map((fact) => [fact.id, fact]));
}

const Row = memo(function Row(props: {
  model: ModelStatus;
  use: Use | undefined;
  facts: string;
  kept: boolean;
  active: number;
  picked: boolean;
  pinned: boolean;
  sizeWord: string;
  size: string;
  pick: (id: string) => void;
}) {
  const { model, use } = props;
  const shown = stateShown(model, props.active);
  return (
    <tr role="row" data-row data-model={model.id}>
      <td role="cell" class="tight">
        <input type="checkbox" aria-label={`Select ${model.id}`} checked={props.picked} onChange={() => props.pick(model.id)} />
      </td>
      <td role="cell" class="model-cell">
        <div class="row">
          <a class="strong" data-open href={href("model", { id: model.id })}>{model.id}</a>
          {model.name && model.name !== model.id && <span class="muted clip">{model.name}</span>}
          {model.replica_of ? <span class="tag">replica of {model.replica_of}</span> : model.unlisted && <span class="tag">unlisted</span>}
        </div>
        {!dense.value && (
          <div class="model-sub">
            {model.description && <span class="muted">{model.description}</span>}
            {model.aliases?.length ? <span class="muted">also {model.aliases.join(", ")}</span> : null}
            {model.tags?.map((tag) => <span key={tag} class="tag">{tag}</span>)}
            <Capabilities model={model} context={false} />
          </div>
        )}
      </td>
      <td role="cell" class="state">{shown === "failed" ? <FailedMark model={model} /> : <StateChip state={shown} extra={props.active ? `(${props.active})` : ""} />}{props.kept && <span class="kept" title="Kept loaded"><Icon name="pin" size={13} /><span class="sr">kept loaded</span></span>}</td>
      {FACTS.map((fact, index) => {
        const text = props.facts.split("\n")[index] as string;
        return text === "-" ? null : <td key={fact.id} role="cell" class={`num ${fact.class}`} data-label={fact.label}>{text || DASH}</td>;
      })}
      <td role="cell" class="num" data-label={props.sizeWord}>{props.size}</td>
      <td role="cell" class="num wide-only" data-label="Last used">{use ? ago(use.at, now.value) : "–"}</td>
      <td role="cell" class="num wide-only" data-label="t/s">{rate(use?.tps)}</td>
      <td role="cell" class="act">
        <IconButton
          icon="star"
          label={props.pinned ? `Remove ${model.id} from the top of this list` : `Keep ${model.id} at the top of this list`}
          pressed={props.pinned}
          onClick={() => (pinned.value = props.pinned ? pinned.value.filter((id) => id !== model.id) : [...pinned.value, model.id])}
        />
        <a class="iconbtn wide-only" href={href("logs", { src: model.id })} aria-label={`Logs of ${model.id}`} title="Logs"><Icon name="logs" /></a>
        <a class="iconbtn wide-only" href={ownPage(model.id)} target="_blank" rel="noopener noreferrer" aria-label={`Server's own UI of ${model.id}`} title="Server's own UI">
          <Icon name="link" />
        </a>
        <LoadButton model={model} />
      </td>
    </tr>
  );
});

const family = (id: string): string => (/^(?:.*\/)?([a-zA-Z]+)/.exec(id)?.[1] ?? id).toLowerCase();

export function Models() {
  const picked = useSignal<ReadonlySet<string>>(new Set());
  const uses = useUses();
  const catalog = useCatalog();
  useMemory();
  const { query } = route.value;
  const text = (query.get("q") ?? "").toLowerCase();
  const state = query.get("state") ?? "";
  useEffect(() => { refreshListed().catch(() => undefined); }, [models.value.length, profiles.value.active]);

  const hidden = localModels.value.filter((model) => model.unlisted).length;
  const match = (model: ModelStatus) =>
    !text || [model.id, model.name, model.description, ...(model.aliases ?? []), ...(model.tags ?? []), ...Object.keys(model.capabilities ?? {})].join(" ").toLowerCase().includes(text);
  const stateRank = (model: ModelStatus) => ["ready", "starting", "stopping"].indexOf(model.state) + 1 || 9;
  const shown = localModels.value
    .filter((model) => (unlisted.value || !model.unlisted || model.state !== "stopped") && match(model))
    .filter((model) => !state || (state === "loaded" ? model.state !== "stopped" : model.state === "stopped"))
    .sort((a, b) => {
      const pins = Number(pinned.value.includes(b.id)) - Number(pinned.value.includes(a.id));
      if (pins) return pins;
      if (sorting.value === "recent") return (uses.get(b.id)?.at ?? 0) - (uses.get(a.id)?.at ?? 0) || byName(a, b);
      if (sorting.value === "size") return weightOf(b) - weightOf(a) || byName(a, b);
      if (sorting.value === "used") return (uses.get(b.id)?.n ?? 0) - (uses.get(a.id)?.n ?? 0) || byName(a, b);
      if (sorting.value === "state") return stateRank(a) - stateRank(b) || byName(a, b);
      return byName(a, b);
    });
  const groups = new Map<string, ModelStatus[]>();
  for (const model of shown) {
    const key = grouping.value === "state" ? (model.state === "stopped" ? "Not loaded" : "Loaded") : grouping.value === "family" ? family(model.id) : "";
    groups.set(key, [...(groups.get(key) ?? []), model]);
  }
  const columns = FACTS.map((fact) => shown.some((model) => { const found = catalog.get(model.id); return found && fact.text(found); }));
  const factsOf = (id: string): string => {
    const found = catalog.get(id);
    return FACTS.map((fact, index) => (columns[index] ? (found ? fact.text(found) : "") : "-")).join("\n");
  };
  const measured = shown.some((model) => memoryOf(model.id));
  const sizeWord = measured ? "Memory" : "Size";
  const peers = peerModels.value.filter(match);
  const peerStates = usePeers(peerModels.value.length > 0);
  const selectors = listed.value.filter((model) => model.meta?.llamaswap?.type === "selector");
  const chosen = [...picked.value].filter((id) => loadedModels.value.some((model) => model.id === id));
  const pick = (id: string) => {
    const next = new Set(picked.peek());
    if (!next.delete(id)) next.add(id);
    picked.value = next;
  };

  return (
    <div class="page models-page">
      <div class="page-head">
        <h1>Models</h1>
        <p class="summary" hidden={!modelsKnown.value}>
          <span><b>{loadedModels.value.length}</b> loaded</span>
          <span><b>{localModels.value.length}</b> local</span>
          {peerModels.value.length > 0 && <span><b>{peerModels.value.length}</b> at peers</span>}
        </p>
        <a class="btn" href={href("add")}><Icon name="plus" size={14} /> Add a model</a>
      </div>
      <div class="toolbar filters" role="search">
        <input
          class="input grow"
          type="search"
          data-filter
          placeholder="Filter by name, alias, tag, capability…"
          aria-label="Filter models"
          value={query.get("q") ?? ""}
          onInput={(event) => setQuery({ q: event.currentTarget.value })}
        />
        <Segmented
          label="State"
          value={state}
          options={[["", "All"], ["loaded", "Loaded"], ["cold", "Not loaded"]]}
          onChange={(value) => setQuery({ state: value })}
        />
        <select class="input" aria-label="Sort by" value={sorting.value} onChange={(event) => (sorting.value = event.currentTarget.value)}>
          <option value="state">by state</option>
          <option value="name">by name</option>
          <option value="recent">by last use</option>
          <option value="used">most used</option>
          <option value="size">by size</option>
        </select>
        <select class="input" aria-label="Group by" value={grouping.value} onChange={(event) => (grouping.value = event.currentTarget.value)}>
          <option value="none">no groups</option>
          <option value="state">group by state</option>
          <option value="family">group by family</option>
        </select>
        <Btn aria-pressed={dense.value} onClick={() => (dense.value = !dense.value)}>Dense</Btn>
        {hidden > 0 && (
          <label class="check">
            <input type="checkbox" checked={unlisted.value} onChange={(event) => (unlisted.value = event.currentTarget.checked)} />
            {plural(hidden, "unlisted model")}
          </label>
        )}
        {chosen.length > 0 && <Btn danger onClick={() => void unloadMany(chosen).then((done) => done && (picked.value = new Set()))}>Unload {chosen.length}</Btn>}
      </div>
      {shown.length ? (
        [...groups].map(([name, list]) => (
          <Panel key={name} class="flush" title={name || "Local models"} aside={<span class="count">{list.length}</span>}>
            <table class={`table cards models ${dense.value ? "dense" : ""}`} role="table">
              <thead role="rowgroup">
                <tr role="row">
                  <th role="columnheader" class="tight"><span class="sr">Select</span></th>
                  <th role="columnheader">Model</th>
                  <th role="columnheader">State</th>
                  {FACTS.map((fact, index) => columns[index] && <th key={fact.id} role="columnheader" class={`num ${fact.class}`} title={fact.hint}>{fact.label}</th>)}
                  <th role="columnheader" class="num">{sizeWord}</th>
                  <th role="columnheader" class="num wide-only">Last used</th>
                  <th role="columnheader" class="num wide-only">t/s</th>
                  <th role="columnheader"><span class="sr">Actions</span></th>
                </tr>
              </thead>
              <tbody role="rowgroup">
                {list.map((model) => (
                  <Row
                    key={model.id}
                    model={model}
                    use={uses.get(model.id)}
                    facts={factsOf(model.id)}
                    kept={!!catalog.get(model.id)?.pinned}
                    active={servedBy(model.id).length}
                    sizeWord={sizeWord}
                    size={measured ? memoryText(model.id) || DASH : sizeText(parameters(model.id, model.name))}
                    picked={picked.value.has(model.id)}
                    pinned={pinned.value.includes(model.id)}
                    pick={pick}
                  />
                ))}
              </tbody>
            </table>
          </Panel>
        ))
      ) : modelsKnown.value && !models.value.length ? (
        <FirstSteps />
      ) : (
        <Panel title="Local models">
          <Empty title={!modelsKnown.value ? whyUnknown() : text || state ? "No model matches" : "No model is configured"}>
            {modelsKnown.value && !text && !state && <p>Add models in the <a href={href("config")}>configuration</a>.</p>}
          </Empty>
        </Panel>
      )}
      {profiles.value.profiles.length > 0 && (
        <Panel title="Profiles" aside={<span class="muted">switch in the header</span>}>
          <ul class="plainlist cardlist">
            {profiles.value.profiles.map((profile) => (
              <li key={profile.id}>
                <div class="row">
                  <b>{profile.id}</b>
                  {profiles.value.active === profile.id && <span class="chip s-ready">● active</span>}
                  <span class="muted">{profile.description}</span>
                </div>
                <ul class="pins">
                  {Object.entries(profile.pins).map(([from, to]) => (
                    <li key={from}><code>{from}</code> → {to ? <code>{to}</code> : <span class="tag">disabled</span>}</li>
                  ))}
                </ul>
              </li>
            ))}
          </ul>
        </Panel>
      )}
      {selectors.length > 0 && (
        <Panel title="Selectors">
          <ul class="plainlist cardlist">
            {selectors.map((selector) => {
              const meta = selector.meta?.llamaswap;
              return (
                <li key={selector.id}>
                  <div class="row wrap">
                    <b>{selector.id}</b>
                    {selector.name && <span class="muted">{selector.name}</span>}
                    <span class="tag">{meta?.strategy}</span>
                    {meta?.spillover ? <span class="tag">spills over at {meta.spillover}</span> : null}
                  </div>
                  {selector.description && <p class="muted">{selector.description}</p>}
                  <p>
                    {(meta?.targets ?? []).map((target, i) => (
                      <>
                        {i ? ", " : "to "}
                        <a href={href("model", { id: target })}>{target}</a>
                      </>
                    ))}
                  </p>
                </li>
              );
            })}
          </ul>
        </Panel>
      )}
      {peers.length > 0 && (
        <Panel title="Models at peers" aside={<span class="count">{peers.length}</span>}>
          <ul class="plainlist peers">
            {peers.map((model) => (
              <li key={model.id} data-row>
                <a class="strong" data-open href={href("model", { id: model.id })}>{model.id}</a>
                {model.name && model.name !== model.id && <span class="muted">{model.name}</span>}
                <span class="tag">{model.peerID}</span>
                {peerStates.has(model.peerID) && <PeerChip peer={peerStates.get(model.peerID) as Peer} />}
                <Capabilities model={model} />
              </li>
            ))}
          </ul>
        </Panel>
      )}
    </div>
  );
}
