import { DEFAULT_DEVICES, deviceProgram } from "../limits/devices.ts";
import { thisHost } from "../limits/host.ts";
import { rlimitsOf } from "../limits/rlimits.ts";
import type { Setting } from "../limits/setting.ts";
import { settingsOf } from "../limits/settings.ts";
import { JobError } from "../model/errors.ts";
import type { Job, JobSpec } from "../model/job.ts";
import type { Quota } from "../model/quota.ts";
import { GRACE_MS } from "../supervisor/control.ts";
import type { Launch } from "../supervisor/frame.ts";
import { chooseCredentials, type Chosen } from "../system/users.ts";
import type { Context } from "./context.ts";
import { checkDevices, checkIsolation, checkSettings, checkUserNamespaces, warningsOf } from "./enforceable.ts";
import { policyOf } from "./log-policy.ts";
import {
  checkJobs,
  checkKept,
  checkMost,
  checkTimeLimit,
  quotaHere,
  sharedSettings,
  sumSettings,
  withDefaults,
} from "./quota.ts";
import { environmentOf } from "./spec.ts";

const UMASK = 0o022;
const SHARED_TMP =
  "jobs have no mount namespace here, so this job has the host's /tmp, and a later job with its uid could read its files there";

/**
 * A start, decided: only the kernel, the disk and the supervisor can still refuse it. Nothing has been made for it yet, no
 * cgroup, directory, record or descriptor.
 */
export interface Plan {
  /** The job's record, but for what making the job adds. */
  readonly job: Omit<Job, "id" | "createdAt">;
  /** The supervisor's instructions, but for the paths that making the job adds. */
  readonly launch: Omit<Launch, "directory" | "cgroup">;
  /** The limits to write into the job's group. */
  readonly settings: readonly Setting[];
  /** The limits of the group that has all jobs of the owner; none where they share none. */
  readonly shared: readonly Setting[];
  readonly requestId: string | undefined;
}

/** Plans a start. Throws JobError when this worker, or its host, refuses it. */
export function planOf(context: Context, given: JobSpec): Plan {
  const { hierarchy, options, tracked, spawner, uids } = context;
  const quota = quotaHere(context, given.owner);
  const spec = quota ? withDefaults(given, quota) : given;
  const logPolicy = policyOf(spec.log, options, quota);
  const rlimits = rlimitsOf(spec.rlimits ?? []);
  const host = thisHost(hierarchy.kind === "none" ? undefined : hierarchy.path);
  const settings = settingsOf(spec.resources ?? {}, host);
  if (quota) checkQuota(context, spec, settings, quota);
  checkSettings(settings, hierarchy);
  checkIsolation(spec, context);
  const asked = deviceProgram(spec.resources?.devices ?? [], host);
  if (asked) checkDevices(hierarchy);
  if (tracked.size >= options.maxJobs)
    throw new JobError(
      "exhausted",
      `${options.maxJobs} jobs run already, which is this worker's most (jobsd --max-jobs)`,
    );
  // Last, so that a start that is refused uses up no uid.
  const chosen = chooseCredentials(spec, options, uids?.take);
  checkUserNamespaces(spec, chosen, options);
  const ownTmp = chosen.alone === true && spawner.parts.includes("mount");
  const credentials = ownTmp ? { ...chosen, home: "/tmp" } : chosen;
  const devices = asked ?? (ownsDevices(credentials, context) ? deviceProgram(DEFAULT_DEVICES, host) : undefined);
  const env = environmentOf(spec, credentials);
  const record = recordOf(spec);
  const surroundings = surroundingsOf(spec, ownTmp);
  const job = {
    ...record,
    ...surroundings,
    envNames: [...env.keys()],
    user: credentials.user,
    group: credentials.group,
    isolation: spawner.parts,
    logPolicy,
    warnings: [...warningsOf(context), ...(chosen.alone && !ownTmp ? [SHARED_TMP] : [])],
  };
  const launch = {
    ...surroundings,
    cwd: record.cwd,
    argv: [record.command, ...record.args],
    env,
    credentials,
    timeLimitMs: spec.timeLimitMs ?? 0,
    graceMs: GRACE_MS,
    logLimitBytes: logPolicy.limitBytes,
    logKeep: logPolicy.keep,
    rlimits,
    ...(devices && { devices }),
  };
  return {
    job,
    launch,
    settings: quota ? [...sharedSettings(quota), ...settings] : settings,
    shared: quota ? sumSettings(quota) : [],
    requestId: spec.requestId,
  };
}

/** Refuses what the owner's quota does not allow. Throws JobError. */
function checkQuota(context: Context, spec: JobSpec, settings: readonly Setting[], quota: Quota): void {
  checkKept(quota, context.hierarchy);
  checkMost(settings, spec.owner, quota, true);
  checkTimeLimit(spec, quota);
  checkJobs(context, spec.owner, quota);
}

/** The parts of a new record that the start alone decides. */
function recordOf(spec: JobSpec) {
  const { command, args = [], cwd = "/", labels = new Map<string, string>(), rlimits = [], owner } = spec;
  return {
    state: "starting",
    command,
    args,
    cwd,
    labels,
    rlimits,
    owner,
    ...(spec.timeLimitMs !== undefined && { timeLimitMs: spec.timeLimitMs }),
    ...(spec.resources && { resources: spec.resources }),
    limits: new Map<string, string>(),
    pid: 0,
    output: { size: 0, first: 0, dropped: 0 },
  } as const;
}

/** The surroundings that record and supervisor have alike, with the defaults filled in. */
function surroundingsOf(spec: JobSpec, ownTmp: boolean) {
  const { network = "host", privateTmp = false, mergeOutput = false, userNamespaces = false } = spec;
  const { umask = UMASK, oomScoreAdj = 0 } = spec;
  return { network, privateTmp: privateTmp || ownTmp, mergeOutput, userNamespaces, umask, oomScoreAdj };
}

/** Root without capabilities still owns the files of root, among them the disks. */
function ownsDevices({ uid }: Chosen, { hierarchy, spawner }: Context): boolean {
  return uid === 0 && hierarchy.kind !== "none" && spawner.parts.includes("no-capabilities");
}
