import type { UidRange, WorkerOptions } from "../../src/worker/index.ts";
import { UsageError } from "../line/parse.ts";
import { type Given, optional } from "../line/program.ts";
import type { Setting } from "./config.ts";

/** The daemon's flags for who jobs run as. */
export const whoFlags: readonly Setting[] = [
  { name: "user", value: "USER", about: "default user for jobs whose start names none, instead of a uid for each job" },
  { name: "job-uids", value: "FIRST-LAST", about: "range of the uids for jobs, 2100000000-2100065535 when not given" },
  {
    name: "allow-user",
    value: "LIST",
    about: "users that a start may name: names, numbers, 2000-2999; repeatable",
    list: true,
    reloads: true,
  },
  {
    name: "allow-group",
    value: "LIST",
    about: "groups that a start may name, beside those of its user; repeatable",
    list: true,
    reloads: true,
  },
  { name: "allow-root", about: "a start may name the user root and root's group", reloads: true },
];

type Who = Pick<WorkerOptions, "user" | "jobUids" | "allowUsers" | "allowGroups" | "allowRoot">;

/** Returns the options that these flags give. Throws UsageError. */
export function whoOptions(given: Given): Who {
  const user = given.text("user");
  const jobUids = optional(given, "job-uids", parseUids);
  const [allowUsers, allowGroups] = [namesOf(given, "allow-user"), namesOf(given, "allow-group")];
  return {
    allowRoot: given.on("allow-root"),
    allowUsers,
    allowGroups,
    ...(user && { user }),
    ...(jobUids && { jobUids }),
  };
}

/** Returns the names that a repeatable flag lists. */
export function namesOf(given: Given, flag: string): string[] {
  return given
    .list(flag)
    .flatMap((list) => list.split(","))
    .filter(Boolean);
}

const UID_MAX = 2 ** 32 - 2;

function parseUids(flag: string, text: string): UidRange {
  const [, first, last] = /^(\d{1,10})-(\d{1,10})$/.exec(text) ?? [];
  const range = { first: Number(first), last: Number(last) };
  if (range.first >= 1 && range.first <= range.last && range.last <= UID_MAX) return range;
  throw new UsageError(`${flag} ${JSON.stringify(text)} is not a range of uids; give 2100000000-2100065535`);
}
