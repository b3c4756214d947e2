import { existsSync, type FSWatcher, watch } from "node:fs";
import { basename, isAbsolute, join, resolve } from "node:path";
import { MOST_LINKS, targetOf } from "./kept.ts";

/** How long files have to be quiet until a change of them is over: several are often replaced one after another. */
const QUIET_MS = 200;

/**
 * Calls `changed` when one of these files has another content or is another file: written in place, replaced by a rename,
 * or behind a symbolic link, at any place of its path, that leads elsewhere now. Changes without a pause are one. A file
 * need not be there yet.
 *
 * @param failed is told why inotify(7) does not tell of the changes of a directory
 */
export function watchFiles(
  files: readonly string[],
  changed: () => void,
  failed: (directory: string, error: unknown) => void,
): Disposable {
  let watchers: readonly FSWatcher[] = [];
  let quiet: NodeJS.Timeout | undefined;

  function heard(): void {
    clearTimeout(quiet);
    quiet = setTimeout(() => {
      // Directories are followed before the files are read, so that no later change is missed.
      follow();
      changed();
    }, QUIET_MS).unref();
  }

  /** Watches the directories that the paths lead through now, and no others. */
  function follow(): void {
    for (const watcher of watchers) watcher.close();
    watchers = [...namesByDirectory(files)].flatMap(([directory, names]) => {
      try {
        // The directory's own name comes when it was moved or removed itself.
        const watcher = watch(directory, { persistent: false }, (_, name) => {
          if (name === null || names.has(name) || name === basename(directory)) heard();
        });
        return watcher.on("error", (error) => failed(directory, error));
      } catch (error) {
        failed(directory, error);
        return [];
      }
    });
  }

  follow();
  return {
    [Symbol.dispose]() {
      clearTimeout(quiet);
      for (const watcher of watchers) watcher.close();
    },
  };
}

/** Returns the names whose entries decide which files the paths name, by the directories that hold these. */
function namesByDirectory(files: readonly string[]): ReadonlyMap<string, ReadonlySet<string>> {
  const found = new Map<string, Set<string>>();
  for (const file of files)
    for (const { directory, name } of stepsTo("/", partsOf(resolve(file))))
      found.set(directory, (found.get(directory) ?? new Set()).add(name));
  return found;
}

interface Step {
  readonly directory: string;
  readonly name: string;
}

/** Finds each symbolic link on the way to a file, and then the file, or what is missing of the way. */
function* stepsTo(directory: string, [name, ...rest]: readonly string[], links = 0): Generator<Step> {
  if (name === undefined || links > MOST_LINKS) return;
  const path = join(directory, name);
  const target = targetOf(path);
  if (target === undefined && rest.length > 0 && existsSync(path)) {
    yield* stepsTo(path, rest, links);
    return;
  }
  yield { directory, name };
  if (target !== undefined)
    yield* stepsTo(isAbsolute(target) ? "/" : directory, [...partsOf(target), ...rest], links + 1);
}

function partsOf(path: string): string[] {
  return path.split("/").filter(Boolean);
}
