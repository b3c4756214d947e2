import { SIGNALS } from "../../src/os/signals.ts";

/** A command line that is wrong; the message says what would be right. */
export class UsageError extends Error {
  override readonly name = "UsageError";
  /** Further faults, a line each. */
  readonly more: readonly string[];

  constructor(message: string, more: readonly string[] = []) {
    super(message);
    this.more = more;
  }
}

/** A google.protobuf.Duration. */
export interface Duration {
  readonly seconds: bigint;
  readonly nanos: number;
}

const UNIT_MS: Readonly<Record<string, number>> = { ms: 1, s: 1000, m: 60_000, h: 3_600_000, d: 86_400_000 };
const LONGEST_MS = 3650 * 86_400_000;

/** `500ms`, `10s`, `1.5m`, `2h`, `1d` or a sum of them as in `1h30m`, and `0`; ms. Throws UsageError naming `flag`. */
export function parseDurationMs(flag: string, text: string): number {
  const parts = [...text.matchAll(/(\d+(?:\.\d+)?)(ms|[smhd])/g)];
  const whole = parts.map(([part]) => part).join("") === text && parts.length > 0;
  const sumMs = parts.reduce((sum, [, count, unit]) => sum + Number(count) * (UNIT_MS[unit ?? ""] ?? Number.NaN), 0);
  if (text === "0") return 0;
  if (whole && sumMs <= LONGEST_MS) return Math.round(sumMs);
  throw new UsageError(`${flag} ${quoted(text)} is not a duration; give 500ms, 10s, 5m, 2h, 1d or 1h30m`);
}

export function toDuration(ms: number): Duration {
  return { seconds: BigInt(Math.trunc(ms / 1000)), nanos: Math.round((ms % 1000) * 1e6) };
}

const UNIT_POWER: Readonly<Record<string, number>> = { b: 0, k: 1, m: 2, g: 3, t: 4 };

/** `1048576`, `64k`, `256M`, `1.5GiB`; bytes, units of 1024 as docker has them. Throws UsageError naming `flag`. */
export function parseSizeBytes(flag: string, text: string): bigint {
  const [, count, unit = "b"] = /^(\d+(?:\.\d+)?)(?:([kmgt])(?:i?b)?|b)?$/i.exec(text) ?? [];
  const bytes = Number(count) * 1024 ** (UNIT_POWER[unit.toLowerCase()] ?? Number.NaN);
  if (Number.isSafeInteger(Math.round(bytes))) return BigInt(Math.round(bytes));
  throw new UsageError(`${flag} ${quoted(text)} is not a size; give 1048576, 64k, 256M or 1.5G`);
}

/** Returns the same as parseSizeBytes, and -1 for `-1`, which stands for no limit. */
export function parseLimitBytes(flag: string, text: string): bigint {
  return text === "-1" ? -1n : parseSizeBytes(flag, text);
}

/** A whole number from `least` on. Throws UsageError naming `flag`. */
export function parseCount(flag: string, text: string, least = 0): bigint {
  const count = /^-?\d{1,18}$/.test(text) ? BigInt(text) : undefined;
  if (count !== undefined && count >= least) return count;
  throw new UsageError(`${flag} ${quoted(text)} is not a whole number from ${least} on`);
}

/** `1000`, `2k`, `1.5M`; operations a second, units of 1000 as systemd has them. Throws UsageError naming `flag`. */
export function parseRate(flag: string, text: string): bigint {
  const [, count, unit = ""] = /^(\d+(?:\.\d+)?)([kmg]?)$/i.exec(text) ?? [];
  const rate = Math.round(Number(count) * 1000 ** ["", "k", "m", "g"].indexOf(unit.toLowerCase()));
  if (Number.isSafeInteger(rate)) return BigInt(rate);
  throw new UsageError(`${flag} ${quoted(text)} is not a rate; give 1000, 2k or 1.5M`);
}

/** The rates of a device that io.max limits: bytes and operations a second, read and written. */
export type IoKey = "rbps" | "wbps" | "riops" | "wiops";

