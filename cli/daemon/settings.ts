import { join, resolve } from "node:path";
import { nativeDirectory } from "../../src/os/native.ts";
import type { AuditLimits } from "../../src/server/audit-file.ts";
import type { Owners } from "../../src/server/owners.ts";
import { parseTarget, type Target } from "../../src/client/target.ts";
import { reasonOf } from "../../src/os/errno.ts";
import { checkWorker, JobError, type Place, SWITCHES, type WorkerOptions } from "../../src/worker/index.ts";
import { readTlsFiles } from "../line/connection.ts";
import { type CrlOptions, crlFlags, crlOptions } from "./crl.ts";
import { placeOf } from "./kept.ts";
import { parseCount, parseDurationMs, parseSizeBytes, parseWord, UsageError } from "../line/parse.ts";
import { type Given, optional } from "../line/program.ts";
import { CONFIG, type Setting } from "./config.ts";
import { metricsFlags, metricsOptions } from "./metrics.ts";
import { jobPruneOptions, logFlags, logOptions } from "./retention.ts";
import { ownerFlags, ownersOf, quotasOf } from "./owners.ts";
import { tracingFlags } from "./tracing.ts";
import { namesOf, whoFlags, whoOptions } from "./who.ts";

/** The daemon's flags. Each is a JOBSD_ variable, and a key of the configuration file as well. */
export const flags: readonly Setting[] = [
  {
    name: "config",
    value: "FILE",
    about: `the configuration file, TOML: each flag is a key; ${CONFIG} where that exists`,
    once: true,
  },
  { name: "listen", value: "HOST:PORT", about: "where to listen; port 0 takes a free one" },
  { name: "state", value: "DIR", about: "holds jobs and their output; made when it is not there" },
  { name: "ca", value: "FILE", about: "certificate of the CA that signs clients" },
  { name: "cert", value: "FILE", about: "the worker's certificate" },
  { name: "key", value: "FILE", about: "its private key; nobody else may be able to read it" },
  ...crlFlags,
  { name: "name", value: "NAME", about: "in front of each job's id, to tell workers apart" },
  ...ownerFlags,
  ...whoFlags,
  ...logFlags,
  { name: "archive", value: "DIR|s3://BUCKET/PREFIX", about: "move the output of ended jobs there" },
  { name: "archive-endpoint", value: "URL", about: "address of an S3 server that is not AWS's" },
  { name: "archive-region", value: "REGION", about: "region of the bucket" },
  {
    name: "isolation-off",
    value: "LIST",
    about: `parts of the isolation to leave out: ${SWITCHES.join(",")}`,
    list: true,
  },
  { name: "allow-user-namespaces", about: "a start may ask that its job can make user namespaces", reloads: true },
  { name: "max-jobs", value: "N", about: "jobs that may run at once, 10000 when not given", reloads: true },
  {
    name: "max-connections",
    value: "N",
    about: "connections of all clients at once, 1024 when not given; one client has at most half",
    reloads: true,
  },
  {
    name: "max-calls",
    value: "N",
    about: "calls of all clients at once, 4096 when not given; one client has at most half",
    reloads: true,
  },
  { name: "cgroup", value: "DIR", about: "the cgroup v2 directory to make jobs' groups in" },
  { name: "audit", value: "FILE", about: "the audit log; STATE/audit.jsonl when not given" },
  {
    name: "audit-limit",
    value: "SIZE",
    about: "size of the audit log with its older files, 256M when not given; 0 for no limit",
    reloads: true,
  },
  {
    name: "audit-keep",
    value: "DURATION",
    about: "remove older files of the audit log after so long, 365d when not given",
    reloads: true,
  },
  {
    name: "health-socket",
    value: "FILE",
    about: "a UNIX socket for gRPC health checks by this user, with no certificate",
  },
  ...metricsFlags,
  ...tracingFlags,
  { name: "log-level", value: "LEVEL", about: "debug, info, warn or error; info when not given", reloads: true },
  {
    name: "shutdown-timeout",
    value: "DURATION",
    about: "how long a shutdown waits for calls, 10s when not given",
    reloads: true,
  },
  {
    name: "check",
    about: "show which limits and isolation this host can enforce, and start nothing; needs no other flag",
    once: true,
  },
  {
    name: "recover",
    about: "rebuild the journal of --state from its jobs' directories, keep the old one, and start nothing",
    once: true,
  },
  { name: "json", about: "print the result of --check or --recover as JSON", once: true },
];

