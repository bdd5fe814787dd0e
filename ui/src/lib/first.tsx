// What to do first on a server that has no model yet.
import { href, prefix } from "./router";
import { features } from "./state";
import { CopyButton, Panel } from "./widgets";

export function FirstSteps() {
  const base = new URL("v1", new URL(prefix, location.href)).href;
  return (
    <Panel title="First steps">
      <ol class="steps">
        <li>
          <h3>The server runs</h3>
          <p class="muted">You see this page, so it does.</p>
        </li>
        <li>
          <h3>Give it a model</h3>
          {features.value.config_edit === false ? (
            <p>
              Add an entry below <code>models:</code> in the configuration file; <code>llamaswap init</code> writes one from what this machine has. Started with <code>--allow-config-edit</code>, the server lets it be done here.
            </p>
          ) : (
            <p><a class="btn primary" href={href("add")}>Add a model</a></p>
          )}
        </li>
        <li>
          <h3>Point a client at it</h3>
          <p class="row wrap">Base address for OpenAI clients: <code>{base}</code> <CopyButton text={base} /></p>
        </li>
      </ol>
    </Panel>
  );
}
