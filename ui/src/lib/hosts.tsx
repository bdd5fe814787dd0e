// The machines that run models, on the landing page: fetched every few seconds while the page is visible.
import { useSignal } from "@preact/signals";
import { useEffect } from "preact/hooks";
import { maybe } from "./api";
import { gib, known, seconds } from "./format";
import { href } from "./router";
import { status } from "./link";
import type { Host, HostList } from "./types";
import { Panel } from "./widgets";

const POLL = 5000;

function HostRow({ host }: { host: Host }) {
  const state = `${host.online ? "online" : "offline"}${host.drained ? ", drained" : ""}`;
  return (
    <li class="gpu" data-host={host.host}>
      <div class="gpu-head">
        <b>{host.host}</b> <span class={host.online ? "muted clip" : "bad clip"}>{state}</span>
        {known(host.seen_seconds) && <span class="num right muted">answered {seconds(host.seen_seconds * 1000)} ago</span>}
      </div>
      {host.problem && <div class="notice-text" title={host.problem}>{host.problem}</div>}
      <div class="gpu-facts num">
        {host.devices.map((device) => (
          <span key={device.device} title={device.name}>{device.device.toUpperCase()} {gib(device.total_mib)} GiB</span>
        ))}
        {host.models.map((model) => <a key={model} href={href("model", { id: model })}>{model}</a>)}
      </div>
    </li>
  );
}

export function HostsPanel({ first }: { first: HostList }) {
  const list = useSignal(first);
  useEffect(() => {
    const timer = setInterval(() => {
      if (document.visibilityState !== "visible" || status.peek().state !== "open") return;
      maybe<HostList>("/api/hosts").then((fresh) => fresh && (list.value = fresh), () => undefined);
    }, POLL);
    return () => clearInterval(timer);
  }, []);
  const { hosts, problem, missed, findings } = list.value;
  const notes = [problem, missed.length ? `${missed.join(", ")} vanished at once: what they ran is not loaded elsewhere` : "", ...findings].filter(Boolean);
  return (
    <Panel title="Hosts" aside={<span class="count">{hosts.filter((host) => host.online).length} of {hosts.length} online</span>}>
      <ul class="plainlist machine">
        {hosts.map((host) => <HostRow key={host.host} host={host} />)}
      </ul>
      {notes.map((note) => <p key={note} class="muted advice">{note}</p>)}
    </Panel>
  );
}