const LEAST_AUDIT_BYTES = 1024 * 1024;

/** The settings that a daemon is started with. */
export interface Settings extends CrlOptions {
  readonly listen: Target;
  /** The addon that verifies chains in a thread of its own. */
  readonly verifier: string;
  readonly tls: { readonly ca: string; readonly cert: string; readonly key: string };
  /** The files that `tls` was read from. */
  readonly tlsFiles: { readonly ca: string; readonly cert: string; readonly key: string };
  /** The files that no job may read. */
  readonly secrets: readonly string[];
  readonly worker: WorkerOptions;
  readonly owners: Owners;
  readonly healthSocket: string | undefined;
  readonly metrics: ReturnType<typeof metricsOptions>;
  /** The file that sets up an SDK of OpenTelemetry. */
  readonly tracing: string | undefined;
  readonly audit: string;
  readonly auditLimits: Partial<AuditLimits>;
  readonly level: "debug" | "info" | "warn" | "error";
  readonly shutdownMs: number;
  readonly maxConnections: number | undefined;
  readonly maxCalls: number | undefined;
}

/** Returns what a check needs to know, too: what of the host is used, and how; `root` holds build/. Throws UsageError. */
export function hostOptions(
  given: Given,
  root: string,
): Pick<WorkerOptions, "cgroup" | "isolationOff" | "logLimitBytes" | "jobPrune" | "quotas"> &
  ReturnType<typeof whoOptions> & { readonly supervisor: string } {
  const cgroup = given.text("cgroup");
  const logLimitBytes = optional(given, "log-limit", (flag, size) => Number(parseSizeBytes(flag, size)));
  const isolationOff = namesOf(given, "isolation-off").map((word) =>
    parseWord(given.nameOf("isolation-off"), word, SWITCHES),
  );
  const quotas = quotasOf(given);
  return {
    supervisor: join(nativeDirectory(root), "supervisor"),
    ...whoOptions(given),
    ...(quotas && { quotas }),
    ...jobPruneOptions(given),
    ...(cgroup && { cgroup }),
    isolationOff,
    ...(logLimitBytes !== undefined && { logLimitBytes }),
  };
}

/**
 * Returns what is given; `root` is what jobs may not change: the checkout, or what is installed of it. Reads the files of
 * TLS. Throws UsageError, and PemError led by a file's name.
 */
export async function settings(given: Given, root: string): Promise<Settings> {
  const missing = ["listen", "state", "ca", "cert", "key"].filter((name) => !given.text(name));
  const { listen, ...others } = settingsWithoutTls(given, root);
  if (listen === undefined || missing.length > 0) {
    const variables = missing.map((name) => `JOBSD_${name.toUpperCase()}`).join(" ");
    const file = given.text("config") ?? "a file for --config";
    throw new UsageError(
      `no ${missing.map((name) => `--${name}`).join(" ")}: give the flags, or set ${variables}, or have the keys in ${file}`,
    );
  }
  return { ...others, listen, tls: await readTlsFiles(others.tlsFiles) };
}

/** Returns what is given, some of which may be missing. Throws UsageError for what is wrong with the rest. */
export function settingsWithoutTls(
  given: Given,
  root: string,
): Omit<Settings, "tls" | "listen"> & { readonly listen: Target | undefined } {
  const text = (name: string): string => given.text(name) ?? "";
  const stateDir = resolve(text("state"));
  const audit = given.text("audit") ?? join(stateDir, "audit.jsonl");
  const limitBytes = optional(given, "audit-limit", auditLimit);
  const keepMs = optional(given, "audit-keep", parseDurationMs);
  const secrets = [text("key"), audit];
  return {
    listen: optional(given, "listen", (flag, address) => parseTarget(address, flag)),
    verifier: join(nativeDirectory(root), "verify.node"),
    tlsFiles: { ca: text("ca"), cert: text("cert"), key: text("key") },
    ...crlOptions(given),
    secrets,
    worker: workerOptions(given, root, { stateDir, secrets }),
    owners: ownersOf(given),
    healthSocket: given.text("health-socket"),
    metrics: metricsOptions(given),
    tracing: optional(given, "tracing", (_, file) => resolve(file)),
    audit,
    auditLimits: {
      ...(limitBytes !== undefined && { limitBytes }),
      ...(keepMs !== undefined && { keepMs }),
    },
    level: parseWord(given.nameOf("log-level"), given.text("log-level") ?? "info", ["debug", "info", "warn", "error"]),
    shutdownMs: parseDurationMs(given.nameOf("shutdown-timeout"), given.text("shutdown-timeout") ?? "10s"),
    maxConnections: optional(given, "max-connections", atLeastTwo),
    maxCalls: optional(given, "max-calls", atLeastTwo),
  };
}

