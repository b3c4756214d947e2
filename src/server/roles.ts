import { type Role, ROLES as ANYONE } from "../x509/role.ts";

const WRITERS: readonly Role[] = ["writer", "admin"];

/** Each method's path, and the roles that may call it. A method that is not here is denied. */
const ROLES: ReadonlyMap<string, readonly Role[]> = new Map([
  ["/jobs.v1.WorkerService/Start", WRITERS],
  ["/jobs.v1.WorkerService/Stop", WRITERS],
  ["/jobs.v1.WorkerService/Update", WRITERS],
  ["/jobs.v1.WorkerService/Remove", WRITERS],
  ["/jobs.v1.WorkerService/Prune", WRITERS],
  ["/jobs.v1.WorkerService/Query", ANYONE],
  ["/jobs.v1.WorkerService/Stream", ANYONE],
  ["/jobs.v1.WorkerService/List", ANYONE],
  ["/jobs.v1.WorkerService/Wait", ANYONE],
  ["/jobs.v1.WorkerService/Stats", ANYONE],
  ["/jobs.v1.WorkerService/Examine", ANYONE],
  ["/grpc.health.v1.Health/Check", ANYONE],
  ["/grpc.health.v1.Health/Watch", ANYONE],
  ["/grpc.health.v1.Health/List", ANYONE],
  ["/grpc.reflection.v1.ServerReflection/ServerReflectionInfo", ANYONE],
  ["/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo", ANYONE],
]);

/** Returns the roles that may call a method; an unknown method has none. */
export function rolesOf(path: string): readonly Role[] {
  return ROLES.get(path) ?? [];
}

/** The paths of all methods that somebody may call. */
export const METHODS: ReadonlySet<string> = new Set(ROLES.keys());

/**
 * Tells whether a method must not run without a record. A stop may run: otherwise no job could be ended that has filled
 * the disk.
 */
export function needsRecord(path: string): boolean {
  return mutates(path) && path !== "/jobs.v1.WorkerService/Stop";
}

const LONG: ReadonlySet<string> = new Set(["/jobs.v1.WorkerService/Start", "/jobs.v1.WorkerService/Update"]);

/** Tells whether a method's request may have a program's arguments and variables, or as many limits. */
export function takesLong(path: string): boolean {
  return LONG.has(path);
}

/** Tells whether a method changes something: then no reader may call it. */
export function mutates(path: string): boolean {
  return !rolesOf(path).includes("reader");
}
