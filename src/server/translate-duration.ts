import type { Duration } from "../../proto/generated/google/protobuf/duration.ts";
import { invalid } from "../worker/index.ts";

/** Seconds: the range of google.protobuf.Duration, about 10,000 years. */
const MAX_DURATION_S = 315_576_000_000n;

/** Whole milliseconds, rounded up. */
export function toMs(field: string, { seconds, nanos }: Duration): number {
  if (seconds < 0n || nanos < 0) throw invalid(field, "must not be negative");
  if (seconds > MAX_DURATION_S || nanos > 999_999_999) throw invalid(field, "is no valid google.protobuf.Duration");
  return Number(seconds) * 1000 + Math.ceil(nanos / 1e6);
}

export function fromMs(ms: number | undefined): Duration | undefined {
  return ms === undefined ? undefined : fromUs(ms * 1000);
}

export function fromUs(us: number | undefined): Duration | undefined {
  if (us === undefined) return undefined;
  const whole = Math.round(us);
  return { seconds: BigInt(Math.floor(whole / 1e6)), nanos: (whole % 1e6) * 1000 };
}
