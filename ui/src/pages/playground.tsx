// The playground: every kind of model behind this server, tried from one page.
import type { ComponentType } from "preact";
import { useListed } from "../lib/modelselect";
import { href, route } from "../lib/router";
import { features } from "../lib/state";
import { TabLinks } from "../lib/widgets";
import { Chat } from "./play/chat";
import { Compare } from "./play/compare";
import { Complete } from "./play/complete";
import { LoadTest } from "./play/loadtest";
import { Images, Speech, Transcription } from "./play/media";
import { Embeddings, Rerank } from "./play/vectors";

const TABS: [string, string, ComponentType][] = [
  ["chat", "Chat", Chat],
  ["compare", "Compare", Compare],
  ["complete", "Completion", Complete],
  ["images", "Images", Images],
  ["speech", "Speech", Speech],
  ["transcription", "Transcription", Transcription],
  ["rerank", "Rerank", Rerank],
  ["embeddings", "Embeddings", Embeddings],
  ["loadtest", "Load test", LoadTest],
];

export function Playground() {
  useListed();
  const wanted = route.value.query.get("tab") ?? "chat";
  const tabs = TABS.filter(([key]) => key !== "loadtest" || features.value.loadtest);
  const [key, , Part] = tabs.find(([name]) => name === wanted) ?? (TABS[0] as (typeof TABS)[number]);
  return (
    <div class="page playground">
      <h1 class="sr">Playground</h1>
      <TabLinks label="Playground" current={key} items={tabs.map(([name, text]) => ({ key: name, text, href: href("playground", { tab: name }) }))} />
      <Part />
    </div>
  );
}
