import { constants } from "node:os";
import { killGroup, limitGroup, removeGroup } from "../cgroup/group.ts";
import { removeDirectory } from "../journal/state-directory.ts";
import { DEFAULT_DEVICES, deviceProgram } from "../limits/devices.ts";
import { thisHost } from "../limits/host.ts";
import { rlimitsOf } from "../limits/rlimits.ts";
import { settingsOf } from "../limits/settings.ts";
import { JobError, notFound } from "../model/errors.ts";
import { refusal } from "../model/failure.ts";
import type { Job, JobSpec } from "../model/job.ts";
import { GRACE_MS, order } from "../supervisor/control.ts";
import type { Launch } from "../supervisor/frame.ts";
import { nowMs } from "../system/process.ts";
import { withReserve } from "../system/reserve.ts";
import { chooseCredentials } from "../system/users.ts";
import { type Context, track, untrack } from "./context.ts";
import { gone, lostBy } from "./end.ts";
import { checkDevices, checkIsolation, checkSettings, checkUserNamespaces, warningsOf } from "./enforceable.ts";
import { policyOf } from "./log-policy.ts";
import type { Running } from "./running.ts";
import { checkSpec, environmentOf } from "./spec.ts";

const UMASK = 0o022;
const SHARED_TMP =
  "jobs have no mount namespace here, so this one has the host's /tmp, and its files there are another's once its uid is";
/** Uids in a row that are found taken: then somebody else uses the range. */
const MOST_TAKEN = 64;

export interface Started {
  readonly job: Job;
  readonly alreadyStarted: boolean;
}

/** Starts a job, once for each request id of an owner. */
export async function start(context: Context, spec: JobSpec): Promise<Started> {
  const { journal, requests, running } = context;
  if (context.closed) throw new JobError("unavailable", "the worker is closing");
  checkSpec(spec);
  if (spec.requestId === undefined) return { job: await begin(context, spec), alreadyStarted: false };
  const key = JSON.stringify([spec.owner, spec.requestId]);
  const inFlight = requests.get(key);
  if (inFlight) return { job: await inFlight, alreadyStarted: true };
  const earlier = journal.findRequest(spec.owner, spec.requestId);
  if (earlier) return { job: running.get(earlier.job.id)?.job ?? earlier.job, alreadyStarted: true };
  const starting = begin(context, spec);
  requests.set(key, starting);
  try {
    return { job: await starting, alreadyStarted: false };
  } finally {
    requests.delete(key);
  }
}

async function begin(context: Context, spec: JobSpec): Promise<Job> {
  for (let left = MOST_TAKEN; ; left--) {
    try {
      return await attempt(context, spec);
    } catch (error) {
      if (!isTaken(error) || left === 0) throw refusal(error);
    }
  }
}

/** Processes of somebody else run under the uid that the job was to have for itself: the next one is tried. */
function isTaken(error: unknown): boolean {
  return error instanceof JobError && error.facts["stage"] === "user" && error.facts["errno"] === "EBUSY";
}

