import { basename } from "node:path";
import { setTimeout as delay } from "node:timers/promises";
import { type Job, LogPlace, logPlaceToJSON } from "../proto/generated/jobs/v1/worker.ts";
import { check, type Modelled, undisturbed } from "./model.ts";
import { processesOf } from "./sandbox.ts";
import { free, identify, processesOfJobs, read, request, type Session } from "./session.ts";
import { marksOf, until } from "./world.ts";

const DEADLINE_MS = 45_000;
/** A block for each of its files. */
const SMALL_BYTES = 8192;
/** Made ahead of jobs: groups, and directories. */
const AHEAD = 8;

/** Waits for all that is in flight, and compares everything that there is with the model. Throws Error. */
export async function settle(session: Session): Promise<void> {
  await answered(session, session.flying);
  // Whose start failed for it is found out when there is room again.
  if (session.full !== undefined) return;
  for (const job of session.jobs) if (job.id === undefined) await findOut(session, job);
  const told = await compareJobs(session);
  await compareTraces(session, told);
}

/** Ends everything, reads all output once more, and sees that nothing is left but jobs' directories. Throws Error. */
export async function finish(session: Session): Promise<void> {
  const { world, jobs } = session;
  if (session.full !== undefined) free(session);
  if (!world.up) await world.boot();
  await settle(session);
  for (const job of jobs) {
    if (job.ended !== undefined || (undisturbed(job) && job.shape.ending.kind !== "never")) continue;
    job.stops++;
    const answer = await world.client.stop(
      { jobId: job.id ?? "", grace: { seconds: 0n, nanos: 0 } },
      { timeoutMs: DEADLINE_MS },
    );
    if (answer.job) check(job, answer.job);
  }
  for (const job of jobs) {
    const { job: ended } = await world.client.wait(job.id ?? "", { timeoutMs: DEADLINE_MS });
    if (ended) check(job, ended);
    await putAway(session, job);
    await read(session, job, 0, false);
  }
  await answered(session, session.lasting);
  await compareTraces(session, await compareJobs(session));
  await world.end("SIGTERM");
  await until(() => {
    const left = processesOf(world.place.sandbox).size;
    return left > 0 ? `${left} processes outlived the daemon and all jobs` : undefined;
  });
  await until(() => complaint("cgroups without a job", world.groups()));
  const ids = new Set(jobs.map(({ id }) => id));
  await until(() =>
    complaint(
      "directories without a job",
      world.directories().filter((name) => !ids.has(name)),
    ),
  );
}

/** Waits until the job's log is where it is to be: in the archive, or compressed unless that is of no use. */
async function putAway({ world, sequence, figures }: Session, { id = "", key, shape }: Modelled): Promise<void> {
  const rest = (shape.log.compress ?? sequence.compress) ? LogPlace.LOG_PLACE_COMPRESSED : LogPlace.LOG_PLACE_KEPT;
  const wanted = sequence.archive && !shape.log.stays ? LogPlace.LOG_PLACE_ARCHIVED : rest;
  let place: LogPlace | undefined;
  for (const end = performance.now() + DEADLINE_MS; performance.now() < end; await delay(20)) {
    const { job } = await world.client.query(id, { timeoutMs: DEADLINE_MS });
    place = job?.log?.place;
    const small = place === LogPlace.LOG_PLACE_KEPT && Number(job?.log?.bytes) <= SMALL_BYTES;
    if (place !== wanted && !(small && wanted === LogPlace.LOG_PLACE_COMPRESSED)) continue;
    if (place === LogPlace.LOG_PLACE_ARCHIVED) figures.archived++;
    if (place === LogPlace.LOG_PLACE_COMPRESSED) figures.compressed++;
    return;
  }
  throw new Error(`the log of ${key} is at ${place === undefined ? "no place" : logPlaceToJSON(place)}`);
}

async function answered({ failures }: Session, calls: Session["flying"]): Promise<void> {
  const late = new AbortController();
  const all = Promise.all(calls.keys()).then(() => "answered");
  const first = await Promise.race([all, delay(DEADLINE_MS, "late", { signal: late.signal })]);
  late.abort();
  if (failures.length > 0) throw failures[0];
  if (first === "late") throw new Error(`not answered: ${[...calls.values()].join(", ")}`);
}

