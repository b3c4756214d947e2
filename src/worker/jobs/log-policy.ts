import { invalid, unsupported } from "../model/errors.ts";
import type { LogPolicy } from "../model/job.ts";
import { type CheckedOptions, LEAST_LOG_LIMIT_BYTES } from "../model/options.ts";

/**
 * What becomes of a job's log: what the start asks for, and the worker's limit and choice where it asks for nothing. A
 * start may not exceed the worker's options. Throws JobError `invalid`, with the greatest value as the fact `maximum`, and
 * `unsupported` for an archive that the worker does not have.
 */
export function policyOf(
  asked: LogPolicy | undefined,
  options: CheckedOptions,
): LogPolicy & Required<Pick<LogPolicy, "limitBytes" | "keep">> {
  const { limitBytes = options.logLimitBytes, keep = options.logKeep, archive, keepForMs } = asked ?? {};
  const most = options.logLimitBytes;
  if (most > 0 && (limitBytes === 0 || limitBytes > most)) {
    const above = `${limitBytes || "no limit"} is above this worker's (jobsd --log-limit)`;
    throw invalid("log.limit", `${above}: ${most} is the most`, { maximum: String(most) });
  }
  if (limitBytes !== 0 && limitBytes < LEAST_LOG_LIMIT_BYTES)
    throw invalid("log.limit", `${limitBytes} bytes is too small; ${LEAST_LOG_LIMIT_BYTES} is the least`);
  const { ageMs } = options.logPrune ?? {};
  if (keepForMs !== undefined && !(keepForMs > 0)) throw invalid("log.keep_for", "must be more than 0");
  if (keepForMs !== undefined && ageMs !== undefined && keepForMs > ageMs)
    throw invalid("log.keep_for", `is above this worker's (jobsd --log-prune-age): ${ageMs / 1000} s is the most`, {
      maximum: `${ageMs / 1000}s`,
    });
  if (archive && !options.archive) throw unsupported("log.archive", "this worker has no archive (jobsd --archive)");
  return { ...asked, limitBytes, keep };
}
