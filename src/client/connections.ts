import { type ChannelInterface, connectivityState } from "@grpc/grpc-js";
import type { Connections } from "./client.ts";

export function watchConnections(channel: ChannelInterface): Connections {
  let count = 0;
  let next = Promise.withResolvers<void>();
  const look = (): void => {
    const state = channel.getConnectivityState(false);
    if (state === connectivityState.SHUTDOWN) return;
    if (state === connectivityState.READY) {
      count++;
      next.resolve();
      next = Promise.withResolvers();
    }
    channel.watchConnectivityState(state, Infinity, look);
  };
  look();
  return {
    get count() {
      return count;
    },
    get up() {
      return channel.getConnectivityState(false) === connectivityState.READY;
    },
    next: () => next.promise,
  };
}
