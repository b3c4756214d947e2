/** Before what failed is tried again, where no kernel tells when it will work: the first pause. */
export const FIRST_PAUSE_MS = 100;
const LONGEST_PAUSE_MS = 10_000;

/** The pause after one of so many ms. */
export function longer(pauseMs: number): number {
  return Math.min(pauseMs * 2, LONGEST_PAUSE_MS);
}
