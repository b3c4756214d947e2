import { accessSync, constants, existsSync, statfsSync } from "node:fs";
import { dirname, resolve } from "node:path";
import { codeOf, reasonOf } from "../../os/errno.ts";
import type { Hierarchy } from "../cgroup/hierarchy.ts";
import { SWITCHES } from "../model/isolation.ts";
import {
  checkJobPrune,
  type JobPruneLimits,
  LOG_LIMIT_BYTES,
  nativeSupervisor,
  type UidRange,
  type WorkerOptions,
} from "../model/options.ts";
import { checkQuotaTypes } from "../model/quota.ts";
import { amount, listOf, oneOf, shape, text, truth, whole } from "../model/shape.ts";
import { checkSupervisor } from "../supervisor/spawner.ts";
import { cgroupFindings, hierarchyCause, placeOf } from "./cgroup.ts";
import { controllerFindings } from "./controllers.ts";
import { exposureOf } from "../system/exposure.ts";
import { type Cause, type Finding, found } from "./finding.ts";
import {
  cloneFinding,
  deviceFinding,
  filterFinding,
  isolationFindings,
  privilegeFindings,
  probe,
  type Probed,
  sliceFinding,
  userFinding,
} from "./probe.ts";
import { quotaFindings } from "./quotas.ts";
import { type Who, whoFindings } from "./who.ts";

const MIB = 1024 ** 2;
const DAY_MS = 86_400_000;
/** Bytes that the journal needs beside a log. */
const LEAST_FREE_BYTES = 512 * MIB;

/** The options of a worker that decide what it can enforce. Without `stateDir` no state directory is examined. */
export interface ExamineOptions
  extends
    Who,
    Partial<
      Pick<
        WorkerOptions,
        "stateDir" | "cgroup" | "isolationOff" | "jobPrune" | "logLimitBytes" | "quotas" | "supervisor"
      >
    > {
  /** What the daemon that asks has opened; when absent, what a new daemon would find is examined. */
  readonly hierarchy?: Hierarchy;
}

const checkTypes = shape<ExamineOptions>(
  {
    stateDir: text,
    cgroup: text,
    isolationOff: listOf(oneOf(...SWITCHES)),
    logLimitBytes: amount,
    supervisor: text,
    user: text,
    jobUids: shape<UidRange>({ first: whole, last: whole }, ["first", "last"]),
    allowUsers: listOf(text),
    allowGroups: listOf(text),
    allowRoot: truth,
    quotas: checkQuotaTypes,
    jobPrune: checkJobPrune,
    hierarchy: () => {},
  },
  [],
  { open: true },
);

/**
 * Finds out what this host can enforce for a worker with these options. What it cannot enforce has a reason and a
 * remedy. Changes nothing on the host, and may run beside a daemon.
 */
export async function examine(options: ExamineOptions): Promise<Finding[]> {
  checkTypes("", options);
  const { stateDir, cgroup, supervisor = nativeSupervisor(), isolationOff, hierarchy } = options;
  const { logLimitBytes = LOG_LIMIT_BYTES } = options;
  const place = placeOf(cgroup, hierarchy);
  const cause = hierarchyCause(place, cgroup);
  const state = stateDir === undefined ? undefined : nearest(resolve(stateDir));
  const { findings, probed } = await supervisorFindings(supervisor, state);
  const controllers = controllerFindings(place, cause);
  return [
    ...cgroupFindings(place, cause),
    ...(probed ? [cloneFinding(probed)] : []),
    ...controllers,
    ...(probed ? [...isolationFindings(probed, isolationOff), deviceFinding(probed)] : []),
    userFinding(),
    ...privilegeFindings(isolationOff),
    ...(probed ? [filterFinding(probed, isolationOff)] : []),
    ...whoFindings(options),
    ...quotaFindings(options.quotas, controllers),
    ...findings,
    ...(stateDir === undefined
      ? []
      : [...stateFindings(resolve(stateDir), probed, logLimitBytes), recordFinding(options.jobPrune)]),
  ];
}

async function supervisorFindings(path: string, state: string | undefined) {
  try {
    checkSupervisor(path);
    const probed = await probe(path, state);
    return { findings: [supervisorFinding(undefined), sliceFinding(probed)], probed };
  } catch (error) {
    const [reason = ""] = reasonOf(error).split("\n");
    return { findings: [supervisorFinding({ reason, remedy: "npm run build, on a machine like this one" })] };
  }
}

function supervisorFinding(cause: Cause | undefined): Finding {
  return found("supervisor", "program", cause, ["jobs outlive the daemon", "no daemon starts"]);
}

/** `path`, or the nearest directory above it that exists. */
function nearest(path: string): string {
  return existsSync(path) || path === "/" ? path : nearest(dirname(path));
}

function stateFindings(stateDir: string, probed: Probed | undefined, logLimitBytes: number): Finding[] {
  const directory = nearest(stateDir);
  const hole = probed?.get("hole");
  const unusable = unwritable(directory) ?? exposed(stateDir);
  const finding = found("state", "directory", unusable, [`${directory} can be written`, "no daemon starts"]);
  if (unusable) return [finding];
  const { bavail, bsize } = statfsSync(directory);
  const free = bavail * bsize;
  const told = `${Math.floor(free / MIB)} MiB are free in ${directory}`;
  const scarce =
    free < LEAST_FREE_BYTES + logLimitBytes
      ? { reason: told, remedy: "make room there, or keep less: --log-limit" }
      : undefined;
  const endless =
    hole === undefined
      ? undefined
      : { reason: `the file system of ${directory} cannot punch holes (${hole})`, remedy: "ext4, XFS, Btrfs or tmpfs" };
  return [
    finding,
    found("state", "log limit", endless, ["a log ends at --log-limit", "a log grows beyond --log-limit"], "limited"),
    found("state", "space", scarce, [told, "output may be dropped, which shows as a gap"], "limited"),
  ];
}

/** For how long jobs that have ended are known, and how many. */
function recordFinding({ ageMs, count }: JobPruneLimits = {}): Finding {
  const limits = [
    ...(ageMs === undefined ? [] : [`${Math.round((ageMs / DAY_MS) * 10) / 10} days after their end`]),
    ...(count === undefined ? [] : [`beyond ${count}`]),
  ];
  const endless =
    limits.length > 0
      ? undefined
      : { reason: "nothing limits them", remedy: "--job-prune-age 365d, or --job-prune-count 1000000" };
  const meanings = [`ended jobs are removed ${limits.join(", or ")}`, "records of ended jobs grow for ever"] as const;
  return found("state", "records", endless, meanings, "limited");
}

function exposed(stateDir: string): Cause | undefined {
  const { reason, remedy } = exposureOf(stateDir) ?? {};
  return reason === undefined || remedy === undefined ? undefined : { reason, remedy };
}

function unwritable(directory: string): Cause | undefined {
  try {
    accessSync(`${directory}/.`, constants.W_OK | constants.X_OK);
    return undefined;
  } catch (error) {
    return {
      reason: `${directory} cannot be written (${codeOf(error)})`,
      remedy: "give --state a directory that the daemon's user may write",
    };
  }
}
