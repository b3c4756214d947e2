import { hash } from "node:crypto";
import { mkdirSync, readdirSync, readFileSync, rmdirSync, writeFileSync } from "node:fs";
import { basename, dirname, join } from "node:path";
import { contentOf } from "../../os/proc.ts";
import { codeOf } from "../../os/errno.ts";
import type { Setting } from "../limits/setting.ts";
import { JobError, quoted } from "../model/errors.ts";
import { refusal } from "../model/failure.ts";
import { limitGroup } from "./group.ts";
import { enable, type Hierarchy } from "./hierarchy.ts";

/* Groups of owners: where an owner's jobs share limits, their groups are in one that has these. */

type Group = Extract<Hierarchy, { kind: "cgroup2" }>;

/** In no job's id; and core files of a group begin with a controller's name. */
const MARK = "@";
const MAX_NAME = 255;

/** Returns the name of an owner's group: of no other owner, and of no job. */
export function ownerGroupName(owner: string): string {
  const name = owner.isWellFormed() ? MARK + encodeURIComponent(owner) : "";
  return name !== "" && name.length <= MAX_NAME
    ? name
    : `${MARK}${MARK}${hash("sha256", Buffer.from(owner, "utf16le"))}`;
}

export function isOwnerGroup(path: string): boolean {
  return basename(path).startsWith(MARK);
}

/** Returns the owners' groups in those of `groups` that are there. */
export function ownerGroupsIn(groups: readonly string[]): string[] {
  return groups.flatMap((path) =>
    readdirSync(path, { withFileTypes: true })
      .filter((each) => each.isDirectory() && isOwnerGroup(each.name))
      .map(({ name }) => join(path, name)),
  );
}

/** The groups of the owners whose jobs share limits. Disposing removes those that are empty. */
export interface OwnerGroups extends Disposable {
  /**
   * Returns the place of an owner's next job: a group with these limits, which is made if it is not there. Throws JobError:
   * `unsupported` for a limit that the kernel refuses, `exhausted` where the owner's jobs have more memory than it allows.
   */
  enter(owner: string, settings: readonly Setting[]): Hierarchy;
  /** Gives a group that has jobs these limits, as far as these allow. */
  adopt(path: string, settings: readonly Setting[]): void;
  /** Counts the jobs in an owner's group. Groups of other kinds are not counted. */
  hold(jobGroup: string | undefined): void;
  /** The group of the job is gone; that of its owner goes with the last one, unless `enter` has just returned it. */
  free(jobGroup: string | undefined): void;
  /** Removes a group that `enter` returned, if no job is in it. */
  leave(path: string): void;
}

/** The limits of an owner's group, and what their files have where there is none. */
const FILES = { "memory.max": "max", "cpu.max": "max 100000", "pids.max": "max" } as const;

export function openOwnerGroups(hierarchy: Hierarchy, warn: (message: string, facts: object) => void): OwnerGroups {
  const jobs = new Map<string, number>();
  /** The groups that are ready for jobs, with the limits that were written. */
  const ready = new Map<string, { readonly group: Group; readonly limits: string }>();
  let entered = "";

  function remove(path: string): void {
    if ((jobs.get(path) ?? 0) > 0) return;
    jobs.delete(path);
    ready.delete(path);
    try {
      rmdirSync(path);
    } catch {
      // Something is in it yet, or it is gone: the next daemon looks again.
    }
  }

  return {
    enter(owner, settings) {
      if (hierarchy.kind === "none") return hierarchy;
      const path = join(hierarchy.path, ownerGroupName(owner));
      entered = path;
      const found = ready.get(path);
      const limits = settings.map(({ file, value }) => `${file}=${value}`).join();
      if (found?.limits === limits) return found.group;
      try {
        const group = groupWith(path, owner, settings);
        ready.set(path, { group, limits });
        return group;
      } catch (error) {
        remove(path);
        throw refusal(error);
      }
    },
    adopt(path, settings) {
      ready.delete(path);
      if (relimit(path, settings)) return;
      warn("an owner's jobs have more memory than the quota allows: they keep it, and no other one starts", { path });
    },
    hold(jobGroup) {
      const path = dirname(jobGroup ?? "");
      if (isOwnerGroup(path)) jobs.set(path, (jobs.get(path) ?? 0) + 1);
    },
    free(jobGroup) {
      const path = dirname(jobGroup ?? "");
      if (!isOwnerGroup(path)) return;
      jobs.set(path, (jobs.get(path) ?? 1) - 1);
      if (path !== entered) remove(path);
    },
    leave(path) {
      if (!isOwnerGroup(path)) return;
      if (path === entered) entered = "";
      remove(path);
    },
    [Symbol.dispose]() {
      for (const path of new Set([...jobs.keys(), ...ready.keys()])) remove(path);
    },
  };
}

/** Makes a group with these limits, or gives them to one that is there. Throws what the kernel refuses. */
function groupWith(path: string, owner: string, settings: readonly Setting[]): Group {
  if (make(path)) limitGroup(path, settings);
  else if (!relimit(path, settings)) throw overfull(owner);
  return { kind: "cgroup2", path, controllers: enable(path) };
}

/** Returns false for a group that is there already. */
function make(path: string): boolean {
  try {
    mkdirSync(path);
    return true;
  } catch (error) {
    if (codeOf(error) === "EEXIST") return false;
    throw error;
  }
}

/**
 * Gives a group that has jobs other limits. Returns false where its jobs have more memory than the new one: the kernel would
 * kill some of them. Throws JobError for a limit that the kernel refuses.
 */
function relimit(path: string, settings: readonly Setting[]): boolean {
  const wanted = new Map<string, string>(Object.entries(FILES));
  for (const { file, value } of settings) wanted.set(file, value);
  const memory = Number(wanted.get("memory.max"));
  const fits = !(Number(contentOf(join(path, "memory.current")) ?? 0) > memory);
  if (!fits) wanted.delete("memory.max");
  for (const [file, value] of wanted) {
    const setting = settings.find((each) => each.file === file);
    // A file that is not there has no limit that could be lifted.
    if (setting) limitGroup(path, [setting]);
    else if (contentOf(join(path, file)) !== undefined) writeFileSync(join(path, file), value);
  }
  return fits;
}

function overfull(owner: string): JobError {
  const message = `the jobs of ${quoted(owner)} have more memory than the quota allows`;
  return new JobError("exhausted", `${message}: wait until some of them have ended`, {
    facts: { field: "sum-memory" },
  });
}

/** How often the memory of a group itself was full, whatever groups are below it; 0 where nothing counts that. */
export function timesFull(path: string | undefined): number {
  if (path === undefined || !isOwnerGroup(path)) return 0;
  try {
    const [, count = 0] = /^oom (\d+)$/m.exec(readFileSync(join(path, "memory.events.local"), "utf8")) ?? [];
    return Number(count);
  } catch {
    return 0;
  }
}
