import { codeOf } from "../../os/errno.ts";
import { TURN_MS } from "../../os/turn.ts";
import { writeJobFile } from "../journal/job-file.ts";
import type { Journal } from "../journal/journal.ts";
import { startOf } from "../log/log.ts";
import { birthOf } from "../system/process.ts";
import type { TrackedJob } from "./tracked-job.ts";

/** How long a record waits to be written. A job that ends meanwhile is written once. */
const DELAY_MS = 100;

/** Writes the records beside jobs' outputs, each a file `job`. Disposing writes those that still wait. */
export interface JobFiles extends Disposable {
  /** Writes a job's record soon, here and in the journal, with the birth of its main process. */
  later(entry: TrackedJob): void;
  /** Writes a job's record now. A failure is only logged, because the journal has the record. */
  write(entry: TrackedJob): void;
}

export function openJobFiles(journal: Journal, log: (message: string, facts: object) => void): JobFiles {
  const waiting = new Set<TrackedJob>();
  let timer: NodeJS.Timeout | undefined;

  function write(entry: TrackedJob): void {
    waiting.delete(entry);
    try {
      writeJobFile(journal.instance, entry.directory, entry);
    } catch (error) {
      // A job without its directory is lost, which end.ts reports.
      if (codeOf(error) !== "ENOENT")
        log("a job's record could not be written beside its output", { job: entry.job.id, error });
    }
  }

  function note(entry: TrackedJob): void {
    try {
      // The directory may be another one by now.
      const supervisor = entry.supervisor ?? startOf(entry)?.supervisor ?? 0;
      const birth = entry.job.birth ?? birthOf(entry.job.pid, supervisor, journal.boot);
      if (birth !== undefined) entry.job = { ...entry.job, birth };
      // Of an ended job only its log's place still changes, which is recorded elsewhere.
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
