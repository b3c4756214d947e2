import type { WorkerOptions } from "../../src/worker/index.ts";
import { parseCount, parseDurationMs, parseSizeBytes, parseWord, UsageError } from "../line/parse.ts";
import { type Given, optional } from "../line/program.ts";
import type { Setting } from "./config.ts";

/** The daemon's flags for output logs, and for how long jobs are known. */
export const logFlags: readonly Setting[] = [
  {
    name: "log-limit",
    value: "SIZE",
    about: "output kept of each job at most, 256M when not given, 0 for all",
    reloads: true,
  },
  {
    name: "log-keep",
    value: "newest|oldest",
    about: "what to keep at that limit; newest when not given",
    reloads: true,
  },
  {
    name: "log-compress",
    value: "off|zstd",
    about: "compress the logs of jobs that have ended; off when not given",
    reloads: true,
  },
  {
    name: "log-prune-age",
    value: "DURATION",
    about: "remove logs of jobs that ended so long ago, as in 30d",
    reloads: true,
  },
  { name: "log-prune-count", value: "N", about: "remove the oldest logs beyond so many", reloads: true },
  {
    name: "log-prune-size",
    value: "SIZE",
    about: "remove the oldest logs while all take more, as in 10G",
    reloads: true,
  },
  {
    name: "log-prune-free",
    value: "SIZE|N%",
    about: "remove the oldest logs while the disk has less free, as in 5%",
    reloads: true,
  },
  {
    name: "job-prune-age",
    value: "DURATION",
    about: "remove jobs that ended so long ago, 365d when not given, 0 for never",
    reloads: true,
  },
  {
    name: "job-prune-count",
    value: "N",
    about: "remove the jobs that ended first beyond so many, 1000000 when not given, 0 for never",
    reloads: true,
  },
  { name: "job-prune-archive", about: "remove copies of their output in the archive, too", reloads: true },
];

const JOB_AGE_MS = 365 * 86_400_000;
const JOB_COUNT = 1_000_000;

/** Returns how many jobs that have ended the daemon keeps, and for how long. Throws UsageError. */
export function jobPruneOptions(given: Given): Required<Pick<WorkerOptions, "jobPrune">> {
  const ageMs = optional(given, "job-prune-age", parseDurationMs) ?? JOB_AGE_MS;
  const count = optional(given, "job-prune-count", (flag, text) => Number(parseCount(flag, text))) ?? JOB_COUNT;
  const archived = given.on("job-prune-archive");
  return { jobPrune: { ...(ageMs > 0 && { ageMs }), ...(count > 0 && { count }), archived } };
}

/** Returns the options for all logs that the daemon's flags give. Throws UsageError. */
export function logOptions(given: Given): Pick<WorkerOptions, "logKeep" | "logCompress" | "logPrune"> {
  const logKeep = optional(given, "log-keep", (flag, word): "newest" | "oldest" =>
    parseWord(flag, word, ["newest", "oldest"]),
  );
  const logCompress = optional(given, "log-compress", (flag, word): "off" | "zstd" =>
    parseWord(flag, word, ["off", "zstd"]),
  );
  const ageMs = optional(given, "log-prune-age", parseDurationMs);
  if (ageMs === 0)
    throw new UsageError(`${given.nameOf("log-prune-age")} 0 would keep no log; leave it out to keep all`);
  const count = optional(given, "log-prune-count", (flag, text) => Number(parseCount(flag, text)));
  const bytes = optional(given, "log-prune-size", (flag, text) => Number(parseSizeBytes(flag, text)));
  const free = optional(given, "log-prune-free", parseFree);
  return {
    ...(logKeep && { logKeep }),
    ...(logCompress && { logCompress }),
    logPrune: {
      ...(ageMs !== undefined && { ageMs }),
      ...(count !== undefined && { count }),
      ...(bytes !== undefined && { bytes }),
      ...(free && { free }),
    },
  };
}

/** `5%`, or a size. */
function parseFree(flag: string, text: string): { readonly kind: "bytes" | "percent"; readonly amount: number } {
  const [, percent] = /^(\d+(?:\.\d+)?)%$/.exec(text) ?? [];
  if (percent === undefined) return { kind: "bytes", amount: Number(parseSizeBytes(flag, text)) };
  if (Number(percent) < 100) return { kind: "percent", amount: Number(percent) };
  throw new UsageError(`${flag} ${text} would keep no log; give 5% or 10G`);
}
