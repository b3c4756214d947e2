import { globSync, readFileSync } from "node:fs";
import { dirname } from "node:path";
import { PassThrough } from "node:stream";
import { create, type DescMessage, ScalarType, toBinary } from "@bufbuild/protobuf";
import * as fc from "fast-check";
import { describe, expect, it } from "vitest";
import { format, type Description } from "../../certs/inspect.ts";
import { formatIssued, type Issued } from "../../certs/issue.ts";
import { ExamineResponse, Job } from "../../proto/generated/jobs/v1/worker.ts";
import { formatRequest, formatSign } from "../commands/certs.ts";
import { formatFindings } from "./findings.ts";
import { describeEnd, formatJob, formatLimits, formatTable } from "./format.ts";
import { messageSchema } from "./json.ts";
import { columns, type Line, rendered, visible, visibleJson } from "./text.ts";

const plain = new PassThrough();
const shown = (lines: readonly Line[]): string => lines.map((line) => `${rendered(line, plain)}\n`).join("");

/** What could write on a terminal, reorder its text, end a line, or not be seen. */
const DANGEROUS = /[\p{Cc}\p{Cf}\p{Cs}\p{Zl}\p{Zp}]/u;
const SAMPLES = [
  "\x1b[2J",
  "a\nstatus: running",
  "\r",
  "\u202e",
  "\u200b",
  "\u2028",
  "\x9b31m",
  "\ufeff",
  "\u{e0041}",
  "\u3164",
  "\t",
];
const hostile = fc.oneof(fc.constantFrom(...SAMPLES), fc.string({ unit: "binary" }), fc.string({ unit: "grapheme" }));

/** A message all of whose fields are set, each text to `text`; of each oneof the field number `choice`. */
function filled(schema: DescMessage, text: string, choice: number): Record<string, unknown> {
  const message = create(schema) as unknown as Record<string, unknown>;
  const chosen = schema.fields.filter(({ oneof }) => !oneof || oneof.fields.length === 1);
  const cases = schema.oneofs.flatMap(({ fields }) =>
    fields.length > 1 ? (fields[choice % fields.length] ?? []) : [],
  );
  for (const field of [...chosen, ...cases]) {
    const one = (kind: typeof field.fieldKind | "scalar", type?: ScalarType, inner?: DescMessage): unknown => {
      if (inner) return filled(inner, text, choice);
      if (kind === "enum") return 1;
      if (type === ScalarType.STRING) return text;
      if (type === ScalarType.BYTES) return Buffer.from(text);
      if (type === ScalarType.BOOL) return true;
      return type === ScalarType.INT64 || type === ScalarType.UINT64 ? 7n : 7;
    };
    const value =
      field.fieldKind === "list"
        ? [one(field.listKind, field.scalar, field.message)]
        : field.fieldKind === "map"
          ? { [text]: one(field.mapKind, field.scalar, field.message) }
          : one(field.fieldKind, field.scalar, field.message);
    if (cases.includes(field) && field.oneof) message[field.oneof.localName] = { case: field.localName, value };
    else message[field.localName] = value;
  }
  return message;
}

function received<Message>(
  type: { decode(bytes: Uint8Array): Message },
  name: string,
  text: string,
  choice: number,
): Message {
  const schema = messageSchema(name);
  return type.decode(toBinary(schema, filled(schema, text, choice) as never));
}

/** What each command writes for people, of answers that have `text` in every field of text that the API has. */
const TEXTS: Readonly<Record<string, (text: string, choice: number) => readonly Line[]>> = {
  query: (text, choice) => formatJob(received(Job, "Job", text, choice)),
  list: (text, choice) => formatTable([received(Job, "Job", text, choice)]),
  "stop and wait": (text, choice) => [describeEnd(received(Job, "Job", text, choice)).words],
  update: (text, choice) => [formatLimits(received(Job, "Job", text, choice))],
  doctor: (text, choice) => {
    const { findings } = received(ExamineResponse, "ExamineResponse", text, choice);
    return formatFindings(
      findings.map(({ area, name, meaning, reason, remedy }) => ({
        area,
        name,
        meaning,
        reason,
        remedy,
        state: "missing",
      })),
    );
  },
  "certs init": (text) =>
    formatIssued([{ name: "ca", crt: text, key: text, certificate: described(text) }] as Issued[]),
  "certs request": (text) => formatRequest({ key: text, csr: text }),
  "certs sign": (text) => formatSign({ crt: text, certificate: described(text) }),
  "certs inspect": (text) => format(described(text)),
};

