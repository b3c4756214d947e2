import { invalid } from "./errors.ts";

/*
 * The types of what a program gives the worker. TypeScript sees to them; a program in JavaScript would be told by the database,
 * or by nobody.
 */

/** Throws JobError `invalid`, naming the field, where a value has another type. */
export type Check = (field: string, value: unknown) => void;

const is =
  (expected: string, holds: (value: unknown) => boolean): Check =>
  (field, value) => {
    if (!holds(value)) throw invalid(field, `must be ${expected}, and is ${kindOf(value)}`);
  };

function kindOf(value: unknown): string {
  if (value === undefined) return "absent";
  if (value === null) return "null";
  if (typeof value === "number") return String(value);
  if (value instanceof Map) return "a Map";
  return Array.isArray(value) ? "an array" : /^[aeiou]/.test(typeof value) ? `an ${typeof value}` : `a ${typeof value}`;
}

export const text = is("a string", (value) => typeof value === "string");
export const truth = is("true or false", (value) => typeof value === "boolean");
export const callback = is("a function", (value) => typeof value === "function");
export const abortSignal = is("an AbortSignal", (value) => value instanceof AbortSignal);
/** Any number. What is out of its range, as NaN is of each, is told of by whoever knows the range. */
export const number = is("a number", (value) => typeof value === "number");
export const amount = is("a number", (value) => typeof value === "number" && !Number.isNaN(value));
/** A number of things, bytes or milliseconds. */
export const whole = is("a whole number of 0 or more", (value) => Number.isSafeInteger(value) && Number(value) >= 0);
export const integer = is("a whole number", Number.isSafeInteger);
export const bigint = is("a bigint, as in 64n", (value) => typeof value === "bigint");

/** Returns the value, which is an object and neither an array nor a Map. */
function objectIn(field: string, value: unknown): Readonly<Record<string, unknown>> {
  if (isObject(value)) return value;
  throw invalid(field, `must be an object, and is ${kindOf(value)}`);
}

function isObject(value: unknown): value is Readonly<Record<string, unknown>> {
  return typeof value === "object" && value !== null && !Array.isArray(value) && !(value instanceof Map);
}

export const oneOf = (...words: readonly string[]): Check =>
  is(`one of ${words.join(", ")}`, (value) => typeof value === "string" && words.includes(value));

export const listOf =
  (check: Check): Check =>
  (field, value) => {
    if (!Array.isArray(value)) throw invalid(field, `must be an array, and is ${kindOf(value)}`);
    for (const [i, each] of value.entries()) check(`${field}[${i}]`, each);
  };

/** A Map of strings to values that the check knows. */
export const mapOf =
  (check: Check): Check =>
  (field, value) => {
    if (!(value instanceof Map)) throw invalid(field, `must be a Map, and is ${kindOf(value)}`);
    for (const [key, each] of value) {
      if (typeof key !== "string") throw invalid(field, `has a key that is no string, but ${kindOf(key)}`);
      check(`${field} ${JSON.stringify(key)}`, each);
    }
  };
export const texts = mapOf(text);

export const recordOf =
  (check: Check): Check =>
  (field, value) => {
    for (const [key, each] of Object.entries(objectIn(field, value))) check(`${field}.${key}`, each);
  };

/** Checks of an object's fields. Those of a type are all there: a field that the type gets has to get a check, too. */
type Fields<Type> = { readonly [Field in keyof Required<Type>]: Check };

/**
 * An object with these fields, of which those that `needed` names may not be absent. Others are refused by their names, or
 * are left to whoever reads them where `open`.
 */
export function shape<Type>(
  fields: Fields<Type>,
  needed: readonly (keyof Type & string)[] = [],
  { open = false } = {},
): Check {
  const known = new Map<string, Check>(Object.entries(fields));
  return (field, value) => {
    const given = objectIn(field || "what is given", value);
    const path = (name: string): string => (field === "" ? name : `${field}.${name}`);
    for (const name of needed) known.get(name)?.(path(name), given[name]);
    for (const name of Object.keys(given)) {
      const check = known.get(name);
      if (given[name] !== undefined && check) check(path(name), given[name]);
      else if (!check && !open) throw invalid(path(name), `is not known; there are ${[...known.keys()].join(", ")}`);
    }
  };
}

/** An object of one of several shapes: `kind` says which. */
export function kinds(shapes: Readonly<Record<string, Check>>): Check {
  const kind = oneOf(...Object.keys(shapes));
  return (field, value) => {
    const { kind: named } = objectIn(field, value);
    kind(`${field}.kind`, named);
    shapes[String(named)]?.(field, value);
  };
}
