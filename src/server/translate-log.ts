import {
  type Log as ProtoLog,
  LogCompression,
  LogKeep,
  LogPlace,
  type LogPolicy as ProtoLogPolicy,
} from "../../proto/generated/jobs/v1/worker.ts";
import { invalid, type JobLog, type LogPolicy } from "../worker/index.ts";
import { fromMs, toMs } from "./translate-duration.ts";
import { defined, fromCount, toCount } from "./translate-resources.ts";

const KEEPS: ReadonlyMap<LogKeep, LogPolicy["keep"]> = new Map([
  [LogKeep.LOG_KEEP_UNSPECIFIED, undefined],
  [LogKeep.LOG_KEEP_NEWEST, "newest"],
  [LogKeep.LOG_KEEP_OLDEST, "oldest"],
]);
const COMPRESSIONS: ReadonlyMap<LogCompression, LogPolicy["compress"]> = new Map([
  [LogCompression.LOG_COMPRESSION_UNSPECIFIED, undefined],
  [LogCompression.LOG_COMPRESSION_OFF, "off"],
  [LogCompression.LOG_COMPRESSION_ZSTD, "zstd"],
]);
const PLACES: Readonly<Record<JobLog["kind"], LogPlace>> = {
  kept: LogPlace.LOG_PLACE_KEPT,
  compressed: LogPlace.LOG_PLACE_COMPRESSED,
  archived: LogPlace.LOG_PLACE_ARCHIVED,
  pruned: LogPlace.LOG_PLACE_PRUNED,
};

/** Throws JobError `invalid`. */
export function toLogPolicy({ limit, keep, compression, archive, keepFor }: ProtoLogPolicy): LogPolicy {
  if (!KEEPS.has(keep)) throw invalid("log.keep", `${keep} is none: use LOG_KEEP_NEWEST or LOG_KEEP_OLDEST`);
  if (!COMPRESSIONS.has(compression))
    throw invalid("log.compression", `${compression} is none: use LOG_COMPRESSION_OFF or LOG_COMPRESSION_ZSTD`);
  return defined({
    limitBytes: limit === undefined ? undefined : toCount("log.limit", limit),
    keep: KEEPS.get(keep),
    compress: COMPRESSIONS.get(compression),
    archive,
    keepForMs: keepFor && toMs("log.keep_for", keepFor),
  });
}

export function fromLogPolicy({ limitBytes, keep, compress, archive, keepForMs }: LogPolicy): ProtoLogPolicy {
  return {
    limit: fromCount(limitBytes),
    keep: keyOf(KEEPS, keep) ?? LogKeep.LOG_KEEP_UNSPECIFIED,
    compression: keyOf(COMPRESSIONS, compress) ?? LogCompression.LOG_COMPRESSION_UNSPECIFIED,
    archive,
    keepFor: fromMs(keepForMs),
  };
}

function keyOf<Key, Value>(map: ReadonlyMap<Key, Value>, value: Value): Key | undefined {
  return [...map].find(([, known]) => known === value)?.[0];
}

export function fromLog(log: JobLog): ProtoLog {
  return {
    place: PLACES[log.kind],
    bytes: BigInt("bytes" in log ? log.bytes : 0),
    since: "at" in log ? log.at : undefined,
    why: log.kind === "pruned" ? log.why : "",
  };
}
