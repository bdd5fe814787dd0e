// The SharedWorker: one Hub for every tab of this browser.
import { Hub, type ToHub } from "./lib/hub";

const hub = new Hub();

(self as unknown as SharedWorkerGlobalScope).onconnect = (event: MessageEvent) => {
  const port = event.ports[0] as MessagePort;
  const number = hub.join((message) => port.postMessage(message));
  port.onmessage = (incoming: MessageEvent<ToHub>) => hub.handle(number, incoming.data);
};
