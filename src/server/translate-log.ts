import {
  type Log as ProtoLog,
  LogCompression,
  LogKeep,
  LogPlace,
  type LogPolicy as ProtoLogPolicy,
} from "../../proto/generated/jobs/v1/worker.ts";
import type { JobLog, LogPolicy } from "../worker/index.ts";
import { defined, fromCount, fromMs, namesIn, toCount, toMs } from "./translate-values.ts";

const KEEPS = namesIn<"LOG_KEEP", NonNullable<LogPolicy["keep"]>, LogKeep>("LOG_KEEP", LogKeep);
const COMPRESSIONS = namesIn<"LOG_COMPRESSION", NonNullable<LogPolicy["compress"]>, LogCompression>(
  "LOG_COMPRESSION",
  LogCompression,
);
const PLACES = namesIn<"LOG_PLACE", JobLog["kind"], LogPlace>("LOG_PLACE", LogPlace);

/** Throws JobError `invalid`. */
export function toLogPolicy({ limit, keep, compression, archive, keepFor }: ProtoLogPolicy): LogPolicy {
  return defined({
    limitBytes: limit === undefined ? undefined : toCount("log.limit", limit),
    keep: keep ? KEEPS.nameOf("log.keep", keep) : undefined,
    compress: compression ? COMPRESSIONS.nameOf("log.compression", compression) : undefined,
    archive,
    keepForMs: keepFor && toMs("log.keep_for", keepFor),
  });
}

export function fromLogPolicy({ limitBytes, keep, compress, archive, keepForMs }: LogPolicy): ProtoLogPolicy {
  return {
    limit: fromCount(limitBytes),
    keep: keep ? KEEPS.of(keep) : LogKeep.LOG_KEEP_UNSPECIFIED,
    compression: compress ? COMPRESSIONS.of(compress) : LogCompression.LOG_COMPRESSION_UNSPECIFIED,
    archive,
    keepFor: fromMs(keepForMs),
  };
}

export function fromLog(log: JobLog): ProtoLog {
  return {
    place: PLACES.of(log.kind),
    bytes: BigInt("bytes" in log ? log.bytes : 0),
    since: "at" in log ? log.at : undefined,
    why: log.kind === "pruned" ? log.why : "",
  };
}
