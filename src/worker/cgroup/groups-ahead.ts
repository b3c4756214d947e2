import { mkdirSync, rmdirSync } from "node:fs";
import { join } from "node:path";
import { refusal } from "../model/failure.ts";
import { newId } from "../model/id.ts";
import type { Hierarchy } from "./hierarchy.ts";

/** How many groups wait for a job. */
export const AHEAD = 4;

/** Cgroups for jobs to come, named by the jobs' ids. Some are made ahead, because making one takes 0.1 ms. Disposing removes these. */
export interface GroupsAhead extends Disposable {
  /** The id of a group that is made in `parent`; it sorts behind those before it. Throws JobError when no group can be made. */
  take(parent: Hierarchy): string;
  /**
   * Makes the missing groups, in the parent of the last one if the one before was made there, too. To be called when nobody
   * waits.
   */
  refill(): void;
}

/**
 * Makes ids alone where there is no cgroup v2.
 *
 * @param left is told of a parent in which no group is made ahead any more
 */
export function openGroupsAhead(
  name: string | undefined,
  hierarchy: Hierarchy,
  left: (parent: string) => void = () => {},
): GroupsAhead {
  if (hierarchy.kind === "none") return { take: () => newId(name), refill() {}, [Symbol.dispose]() {} };
  let parent = hierarchy.path;
  let again = true;
  const ready: string[] = [];
  /** Groups in other parents: their ids would sort before those that were taken since. */
  const stale: { readonly parent: string; readonly ids: string[] }[] = [];

  function make(): string {
    const id = newId(name);
    mkdirSync(join(parent, id));
    return id;
  }

  function removeStale(): void {
    for (const each of stale.splice(0)) {
      remove(each.parent, each.ids);
      if (each.parent !== parent) left(each.parent);
    }
  }

  return {
    take(wanted) {
      again = wanted.kind === "none" || wanted.path === parent;
      if (!again && wanted.kind === "cgroup2") {
        stale.push({ parent, ids: ready.splice(0) });
        parent = wanted.path;
      }
      try {
        return ready.shift() ?? make();
      } catch (error) {
        throw refusal(error);
      }
    },
    refill() {
      removeStale();
      if (!again) return;
      try {
        while (ready.length < AHEAD) ready.push(make());
      } catch {
        // The start that needs a group reports why there is none.
      }
    },
    [Symbol.dispose]() {
      removeStale();
      remove(parent, ready.splice(0));
    },
  };
}

function remove(parent: string, ids: readonly string[]): void {
  for (const id of ids) {
    try {
      rmdirSync(join(parent, id));
    } catch {
      // Somebody has removed the group; if not, the next daemon does.
    }
  }
}