function described(text: string): Extract<Description, { kind: "certificate" }> {
  const [subject, issuer, serial, fingerprint, notBefore, notAfter] = [text, text, text, text, text, text];
  const names = { subject, issuer, serial, fingerprint, notBefore, notAfter, hosts: [text], usages: [text] };
  return { kind: "certificate", ...names, daysLeft: 1, ca: true, role: "malformed", key: { type: text, bits: 1 } };
}

describe("text that is not ours", () => {
  it.each(Object.entries(TEXTS))("is escaped in what %s writes, and makes no line", (_, format) => {
    const property = fc.property(hostile, fc.nat(6), (text, choice) => {
      const lines = shown(format(`x${text.toWellFormed()}`, choice)).split("\n");
      expect(lines.length).toBe(shown(format("x", choice)).split("\n").length);
      expect(lines.filter((line) => DANGEROUS.test(line))).toEqual([]);
    });
    fc.assert(property, { numRuns: 100 });
  });

  it("has every character that could be dangerous escaped, and those that can be seen as they are", () => {
    for (let code = 0; code < 0x110000; code++) {
      const char = String.fromCodePoint(code);
      if (DANGEROUS.test(visible(char))) throw new Error(`U+${code.toString(16)} passes`);
    }
    expect(visible("x\x1b\x7f\x85\u200b\u2066\u{e0001}\udcff\ud800\n")).toBe(
      "x\\x1b\\x7f\\u0085\\u200b\\u2066\\U000e0001\\xff\\ud800\\n",
    );
    const seen = "printf '%s' {a..z} ~ é 日本 ✓ 😀 नि";
    expect(visible(seen)).toBe(seen);
  });

  it("is the same once its JSON is parsed, which no terminal obeys", () => {
    const property = fc.property(fc.dictionary(hostile, hostile), (value) => {
      const json = visibleJson(JSON.stringify(value, undefined, 2));
      expect(JSON.parse(json)).toEqual(value);
      expect(DANGEROUS.test(json.replaceAll("\n", ""))).toBe(false);
    });
    fc.assert(property);
  });

  it("leaves columns as wide as what is shown of it", () => {
    const rows = [
      ["\x1b", "x"],
      ["日本", "x"],
      ["e\u0301", "x"],
      ["four", "x"],
    ];
    expect(columns(rows).map((line) => rendered(line, plain))).toEqual([
      "\\x1b  x",
      "日本  x",
      "e\u0301     x",
      "four  x",
    ]);
  });
});

const CLI = dirname(import.meta.dirname);

it("nothing writes but output.ts, and nothing colours but text.ts", () => {
  const allowed: Readonly<Record<string, RegExp>> = {
    "tell/output.ts": /process\.stdout\.columns|std(out|err)\.write|CLEAR_LINE/,
    "tell/descriptors.ts": /process\.std(out|err)\b|createWriteStream|writeSync/,
    "tell/text.ts": /\\x1b\[/,
    // The daemon's log, in JSON.
    "daemon/lines.ts": /writeSync/,
  };
  const files = globSync("**/*.ts", { cwd: CLI }).filter((file) => !/test(ing)?\.ts$/.test(file));
  expect(files.length).toBeGreaterThan(20);
  const strays = files.flatMap((file) =>
    readFileSync(`${CLI}/${file}`, "utf8")
      .split("\n")
      .filter((line) =>
        /process\.std|\bconsole\b|writeSync|WriteStream|styleText|\\x1b\[|std(out|err)\.write|_rawDebug/.test(line),
      )
      .filter((line) => !/^\s*(\/?\*|\/\/)/.test(line) && !allowed[file]?.test(line))
      .map((line) => `${file}: ${line.trim()}`),
  );
  expect(strays).toEqual([]);
});
