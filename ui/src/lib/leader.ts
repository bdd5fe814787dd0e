// One connection for all tabs where there is no SharedWorker (Chrome on Android): the tab that holds a lock runs the
// hub, the others talk to it over a channel. A leader that was closed gives the lock back; one that was put to sleep
// does not answer, and a visible tab takes the lock from it.
import { type FromHub, Hub, type ToHub } from "./hub";
import { uid } from "./format";

type Note = { from: string; message: ToHub | { kind: "there?" } } | { to: string; message: FromHub | { kind: "here" } } | { leads: string };

const PATIENCE = 1500;

export function share(name: string, receive: (message: FromHub) => void, hello: () => ToHub): (message: ToHub) => void {
  const me = uid();
  const channel = new BroadcastChannel(name);
  let hub: Hub | null = null;
  let own = 0;
  let members = new Map<string, number>();
  let heard = 0;

  const post = (message: ToHub): void => {
    if (hub) hub.handle(own, message);
    else channel.postMessage({ from: me, message } satisfies Note);
  };

  const lead = async (): Promise<never> => {
    hub = new Hub();
    members = new Map();
    own = hub.join(receive);
    post(hello());
    channel.postMessage({ leads: me } satisfies Note);
    return new Promise(() => undefined);
  };
  const follow = (steal = false): void => {
    navigator.locks.request(name, { steal }, lead).catch(() => {
      // Somebody took the lock: this tab was taken for asleep. It goes on as one of the others.
      const left = hub;
      hub = null;
      for (const number of [own, ...members.values()]) left?.handle(number, { kind: "bye" });
      if (document.visibilityState === "visible") post(hello());
      follow();
    });
  };

  channel.onmessage = ({ data }: MessageEvent<Note>) => {
    if ("leads" in data) {
      heard = Date.now();
      if (document.visibilityState === "visible") post(hello());
    } else if ("to" in data) {
      if (data.to !== me) return;
      heard = Date.now();
      if (data.message.kind !== "here") receive(data.message);
    } else if (hub) {
      const { from, message } = data;
      if (message.kind === "there?") return channel.postMessage({ to: from, message: { kind: "here" } } satisfies Note);
      const number = members.get(from) ?? hub.join((answer) => channel.postMessage({ to: from, message: answer } satisfies Note));
      members.set(from, number);
      hub.handle(number, message);
      if (message.kind === "bye") members.delete(from);
    }
  };

  const arrive = (): void => {
    if (hub) own = hub.join(receive);
    post(hello());
    if (hub) return;
    const asked = Date.now();
    channel.postMessage({ from: me, message: { kind: "there?" } } satisfies Note);
    setTimeout(() => { if (!hub && heard < asked && document.visibilityState === "visible") follow(true); }, PATIENCE);
  };
  document.addEventListener("visibilitychange", () => (document.visibilityState === "visible" ? arrive() : post({ kind: "bye" })));
  addEventListener("pagehide", () => post({ kind: "bye" }));
  follow();
  arrive();
  return post;
}