/** A block device by its number or by its path on the worker, and its rates; 0 stands for no limit. */
export interface IoMax {
  readonly major?: bigint;
  readonly minor?: bigint;
  readonly path?: string;
  readonly rates: readonly (readonly [IoKey, bigint])[];
}

/** `/dev/sda:rbps=1M,wiops=100`, `8:0:wbps=max`. Throws UsageError naming `flag`. */
export function parseIoMax(flag: string, text: string): IoMax {
  const [, device = "", list = ""] = /^(.+):([^:]*)$/s.exec(text) ?? [];
  const [, major, minor] = /^(\d{1,9}):(\d{1,9})$/.exec(device) ?? [];
  if (major === undefined && !device.startsWith("/"))
    throw new UsageError(
      `${flag} ${quoted(text)} does not name a device; give /dev/sda:rbps=1M,wiops=100 or 8:0:wbps=max`,
    );
  const rates = list.split(",").map((pair): [IoKey, bigint] => {
    const [name = "", rate = ""] = pair.split(/=(.*)/s);
    const key = parseWord(`${flag} ${quoted(text)}:`, name, ["rbps", "wbps", "riops", "wiops"]);
    if (rate === "max") return [key, 0n];
    const value = (key.endsWith("bps") ? parseSizeBytes : parseRate)(`${flag} ${key}`, rate);
    if (value > 0n) return [key, value];
    throw new UsageError(`${flag} ${key} ${quoted(rate)} would stop all of it; give max for no limit`);
  });
  return major === undefined || minor === undefined
    ? { path: device, rates }
    : { major: BigInt(major), minor: BigInt(minor), rates };
}

/** A limit of setrlimit(2); an absent value stands for no limit. */
export interface Rlimit {
  readonly name: string;
  readonly soft?: bigint;
  readonly hard?: bigint;
}

/** `nofile=1024:4096`, `core=0`, `as=1G`, `nofile=1024:unlimited`. Throws UsageError naming `flag`. */
export function parseRlimit(flag: string, text: string): Rlimit {
  const [, name = "", soft = "", hard = soft] = /^([a-z]+)=([^:]+)(?::(.+))?$/.exec(text) ?? [];
  if (name === "") throw new UsageError(`${flag} ${quoted(text)} is not a limit; give nofile=1024:4096 or core=0`);
  const value = (word: string): bigint | undefined =>
    word === "unlimited" ? undefined : parseSizeBytes(`${flag} ${name}`, word);
  const [least, most] = [value(soft), value(hard)];
  return { name, ...(least !== undefined && { soft: least }), ...(most !== undefined && { hard: most }) };
}

/** `027`: octal, as umask(1) has it. Throws UsageError naming `flag`. */
export function parseUmask(flag: string, text: string): number {
  if (/^0?[0-7]{1,3}$/.test(text)) return Number.parseInt(text, 8);
  throw new UsageError(`${flag} ${quoted(text)} is not a umask; give 022 or 077`);
}

/** A device by its type and number or by its path on the worker, and what may be done with it; absent is any. */
export interface DeviceRule {
  readonly allow: true;
  readonly type?: string;
  readonly major?: bigint;
  readonly minor?: bigint;
  readonly path?: string;
  readonly access?: string;
}

/** `/dev/fuse`, `/dev/sda:r`, `c:10:229:rw`, `b:8:*`. Throws UsageError naming `flag`. */
export function parseDevice(flag: string, text: string): DeviceRule {
  const [, device = text, access] = /^(.*):([a-z]*)$/s.exec(text) ?? [];
  const [, type, major, minor] = /^([bc]):(\d{1,9}|\*):(\d{1,9}|\*)$/.exec(device) ?? [];
  if (access !== undefined && !/^[rwm]+$/.test(access))
    throw new UsageError(`${flag} ${quoted(text)} has no access; give some of r, w and m, as in ${device}:rw`);
  const given = { allow: true, ...(access !== undefined && { access }) } as const;
  if (device.startsWith("/")) return { ...given, path: device };
  if (type === undefined)
    throw new UsageError(`${flag} ${quoted(text)} does not name a device; give /dev/fuse, /dev/sda:r or c:10:*:rw`);
  const number = (digits = "*"): bigint | undefined => (digits === "*" ? undefined : BigInt(digits));
  const [numbered, partly] = [number(major), number(minor)];
  return {
    ...given,
    type,
    ...(numbered !== undefined && { major: numbered }),
    ...(partly !== undefined && { minor: partly }),
  };
}

