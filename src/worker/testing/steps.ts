import { copyFileSync, mkdirSync } from "node:fs";
import { join } from "node:path";
import { directoryStore } from "../archive/directory.ts";
import { moveLog } from "../archive/move.ts";
import { openJournal } from "../journal/journal.ts";
import { recoverJournal } from "../journal/rebuild.ts";
import { compressLog } from "../log/compress.ts";
import type { Job } from "../model/job.ts";

/* node steps.ts STEP STATE JOB: takes one step on a state directory, so that its system calls can be looked at. */

const never = new AbortController().signal;
const [step = "", state = "", job = ""] = process.argv.slice(2);
const jobsDir = join(state, "jobs");

const STEPS: Readonly<Record<string, () => Promise<void>>> = {
  async compress() {
    await compressLog(join(jobsDir, job), never, -1);
  },
  async archive() {
    mkdirSync(join(state, "archive"), { recursive: true });
    using journal = openJournal(state);
    await moveLog({ jobsDir, journal }, directoryStore(join(state, "archive")), { id: job, signal: never });
  },
  async checkpoint() {
    using journal = openJournal(state);
    const found: Job | undefined = journal.find(job)?.job;
    if (found) journal.update({ ...found, warnings: ["x".repeat(10_000)] });
  },
  async recover() {
    copyFileSync(join(state, "journal.db"), join(state, "journal.db-wal"));
    recoverJournal(state);
  },
};

await STEPS[step]?.();
