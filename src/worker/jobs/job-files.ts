import { codeOf } from "../../os/errno.ts";
import { TURN_MS } from "../../os/turn.ts";
import { writeJobFile } from "../journal/job-file.ts";
import type { Journal } from "../journal/journal.ts";
import { startOf } from "../log/log.ts";
import { birthOf } from "../system/process.ts";
import type { TrackedJob } from "./tracked-job.ts";

/** A job that has ended by then is written once. */
const DELAY_MS = 100;

/** Writes the `job`s. */
export interface JobFiles extends Disposable {
  /** Writes it, and has the journal know how the job runs, when nobody waits. */
  later(entry: TrackedJob): void;
  /** Writes it now. What cannot be written is logged; the journal has it. */
  write(entry: TrackedJob): void;
}

/** Disposing writes what is to be written. */
export function openJobFiles(journal: Journal, log: (message: string, facts: object) => void): JobFiles {
  const waiting = new Set<TrackedJob>();
  let timer: NodeJS.Timeout | undefined;

  function write(entry: TrackedJob): void {
    waiting.delete(entry);
    try {
      writeJobFile(journal.instance, entry.directory, entry);
    } catch (error) {
      // Without its directory a job is lost, which is told elsewhere.
      if (codeOf(error) !== "ENOENT")
        log("a job's record could not be written beside its output", { job: entry.job.id, error });
    }
  }

  function note(entry: TrackedJob): void {
    try {
      const supervisor = startOf(entry)?.supervisor ?? 0;
      const birth = entry.job.birth ?? birthOf(entry.job.pid, supervisor, journal.boot);
      if (birth !== undefined) entry.job = { ...entry.job, birth };
      // What becomes of an ended job's log is recorded by others.
      if (entry.job.state !== "ended") journal.update(entry.job);
    } catch (error) {
      log("a job's record could not be written", { job: entry.job.id, error });
    }
    write(entry);
  }

  function flush(): void {
    timer = undefined;
    const until = performance.now() + TURN_MS;
    for (const entry of waiting) {
      if (performance.now() > until) return wake(0);
      note(entry);
    }
  }

  function wake(ms: number): void {
    timer ??= setTimeout(flush, ms).unref();
  }

  return {
    later(entry) {
      waiting.add(entry);
      wake(DELAY_MS);
    },
    write,
    [Symbol.dispose]() {
      clearTimeout(timer);
      for (const entry of waiting) note(entry);
    },
  };
}
