import {
  type Job,
  LogCompression,
  LogKeep,
  type LogPlace,
  logPlaceToJSON,
  type LogPolicy,
} from "../../proto/generated/jobs/v1/worker.ts";
import { formatBytes, formatDuration } from "./units.ts";

const WHY: Readonly<Record<string, string>> = {
  age: "for its age",
  count: "for the number of logs",
  size: "for the size of all logs",
  free: "for want of free space",
  "keep-for": "as its start asked",
  missing: "because its files were gone",
};

/** Returns the facts about a job's output: its size, its place, and the policy that its start asked for. */
export function logFacts({ output, log, logPolicy: policy }: Job): [string, string | undefined][] {
  return [
    ["output", output && outputExtent(output)],
    ["log", log && placeOf(log)],
    ["log policy", policy && policyWords(policy)],
  ];
}

function outputExtent({ size, first, dropped }: NonNullable<Job["output"]>): string {
  const kept = first > 0n ? `, kept from offset ${first} on` : "";
  return `${size} bytes${kept}${dropped > 0n ? `, ${dropped} dropped` : ""}`;
}

function placeOf({ place, bytes, since, why }: NonNullable<Job["log"]>): string {
  const at = since ? ` ${since.toISOString()}` : "";
  const taken = `${formatBytes(bytes)} on the worker's disk`;
  const word = wordOf(place);
  if (word === "pruned") return `pruned${at} ${WHY[why] ?? why}; it took ${taken}`;
  return word === "archived" ? `archived${at}` : `${word}, ${taken}`;
}

function wordOf(place: LogPlace): string {
  return logPlaceToJSON(place).replace("LOG_PLACE_", "").toLowerCase();
}

function policyWords({ limit, keep, compression, archive, keepFor }: LogPolicy): string {
  return [
    limit === 0n ? "no limit" : limit !== undefined && `${formatBytes(limit)} at most`,
    keep === LogKeep.LOG_KEEP_OLDEST ? "the oldest kept" : "the newest kept",
    compression === LogCompression.LOG_COMPRESSION_ZSTD && "compressed",
    compression === LogCompression.LOG_COMPRESSION_OFF && "not compressed",
    archive !== undefined && (archive ? "archived" : "not archived"),
    keepFor && `pruned ${formatDuration(keepFor)} after the end`,
  ]
    .filter(Boolean)
    .join(", ");
}
