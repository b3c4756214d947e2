import { randomUUID } from "node:crypto";
import { Network, StartResponse } from "../../proto/generated/jobs/v1/worker.ts";
import type { Client, StartInput } from "../../src/client/index.ts";
import { retrying } from "../../src/client/resume.ts";
import { bytesOf } from "../../src/os/bytes.ts";
import { environment } from "../line/bytes.ts";
import { withClient } from "./with-client.ts";
import { EXIT } from "../tell/exit.ts";
import { logPolicy } from "../line/log-policy.ts";
import { riding } from "../tell/outage.ts";
import { print, printMessage } from "../tell/output.ts";
import {
  parseCount,
  parseDurationMs,
  parseEnum,
  parseLabels,
  parsePairs,
  parseRlimit,
  parseUmask,
  toDuration,
  UsageError,
} from "../line/parse.ts";
import { type Given, optional } from "../line/program.ts";
import { resources } from "../line/resources.ts";

const TIMEOUT_MS = 60_000;
/** A worker that restarts is away for a moment; one that is not there at all should be told of soon. */
const FIRST_LIMIT_MS = 2_000;

/** `jobsctl start [flags] -- CMD ARGS…`: prints the job's id. */
export async function start(given: Given): Promise<number> {
  const request = startRequest(given, environment());
  const started = await withClient(given, (client) => startJob(client, request));
  if (given.text("output") === "json") await printMessage("StartResponse", StartResponse.encode(started));
  else await print([started.jobId]);
  return EXIT.ok;
}

/** Starts a job, and tries again when no answer came: the request's id makes sure that it starts once. */
export function startJob(client: Client, request: StartInput, signal?: AbortSignal): Promise<StartResponse> {
  const options = riding(client, { firstLimitMs: FIRST_LIMIT_MS });
  return retrying(client, () => client.start(request, { signal, timeoutMs: TIMEOUT_MS }), { ...options, signal });
}

/** Returns the request that the flags describe; `--env NAME` takes its value from `env`. Throws UsageError. */
export function startRequest(given: Given, env: NodeJS.ProcessEnv): StartInput {
  const [command, ...args] = given.words;
  if (!command) throw new UsageError(`no command; give jobs ${given.command} [flags] -- CMD ARGS…`);
  const timeLimit = optional(given, "time-limit", parseDurationMs);
  if (timeLimit === 0) throw new UsageError("--time-limit 0 would end the job at once; leave it out for no limit");
  const variables = parsePairs("--env", given.list("env"), (name) => {
    const value = env[name];
    if (value === undefined) throw new UsageError(`--env ${name}: not set here; --env ${name}=VALUE sets it`);
    return value;
  });
  const cwd = given.text("cwd") ?? "";
  const isText = given.words.every((word) => word.isWellFormed());
  return {
    ...(isText ? { command, args } : { argvBytes: given.words.map(bytesOf) }),
    env: new Map([...variables].filter((pair) => pair.join("=").isWellFormed())),
    environBytes: [...variables]
      .map((pair) => pair.join("="))
      .filter((pair) => !pair.isWellFormed())
      .map(bytesOf),
    ...(cwd.isWellFormed() ? { cwd } : { cwdBytes: bytesOf(cwd) }),
    ...userAndGroup(given),
    labels: parseLabels("--label", given.list("label")),
    timeLimit: timeLimit === undefined ? undefined : toDuration(timeLimit),
    requestId: given.text("request-id") ?? randomUUID(),
    resources: resources(given),
    network: parseEnum("--network", given.text("network") ?? "host", "NETWORK", Network),
    privateTmp: given.on("private-tmp"),
    mergeOutput: given.on("merge"),
    allowUserNamespaces: given.on("allow-user-namespaces"),
    rlimits: given.list("rlimit").map((text) => parseRlimit("--rlimit", text)),
    umask: optional(given, "umask", parseUmask),
    log: logPolicy(given),
    oomScoreAdj: optional(given, "oom-score-adj", (flag, text) => Number(parseCount(flag, text))) ?? 0,
  };
}

/** `--user USER:GROUP`, as docker has it, or each by its own flag. Throws UsageError where both give a group. */
function userAndGroup(given: Given): { readonly user: string; readonly group: string } {
  const [user = "", group] = (given.text("user") ?? "").split(/:(.*)/s);
  if (group === undefined) return { user, group: given.text("group") ?? "" };
  if (given.text("group") !== undefined || user === "" || group === "")
    throw new UsageError(`--user ${given.text("user")} is not a user; give USER, or USER:GROUP without --group`);
  return { user, group };
}
