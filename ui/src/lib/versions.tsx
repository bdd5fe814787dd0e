// Earlier texts of the configuration file, as the server keeps them: shown, compared with the current one, restored.
import { useSignal } from "@preact/signals";
import { ApiError, errorText, maybe, request } from "./api";
import { DiffView } from "./diffview";
import { bytes, clockTime, time } from "./format";
import type { Version } from "./undoable";
import { Btn, Dialog, Problem, Spinner, useLoad } from "./widgets";

export const listVersions = (): Promise<Version[]> =>
  maybe<{ versions: Version[] }>("/api/config/history").then(
    (found) => found?.versions ?? [],
    (problem) => {
      if (problem instanceof ApiError && problem.status === 403) return [];
      throw problem;
    },
  );

const WHY: Record<string, string> = { found: "found in the file", saved: "saved", restored: "restored" };

/** Browsers say who they are in a line of words; its first product and the browser's name are enough here. */
const who = (version: Version): string => {
  const agent = /(Firefox|Edg|Chrome|Safari)\/[\d.]+/.exec(version.agent ?? "")?.[1] ?? (version.agent ?? "").split(/[ /]/)[0] ?? "";
  return [version.address, agent.replace("Edg", "Edge")].filter(Boolean).join(", ");
};

async function textOf(version: Version, abort: AbortSignal): Promise<{ id: string; text: string }> {
  const response = await request(`/api/config/history/${encodeURIComponent(version.id)}`, { signal: abort });
  const text = await response.text();
  if (!response.ok) throw new ApiError(response.status, errorText(response.status, text));
  return { id: version.id, text };
}

export function VersionsDialog(props: {
  current: string;
  busy: boolean;
  restore: (version: Version) => void;
  edit: (text: string) => void;
  onClose: () => void;
}) {
  const { data, error, loading, reload } = useLoad(listVersions, [props.current]);
  const picked = useSignal("");
  const versions = data ?? [];
  const shown = versions.find((version) => version.id === picked.value) ?? versions.find((version) => !version.in_force);
  const text = useLoad((abort) => (shown ? textOf(shown, abort) : Promise.resolve(null)), [shown?.id]);
  // While another one is fetched the last one is still there.
  const ready = shown && text.data?.id === shown.id ? text.data.text : null;
  return (
    <Dialog
      title="Earlier versions"
      class="wide"
      onClose={props.onClose}
      footer={
        <>
          <Btn disabled={ready === null} onClick={() => ready !== null && props.edit(ready)}>Put into the editor</Btn>
          <Btn primary disabled={ready === null || !!shown?.in_force || props.busy} onClick={() => shown && props.restore(shown)}>Restore and apply</Btn>
        </>
      }
    >
      {error && <Problem text={error} retry={reload} />}
      {loading && !data && <Spinner />}
      {data && !versions.length && <p class="muted">Versions are kept from the first save on.</p>}
      {versions.length > 0 && (
        <div class="versions">
          <ul class="plainlist" aria-label="Versions">
            {versions.map((version) => (
              <li key={version.id}>
                <button type="button" class="histitem" aria-current={version.id === shown?.id ? "true" : undefined} onClick={() => (picked.value = version.id)}>
                  <span class="row">
                    <time dateTime={version.time}>{clockTime(time(version.time))}</time>
                    {version.in_force && <span class="chip s-ready">current</span>}
                  </span>
                  <span class="muted">{[WHY[version.why] ?? version.why, who(version), bytes(version.size)].filter(Boolean).join(" · ")}</span>
                </button>
              </li>
            ))}
          </ul>
          <div class="versions-diff">
            {text.error && <Problem text={text.error} retry={text.reload} />}
            {ready === null && !text.error && <Spinner />}
            {ready !== null && shown && (
              <>
                <p class="muted">{shown.in_force ? "This is the current configuration." : "What restoring it would change:"}</p>
                <DiffView label="From the current configuration to this version" before={props.current} after={ready} />
              </>
            )}
          </div>
        </div>
      )}
    </Dialog>
  );
}
