import type { Owners } from "../../src/server/owners.ts";
import type { Amounts, Quota, Quotas } from "../../src/worker/index.ts";
import { parseCount, parseCpus, parseDurationMs, parseSizeBytes, parseWord, UsageError } from "../line/parse.ts";
import { type Given, optional } from "../line/program.ts";
import type { Setting } from "./config.ts";

/** The daemon's flags for whose jobs are whose, and what an owner's jobs may have. */
export const ownerFlags: readonly Setting[] = [
  {
    name: "owners",
    value: "shared|private",
    about: "whether clients see and change each other's jobs, by their roles; shared when not given",
  },
  {
    name: "quota",
    value: "[OWNER:]KEY=VALUE,…",
    about: "what each owner's jobs may have, as in max-memory=4G,jobs=20; repeatable; docs/owners.md has the keys",
    list: true,
    reloads: true,
  },
];

/** Returns whose jobs clients see. Throws UsageError. */
export function ownersOf(given: Given): Owners {
  return optional(given, "owners", (flag, word): Owners => parseWord(flag, word, ["shared", "private"])) ?? "shared";
}

const AMOUNTS: Readonly<
  Record<string, { readonly name: keyof Amounts; readonly read: (flag: string, text: string) => number }>
> = {
  memory: { name: "memoryBytes", read: (flag, text) => positive(flag, text, Number(parseSizeBytes(flag, text))) },
  cpus: { name: "cpus", read: cpusIn },
  pids: { name: "pids", read: (flag, text) => Number(parseCount(flag, text, 1)) },
  "time-limit": { name: "timeLimitMs", read: (flag, text) => positive(flag, text, parseDurationMs(flag, text)) },
  "log-limit": { name: "logLimitBytes", read: (flag, text) => Number(parseSizeBytes(flag, text)) },
};
const KINDS = ["default", "max", "sum"] as const;
/** Nobody can have a share of these: a sum of times says nothing, and logs stay when jobs have ended. */
const NO_SUM = new Set(["time-limit", "log-limit"]);
const KEYS = [
  ...KINDS.flatMap((kind) =>
    Object.keys(AMOUNTS)
      .filter((name) => kind !== "sum" || !NO_SUM.has(name))
      .map((name) => `${kind}-${name}`),
  ),
  "jobs",
];

/** Returns what `--quota` gives; undefined where there is none. Throws UsageError. */
export function quotasOf(given: Given): Quotas | undefined {
  const flag = given.nameOf("quota");
  const lists = given.list("quota");
  // A variable has several of them in one text.
  const texts = flag.startsWith("JOBSD_") ? lists.flatMap((list) => list.split(";").filter(Boolean)) : lists;
  if (texts.length === 0) return undefined;
  let all: Quota = {};
  const owners = new Map<string, Quota>();
  for (const text of texts) {
    // An owner's name may have a colon in it, and no key or value has.
    const at = text.lastIndexOf(":");
    const owner = text.slice(0, Math.max(0, at));
    if (at === 0) throw new UsageError(`${flag} ${JSON.stringify(text)} names no owner: leave out ":" for all`);
    let quota = (at < 0 ? all : owners.get(owner)) ?? {};
    for (const pair of text.slice(at + 1).split(",")) quota = withPair(flag, quota, pair);
    if (at < 0) all = quota;
    else owners.set(owner, quota);
  }
  return { all, owners };
}

function withPair(flag: string, quota: Quota, pair: string): Quota {
  const [word = "", ...rest] = pair.split("=");
  const value = rest.join("=");
  const key = parseWord(flag, word, KEYS);
  const named = `${flag} ${key}`;
  if (value === "") throw new UsageError(`${named} has no value; give ${key}=VALUE`);
  if (key === "jobs") return { ...quota, jobs: Number(parseCount(named, value, 1)) };
  const kind = KINDS.find((each) => key.startsWith(`${each}-`)) ?? "max";
  const amount = AMOUNTS[key.slice(kind.length + 1)];
  return amount ? { ...quota, [kind]: { ...quota[kind], [amount.name]: amount.read(named, value) } } : quota;
}

function cpusIn(flag: string, text: string): number {
  const { quota, period } = parseCpus(flag, text);
  return Number(quota) / Number(period);
}

function positive(flag: string, text: string, amount: number): number {
  if (amount > 0) return amount;
  throw new UsageError(`${flag} ${text} would let no job start; give more than 0`);
}
