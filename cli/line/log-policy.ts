import { LogCompression, LogKeep, type LogPolicy } from "../../proto/generated/jobs/v1/worker.ts";
import { parseDurationMs, parseEnum, parseSizeBytes, parseWord, toDuration } from "./parse.ts";
import { type Given, optional } from "./program.ts";

const FLAGS = ["log-limit", "log-keep", "log-compress", "log-archive", "log-keep-for"];

/** Returns the policy that the flags ask for; undefined when no such flag is given. Throws UsageError. */
export function logPolicy(given: Given): LogPolicy | undefined {
  if (!FLAGS.some((name) => given.text(name) !== undefined)) return undefined;
  const keep = optional(given, "log-keep", (flag, word) => parseEnum(flag, word, "LOG_KEEP", LogKeep));
  const compression = optional(given, "log-compress", (flag, word) =>
    parseEnum(flag, word, "LOG_COMPRESSION", LogCompression),
  );
  const keepForMs = optional(given, "log-keep-for", parseDurationMs);
  return {
    limit: optional(given, "log-limit", parseSizeBytes),
    keep: keep ?? LogKeep.LOG_KEEP_UNSPECIFIED,
    compression: compression ?? LogCompression.LOG_COMPRESSION_UNSPECIFIED,
    archive: optional(given, "log-archive", (flag, word) => parseWord(flag, word, ["yes", "no"]) === "yes"),
    keepFor: keepForMs === undefined ? undefined : toDuration(keepForMs),
  };
}
