import { pauseAfter } from "../../os/pause.ts";
import { refusal } from "../model/failure.ts";
import type { Job } from "../model/job.ts";
import type { Journal } from "./journal.ts";
import type { JobRecord } from "./record.ts";

/** A journal that loses nothing where its disk is full or fails. */
export interface PatientJournal extends Journal {
  /** `recorded` is called once it is on the disk: before this returns, where that can be had. */
  update(job: Job, recorded?: () => void): void;
  /** How many writes wait until the disk takes them. */
  waiting(): number;
}

interface Write {
  readonly id: string;
  readonly run: () => void;
  readonly recorded?: (() => void) | undefined;
}

/**
 * Keeps what `journal` cannot take now, and tries again: with the next write, and after a pause that grows to 10 s, since
 * no kernel tells when a disk has room. Only `insert` is refused: JobError `exhausted`. What is kept is the newest write
 * of each kind and job, so it is bounded by the jobs that run; the files of those tell the next daemon the same.
 */
// oxlint-disable-next-line max-lines-per-function -- one short method for each write of a journal, over one set of writes that wait
export function patient(
  journal: Journal,
  log: (level: "info" | "error", message: string, facts?: object) => void,
): PatientJournal {
  const pending = new Map<string, Write>();
  /** Ids of starts that failed and are still in the journal. */
  const removed = new Set<string>();
  /** Ids of the damaged records that were logged. */
  const told = new Set<string>();
  let timer: NodeJS.Timeout | undefined;
  let failures = 0;

  function tell<R extends JobRecord | undefined>(found: R): R {
    const { id, damaged } = found?.job ?? { id: "" };
    if (damaged !== undefined && !told.has(id)) {
      told.add(id);
      log("error", "a job's record is damaged; all others are as they were", { job: id, damaged });
    }
    return found;
  }

  function write(kind: "stopping" | "update" | "remove", id: string, run: () => void, recorded?: () => void): void {
    const key = `${kind} ${id}`;
    pending.set(key, { id, run, recorded: recorded ?? pending.get(key)?.recorded });
    flush();
  }

  /** Writes what was kept, in order. Returns true when nothing is left. */
  function flush(): boolean {
    const failedBefore = timer !== undefined;
    for (const [key, { run, recorded }] of pending) {
      try {
        run();
      } catch (error) {
        if (!failedBefore) {
          log("error", "the journal cannot be written; it is kept in memory and tried again", { error });
          timer = setTimeout(again, pauseAfter(++failures)).unref();
        }
        return false;
      }
      pending.delete(key);
      recorded?.();
    }
    if (failedBefore) log("info", "the journal is written again, with all that was kept");
    clearTimeout(timer);
    timer = undefined;
    failures = 0;
    return true;
  }

  function again(): void {
    if (!flush()) timer = setTimeout(again, pauseAfter(++failures)).unref();
  }

  return {
    ...journal,
    insert(job, requestId) {
      try {
        if (pending.size > 0) flush();
        return journal.insert(job, requestId);
      } catch (error) {
        throw refusal(error);
      }
    },
    waiting: () => pending.size,
    update: (job, recorded) => write("update", job.id, () => journal.update(job), recorded),
    stopping: (id, by) => write("stopping", id, () => journal.stopping(id, by)),
    remove(id) {
      for (const [key, write] of pending) if (write.id === id) pending.delete(key);
      removed.add(id);
      write(
        "remove",
        id,
        () => journal.remove(id),
        () => removed.delete(id),
      );
    },
    find: (id) => (removed.has(id) ? undefined : tell(journal.find(id))),
    findRequest(owner, requestId) {
      const found = journal.findRequest(owner, requestId);
      return found && removed.has(found.job.id) ? undefined : tell(found);
    },
    alive: () => journal.alive().map(tell),
    list(search) {
      const found = journal.list({ ...search, keep: (job) => !removed.has(job.id) && search.keep(job) });
      found.records.forEach(tell);
      return found;
    },
    [Symbol.dispose]() {
      if (pending.size > 0) flush();
      clearTimeout(timer);
      journal[Symbol.dispose]();
    },
  };
}
