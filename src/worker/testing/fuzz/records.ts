import { cpSync, mkdirSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { basename, join } from "node:path";
import type { SQLOutputValue } from "node:sqlite";
import { isDeepStrictEqual } from "node:util";
import { crc32 } from "node:zlib";
import { Job as ProtoJob } from "../../../../proto/generated/jobs/v1/worker.ts";
import { fromJob } from "../../../server/translate.ts";
import { readJob } from "../../journal/job-file.ts";
import { openJournal } from "../../journal/journal.ts";
import { recoverJournal } from "../../journal/rebuild.ts";
import { encode, type JobRecord, keptIn } from "../../journal/record.ts";
import { JobError } from "../../model/errors.ts";
import { isFailing } from "../../model/failure.ts";
import type { Job } from "../../model/job.ts";
import { readExit } from "../../supervisor/exit.ts";
import { JOB } from "../job.ts";
import { below, mutated, oneOf, type Random } from "./mutate.ts";
import { FILES, jobsIn, type Opened, workDirectory } from "./target.ts";

/* Records of jobs that are damaged: the files of one, the rows and the bytes of the journal. */

const RUNNING: Job = { ...JOB, id: "01m85bxjqw7ggzm1drbxxphnk6", state: "running", pid: 1 };

/** Throws where a job is told as something else than it was, or cannot be told to a client. */
function tell(job: Job, whole: ReadonlyMap<string, string>): void {
  const wanted = job.damaged === undefined ? whole.get(job.id) : undefined;
  if (wanted !== undefined && encode(job) !== wanted) throw new Error("a damaged record was believed");
  ProtoJob.encode(fromJob(job)).finish();
  JSON.stringify(ProtoJob.toJSON(fromJob(job)));
}

/** The directory of a job that has ended, a file of which is damaged: `read` returns what it held, or refuses it. */
export function jobTarget(files: string, file: "exit" | "job", read: (directory: string) => unknown): Opened {
  const work = workDirectory(files);
  const [source = ""] = jobsIn(files);
  const bytes = readFileSync(join(source, file));
  const directory = join(work.path, basename(source));
  cpSync(source, directory, { recursive: true, filter: (path) => basename(path) !== "control" });
  const whole = read(directory);
  return {
    async run(random) {
      writeFileSync(join(directory, file), mutated(bytes, random));
      const found = read(directory);
      if (found !== undefined && !isDeepStrictEqual(found, whole)) throw new Error("a damaged record was believed");
    },
    [Symbol.dispose]: () => work[Symbol.dispose](),
  };
}

export function exitIn(directory: string): unknown {
  const exit = readExit(directory);
  return exit === "damaged" ? undefined : exit;
}

/** Without its record a job is told by its other files alone. */
export function recordIn(directory: string): unknown {
  const told = readJob(directory);
  return told?.instance === undefined ? undefined : told;
}

/** Rows with columns of any kind, which SQLite does not refuse. */
export function rowTarget(files: string): Opened {
  using journal = openJournal(join(files, FILES.state));
  const { records: rows } = journal.list({ ...ALL, limit: 1000 });
  const whole = new Map(rows.map(({ job }) => [job.id, encode(job)]));
  const records: readonly { readonly [column: string]: SQLOutputValue }[] = rows.map(({ seq, job }) => ({
    seq: BigInt(seq),
    id: job.id,
    owner: job.owner,
    state: job.state,
    job: encode(job),
    crc32: BigInt(crc32(encode(job))),
    stopped_by: null,
    request_id: null,
    ended_at: 1_790_000_000_000n,
    log: "kept",
    log_bytes: 100n,
    log_zstd: 0n,
    log_at: null,
    log_why: null,
    log_due: 1n,
  }));
  const values: readonly [SQLOutputValue, ...SQLOutputValue[]] = [
    null,
    "x",
    "",
    "kept",
    "pruned",
    "archived",
    -1n,
    2n ** 63n - 1n,
    0.5,
    Buffer.of(255, 0),
  ];
  return {
    async run(random) {
      const row: { [column: string]: SQLOutputValue } = { ...records[below(random, records.length)] };
      if (random() < 0.8) row["job"] = mutated(Buffer.from(String(row["job"])), random).toString();
      for (const column of Object.keys(row)) if (random() < 0.05) row[column] = oneOf(random, values);
      tell(keptIn(row).job, whole);
    },
    [Symbol.dispose]() {},
  };
}

/** All jobs, newest first. */
const ALL = { before: Number.MAX_SAFE_INTEGER, keep: () => true } as const;

function useJournal(stateDir: string, ids: readonly string[], random: Random): void {
  using journal = openJournal(stateDir);
  // A pointer of SQLite's that is damaged may lead to what a row was before: nothing tells that from a row.
  const told = (found: JobRecord | undefined): void => {
    if (found) tell(found.job, new Map());
  };
  const calls: (() => unknown)[] = [
    () => journal.list({ ...ALL, limit: 1000 }).records.forEach(told),
    () => journal.list({ ...ALL, before: 10, limit: 5, labels: new Map([["a", "b"]]) }).records.forEach(told),
    () => journal.list({ ...ALL, limit: 5, owner: "tester" }).records.forEach(told),
    () => journal.alive().forEach(told),
    () => ids.forEach((id) => told(journal.find(id))),
    () => told(journal.findRequest("tester", "x")),
    () => ids.forEach((id) => journal.knows(id)),
    () => journal.removals.pending(10),
    () => journal.removals.countEnded(),
    () => journal.removals.endedFirst(10, true),
    () => journal.removals.begin([ids[2] ?? ""], true),
    () => journal.removals.done([ids[2] ?? ""]),
    () => journal.settle(ids[0] ?? ""),
    () => journal.newest(),
    () => journal.groupsIn("/tmp"),
    () => ids.forEach((id) => journal.logs.of(id)),
    () => journal.logs.due(),
    () => journal.logs.local(),
    () => journal.logs.oldest(10, true),
    () => journal.logs.expiring(10, false),
    () => journal.logs.removed(ids[0] ?? ""),
    () => journal.insert({ ...RUNNING, id: `x${below(random, 1e9)}` }, undefined),
    () => journal.update({ ...RUNNING, id: ids[0] ?? "" }),
    () => journal.remove(ids[1] ?? ""),
  ];
  for (const call of calls) orUnavailable(call);
}

/** Asks a damaged journal something. Throws unless it answers, or fails as damaged. */
function orUnavailable(call: () => unknown): void {
  try {
    call();
  } catch (error) {
    if (error instanceof JobError && error.code === "unavailable") return;
    if (!isFailing(error)) throw error;
  }
}

/** The journal's files with bytes flipped: a daemon's start and all that it asks, then a recovery. */
export function journalTarget(files: string): Opened {
  const work = workDirectory(files);
  const source = join(files, FILES.state);
  const ids = jobsIn(files).map((directory) => basename(directory));
  return {
    async run(random) {
      const stateDir = join(work.path, "state");
      mkdirSync(join(stateDir, "jobs"), { recursive: true });
      try {
        const names = readdirSync(source).filter((name) => /^journal\.db(-wal)?$/.test(name));
        const chosen = names[below(random, names.length)];
        for (const name of names) {
          const bytes = readFileSync(join(source, name));
          writeFileSync(join(stateDir, name), name === chosen ? mutated(bytes, random) : bytes);
        }
        orUnavailable(() => useJournal(stateDir, ids, random));
        recoverJournal(stateDir);
      } finally {
        rmSync(stateDir, { recursive: true });
      }
    },
    [Symbol.dispose]: () => work[Symbol.dispose](),
  };
}
