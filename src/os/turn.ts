import { setImmediate as nextTurn } from "node:timers/promises";

/** How long one may hold the event loop where all others wait for it. */
export const TURN_MS = 4;

/** For a long loop: what it returns is to be awaited in each round, and lets others have their turn when this one has taken its own. */
export function turns(): () => Promise<void> {
  let since = performance.now();
  return async () => {
    if (performance.now() - since < TURN_MS) return;
    await nextTurn();
    since = performance.now();
  };
}
