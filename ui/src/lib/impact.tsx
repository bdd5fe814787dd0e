// Which models a change of the configuration touches.
import { activeOn } from "./actions";
import { plural } from "./format";
import type { Impact } from "./types";

export function ImpactList({ impact }: { impact: Impact }) {
  const groups: [string, string[]][] = [["Will restart", impact.restart ?? []], ["New", impact.add ?? []], ["Removed", impact.remove ?? []]];
  const some = groups.filter(([, list]) => list.length);
  return (
    <div class="impact">
      <h3>Effect of saving</h3>
      {some.map(([name, list]) => (
        <p key={name}>
          {name}:{" "}
          {list.map((model, i) => (
            <>
              {i ? ", " : ""}
              <b>{model}</b>
              {name !== "New" && activeOn(model) ? <span class="bad"> ({plural(activeOn(model), "active request")})</span> : null}
            </>
          ))}
        </p>
      ))}
      {!some.length && <p>No model restarts.</p>}
    </div>
  );
}