const CPU_PERIOD_US = 100_000;

/** `0.5` CPUs as the quota in each period of 100 ms, both in µs; a quota below 1 ms is refused by the kernel. */
export function parseCpus(flag: string, text: string): { readonly quota: bigint; readonly period: bigint } {
  const cpus = /^\d+(\.\d+)?$/.test(text) ? Number(text) : 0;
  if (cpus >= 0.01 && cpus <= 10_000) {
    return { quota: BigInt(Math.round(cpus * CPU_PERIOD_US)), period: BigInt(CPU_PERIOD_US) };
  }
  throw new UsageError(`${flag} ${quoted(text)} is not a number of CPUs; give 0.5 or 2, and at least 0.01`);
}

/**
 * `TERM`, `SIGTERM`, `term`, or any number: which of them are signals is for the worker to say. Throws UsageError naming
 * `flag`.
 */
export function parseSignal(flag: string, text: string): number {
  const name = text.toUpperCase().replace(/^(SIG)?/, "SIG");
  const byName = SIGNALS[name];
  const number = /^\d{1,4}$/.test(text) ? Number(text) : byName;
  if (number !== undefined) return number;
  throw new UsageError(`${flag} ${quoted(text)} is not a signal; give a name or a number, such as TERM, SIGKILL or 9`);
}

/** `KEY=VALUE`s, a later one overriding; `absent` gives the value of a bare `KEY`. Throws UsageError naming `flag`. */
export function parsePairs(
  flag: string,
  pairs: readonly string[],
  absent: (key: string) => string | undefined = () => undefined,
): Map<string, string> {
  return new Map(
    pairs.map((pair) => {
      const at = pair.indexOf("=");
      const key = at < 0 ? pair : pair.slice(0, at);
      const value = at < 0 ? absent(key) : pair.slice(at + 1);
      if (key !== "" && value !== undefined) return [key, value];
      throw new UsageError(`${flag} ${quoted(pair)} has no ${key === "" ? "name" : "value"}; give ${flag} NAME=VALUE`);
    }),
  );
}

/** Reads labels like parsePairs. Throws UsageError for a key that the worker would refuse, too. */
export function parseLabels(flag: string, pairs: readonly string[]): Map<string, string> {
  const labels = parsePairs(flag, pairs);
  for (const key of labels.keys())
    if (!/^[A-Za-z0-9._/-]{1,63}$/.test(key))
      throw new UsageError(
        `${flag} ${quoted(key)} is not a label's key; give up to 63 letters, digits and ._/-, and = before the value`,
      );
  return labels;
}

/** Returns the word when it is one of `words`. Throws UsageError naming `flag` and the words. */
export function parseWord<Word extends string>(flag: string, text: string, words: readonly Word[]): Word {
  const word = words.find((known) => known === text);
  if (word !== undefined) return word;
  throw new UsageError(`${flag} ${quoted(text)} is not one of ${words.join(", ")}`);
}

/**
 * The value of an enumeration of the API by its name there: `newest` is LOG_KEEP_NEWEST. Throws UsageError naming `flag`.
 */
export function parseEnum<Value extends number>(
  flag: string,
  text: string,
  prefix: string,
  values: Readonly<Record<string, Value>>,
): Value {
  const named = new Map<string, Value>();
  for (const [key, value] of Object.entries(values))
    if (key.startsWith(`${prefix}_`)) named.set(key.slice(prefix.length + 1).toLowerCase(), value);
  named.delete("unspecified");
  const value = named.get(text);
  if (value !== undefined) return value;
  throw new UsageError(`${flag} ${quoted(text)} is not one of ${[...named.keys()].join(", ")}`);
}

function quoted(text: string): string {
  return JSON.stringify(text);
}