/** Returns the worker's options. Throws UsageError, also for what the worker would refuse. */
function workerOptions(
  given: Given,
  root: string,
  { stateDir, secrets }: Pick<WorkerOptions, "stateDir"> & Pick<Settings, "secrets">,
): WorkerOptions {
  const name = given.text("name");
  const maxJobs = optional(given, "max-jobs", (flag, count) => Number(parseCount(flag, count, 1)));
  const archive = parseArchive(given);
  const unchanged = ["ca", "cert", "crl", "config", "tracing"].flatMap((flag) => given.text(flag) ?? []);
  const options: WorkerOptions = {
    stateDir,
    ...hostOptions(given, root),
    allowUserNamespaces: given.on("allow-user-namespaces"),
    ...(name && { name }),
    ...logOptions(given),
    ...(maxJobs !== undefined && { maxJobs }),
    ...(archive && { archive }),
    // A job of the daemon's own user may do with files what the daemon may.
    hidden: secrets.filter(Boolean).flatMap((file) => placeOf(file).paths),
    sealed: [process.execPath, root, nativeDirectory(root), ...unchanged.flatMap((file) => placeOf(file).paths)],
  };
  try {
    checkWorker(options);
  } catch (error) {
    const flag = error instanceof JobError ? error.field?.replaceAll(" ", "-") : undefined;
    if (flag === undefined || !flags.some((known) => known.name === flag)) throw error;
    throw new UsageError(reasonOf(error).replace(/^[^:]*/, given.nameOf(flag)));
  }
  return options;
}

/** Reads the size of an audit log in bytes. Throws UsageError for one that a few lines would fill. */
function auditLimit(flag: string, size: string): number {
  const bytes = Number(parseSizeBytes(flag, size));
  if (bytes !== 0 && bytes < LEAST_AUDIT_BYTES)
    throw new UsageError(`${flag} ${size} is too small; give at least 1M, or 0 for no limit`);
  return bytes;
}

/** Reads a limit of which one client may use half. */
function atLeastTwo(flag: string, count: string): number {
  return Number(parseCount(flag, count, 2));
}

/** Returns the archive: `s3://BUCKET/PREFIX`, or a directory. Throws UsageError. */
export function parseArchive(given: Pick<Given, "text" | "nameOf">): Place | undefined {
  const [text, endpoint, region] = ["archive", "archive-endpoint", "archive-region"].map((flag) => given.text(flag));
  const [, bucket, prefix = ""] = /^s3:\/\/([a-z0-9][a-z0-9.-]{1,61}[a-z0-9])(?:\/(.*?))?\/*$/.exec(text ?? "") ?? [];
  if (bucket === undefined && /^[a-z0-9]+:/i.test(text ?? ""))
    throw new UsageError(
      `${given.nameOf("archive")} ${JSON.stringify(text ?? "")} is not an archive; give s3://BUCKET/PREFIX or a directory`,
    );
  if (bucket === undefined && (endpoint ?? region) !== undefined)
    throw new UsageError(
      `${given.nameOf(endpoint === undefined ? "archive-region" : "archive-endpoint")} is for an archive s3://BUCKET/PREFIX only`,
    );
  if (endpoint !== undefined && !/^https?:\/\/[^/?#]+\/?$/.test(endpoint))
    throw new UsageError(
      `${given.nameOf("archive-endpoint")} ${JSON.stringify(endpoint)} is not an endpoint; give http://HOST:PORT or https://HOST`,
    );
  if (bucket === undefined) return text === undefined ? undefined : { kind: "directory", path: resolve(text) };
  return {
    kind: "s3",
    bucket,
    prefix,
    ...(endpoint !== undefined && { endpoint }),
    ...(region !== undefined && { region }),
  };
}
