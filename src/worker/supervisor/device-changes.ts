import type { JobError } from "../model/errors.ts";
import { devicesFailure } from "./failure.ts";

/** New device rules of running jobs that the spawner has not answered yet, by their numbers. */
export type DeviceChanges = Map<number, PromiseWithResolvers<void>>;

/** Resolves when the spawner has put the rules in force. Throws JobError. */
export function awaitChange(changes: DeviceChanges, number: number): Promise<void> {
  const change = Promise.withResolvers<void>();
  changes.set(number, change);
  return change.promise;
}

/** Ends the wait for a change; `failed` says where, and with which errno. Returns false for what is no change's number. */
export function settleChange(
  changes: DeviceChanges,
  number: number,
  failed?: { readonly stage: string; readonly errno: string },
): boolean {
  const change = changes.get(number);
  if (failed) change?.reject(devicesFailure(failed.stage, failed.errno));
  else change?.resolve();
  return changes.delete(number);
}

/** Fails all changes, because the spawner that was to make them has ended. */
export function failChanges(changes: DeviceChanges, why: JobError): void {
  for (const change of changes.values()) change.reject(why);
  changes.clear();
}
