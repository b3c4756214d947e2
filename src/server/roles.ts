import type { Role } from "../x509/role.ts";

const ANYONE: readonly Role[] = ["reader", "writer"];
const WRITERS: readonly Role[] = ["writer"];

/** Who may call what: each method's path and its roles. What is not here is denied. */
const ROLES: ReadonlyMap<string, readonly Role[]> = new Map([
  ["/jobs.v1.WorkerService/Start", WRITERS],
  ["/jobs.v1.WorkerService/Stop", WRITERS],
  ["/jobs.v1.WorkerService/Update", WRITERS],
  ["/jobs.v1.WorkerService/Query", ANYONE],
  ["/jobs.v1.WorkerService/Stream", ANYONE],
  ["/jobs.v1.WorkerService/List", ANYONE],
  ["/jobs.v1.WorkerService/Wait", ANYONE],
  ["/jobs.v1.WorkerService/Stats", ANYONE],
  ["/jobs.v1.WorkerService/Examine", ANYONE],
  ["/grpc.health.v1.Health/Check", ANYONE],
  ["/grpc.health.v1.Health/Watch", ANYONE],
]);

/** The roles that may call a method, none when nobody knows it. */
export function rolesOf(path: string): readonly Role[] {
  return ROLES.get(path) ?? [];
}

/** Every method that someone may call. */
export const METHODS: ReadonlySet<string> = new Set(ROLES.keys());

/**
 * A method that is not to happen unless it is recorded. A stop may: it takes nothing and gives room, and could not end
 * what has filled the disk.
 */
export function needsRecord(path: string): boolean {
  return mutates(path) && path !== "/jobs.v1.WorkerService/Stop";
}

/** A method that changes something: no reader may call it. */
export function mutates(path: string): boolean {
  return !rolesOf(path).includes("reader");
}
