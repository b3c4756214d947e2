import { reasonOf } from "../../os/errno.ts";

/** Looks whether there is something to do: when asked to, and when something is due. Disposing ends what is under way. */
export interface Schedule extends AsyncDisposable {
  run(): void;
  /** Begins, or goes on with what is wanted now. */
  renew(): void;
}

interface Work {
  /** Does what there is to do. Resolves to when there will be more, in ms since the epoch; Infinity when that is not known. */
  readonly work: (signal: AbortSignal) => Promise<number>;
  /** False while nothing may be done. */
  readonly ready: () => boolean;
  /** Is told why a look failed; it is tried again. */
  readonly failed: (reason: string) => void;
  /** The longest pause between two looks. */
  readonly pauseMs: () => number;
  /** How often to look in any case. */
  readonly everyMs: () => number | undefined;
}

const DAY_MS = 86_400_000;
const AGAIN_MS = 30_000;
/** Looking takes longer with many jobs. After it come so many times as long without it. */
const IDLE_TIMES = 20;

export function openSchedule({ work, ready, failed, pauseMs, everyMs }: Work): Schedule {
  const closing = new AbortController();
  const { signal } = closing;
  let again = false;
  let running: Promise<void> | undefined;
  let next: NodeJS.Timeout | undefined;
  let pause: NodeJS.Timeout | undefined;
  let looking: NodeJS.Timeout | undefined;

  function runAt(ms: number): void {
    clearTimeout(next);
    if (!signal.aborted && ms < Infinity) next = setTimeout(run, Math.min(Math.max(0, ms), DAY_MS)).unref();
  }

  async function look(): Promise<void> {
    const before = performance.now();
    try {
      runAt((await work(signal)) - Date.now());
    } catch (error) {
      failed(reasonOf(error));
      runAt(AGAIN_MS);
    }
    running = undefined;
    if (!signal.aborted)
      pause = setTimeout(resume, Math.min((performance.now() - before) * IDLE_TIMES, pauseMs())).unref();
  }

  function resume(): void {
    pause = undefined;
    if (again) run();
  }

  function run(): void {
    again = true;
    if (signal.aborted || running || pause || !ready()) return;
    again = false;
    running = look();
  }

  return {
    run,
    renew() {
      clearInterval(looking);
      const ms = everyMs();
      looking = ms === undefined ? undefined : setInterval(run, ms).unref();
      run();
    },
    async [Symbol.asyncDispose]() {
      closing.abort();
      for (const timer of [looking, next, pause]) clearTimeout(timer);
      await running;
    },
  };
}
