// Which MCP servers a chat may use, and whether it asks before a tool runs.
import { useEffect } from "preact/hooks";
import { plural } from "../../lib/format";
import { chosenServers, connect, listServers, mcpError, runAlone, tools } from "../../lib/mcp";
import { Problem, useLoad } from "../../lib/widgets";

export function ToolsForm() {
  const { data, error, reload } = useLoad(listServers, []);
  useEffect(() => void connect(), [chosenServers.value]);
  if (error) return <Problem text={`The MCP servers could not be fetched: ${error}`} retry={reload} />;
  if (!data) return null;
  if (!data.length) return <p class="muted">Tools of MCP servers: none is named below <code>ui: mcpServers:</code> in the configuration.</p>;
  const choose = (name: string, on: boolean) => (chosenServers.value = data.filter((server) => (server === name ? on : chosenServers.peek().includes(server))));
  return (
    <fieldset class="stack">
      <legend>Tools of MCP servers</legend>
      {data.map((name) => (
        <label key={name} class="check">
          <input type="checkbox" checked={chosenServers.value.includes(name)} onChange={(event) => choose(name, event.currentTarget.checked)} />
          {name} <span class="muted">{chosenServers.value.includes(name) ? plural(tools.value.filter((tool) => tool.server === name).length, "tool") : ""}</span>
        </label>
      ))}
      {mcpError.value && <Problem text={mcpError.value} retry={() => void connect(true)} />}
      <label class="check">
        <input type="checkbox" checked={runAlone.value} onChange={(event) => (runAlone.value = event.currentTarget.checked)} />
        Run tool calls without a question
      </label>
    </fieldset>
  );
}
