/** Whether a suite noticed what was broken. */
export interface Verdict {
  readonly noticed: boolean;
  /** The test that failed, or why nothing was learnt. */
  readonly by: string;
}

/** What vitest's JSON reporter writes, as far as it is looked at. */
export interface Report {
  readonly testResults: readonly { readonly message: string; readonly assertionResults: readonly TestResult[] }[];
}

interface TestResult {
  readonly fullName: string;
  readonly status: string;
  readonly failureMessages: readonly string[];
}

/**
 * Returns what the run of a suite has shown. It has noticed the sabotage if a test whose name has `tests` in it failed,
 * whatever the error: a promise that is broken may also end in a time-out, or in what a clean-up throws. That a suite did
 * not load or a hook of the whole suite failed fails no test, and shows nothing.
 */
export function verdictOf({ testResults }: Report, tests: string): Verdict {
  const all = testResults.flatMap(({ assertionResults }) => assertionResults);
  const guards = all.filter(({ fullName }) => fullName.includes(tests));
  const failed = guards.find(({ status }) => status === "failed");
  if (failed) return { noticed: true, by: `${failed.fullName}: ${firstLine(failed.failureMessages[0] ?? "")}` };
  const passed = guards.some(({ status }) => status === "passed");
  if (passed) return { noticed: false, by: "all passed" };
  const why = testResults.find(({ message }) => message !== "")?.message;
  const none = `no test named ${JSON.stringify(tests)} was run`;
  return { noticed: false, by: why === undefined ? none : `${none}: ${firstLine(why)}` };
}

function firstLine(text: string): string {
  return text.split("\n")[0] ?? "";
}
