import type { Duration } from "../../proto/generated/google/protobuf/duration.ts";
import { invalid } from "../worker/index.ts";

/** The range of google.protobuf.Duration in seconds, about 10,000 years. */
const MAX_DURATION_S = 315_576_000_000n;

/** Returns whole milliseconds, rounded up. Throws JobError `invalid`. */
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

/** Returns a count as a number. Throws JobError `invalid` when a number cannot hold it exactly. */
export function toCount(field: string, value: bigint): number {
  if (value > BigInt(Number.MAX_SAFE_INTEGER)) throw invalid(field, `${value} is more than ${Number.MAX_SAFE_INTEGER}`);
  return Number(value);
}

export function fromCount(count: number | undefined): bigint | undefined {
  return count === undefined ? undefined : BigInt(Math.round(count));
}

type Defined<T> = { [K in keyof T]?: Exclude<T[K], undefined> };

/** Returns the object without the fields that are undefined: the worker tells absent from undefined. */
export function defined<T extends object>(of: T): Defined<T>;
export function defined(of: object): object {
  return Object.fromEntries(Object.entries(of).filter(([, value]) => value !== undefined));
}

/** The worker's names for the values of an enumeration of the API. */
interface Names<Name extends string, Value> {
  of(name: Name): Value;
  /** Throws JobError `invalid` with the field for a value that has no name, as UNSPECIFIED has none. */
  nameOf(field: string, value: number): Name;
}

/**
 * Finds the worker's names in an enumeration: LOG_KEEP_NEWEST of the prefix LOG_KEEP is "newest".
 *
 * @param values the enumeration as generated
 */
export function namesIn<Prefix extends string, Name extends string, Value extends number>(
  prefix: Prefix,
  values: Readonly<Record<`${Prefix}_${Uppercase<Name>}`, Value>>,
): Names<Name, Value> {
  // oxlint-disable-next-line typescript/no-unsafe-type-assertion -- that is what the method does
  const keyOf = (name: Name) => `${prefix}_${name.toUpperCase() as Uppercase<Name>}` as const;
  const names = new Map(
    Object.entries(values)
      .filter(([key]) => key.startsWith(`${prefix}_`) && key !== `${prefix}_UNSPECIFIED`)
      // oxlint-disable-next-line typescript/no-unsafe-type-assertion -- as `values` has it
      .map(([key, value]) => [Number(value), key.slice(prefix.length + 1).toLowerCase() as Name]),
  );
  return {
    of: (name) => values[keyOf(name)],
    nameOf(field, value) {
      const name = names.get(value);
      if (name === undefined) throw invalid(field, `${value} is none of ${[...names.values()].map(keyOf).join(" ")}`);
      return name;
    },
  };
}
