import { cpSync, mkdirSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { basename, join } from "node:path";
import type { SQLOutputValue } from "node:sqlite";
import { Job as ProtoJob } from "../../../../proto/generated/jobs/v1/worker.ts";
import { fromJob } from "../../../server/translate.ts";
import { endedJob } from "../../jobs/end.ts";
import { trackedJob } from "../../jobs/tracked-job.ts";
import { readJob } from "../../journal/job-file.ts";
import { type JobRecord, openJournal, record } from "../../journal/journal.ts";
import { recoverJournal } from "../../journal/rebuild.ts";
import { JobError } from "../../model/errors.ts";
import { isFailing } from "../../model/failure.ts";
import type { Job } from "../../model/job.ts";
import { readExit } from "../../supervisor/exit.ts";
import { JOB } from "../job.ts";
import { below, mutated, mutatedValue, oneOf, type Random } from "./mutate.ts";
import { FILES, jobsIn, type Opened, workDirectory } from "./target.ts";

/* Records of jobs that are damaged: the files of one, the rows and the bytes of the journal. */

const RUNNING: Job = { ...JOB, id: "01m85bxjqw7ggzm1drbxxphnk6", state: "running", pid: 1 };

/** Throws where a job cannot be told to a client. */
function tell(job: Job): void {
  ProtoJob.encode(fromJob(job)).finish();
  JSON.stringify(ProtoJob.toJSON(fromJob(job)));
}

/** The directory of a job that has ended, a file of which is damaged as bytes and, where it is JSON, as that. */
export function jobTarget(files: string, file: "exit" | "job", take: (directory: string) => void): Opened {
  const work = workDirectory(files);
  const [source = ""] = jobsIn(files);
  const bytes = readFileSync(join(source, file));
  const directory = join(work.path, basename(source));
  cpSync(source, directory, { recursive: true, filter: (path) => basename(path) !== "control" });
  return {
    async run(random) {
      const text = file === "job" && random() < 0.7;
      const damaged = text
        ? JSON.stringify(mutatedValue(JSON.parse(bytes.toString()), random))
        : mutated(bytes, random);
      writeFileSync(join(directory, file), damaged);
      take(directory);
    },
    [Symbol.dispose]: () => work[Symbol.dispose](),
  };
}

export function takeExit(directory: string): void {
  const exit = readExit(directory);
  if (exit && exit !== "damaged")
    tell(endedJob(trackedJob(RUNNING, directory, { kind: "none", reason: "" }), exit, undefined));
}

export function takeJob(directory: string): void {
  const told = readJob(directory);
  if (told) tell(told.job);
}

/** Rows with columns of any kind, which SQLite does not refuse. */
export function rowTarget(files: string): Opened {
  using journal = openJournal(join(files, FILES.state));
  const { records: rows } = journal.list(() => true, Number.MAX_SAFE_INTEGER, 1000);
  const texts = jobsIn(files).map((directory) => readFileSync(join(directory, "job"), "utf8"));
  const records: readonly { readonly [column: string]: SQLOutputValue }[] = rows.map(({ seq, job }, i) => ({
    seq: BigInt(seq),
    id: job.id,
    owner: job.owner,
    state: job.state,
    // In it there is all that encode() writes.
    job: JSON.stringify(Reflect.get(Object(JSON.parse(texts[i] ?? texts[0] ?? "{}")), "job")),
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
      if (random() < 0.8) row["job"] = JSON.stringify(mutatedValue(JSON.parse(String(row["job"])), random));
      else row["job"] = mutated(Buffer.from(String(row["job"])), random).toString();
      for (const column of Object.keys(row)) if (random() < 0.05) row[column] = oneOf(random, values);
      const found = record(row);
      if (found) tell(found.job);
    },
    [Symbol.dispose]() {},
  };
}

function useJournal(stateDir: string, ids: readonly string[], random: Random): void {
  using journal = openJournal(stateDir);
  const told = (found: JobRecord | undefined): void => {
    if (found) tell(found.job);
  };
  const calls: (() => unknown)[] = [
    () => journal.list(() => true, Number.MAX_SAFE_INTEGER, 1000).records.forEach(told),
    () => journal.list(() => true, 10, 5, { label: ["a", "b"] }).records.forEach(told),
    () => journal.list(() => true, Number.MAX_SAFE_INTEGER, 5, { alive: true }).records.forEach(told),
    () => journal.alive().forEach(told),
    () => ids.forEach((id) => told(journal.find(id))),
    () => told(journal.findRequest("tester", "x")),
    () => journal.ids(),
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