async function attempt(context: Context, asked: JobSpec): Promise<Job> {
  const { files, hierarchy, ids, journal, options, running, spawner, uids } = context;
  const chosen = chooseCredentials(asked, options, uids?.take);
  const ownTmp = chosen.alone === true && spawner.parts.includes("mount");
  const credentials = ownTmp ? { ...chosen, home: "/tmp" } : chosen;
  const spec = ownTmp ? { ...asked, privateTmp: true } : asked;
  const logPolicy = policyOf(spec.log, options);
  const host = thisHost(hierarchy.kind === "none" ? undefined : hierarchy.path);
  const settings = settingsOf(spec.resources ?? {}, host);
  // Root's files are its own, and the disk is one of them.
  const confined = credentials.uid === 0 && hierarchy.kind !== "none" && spawner.parts.includes("no-capabilities");
  const rules = spec.resources?.devices?.length ? spec.resources.devices : confined ? DEFAULT_DEVICES : [];
  const devices = deviceProgram(rules, host);
  checkSettings(settings, hierarchy);
  checkIsolation(spec, context);
  checkUserNamespaces(spec, credentials, options);
  if (devices) checkDevices(hierarchy);
  if (running.size >= options.maxJobs)
    throw new JobError(
      "exhausted",
      `${options.maxJobs} jobs run already, which is this worker's most (jobsd --max-jobs)`,
    );
  const env = environmentOf(spec, credentials);
  const warnings = [...warningsOf(context), ...(chosen.alone && !ownTmp ? [SHARED_TMP] : [])];
  const job = { ...jobOf(context, spec, credentials, env), logPolicy, warnings };
  const entry = track(context, job, hierarchy);
  entry.requestId = spec.requestId;
  try {
    const record = (supervisor: number): void => {
      entry.supervisor = supervisor;
      if (entry.group !== undefined) entry.job = { ...job, limits: limitGroup(entry.group, settings) };
      journal.insert(entry.job, spec.requestId);
    };
    const launch = launchOf(context, entry, spec, credentials, env);
    const pid = await spawner.launch(devices ? { ...launch, devices } : launch, record, (signal, errno) =>
      gone(context, entry, lostBy(signal, errno), true),
    );
    entry.job = { ...entry.job, state: "running", pid, startedAt: new Date() };
    entry.startedMs = nowMs();
    entry.launched.resolve();
  } catch (error) {
    await undo(context, entry);
    entry.launched.reject(error);
    entry.ended.reject(notFound(job.id));
    throw error;
  }
  // The journal is told later: what it has, and the log's header, are all that a restart needs.
  files.later(entry);
  setImmediate(() => {
    // The start has been answered.
    if (!context.closed) ids.refill();
    options.log("info", "job started", { job: job.id, pid: entry.job.pid, owner: job.owner });
  });
  return entry.job;
}

function jobOf(context: Context, spec: JobSpec, credentials: Launch["credentials"], env: Launch["env"]): Job {
  const { ids, spawner } = context;
  return {
    id: ids.take(),
    state: "starting",
    command: spec.command,
    args: spec.args ?? [],
    envNames: [...env.keys()],
    cwd: spec.cwd ?? "/",
    user: credentials.user,
    group: credentials.group,
    labels: spec.labels ?? new Map(),
    ...(spec.timeLimitMs !== undefined && { timeLimitMs: spec.timeLimitMs }),
    ...(spec.resources && { resources: spec.resources }),
    isolation: spawner.parts,
    ...surroundingsOf(spec),
    limits: new Map(),
    owner: spec.owner,
    pid: 0,
    createdAt: new Date(),
    output: { size: 0, first: 0, dropped: 0 },
    warnings: [],
  };
}

function launchOf(
  { options }: Context,
  { job, directory, group }: Running,
  spec: JobSpec,
  credentials: Launch["credentials"],
  env: Launch["env"],
): Launch {
  const surroundings = surroundingsOf(spec);
  return {
    directory,
    cgroup: group ?? "",
    cwd: job.cwd,
    argv: [job.command, ...job.args],
    env,
    credentials,
    timeLimitMs: job.timeLimitMs ?? 0,
    graceMs: GRACE_MS,
    logLimitBytes: job.logPolicy?.limitBytes ?? options.logLimitBytes,
    logKeep: job.logPolicy?.keep ?? options.logKeep,
    ...surroundings,
    rlimits: rlimitsOf(surroundings.rlimits),
  };
}

/** What a start asks for beside limits and isolation, with its defaults. */
function surroundingsOf({
  network = "host",
  privateTmp = false,
  mergeOutput = false,
  userNamespaces = false,
  rlimits = [],
  umask = UMASK,
  oomScoreAdj = 0,
}: JobSpec): Required<
  Pick<JobSpec, "network" | "privateTmp" | "mergeOutput" | "userNamespaces" | "rlimits" | "umask" | "oomScoreAdj">
> {
  return { network, privateTmp, mergeOutput, userNamespaces, rlimits, umask, oomScoreAdj };
}

/** Leaves nothing of a start that failed. */
async function undo(context: Context, { job, directory, group }: Running): Promise<void> {
  const { ids, journal, options } = context;
  try {
    // Where the spawner died under it, nobody knows whether it runs.
    withReserve(() => order(directory, constants.signals.SIGKILL, 0));
    if (group !== undefined) {
      killGroup(group);
      await removeGroup(group);
      ids.refill();
    }
    removeDirectory(directory);
  } catch (error) {
    options.log("error", "what is left of a start that failed could not be put away", { job: job.id, error });
  }
  journal.remove(job.id);
  untrack(context, job);
}
