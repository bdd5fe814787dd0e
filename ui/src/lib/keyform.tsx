// Where an API key is entered: in the question that the server's refusal leads to, and in Settings.
import { useSignal } from "@preact/signals";
import { keyNeeded, request, setApiKey } from "./api";
import { Icon } from "./icons";
import { useKey } from "./link";
import { Field } from "./widgets";

export function KeyForm() {
  const key = useSignal("");
  const remember = useSignal(false);
  const error = useSignal("");
  const busy = useSignal(false);
  const submit = async (event: Event) => {
    event.preventDefault();
    busy.value = true;
    try {
      // Tried before it is kept: meanwhile the page may ask for a key, which would end this form if there was one.
      const trial = await request("/api/version", { headers: { Authorization: `Bearer ${key.value.trim()}` } });
      if (trial.ok) {
        setApiKey(key.value.trim(), remember.value);
        keyNeeded.value = false;
        useKey();
        location.reload();
      }
      error.value = trial.ok ? "" : trial.status === 401 ? "The server refused this key." : `The server answered ${trial.status}.`;
    } catch (problem) {
      error.value = (problem as Error).message;
    }
    busy.value = false;
  };
  return (
    <form onSubmit={(event) => void submit(event)} class="stack">
      <p class="muted">One of the API keys from the server's configuration. It is sent to this server only.</p>
      <Field label="API key">
        <input
          class="input"
          type="password"
          autocomplete="current-password"
          autofocus={keyNeeded.value}
          value={key.value}
          onInput={(event) => (key.value = event.currentTarget.value)}
        />
      </Field>
      <label class="check">
        <input type="checkbox" checked={remember.value} onChange={(event) => (remember.value = event.currentTarget.checked)} />
        Remember on this device
      </label>
      {error.value && <p class="bad" role="alert">{error.value}</p>}
      <div class="row end"><button type="submit" class="btn primary" disabled={!key.value.trim() || busy.value}><Icon name="key" /> Use this key</button></div>
    </form>
  );
}
