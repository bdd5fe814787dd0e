// The settings of this browser, and which build of the server it talks to.
import { useSignal } from "@preact/signals";
import { apiKey, setApiKey } from "../lib/api";
import { forgetAll } from "../lib/conversation";
import { KeyForm } from "../lib/keyform";
import { status, useKey } from "../lib/link";
import { ModelSelect, useListed } from "../lib/modelselect";
import { type Density, type Theme, accent, defaultModel, density, keepDays, notifyFailed, notifyLoaded, theme, title } from "../lib/prefs";
import { prefix, root } from "../lib/router";
import { features, version } from "../lib/state";
import { Btn, Facts, Field, Panel, Segmented, attempt, confirm } from "../lib/widgets";

function Key() {
  const key = apiKey();
  if (!key) return <div class="pad0"><KeyForm /></div>;
  const forget = () => {
    setApiKey("", false);
    useKey();
    location.reload();
  };
  return (
    <p class="row wrap pad0">
      <span class="grow">This browser sends a key that ends in <code>{key.slice(-4)}</code>.</span>
      <Btn danger onClick={forget}>Forget the key</Btn>
    </p>
  );
}

function Notify({ label, value, set }: { label: string; value: boolean; set: (on: boolean) => void }) {
  const refused = useSignal(false);
  const change = async (box: HTMLInputElement) => {
    const wanted = box.checked;
    refused.value = wanted && (await Notification.requestPermission()) !== "granted";
    box.checked = wanted && !refused.peek();
    set(box.checked);
  };
  return (
    <>
      <label class="check">
        <input type="checkbox" checked={value} onChange={(event) => void change(event.currentTarget)} />
        {label}
      </label>
      {refused.value && <p class="bad" role="alert">The browser does not allow notifications from this page: allow them in its settings of this site.</p>}
    </>
  );
}

async function deleteConversations(): Promise<void> {
  const yes = await confirm("Delete all conversations?", <p>Every conversation that is stored in this browser is deleted.</p>, "Delete", true);
  if (yes) await attempt("Deleting", forgetAll, "All conversations are deleted");
}

export function Settings() {
  useListed();
  const build = version.value;
  const on = Object.entries(features.value).filter(([, yes]) => yes).map(([name]) => name.replaceAll("_", " "));
  return (
    <>
      <p class="muted">These settings are kept in this browser.</p>
      <div class="settings-grid">
        <Panel title="Appearance">
          <div class="stack">
            <Field group label="Theme">
              <Segmented<Theme> label="Theme" value={theme.value} options={[["system", "As the system"], ["light", "Light"], ["dark", "Dark"]]} onChange={(value) => (theme.value = value)} />
            </Field>
            <Field group label="Accent">
              <Segmented label="Accent" value={accent.value} options={[["teal", "Teal"], ["blue", "Blue"], ["violet", "Violet"], ["rust", "Rust"]]} onChange={(value) => (accent.value = value)} />
            </Field>
            <Field group label="Density">
              <Segmented<Density> label="Density" value={density.value} options={[["compact", "Compact"], ["normal", "Normal"], ["spacious", "Spacious"]]} onChange={(value) => (density.value = value)} />
            </Field>
            <Field label="Title of this server" hint="shown in the header and the browser's tab">
              <input class="input" maxLength={64} value={title.value} placeholder="llamaswap" onInput={(event) => (title.value = event.currentTarget.value.replaceAll("\n", " ").trimStart())} />
            </Field>
          </div>
        </Panel>
        <Panel title="Chat">
          <div class="stack">
            <Field group label="Default model" hint="of a new chat">
              <span class="row wrap">
                <ModelSelect optional label="Default model" empty="The one used last" value={defaultModel.value} onChange={(id) => (defaultModel.value = id)} />
              </span>
            </Field>
            <Field label="Keep conversations">
              <select class="input" value={keepDays.value} onChange={(event) => (keepDays.value = Number(event.currentTarget.value))}>
                <option value={0}>until they are deleted</option>
                <option value={7}>for 7 days after their last use</option>
                <option value={30}>for 30 days after their last use</option>
                <option value={365}>for a year after their last use</option>
              </select>
            </Field>
            <div><Btn danger onClick={() => void deleteConversations()}>Delete all conversations</Btn></div>
          </div>
        </Panel>
        <Panel title="API key"><Key /></Panel>
        <Panel title="Notifications">
          <div class="stack">
            {"Notification" in window && isSecureContext ? (
              <>
                <Notify label="When a load is done" value={notifyLoaded.value} set={(yes) => (notifyLoaded.value = yes)} />
                <Notify label="When a model fails" value={notifyFailed.value} set={(yes) => (notifyFailed.value = yes)} />
                <p class="muted">Shown by the browser as long as this page is open in a tab.</p>
              </>
            ) : (
              <p class="muted">Browsers allow notifications only to pages over HTTPS or from localhost.</p>
            )}
          </div>
        </Panel>
        <Panel title="This build">
          <Facts
            items={[
              ["Version", build?.version],
              ["Commit", build?.commit],
              ["Built", build?.build_date],
              ["Event stream", `${status.value.state}${status.value.error ? `: ${status.value.error}` : ""}`],
              ["Features", on.join(", ")],
            ]}
          />
          <p class="muted pad0">The manual is in the folder <code>docs</code> of the source. <code>llamaswap help</code> explains the commands, <kbd>?</kbd> the keys of this page, and the editor each setting as you type it.</p>
          <p class="row wrap pad0">
            <a href={`${prefix}api/openapi.json`} target="_blank" rel="noopener noreferrer">Reference of the API (OpenAPI)</a>
            <a href={`${root}third-party-licences.txt`} target="_blank" rel="noopener noreferrer">Third-party licences</a>
          </p>
        </Panel>
      </div>
    </>
  );
}
