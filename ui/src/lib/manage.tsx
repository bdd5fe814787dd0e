// A model is taken out of the configuration, or disabled: its entry becomes a comment that "Add a model" can take back.
import { useSignal } from "@preact/signals";
import { ChangeDialog } from "./changedialog";
import { readConfig } from "./configtext";
import type { Shown } from "./draft";
import { Icon } from "./icons";
import { disabled, without } from "./insert";
import { go, href } from "./router";
import { features } from "./state";
import { Btn, toast } from "./widgets";

export function Manage({ id }: { id: string }) {
  const change = useSignal<{ title: string; before: Shown; after: string } | null>(null);
  if (!features.value.config_edit) return null;
  const open = async (title: string, edit: typeof without) => {
    try {
      const before = await readConfig();
      const after = edit(before.text, "models", id);
      if (after === null) toast("error", `The entry of ${id} is written in a way that this page cannot change: use the editor under Config`);
      else change.value = { title, before, after };
    } catch (error) {
      toast("error", (error as Error).message);
    }
  };
  return (
    <>
      <a class="btn" href={href("config", { at: id })}><Icon name="edit" size={14} /> Edit</a>
      <Btn onClick={() => void open(`Disable ${id}`, disabled)}>Disable</Btn>
      <Btn danger onClick={() => void open(`Delete ${id} from the configuration`, without)}>Delete</Btn>
      {change.value && <ChangeDialog {...change.value} onClose={() => (change.value = null)} done={() => go("models")} />}
    </>
  );
}
