import { LogView } from "../lib/logview";
import { href, route, setQuery } from "../lib/router";
import { localModels } from "../lib/state";
import { stateKind } from "../lib/widgets";

export function Logs() {
  const wanted = (route.value.query.get("src") ?? "proxy").split("|").filter(Boolean);
  const sources = wanted.length ? wanted : ["proxy"];
  const toggle = (source: string, add: boolean) => {
    const has = sources.includes(source);
    const next = !add ? [source] : has ? sources.filter((item) => item !== source) : [...sources, source];
    setQuery({ src: (next.length ? next : ["proxy"]).join("|") });
  };
  const { query } = route.value;
  const place = query.has("at") ? { at: Number(query.get("at")) || 0, to: Number(query.get("to")) || 0, line: query.get("line") ?? "" } : null;
  const item = (id: string, label: string, kind: string) => (
    <li key={id}>
      <input type="checkbox" aria-label={`Show ${label} together with the others`} checked={sources.includes(id)} onChange={() => toggle(id, true)} />
      <a href={href("logs", { src: id })} aria-current={sources.length === 1 && sources[0] === id ? "true" : undefined} title={label}>
        {kind !== "none" && <span class={`dot s-${kind}`} aria-hidden="true" />}
        {label}
      </a>
    </li>
  );
  return (
    <div class="page logs-page">
      <div class="page-head">
        <h1>Logs</h1>
        <label class="only-phone">
          <span class="sr">Source</span>
          <select class="input small" value={sources[0]} onChange={(event) => setQuery({ src: event.currentTarget.value })}>
            <option value="proxy">llamaswap itself</option>
            <option value="upstream">all models</option>
            {localModels.value.map((model) => (
              <option key={model.id}>{model.id}</option>
            ))}
          </select>
        </label>
      </div>
      <div class="logs-grid">
        <nav class="sources hide-phone" aria-label="Log sources">
          <ul>
            {item("proxy", "llamaswap itself", "none")}
            {item("upstream", "all models", "none")}
            {localModels.value.map((model) => item(model.id, model.id, stateKind(model.state)))}
          </ul>
        </nav>
        <LogView key={sources.join("|")} sources={sources} initial={route.value.query.get("q") ?? ""} onFilter={(text) => text !== (route.peek().query.get("q") ?? "") && setQuery({ q: text })} place={place} onPick={(line) => setQuery({ at: line?.at ?? null, to: null, line: line?.line ?? null })} />
      </div>
    </div>
  );
}