/** A start that was not answered has happened or not, and once it is asked for again, it has happened once. */
async function findOut(session: Session, job: Modelled): Promise<void> {
  const { client } = session.world;
  const { jobs } = await client.list({ labels: new Map([["key", job.key]]) });
  if (jobs.length > 1) throw new Error(`${job.key} was started ${jobs.length} times`);
  const marks = marksOf(session.world).get(job.key) ?? 0;
  if (jobs.length < marks) throw new Error(`${job.key} ran, and there is no record of it`);
  const answer = await client.start(request(session, job), { timeoutMs: DEADLINE_MS });
  if (answer.alreadyStarted !== jobs.length > 0)
    throw new Error(`${job.key}: alreadyStarted is ${answer.alreadyStarted}, with ${jobs.length} on record`);
  const [found] = jobs;
  if (found) identify(job, found.id);
  identify(job, answer.jobId);
}

/** The jobs on record are those of the model, each as it can be. Returns them as told. */
async function compareJobs({ world, jobs }: Session): Promise<Map<string, Job>> {
  const told = new Map<string, Job>();
  const ended = new Set(jobs.filter((job) => job.ended !== undefined));
  let pageToken = "";
  do {
    const page = await world.client.list({ limit: 1000, pageToken }, { timeoutMs: DEADLINE_MS });
    for (const job of page.jobs) told.set(job.id, job);
    pageToken = page.nextPageToken;
  } while (pageToken !== "");
  for (const job of jobs) {
    const found = told.get(job.id ?? "");
    if (!found) throw new Error(`${job.key} is lost: there is no ${job.id}`);
    check(job, found);
    if (ended.has(job) && found.ended === undefined) throw new Error(`${job.key} had ended, and has not`);
  }
  if (told.size !== jobs.length) throw new Error(`${told.size} jobs are on record, and ${jobs.length} were started`);
  return told;
}

/** Processes, cgroups, directories and marks: of each job that runs, and none of others. */
async function compareTraces(session: Session, told: ReadonlyMap<string, Job>): Promise<void> {
  const { world, jobs } = session;
  const ended = jobs.filter(({ id = "" }) => told.get(id)?.ended !== undefined);
  const processes = processesOfJobs(session);
  for (const { key } of ended) {
    const left = processes.get(key);
    if (left) throw new Error(`${key} has ended, and ${left.length} processes of it run`);
  }
  const strays = [...processes.keys()].filter((key) => !jobs.some((job) => job.key === key));
  if (strays.length > 0) throw new Error(`processes of no job: ${strays.join(", ")}`);
  // A group stays until its job's end is on the disk.
  await until(() => {
    const names = new Set(world.groups().map((path) => basename(path)));
    return complaint(
      "cgroups of ended jobs",
      ended.filter(({ id = "" }) => names.has(id)).map(({ key }) => key),
    );
  });
  const ids = new Set(jobs.map(({ id }) => id));
  await until(() => {
    const others = world
      .groups()
      .map((path) => basename(path))
      .filter((name) => !ids.has(name) && !name.startsWith("jobs-"));
    return others.length > AHEAD ? complaint("cgroups of no job", others) : undefined;
  });
  await until(() => {
    const directories = new Set(world.directories());
    const missing = jobs.filter(({ id = "" }) => !directories.has(id)).map(({ key }) => `no directory of ${key}`);
    const others = [...directories].filter((name) => !ids.has(name));
    const extra = others.filter((name) => !name.startsWith("."));
    if (others.length - extra.length > AHEAD) extra.push(...others);
    return complaint("directories", [...missing, ...extra]);
  });
  await until(() => {
    const marks = marksOf(world);
    const wrong = jobs.filter((job) => {
      const count = marks.get(job.key) ?? 0;
      return count > 1 || (count === 0 && undisturbed(job));
    });
    return complaint(
      "started not once",
      wrong.map(({ key }) => `${key}: ${marks.get(key) ?? 0} times`),
    );
  });
}

function complaint(what: string, names: readonly string[]): string | undefined {
  return names.length > 0 ? `${what}: ${names.join(", ")}` : undefined;
}
