// Models of Hugging Face: searched, weighed against the memory, downloaded by the server.
import { useSignal } from "@preact/signals";
import { useEffect } from "preact/hooks";
import { get, send } from "../lib/api";
import { ago, bytes, count, plural, time } from "../lib/format";
import { Icon } from "../lib/icons";
import { memory, useMemory } from "../lib/memory";
import { Bar, Btn, Panel, Problem, Spinner, attempt } from "../lib/widgets";

interface Found {
  repository: string;
  downloads: number;
  likes: number;
  updated: string;
  gated: boolean;
}

interface Quant {
  quant: string;
  bytes: number;
}

interface Download {
  id: string;
  name: string;
  state: "running" | "done" | "failed" | "cancelled";
  file: string;
  total: number;
  completed: number;
  error: string;
  models: { name: string; yaml: string }[];
}

export function Hub({ use }: { use: (yaml: string) => void }) {
  const words = useSignal("");
  const found = useSignal<Found[] | null>(null);
  const error = useSignal("");
  const busy = useSignal(false);
  const open = useSignal("");
  const started = useSignal(0);
  const search = async () => {
    busy.value = true;
    error.value = "";
    try {
      found.value = (await get<{ models: Found[] }>("/api/hub/models", { q: words.peek() })).models;
    } catch (problem) {
      error.value = (problem as Error).message;
    }
    busy.value = false;
  };
  return (
    <>
      <Panel title="Hugging Face">
        <div class="stack">
          <form class="row" onSubmit={(event) => (event.preventDefault(), void search())}>
            <input class="input grow" type="search" aria-label="Search Hugging Face" placeholder="qwen3 8b, gemma, …" value={words.value} onInput={(event) => (words.value = event.currentTarget.value)} />
            <button type="submit" class="btn primary" disabled={busy.value}><Icon name="search" size={14} /> Search</button>
          </form>
          {busy.value && <Spinner label="Searching" />}
          {error.value && <Problem text={error.value} retry={() => void search()} />}
          {error.value && <p class="muted">Without a connection: put a GGUF file into a folder of this machine, such as ~/models, and look under "On this machine".</p>}
          {found.value?.length === 0 && <p class="muted">No model with GGUF files has this name.</p>}
          <ul class="plainlist">
            {found.value?.map((item) => (
              <li key={item.repository}>
                <div class="row wrap">
                  <button type="button" class="linkish" aria-expanded={open.value === item.repository} onClick={() => (open.value = open.peek() === item.repository ? "" : item.repository)}>{item.repository}</button>
                  <span class="muted num">{plural(item.downloads, "download")}</span>
                  {Number.isFinite(time(item.updated)) && <span class="muted">{ago(time(item.updated), Date.now())}</span>}
                  {item.gated && <span class="tag">needs a token ($HF_TOKEN)</span>}
                </div>
                {open.value === item.repository && <Quants repository={item.repository} begun={() => (started.value += 1)} />}
              </li>
            ))}
          </ul>
        </div>
      </Panel>
      <Downloads key={started.value} use={use} />
    </>
  );
}

function Quants({ repository, begun }: { repository: string; begun: () => void }) {
  useMemory();
  const list = useSignal<Quant[] | null>(null);
  const error = useSignal("");
  useEffect(() => {
    get<{ quants: Quant[] }>(`/api/hub/models/${repository}`).then((answer) => (list.value = answer.quants), (problem: Error) => (error.value = problem.message));
  }, []);
  const download = async (quant: string) => {
    if (await attempt("Downloading", () => send("POST", "/api/hub/downloads", { name: `${repository}:${quant}` }))) begun();
  };
  const gpus = (memory.value?.devices ?? []).filter((item) => item.device !== "ram");
  const pool = gpus.length ? gpus : (memory.value?.devices ?? []);
  const free = pool.reduce((sum, item) => sum + item.free_mib, 0) * 1048576;
  const whole = pool.reduce((sum, item) => sum + item.total_mib, 0) * 1048576;
  if (error.value) return <Problem text={error.value} />;
  if (!list.value) return <Spinner />;
  return (
    <table class="plain quants">
      <caption class="muted">{whole ? `${bytes(free)} of ${bytes(whole)} ${gpus.length ? "GPU memory" : "RAM"} is free` : ""}</caption>
      <tbody>
        {list.value.map((item) => (
          <tr key={item.quant}>
            <th scope="row">{item.quant}</th>
            <td class="num">{bytes(item.bytes)}</td>
            <td>{!whole ? "" : item.bytes > whole ? <span class="bad">{gpus.length ? "not all of it fits on the GPUs" : "larger than the memory"}</span> : item.bytes > free ? "fits after others are unloaded" : "fits"}</td>
            <td><Btn small aria-label={`Download ${item.quant}`} onClick={() => void download(item.quant)}><Icon name="download" size={13} /> Download</Btn></td>
          </tr>
        ))}
      </tbody>
    </table>
  );
}

function Downloads({ use }: { use: (yaml: string) => void }) {
  const list = useSignal<Download[]>([]);
  const cancelled = useSignal(0);
  useEffect(() => {
    let timer: ReturnType<typeof setTimeout> | undefined;
    let alive = true;
    const look = async () => {
      const answer = await get<{ downloads: Download[] }>("/api/hub/downloads").catch(() => null);
      if (!alive) return;
      if (answer) list.value = answer.downloads;
      if (!answer || answer.downloads.some((item) => item.state === "running")) timer = setTimeout(() => void look(), 1000);
    };
    void look();
    return () => {
      alive = false;
      clearTimeout(timer);
    };
  }, [cancelled.value]);
  if (!list.value.length) return null;
  const cancel = (id: string) => void attempt("Cancelling", () => send("DELETE", `/api/hub/downloads/${id}`)).then(() => (cancelled.value += 1));
  return (
    <Panel title="Downloads">
      <ul class="plainlist pad0">
        {list.value.map((item) => (
          <li key={item.id} class="row wrap download">
            <b>{item.name}</b>
            {item.state === "running" && (
              <>
                <Bar value={item.completed} max={item.total} label={`Download of ${item.name}`} />
                <span class="muted num">{item.total ? `${Math.floor((item.completed / item.total) * 100)} % of ${bytes(item.total)}` : "starting"}</span>
              </>
            )}
            {item.state === "failed" && <span class="bad">{item.error}</span>}
            {item.state === "cancelled" && <span class="muted">cancelled; the next download of it continues where this one stopped</span>}
            {item.state === "done" && <span class="muted">complete, {count(item.models.length)} found</span>}
            <span class="grow" />
            {item.state === "running" && <Btn small onClick={() => cancel(item.id)}>Cancel</Btn>}
            {item.models.map((model) => <Btn key={model.name} small primary aria-label={`Set up ${model.name}`} onClick={() => use(model.yaml)}>Set up</Btn>)}
          </li>
        ))}
      </ul>
    </Panel>
  );
}
