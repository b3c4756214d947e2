/** The first pause between two tries, and the longest. */
export interface Pauses {
  readonly firstMs: number;
  readonly lastMs: number;
}

const PAUSES: Pauses = { firstMs: 100, lastMs: 10_000 };

/**
 * Returns how long to wait, in ms, after so many failures in a row, where no kernel tells when a try will work: twice as long
 * each time. A `chance` from 0 to 1 takes up to half of it away, so that many daemons do not come back at the same moment.
 */
export function pauseAfter(failures: number, { firstMs, lastMs }: Pauses = PAUSES, chance = 1): number {
  return Math.min(firstMs * 2 ** (failures - 1), lastMs) * (0.5 + chance / 2);
}
