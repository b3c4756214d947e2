/** One measured figure, what it is compared with in the same run, and its target. */
export interface Row {
  readonly name: string;
  /** Null when it could not be measured; `comparedWith` says why. */
  readonly value: number | null;
  readonly unit: string;
  /** The other figure, in the same unit unless its name says another; null when there is none. */
  readonly comparedWith: string | null;
  /** `value` divided by what it is compared with. */
  readonly ratio: number | null;
  /** Null when the figure has no target. */
  readonly target: Target | null;
}

export interface Target {
  /** Such as "at most 1.0 ms above". */
  readonly text: string;
  readonly met: boolean;
}

/** Makes a row. `comparedWith` is [what, value], in the row's unit. */
export function row(
  name: string,
  value: number,
  unit: string,
  [what, other]: readonly [what: string, value: number],
  target: Target | null = null,
): Row {
  const ratio = other === 0 ? null : value / other;
  return { name, value, unit, comparedWith: `${what}, ${format(other)} ${unit}`, ratio, target };
}

/** The least value that the share `q` (0 to 1) of `values` does not exceed. Throws RangeError when there are none. */
export function quantile(values: readonly number[], q: number): number {
  const value = ascending(values)[Math.max(0, Math.ceil(q * values.length) - 1)];
  if (value === undefined) throw new RangeError("no values");
  return value;
}

/** The value in the middle, or the mean of the two in the middle. Throws RangeError when there are no values. */
export function median(values: readonly number[]): number {
  const sorted = ascending(values);
  const [low, high] = [sorted[Math.floor((sorted.length - 1) / 2)], sorted[Math.floor(sorted.length / 2)]];
  if (low === undefined || high === undefined) throw new RangeError("no values");
  return (low + high) / 2;
}

function ascending(values: readonly number[]): number[] {
  return values.toSorted((a, b) => a - b);
}

/** Formats a number with three significant digits, or more before the point. */
export function format(value: number): string {
  return Math.abs(value) >= 100 ? value.toFixed(0) : value.toPrecision(3);
}

function verdict(target: Target | null): string {
  return target === null ? "" : `${target.met ? "met" : "NOT MET"}: ${target.text}`;
}

/** Formats rows as aligned columns with a heading, for people. */
export function table(rows: readonly Row[]): string {
  const cells = [
    ["", "measured", "compared with", "ratio", "target"],
    ...rows.map(({ name, value, unit, comparedWith, ratio, target }) => [
      name,
      value === null ? "" : `${format(value)} ${unit}`,
      comparedWith ?? "",
      ratio === null ? "" : format(ratio),
      verdict(target),
    ]),
  ];
  const widths = [0, 1, 2, 3, 4].map((column) => Math.max(...cells.map((line) => line[column]?.length ?? 0)));
  return cells
    .map(
      (line) =>
        `${line
          .map((cell, i) => cell.padEnd(widths[i] ?? 0))
          .join("  ")
          .trimEnd()}\n`,
    )
    .join("");
}
