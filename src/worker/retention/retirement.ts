import { reasonOf } from "../../os/errno.ts";
import { isFailing } from "../model/failure.ts";
import type { Job, PruneReason } from "../model/job.ts";
import { openRetryQueue, type RetryQueue } from "../system/retry-queue.ts";
import { openPruner } from "./prune.ts";
import { openRecords, type Records } from "./records.ts";
import { type Parts, pruneLog } from "./remove.ts";
import type { Schedule } from "./schedule.ts";
import { archives, compresses, retireLog } from "./retire.ts";

/** The logs of ended jobs: retired one at a time, and in the end pruned. Disposing ends what is under way; the next daemon goes on. */
export interface Retirement extends AsyncDisposable {
  /** Returns whether something is to be done with a log when its job has ended, before it is pruned. */
  wanted(job: Job): boolean;
  /** The job has ended, and that is recorded. */
  ended(job: Job): void;
  /** A log has come into the archive. */
  archived(): void;
  /** Removes jobs that have ended, as removal.ts says. */
  readonly remove: Records["remove"];
  /** How many jobs have ended and are kept; undefined while nobody had to count them. */
  kept(): number | undefined;
  /** How many logs wait for their turn. */
  waiting(): number;
  /** The options have changed. */
  renew(): void;
}

/** Goes on with what the daemon before has left. */
export function openRetirement(parts: Parts): Retirement {
  const { archive, options } = parts;
  const { logs } = parts.journal;
  const queue = openRetryQueue({
    work: (id, signal) => retireLog(parts, id, signal).finally(() => setImmediate(() => pruner.run())), // its turn is over then
    told: { failed: "logs cannot be compressed", again: "logs can be compressed again" },
    log: options.log,
    pauses: options.compressPauses,
  });

  const steps = openSteps(parts, queue, () => pruner.run());
  const ready = (): boolean => steps.recorded() || archive === undefined;
  const pruner = prunerOf(parts, queue, ready);
  const addDue = (): void => {
    for (const id of logs.due()) queue.add(id);
  };
  addDue();
  pruner.renew();
  const records = openRecords(parts, {
    ready,
    async drop(id) {
      await queue.drop(id);
      await archive?.drop(id);
    },
  });
  return {
    remove: records.remove,
    archived: () => records.run(),
    kept: () => records.kept(),
    waiting: () => queue.waiting(),
    renew() {
      steps.renew();
      addDue();
      pruner.renew();
      records.renew();
    },
    wanted: (job) => compresses(parts, job) || archives(parts, job),
    ended(job) {
      const due = job.log && "due" in job.log && job.log.due;
      if (due) queue.add(job.id);
      // The pruner runs after each turn of the queue, but in a pause there is none.
      if (!due || queue.busy() === undefined) pruner.run();
      records.ended();
    },
    async [Symbol.asyncDispose]() {
      await records[Symbol.asyncDispose]();
      await pruner[Symbol.asyncDispose]();
      await steps[Symbol.asyncDispose]();
      await queue[Symbol.asyncDispose]();
    },
  };
}

/** @param ready tells whether it is known which logs wait for the archive */
function prunerOf(parts: Parts, queue: RetryQueue, ready: () => boolean): Schedule {
  const { archive, jobsDir, journal, options } = parts;
  const { logs } = journal;

  async function prune(id: string, why: PruneReason): Promise<void> {
    await pruneLog(parts, id, why).catch((error: unknown) => {
      if (logs.of(id)?.kind !== "pruned") throw error;
      options.log("error", `a pruned log cannot be removed: ${reasonOf(error)}`, { job: id });
      queue.add(id); // it is due, and tried again
    });
  }

  return openPruner({
    get limits() {
      return options.logPrune ?? {};
    },
    jobsDir,
    logs,
    archiving: archive !== undefined,
    ready,
    busy: () => queue.busy(),
    prune,
    log: options.log,
  });
}

interface Steps extends AsyncDisposable {
  /** The journal knows what is yet to be done with the logs of before. */
  recorded(): boolean;
  /** The options have changed. */
  renew(): void;
}

/**
 * Has the journal know what is done with ended jobs' logs. Where its disk has no room for that, it is tried again, and each log
 * has its turn in `queue`, which makes room. `done` is called when it was recorded later.
 */
function openSteps({ archive, journal: { logs }, options }: Parts, queue: RetryQueue, done: () => void): Steps {
  let recorded = false;
  function record(): void {
    logs.steps([...(options.logCompress === "zstd" ? ["compress"] : []), ...(archive ? ["archive"] : [])]);
    recorded = true;
  }
  const retries = openRetryQueue({
    async work() {
      record();
      done();
    },
    told: {
      failed: "it cannot be recorded what is to be done with logs",
      again: "it is recorded what is to be done with logs",
      facts: { job: undefined }, // it concerns all of them
    },
    log: options.log,
    pauses: options.compressPauses,
  });
  function renew(): void {
    recorded = false;
    try {
      record();
    } catch (error) {
      if (!isFailing(error)) throw error;
      for (const { id } of logs.oldest(-1, false)) queue.add(id);
      retries.add("");
    }
  }
  renew();
  return { recorded: () => recorded, renew, [Symbol.asyncDispose]: () => retries[Symbol.asyncDispose]() };
}
