// What the machine has that the configuration could use, each thing with the text for it.
import { signal, useSignal } from "@preact/signals";
import { ApiError, get } from "./api";
import { bytes, plural } from "./format";
import { Icon } from "./icons";
import { Btn, CopyButton, Problem, Spinner, useLoad } from "./widgets";

export interface Block {
  name: string;
  section: string;
  yaml: string;
}

interface Discovered {
  models: (Block & { note: string; command: string[]; bytes: number; usable: boolean; configured_as: string | null })[];
  engines: { name: string; path: string; yaml: string }[];
  servers: (Block & { url: string; models: string[]; configured_as: string | null })[];
  complete: boolean;
}

/** Blocks chosen on another page, for the editor to take when it opens. */
export const chosenBlocks = signal<Block[]>([]);

const file = (path: string): string => path.slice(path.lastIndexOf("/") + 1);

function Item(props: { name: string; facts: string[]; path?: string; used: string | null; block: Block; word: string; insert: (blocks: Block[]) => void }) {
  const open = useSignal(false);
  const { block } = props;
  return (
    <li>
      <div class="row wrap">
        <b>{props.name}</b>
        {props.facts.filter(Boolean).map((fact) => (
          <span key={fact} class="muted">{fact}</span>
        ))}
        {props.used && <span class="tag">in use as {props.used}</span>}
        <span class="grow" />
        <span class="row">
          <Btn small aria-expanded={open.value} onClick={() => (open.value = !open.value)}>Text</Btn>
          {!props.used && <Btn small primary aria-label={`${props.word} ${block.name}`} onClick={() => props.insert([block])}><Icon name="plus" size={13} /> {props.word}</Btn>}
        </span>
      </div>
      {props.path && <div class="muted clip" title={props.path}>{props.path}</div>}
      {open.value && (
        <div class="found-text">
          <CopyButton text={`${block.section}:\n${block.yaml}`} />
          <pre class="code" tabIndex={0}>{`${block.section}:\n${block.yaml}`}</pre>
        </div>
      )}
    </li>
  );
}

/** `word` is what choosing one is called. */
export function FoundHere({ insert, word = "Insert" }: { insert: (blocks: Block[]) => void; word?: string }) {
  const { data, error, loading, reload } = useLoad<Discovered | string>(
    (abort) =>
      get<Discovered>("/api/discover", undefined, abort).catch((problem: Error) => {
        if (problem instanceof ApiError && problem.status === 403) return "Searching needs the right to edit the configuration: start the server with --allow-config-edit.";
        if (problem instanceof ApiError && problem.status === 404) return "This server cannot search.";
        throw problem;
      }),
    [],
  );
  if (error) return <Problem text={error} retry={reload} />;
  if (loading && !data) return <p class="row muted"><Spinner /> Looking for models, engines and running servers. This takes up to five seconds.</p>;
  if (!data) return null;
  if (typeof data === "string") return <p class="muted">{data}</p>;
  const unused = data.models.filter((model) => !model.configured_as && model.usable);
  const engines = data.engines.filter((engine) => engine.yaml);
  return (
    <div class="found">
      {data.servers.length > 0 && (
        <section>
          <h3>Running servers</h3>
          <ul class="plainlist">
            {data.servers.map((server) => (
              <Item key={server.url} name={server.name} facts={[server.url, plural(server.models.length, "model")]} used={server.configured_as} block={server} word={word} insert={insert} />
            ))}
          </ul>
        </section>
      )}
      {data.models.length > 0 && (
        <section>
          <div class="row">
            <h3 class="grow">Models on this machine</h3>
            {unused.length > 1 && <Btn small onClick={() => insert(unused)}>{word} all {unused.length}</Btn>}
          </div>
          <ul class="plainlist">
            {data.models.map((model) => (
              <Item
                key={model.name + model.note}
                name={model.name}
                facts={[model.bytes ? bytes(model.bytes) : "", file(model.command[0] ?? ""), model.usable ? "" : "its engine is missing"]}
                path={model.note}
                used={model.configured_as}
                block={model}
                word={word} insert={insert}
              />
            ))}
          </ul>
        </section>
      )}
      {engines.length > 0 && (
        <section>
          <h3>Engines, with an example each</h3>
          <ul class="plainlist">
            {engines.map((engine) => (
              <Item key={engine.path} name={engine.name} facts={[]} path={engine.path} used={null} block={{ name: engine.name, section: "models", yaml: engine.yaml }} word={word} insert={insert} />
            ))}
          </ul>
        </section>
      )}
      {!data.servers.length && !data.models.length && !engines.length && (
        <p class="muted">Nothing was found: no GGUF files in ~/models, /models or the caches of Hugging Face, Ollama and LM Studio, no engine in the PATH, no server on the usual ports.</p>
      )}
      {!data.complete && <p class="muted">The search took too long and was stopped; there may be more.</p>}
      <div class="row end"><Btn small disabled={loading} onClick={reload}>Search again</Btn></div>
    </div>
  );
}
