import { reasonOf } from "../../os/errno.ts";
import type { UidRange, WorkerOptions } from "../model/options.ts";
import { formatRange, rangeOf } from "../system/uids.ts";
import { checkRules, chooseCredentials, groupNames } from "../system/users.ts";
import type { Finding } from "./finding.ts";

/** The options of a worker that say who jobs run as. */
export type Who = Partial<Pick<WorkerOptions, "user" | "jobUids" | "allowUsers" | "allowGroups" | "allowRoot">>;

/** Findings about who jobs run as, and whom a start may name. A worker that is not root gives no choice: userFinding(). */
export function whoFindings(options: Who): Finding[] {
  if (process.getuid?.() !== 0) return [];
  const row = { area: "user", name: "default" } as const;
  try {
    checkRules(options);
    const range = rangeOf(options);
    return [{ ...row, ...(range ? ownUid(range) : commonUser(options)) }, choice(options)];
  } catch (error) {
    const remedy = "correct the flag that this names; see jobsd --help";
    return [{ ...row, state: "missing", meaning: "no daemon starts", reason: reasonOf(error), remedy }];
  }
}

function ownUid(range: UidRange): Pick<Finding, "state" | "meaning"> {
  return { state: "enforced", meaning: `each job has a uid and a gid of its own, of ${formatRange(range)}` };
}

function commonUser(options: Who): Omit<Finding, "area" | "name"> {
  const { user, groups } = chooseCredentials({}, options);
  return {
    state: "limited",
    meaning: `jobs run as ${user}, with the groups ${groupNames(groups).join(", ")}`,
    reason: "jobs that have a user in common can change each other's files",
    remedy: "leave out jobsd --user, and each job has a uid of its own",
  };
}

function choice({ user, allowUsers = [], allowGroups = [], allowRoot = false }: Who): Finding {
  const users = [...new Set([...(user === undefined ? [] : [user]), ...allowUsers, ...(allowRoot ? ["root"] : [])])];
  const groups = [...allowGroups, ...(allowRoot ? ["root"] : [])];
  const whom = users.length === 0 ? "no user" : `${users.join(", ")}, with their own groups`;
  const which = groups.length === 0 ? "" : `; and the groups ${groups.join(", ")}`;
  return { area: "user", name: "choice", state: "enforced", meaning: `a start may name ${whom}${which}` };
}
