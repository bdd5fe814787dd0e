// A change of the configuration before it is saved: what the server's loader says of it, what it restarts, every line.
import { useSignal } from "@preact/signals";
import { useEffect } from "preact/hooks";
import { type Checked, checkConfig, writeConfig } from "./configtext";
import { DiffView } from "./diffview";
import type { Shown } from "./draft";
import { Icon } from "./icons";
import { ImpactList } from "./impact";
import { Btn, Dialog, Problem, Spinner, toast } from "./widgets";

export function ChangeDialog(props: { title: string; before: Shown; after: string; done: () => void; onClose: () => void }) {
  const checked = useSignal<Checked | null>(null);
  const error = useSignal("");
  const saving = useSignal(false);
  const check = () => {
    error.value = "";
    checkConfig(props.after).then((found) => (checked.value = found), (problem: Error) => (error.value = problem.message));
  };
  useEffect(check, []);
  const save = async () => {
    saving.value = true;
    try {
      await writeConfig(props.after, props.before);
      toast("ok", "Saved and applied");
      props.done();
    } catch (problem) {
      error.value = (problem as Error).message;
    }
    saving.value = false;
  };
  const { valid, errors = [], warnings = [], impact } = checked.value ?? {};
  return (
    <Dialog
      title={props.title}
      class="wide"
      onClose={props.onClose}
      footer={
        <>
          <Btn onClick={props.onClose}>Back</Btn>
          <Btn primary disabled={!valid || saving.value} onClick={() => void save()}>Save and apply</Btn>
        </>
      }
    >
      {error.value && <Problem text={error.value} retry={check} />}
      {!checked.value && !error.value && <p class="row muted"><Spinner /> The server checks it.</p>}
      {errors.map((item, i) => <Problem key={i} text={[item.path, item.message].filter(Boolean).join(": ")} />)}
      {valid && impact && <ImpactList impact={impact} />}
      {warnings.map((item, i) => <p key={i} class="row"><Icon name="warn" /> <span class="grow">{item.message}</span></p>)}
      {valid && <p class="muted">The current configuration is kept under Config, Versions.</p>}
      <DiffView label="Changes" before={props.before.text} after={props.after} />
    </Dialog>
  );
}
