import { invalid, unsupported } from "../model/errors.ts";
import type { LogPolicy } from "../model/job.ts";
import type { Quota } from "../model/quota.ts";
import { type CheckedOptions, LEAST_LOG_LIMIT_BYTES } from "../model/options.ts";

/**
 * What becomes of a job's log: what the start asks for, and the worker's limit and choice where it asks for nothing. A
 * start may not exceed the worker's options, or the owner's quota in their place. Throws JobError `invalid`, with the greatest value as the fact `maximum`, and
 * `unsupported` for an archive that the worker does not have.
 */
export function policyOf(
  asked: LogPolicy | undefined,
  options: CheckedOptions,
  quota?: Quota,
): LogPolicy & Required<Pick<LogPolicy, "limitBytes" | "keep">> {
  const most = quota?.max?.logLimitBytes ?? options.logLimitBytes;
  const usual = quota?.default?.logLimitBytes ?? options.logLimitBytes;
  const within = most > 0 && (usual === 0 || usual > most) ? most : usual;
  const { limitBytes = within, keep = options.logKeep, archive, keepForMs } = asked ?? {};
  if (most > 0 && (limitBytes === 0 || limitBytes > most)) {
    const given = quota?.max?.logLimitBytes === undefined ? "--log-limit" : "--quota, max-log-limit";
    const above = `${limitBytes || "no limit"} is above this worker's (jobsd ${given})`;
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
