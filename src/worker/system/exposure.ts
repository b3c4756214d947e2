import { lstatSync, readFileSync, readdirSync, readlinkSync, type Stats } from "node:fs";
import { dirname, join, resolve } from "node:path";
import { credentialsOf, uidsOfGroup } from "./users.ts";

/** Why users other than root and this process's could change a directory's files, or put another directory in its place. */
export interface Exposure {
  readonly path: string;
  /** The owner of `path`, as in "ada (uid 1000)". */
  readonly owner: string;
  readonly reason: string;
  readonly remedy: string;
}

const GROUP_WRITES = 0o020;
const OTHERS_WRITE = 0o002;
const STICKY = 0o1000;
/** The kernel follows no more links (path_resolution(7)). */
const MOST_LINKS = 40;

/** Looks at the way to a directory, at the directory, and at what lies in it, as far as these exist; changes nothing. */
export function exposureOf(directory: string): Exposure | undefined {
  return exposureOfWay(directory) ?? exposureWithin(directory);
}

/** Looks at each directory and link on the way: neither may be another user's, and no directory open to other users. */
export function exposureOfWay(directory: string): Exposure | undefined {
  const names = directory.split("/");
  for (let at = "/", links = 0; links <= MOST_LINKS;) {
    const stats = lstatSync(at, { throwIfNoEntry: false });
    if (!stats) return undefined;
    if (!isTrusted(stats.uid)) return foreign(at, stats);
    if (stats.isSymbolicLink()) {
      const target = readlinkSync(at);
      names.unshift(...target.split("/"));
      at = target.startsWith("/") ? "/" : dirname(at);
      links++;
      continue;
    }
    const name = names.shift();
    if (name === undefined || !stats.isDirectory()) return undefined;
    // In a directory with the sticky bit users move and remove only what is their own.
    if (name !== "" && !(stats.mode & STICKY) && isOpen(stats)) return writable(at, stats, wayOut(at, stats));
    at = resolve(at, name);
  }
  return undefined;
}

function exposureWithin(directory: string): Exposure | undefined {
  const stats = lstatSync(`${directory}/`, { throwIfNoEntry: false });
  if (!stats) return undefined;
  if (stats.uid !== process.geteuid?.()) return foreign(directory, stats);
  const names = readdirSync(directory);
  // An empty directory can be closed to others before anything lies in it.
  if (names.length > 0 && isOpen(stats)) return writable(directory, stats);
  for (const name of names) {
    const path = join(directory, name);
    const entry = lstatSync(path, { throwIfNoEntry: false });
    if (entry && !isTrusted(entry.uid)) return foreign(path, entry);
    if (entry && (entry.isFile() || entry.isDirectory()) && isOpen(entry)) return writable(path, entry);
  }
  return undefined;
}

function isTrusted(uid: number): boolean {
  return uid === 0 || uid === process.geteuid?.() || isUnmapped(uid);
}

/** In a user namespace the kernel tells one uid, this, for all that have no number there, such as the host's root. */
function isUnmapped(uid: number): boolean {
  const [first, , count] = readFileSync("/proc/self/uid_map", "utf8").trim().split(/\s+/);
  const isInitial = first === "0" && count === "4294967295";
  return !isInitial && uid === Number(readFileSync("/proc/sys/kernel/overflowuid", "utf8"));
}

/** A group whose only members are root and this process's user lets nobody else in. */
function isOpen({ mode, gid }: Stats): boolean {
  if (mode & OTHERS_WRITE) return true;
  return (mode & GROUP_WRITES) !== 0 && uidsOfGroup(gid).some((uid) => !isTrusted(uid));
}

function foreign(path: string, stats: Stats): Exposure {
  const own = nameOf(process.geteuid?.() ?? 0);
  const owner = nameOf(stats.uid);
  return {
    path,
    owner,
    reason: `${path} belongs to ${owner}, and not to the daemon's user, ${own}`,
    remedy: `chown it to ${own}, or name another state directory`,
  };
}

/** The remedies for a directory above the state directory: others may write to it, and not move what is in it. */
function wayOut(path: string, { dev }: Stats): string {
  const isVolume = dev !== lstatSync(dirname(path)).dev;
  return `, or chmod +t ${path}${isVolume ? ", or mount that volume at the state directory itself" : ""}`;
}

function writable(path: string, stats: Stats, more = ""): Exposure {
  return {
    path,
    owner: nameOf(stats.uid),
    reason: `${path} of ${nameOf(stats.uid)} can be written by other users (mode ${(stats.mode & 0o7777).toString(8)})`,
    remedy: `chmod og-w ${path}${more}, or name another state directory`,
  };
}

function nameOf(uid: number): string {
  const { user } = credentialsOf(String(uid));
  return user === String(uid) ? `uid ${uid}` : `${user} (uid ${uid})`;
}
