import { readFileSync, statSync } from "node:fs";
import { JobError, invalid } from "./errors.ts";

/** Who a job runs as. */
export interface Credentials {
  readonly user: string;
  readonly group: string;
  readonly uid: number;
  readonly gid: number;
  readonly groups: readonly number[];
  readonly home: string;
}

interface Accounts {
  readonly stamp: string;
  readonly users: readonly (readonly string[])[];
  readonly groups: readonly (readonly string[])[];
  /** What they were asked for: a host has few users and many starts. */
  readonly known: Map<string, Credentials>;
}

const KNOWN = 1000;
const PASSWD = "/etc/passwd";
const GROUP = "/etc/group";
const ID_MAX = 2 ** 32 - 2; // -1 means "unchanged" to setresuid(2)

const RECHECK_MS = 1000;

let accounts: Accounts | undefined;
let checkedAtMs = 0;

function rows(path: string): string[][] {
  return readFileSync(path, "utf8")
    .split("\n")
    .filter((line) => line.includes(":"))
    .map((line) => line.split(":"));
}

/** passwd(5) and group(5), read again when they change; looked at once a second, not for every start. */
function readAccounts(): Accounts {
  const now = performance.now();
  if (accounts && now - checkedAtMs < RECHECK_MS) return accounts;
  checkedAtMs = now;
  const stamp = [PASSWD, GROUP].map((path) => statSync(path, { throwIfNoEntry: false })?.mtimeMs).join();
  if (accounts?.stamp !== stamp) accounts = { stamp, users: rows(PASSWD), groups: rows(GROUP), known: new Map() };
  return accounts;
}

function idOf(name: string): number | undefined {
  if (!/^\d+$/.test(name)) return undefined;
  const id = Number(name);
  return id <= ID_MAX ? id : undefined;
}

/** The account of a name or number; a number needs no account. Throws `invalid` for an unknown name. */
export function credentialsOf(user: string, group?: string): Credentials {
  const { known } = readAccounts();
  const key = JSON.stringify([user, group]);
  const found = known.get(key) ?? lookUp(user, group);
  if (known.size < KNOWN) known.set(key, found);
  return found;
}

function lookUp(user: string, group?: string): Credentials {
  const { users, groups } = readAccounts();
  const row = users.find(([name]) => name === user) ?? users.find(([, , uid]) => uid === user);
  const uid = idOf(row?.[2] ?? user);
  if (uid === undefined)
    throw invalid("user", `there is no user ${JSON.stringify(user)} on this host`, { stage: "user" });
  const name = row?.[0] ?? String(uid);
  const groupRow =
    group === undefined
      ? undefined
      : (groups.find(([other]) => other === group) ?? groups.find(([, , gid]) => gid === group));
  const gid = group === undefined ? (idOf(row?.[3] ?? "") ?? uid) : idOf(groupRow?.[2] ?? group);
  if (gid === undefined)
    throw invalid("group", `there is no group ${JSON.stringify(group)} on this host`, { stage: "user" });
  const others = groups.filter(([, , , members]) => members?.split(",").includes(name)).map(([, , id]) => Number(id));
  return {
    user: name,
    group: groupRow?.[0] ?? groups.find(([, , id]) => id === String(gid))?.[0] ?? String(gid),
    uid,
    gid,
    groups: group === undefined ? [...new Set([gid, ...others])] : [gid],
    home: row?.[5] ?? "/",
  };
}

/**
 * Who a start may run as: `user`, or the worker's default. A worker that is not root can only be itself.
 * Throws JobError: `invalid`, or `forbidden` for what this worker does not allow.
 */
export function chooseCredentials(
  asked: { readonly user?: string; readonly group?: string },
  worker: { readonly user?: string; readonly allowRoot?: boolean },
): Credentials & { readonly change: boolean } {
  const own = process.getuid?.() ?? 0;
  // A worker that is not root may run under a group that /etc/passwd does not give it, as in a container.
  const group = asked.group ?? (own === 0 ? undefined : String(process.getgid?.()));
  const chosen = credentialsOf(asked.user ?? worker.user ?? (own === 0 ? "nobody" : String(own)), group);
  if (own !== 0 && (chosen.uid !== own || chosen.gid !== process.getgid?.()))
    throw new JobError("forbidden", `user: the worker is not root and runs jobs only as itself (uid ${own})`, {
      field: "user",
    });
  if (own === 0 && (chosen.uid === 0 || chosen.gid === 0) && !worker.allowRoot)
    throw new JobError("forbidden", "user: this worker does not run jobs as root (jobsd --allow-root)", {
      field: "user",
    });
  return { ...chosen, change: own === 0 };
}
