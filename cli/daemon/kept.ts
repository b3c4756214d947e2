import { readdirSync, readlinkSync, realpathSync, statSync } from "node:fs";
import { basename, dirname, relative, resolve } from "node:path";
import type { WorkerOptions } from "../../src/worker/index.ts";
import type { Told } from "../tell/findings.ts";

/** The paths to keep from jobs of the daemon's own user, so that they reach none of its secret files. */
export interface Place {
  /** A directory that holds nothing but such files, or the file itself. */
  readonly paths: readonly string[];
  /** The directory that holds other files, too, so that the file alone is kept: one that takes its name later is not. */
  readonly shared?: string;
}

/** The kernel follows no more links than that (path_resolution(7)). */
export const MOST_LINKS = 40;
const OF_CERTIFICATES = /\.(key|crt|cer|pem|csr|srl|crl|index)$/;

/**
 * The place of a file that may be renewed, by a new file or a new link under its name, or be there only later. Its
 * directory, and that of each link on the way to it, stands for all files that come to have these names.
 */
export function placeOf(file: string): Place {
  const paths = new Set<string>();
  for (let at = resolve(file), links = 0; ; links++) {
    const directory = dirname(at);
    const own = holdsOnlySecrets(directory, basename(at));
    if (own) paths.add(directory);
    const target = links < MOST_LINKS ? targetOf(at) : undefined;
    if (target === undefined)
      return own ? { paths: [...paths] } : { paths: [...paths, resolve(file)], shared: directory };
    at = resolve(realpathSync(directory), target);
  }
}

/** Returns where a link leads; undefined when the path is not a link, or is not there. */
export function targetOf(path: string): string | undefined {
  try {
    return readlinkSync(path);
  } catch {
    return undefined;
  }
}

/** Names that begin with the file's are those that it has before and after, as a log's older files have. */
function holdsOnlySecrets(directory: string, file: string): boolean {
  if (!statSync(directory, { throwIfNoEntry: false })?.isDirectory()) return false;
  // A volume of Kubernetes has its files in a directory "..2026_11_30", to which its link "..data" leads.
  return readdirSync(directory).every(
    (name) => name.startsWith(file) || name.startsWith("..") || OF_CERTIFICATES.test(name),
  );
}

/** Tells of secrets that a job of the daemon's user can read once they have been renewed while it runs. */
export function sharedFindings(
  files: readonly string[],
  { stateDir, user, allowRoot = false }: Partial<Pick<WorkerOptions, "stateDir" | "user" | "allowRoot">>,
): Told[] {
  const ownJobs = process.getuid?.() !== 0 || allowRoot || user === "root" || Number(user) === 0;
  if (!ownJobs) return [];
  return files.flatMap((file) => {
    const { shared } = placeOf(file);
    // The state directory is hidden whole.
    if (shared === undefined || (stateDir !== undefined && !relative(stateDir, shared).startsWith(".."))) return [];
    return {
      area: "secrets",
      name: basename(file),
      state: "limited",
      meaning: "a job of the daemon's user that runs when this file is renewed can read the new one",
      reason: `${shared} holds other files, too, so that it is not hidden from jobs`,
      remedy: "move it to a directory that holds keys and certificates alone",
    };
  });
}
