import { existsSync, readFileSync, statSync } from "node:fs";
import { forbidden, invalid, quoted } from "../model/errors.ts";
import type { WorkerOptions } from "../model/options.ts";

/** The user and the groups that a job runs as. */
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
  /** Answers that were given before: a host has few users and many starts. */
  readonly known: Map<string, Credentials>;
}

const KNOWN = 1000;
const PASSWD = "/etc/passwd";
const GROUP = "/etc/group";
const ID_MAX = 2 ** 32 - 2; // -1 means "unchanged" to setresuid(2)

const RECHECK_MS = 1000;

let accounts: Accounts | undefined;
let checkedAtMs = 0;

/** The fields of each line of a file; none where there is no such file. */
export function rows(path: string, separator: string | RegExp = ":"): string[][] {
  if (!existsSync(path)) return [];
  const lines = readFileSync(path, "utf8").split("\n");
  return lines.map((line) => line.split(separator)).filter(({ length }) => length > 1);
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

/** The row of a name, or else of a number, however many zeros that begins with. */
function rowOf(all: Accounts["users"], name: string): readonly string[] | undefined {
  const id = idOf(name);
  return all.find(([other]) => other === name) ?? all.find((row) => id !== undefined && idOf(row[2] ?? "") === id);
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
  const row = rowOf(users, user);
  const uid = idOf(row?.[2] ?? user);
  if (uid === undefined) throw invalid("user", `there is no user ${quoted(user)} on this host`, { stage: "user" });
  const name = row?.[0] ?? String(uid);
  const groupRow = group === undefined ? undefined : rowOf(groups, group);
  const gid = group === undefined ? (idOf(row?.[3] ?? "") ?? uid) : idOf(groupRow?.[2] ?? group);
  if (gid === undefined)
    throw invalid("group", `there is no group ${quoted(group ?? "")} on this host`, { stage: "user" });
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

/** The user that a job runs as; whether the job has to become it, and whether nothing else may run under the uid then. */
export type Chosen = Credentials & { readonly change: boolean; readonly alone?: boolean };

type Rules = Pick<WorkerOptions, "user" | "allowRoot" | "allowUsers" | "allowGroups">;

/**
 * Who a start may run as: the user that it names, or the worker's, or else one with a uid of its own, of `takeUid`. A
 * worker that is not root can only be itself. Throws JobError: `invalid`, or `forbidden` for what this worker does not allow.
 */
export function chooseCredentials(
  asked: { readonly user?: string; readonly group?: string },
  worker: Rules,
  takeUid?: () => number,
): Chosen {
  if (process.getuid?.() !== 0) return itself(asked);
  const named = asked.user ?? worker.user;
  const chosen = named === undefined && takeUid ? stranger(takeUid(), asked.group) : account(named, asked.group);
  if (asked.user !== undefined) checkUser(chosen, worker);
  if (asked.user !== undefined || asked.group !== undefined) checkGroup(chosen, named, worker);
  checkRoot(chosen, asked, worker);
  return chosen;
}

function account(user = "nobody", group?: string): Chosen {
  return { ...credentialsOf(user, group), change: true };
}

/** Returns a user without an account. Where the job has a home, its start says so. */
function stranger(uid: number, group: string | undefined): Chosen {
  const name = String(uid);
  const own = { user: name, group: name, uid, gid: uid, groups: [uid], home: "/" };
  if (group === undefined) return { ...own, change: true, alone: true };
  const { group: groupName, gid, groups } = credentialsOf(name, group);
  return { ...own, group: groupName, gid, groups, change: true, alone: true };
}

/** A worker that is not root may run under a group that /etc/passwd does not give it, as in a container. */
function itself({ user, group }: { readonly user?: string; readonly group?: string }): Chosen {
  const [uid, gid] = [process.getuid?.(), process.getgid?.()];
  const chosen = credentialsOf(user ?? String(uid), group ?? String(gid));
  if (chosen.uid === uid && chosen.gid === gid) return { ...chosen, change: false };
  throw forbidden("user", `the worker is not root and runs jobs only as itself (uid ${uid})`);
}

function checkUser({ user, uid }: Chosen, worker: Rules): void {
  const own = worker.user !== undefined && credentialsOf(worker.user).user === user;
  if (uid === 0 || own || isAmong(worker.allowUsers, user, uid)) return;
  throw forbidden("user", `this worker runs no job as ${user} (jobsd --allow-user ${user})`);
}

function checkGroup({ user, group, gid }: Chosen, named: string | undefined, worker: Rules): void {
  const own =
    named !== undefined && (hasOwnGroup(named) || named === worker.user) && credentialsOf(named).groups.includes(gid);
  if (gid === 0 || own || isAmong(worker.allowGroups, group, gid)) return;
  const whose = named === undefined ? "a uid of its own" : user;
  throw forbidden(
    "group",
    `this worker runs no job of ${whose} with the group ${group} (jobsd --allow-group ${group})`,
  );
}

/** A number without an account has the group of that number, which may be somebody else's: shadow is 42, and nobody's own. */
function hasOwnGroup(user: string): boolean {
  const { users, groups } = readAccounts();
  return rowOf(users, user) !== undefined || rowOf(groups, user) === undefined;
}

/** Root's group gives access to root's files, whoever has it. */
function checkRoot({ user, uid, gid, groups }: Chosen, asked: { readonly group?: string }, worker: Rules): void {
  if (worker.allowRoot || (uid !== 0 && gid !== 0 && !groups.includes(0))) return;
  const what = uid === 0 ? "as root" : `with root's group (0)${gid === 0 ? "" : `, which ${user} has`}`;
  const field = uid !== 0 && gid === 0 && asked.group !== undefined ? "group" : "user";
  throw forbidden(field, `this worker runs no job ${what} (jobsd --allow-root)`);
}

const RANGE = /^(\d+)(?:-(\d+))?$/;

/** A name allows that account alone, also where others have its number. */
function isAmong(allowed: readonly string[] = [], name: string, id: number): boolean {
  return allowed.some((entry) => {
    const [, first, last = first] = RANGE.exec(entry) ?? [];
    return first === undefined ? entry === name : id >= Number(first) && id <= Number(last);
  });
}

/** Throws JobError for what no start could name, and for a user of the worker's as whom it would run no job. */
export function checkRules(rules: Rules): void {
  const { user, allowRoot = false, allowUsers = [], allowGroups = [] } = rules;
  if (user !== undefined) chooseCredentials({ user }, rules);
  for (const [field, entries] of [
    ["allow user", allowUsers],
    ["allow group", allowGroups],
  ] as const)
    for (const entry of entries) checkEntry(field, entry, allowRoot);
}

function checkEntry(field: string, entry: string, allowRoot: boolean): void {
  const [, first, last = first] = RANGE.exec(entry) ?? [];
  if (first !== undefined) {
    if (!(Number(first) <= Number(last) && Number(last) <= ID_MAX))
      throw invalid(field, `${quoted(entry)} is no range; a name, a number or a range as in 2000-2999 is right`);
  } else {
    const { users, groups } = readAccounts();
    const [kind, known] = field === "allow user" ? (["user", users] as const) : (["group", groups] as const);
    if (!known.some(([name]) => name === entry))
      throw invalid(field, `there is no ${kind} ${quoted(entry)} on this host`);
  }
  const isRoot = first === undefined ? entry === "root" : Number(last) === 0;
  if (isRoot && !allowRoot) throw invalid(field, "root is allowed by jobsd --allow-root, and by nothing else");
}

/** Names of groups, and the numbers of those that have none. */
export function groupNames(gids: readonly number[]): string[] {
  const { groups } = readAccounts();
  return gids.map((gid) => groups.find(([, , id]) => id === String(gid))?.[0] ?? String(gid));
}

/** The uids of the accounts that have this group. */
export function uidsOfGroup(gid: number): number[] {
  const { users, groups } = readAccounts();
  const members = new Set(groups.flatMap(([, , id, names]) => (Number(id) === gid ? (names?.split(",") ?? []) : [])));
  const having = users.filter(([name = "", , , first]) => Number(first) === gid || members.has(name));
  return having.map(([, , uid]) => Number(uid));
}

/** An account or a group with a number of this range, in words; undefined when there is none. */
export function accountWithin({ first, last }: { readonly first: number; readonly last: number }): string | undefined {
  const { users, groups } = readAccounts();
  for (const [path, entries] of [
    [PASSWD, users],
    [GROUP, groups],
  ] as const)
    for (const [name, , id] of entries)
      if (Number(id) >= first && Number(id) <= last) return `${path} has ${name} with ${id}`;
  return undefined;
}
