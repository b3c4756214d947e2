/** How long what waits may hold the event loop before input and output get their chance, in ms. */
const TURN_MS = 5;

/** Hands out the event loop's time: who asks for much of it waits behind themselves, and nobody else behind them. */
export interface Turns {
  /**
   * Calls `work` for `who`: now when nobody waits and this turn of the loop has time left, else when their turn has come.
   * It tells whether there was anything to do still. What goes on with something that was begun is `begun`: it comes
   * before what `who` has not begun, so that no thousand calls are half done at once.
   */
  take(who: string, work: () => boolean, begun?: "begun"): void;
}

/**
 * Turns in which each that waits does one piece of work, round and round.
 *
 * @param turnMs after which no piece is begun in the same turn of the event loop; with 0 each has a turn to itself
 */
export function fairTurns(turnMs = TURN_MS): Turns {
  /** Of each who waits what they wait for, in order; who is next stands first. */
  const waiting = new Map<string, (() => boolean)[]>();
  let busyMs = 0;
  let armed = false;

  function arm(): void {
    if (armed) return;
    armed = true;
    setImmediate(pump);
  }

  function run(work: () => boolean): boolean {
    const beganMs = performance.now();
    const worked = work();
    busyMs += performance.now() - beganMs;
    arm();
    return worked;
  }

  function pump(): void {
    armed = false;
    busyMs = 0;
    for (const [who, queue] of waiting) {
      waiting.delete(who);
      const work = queue.shift();
      // A Map goes on with what was put at its end meanwhile: round and round.
      if (queue.length > 0) waiting.set(who, queue);
      if (work && run(work) && busyMs >= turnMs) return;
    }
  }

  return {
    take(who, work, begun) {
      if (waiting.size === 0 && busyMs < turnMs) {
        run(work);
        return;
      }
      const queue = waiting.get(who);
      if (queue && begun) queue.unshift(work);
      else if (queue) queue.push(work);
      else waiting.set(who, [work]);
      arm();
    },
  };
}
