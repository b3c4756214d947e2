/** Says on stderr what is being done, and how long it took: what is slow has to be seen to be. */
export async function step<T>(what: string, body: () => Promise<T>): Promise<T> {
  const began = performance.now();
  const result = await body();
  say(`${what}: ${((performance.now() - began) / 1000).toFixed(1)} s`);
  return result;
}

export function say(line: string): void {
  process.stderr.write(`e2e: ${line}\n`);
}
