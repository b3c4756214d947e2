import type { DatabaseSync } from "node:sqlite";

/** Where ended jobs' logs are, in the journal. */
export interface LogRecords {
  /** The ids of those that are here, in whole or in part, oldest first. */
  here(): string[];
  /** Not in the archive. */
  isHere(id: string): boolean;
  isArchived(id: string): boolean;
  archived(id: string): void;
  /** Nothing of it is on this disk. */
  removed(id: string): void;
}

export function logRecords(database: DatabaseSync): LogRecords {
  const here = database.prepare(
    "SELECT id FROM jobs WHERE log IN ('kept', 'compressed') OR (log = 'archived' AND log_bytes IS NOT 0) ORDER BY seq",
  );
  const isHere = database.prepare("SELECT 1 FROM jobs WHERE id = ? AND log IN ('kept', 'compressed')");
  const isArchived = database.prepare("SELECT 1 FROM jobs WHERE id = ? AND log = 'archived'");
  const archived = database.prepare("UPDATE jobs SET log = 'archived' WHERE id = ?");
  const removed = database.prepare(
    "UPDATE jobs SET log_bytes = 0, log = CASE log WHEN 'archived' THEN log ELSE 'pruned' END WHERE id = ?",
  );
  return {
    here: () => here.all().map(({ id }) => String(id)),
    isHere: (id) => isHere.get(id) !== undefined,
    isArchived: (id) => isArchived.get(id) !== undefined,
    archived: (id) => void archived.run(id),
    removed: (id) => void removed.run(id),
  };
}
