/** How long work that has waited may hold the event loop before input and output get their chance, in ms. */
const TURN_MS = 5;

/** Shares the event loop's time among clients: a client's work waits behind its own, and not behind other clients'. */
export interface Turns {
  /**
   * Calls `work` for `who`: at once when nobody waits and this turn of the loop has time left, otherwise in a later turn.
   * `work` returns whether it did anything. Work that continues a call is `begun`, and comes before the calls of `who` that
   * have not begun, so that no thousand calls are half done at once.
   */
  take(who: string, work: () => boolean, begun?: "begun"): void;
}

/**
 * Makes turns that go round: each client that waits has one piece of its work done.
 *
 * @param turnMs how long pieces are begun in one turn of the event loop, in ms; with 0 each piece has a turn of its own
 */
export function fairTurns(turnMs = TURN_MS): Turns {
  /** The work of each client that waits, in order. The client whose turn comes next is first. */
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
      // The loop comes to what is put at the Map's end meanwhile.
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
