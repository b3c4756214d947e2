import * as fc from "fast-check";
import { describe, expect, it, vi } from "vitest";
import { UsageError } from "./parse.ts";
import { type Command, type Given, parse, type Program } from "./program.ts";

const run = (): Promise<number> => Promise.resolve(0);
const commands: readonly Command[] = [
  {
    name: "start",
    about: ["Starts."],
    takesCommand: true,
    flags: [
      { name: "env", short: "e", value: "K=V", about: "set" },
      { name: "memory", value: "SIZE", about: "at most" },
      { name: "detach", short: "d", about: "leave" },
    ],
    run,
  },
  {
    name: "stop",
    alias: "end",
    operands: "<id...>",
    about: ["Stops."],
    flags: [{ name: "now", about: "at once" }],
    run,
  },
  { name: "stream", operands: "<id>", about: ["Streams."], flags: [], run },
  {
    name: "certs sign",
    operands: "<csr>",
    about: ["Signs."],
    offline: true,
    flags: [{ name: "ca", value: "DIR", about: "x" }],
    run,
  },
];
const program: Program = {
  name: "jobsctl",
  version: "1.2.3",
  flags: [{ name: "server", value: "HOST:PORT", about: "where" }],
  commands,
};

function given(...argv: string[]): Given {
  const parsed = parse(program, argv);
  if (!parsed) throw new Error("it asked for help");
  return parsed.given;
}

function complaint(...argv: string[]): string {
  try {
    given(...argv);
  } catch (error) {
    if (error instanceof UsageError) return error.message;
    throw error;
  }
  throw new Error("not refused");
}

describe("a command line", () => {
  it("takes a lone dash for a value, as the word for stdin", () => {
    expect(given("start", "--memory", "-", "-e", "-", "-d").text("memory")).toBe("-");
    expect(given("start", "--memory", "-", "-e", "-", "-d")).toMatchObject({ operands: [] });
    expect(given("start", "--memory", "-", "-e", "-", "-d").list("env")).toEqual(["-"]);
    expect(complaint("start", "--memory", "-d")).toContain("--memory needs a value");
  });

  it("leaves everything after the first -- to the job, word for word", () => {
    const words = ["sh", "-v", "--help", "007", "", "--", "--memory=1"];
    expect(given("start", "-d", "--", ...words)).toMatchObject({ words, operands: [] });
    expect(given("start").words).toEqual([]);
  });

  it("keeps numbers as they are written", () => {
    expect(given("start", "--memory", "1e3").text("memory")).toBe("1e3");
    expect(given("stop", "007", "0x10").operands).toEqual(["007", "0x10"]);
    expect(given("stop", "--now", "007", "1e3").operands).toEqual(["007", "1e3"]);
  });

  it("knows what was given once, often and not at all", () => {
    const start = given("start", "-e", "A=1", "--env=B=2=3", "--env", "C", "-d");
    expect(start.list("env")).toEqual(["A=1", "B=2=3", "C"]);
    expect([start.text("env"), start.text("memory"), start.on("detach")]).toEqual(["C", undefined, true]);
    expect(given("start").on("detach")).toBe(false);
    expect(given("start", "--detach=false").on("detach")).toBe(false);
    expect(given("stop", "a", "--now", "b")).toMatchObject({ operands: ["a", "b"] });
  });

  it.each([
    [["start", "-de", "A=1"], { detach: ["true"], env: ["A=1"] }],
    [["start", "-deA=1"], { detach: ["true"], env: ["A=1"] }],
    [["start", "-eA=1", "-e=B=2", "-e", "C="], { env: ["A=1", "B=2", "C="] }],
    [["start", "-e-x", "--memory=-1"], { env: ["-x"], memory: ["-1"] }],
    [["start", "--memory=a\nb"], { memory: ["a\nb"] }],
    [["-de1", "start"], { detach: ["true"], env: ["1"] }],
  ])("%j is read as getopt does", (argv, values) => {
    const start = given(...argv);
    expect(Object.fromEntries(Object.keys(values).map((name) => [name, start.list(name)]))).toEqual(values);
    expect(start.operands).toEqual([]);
  });

  it("has operands behind -- where no job's command stands there", () => {
    expect(given("stop", "--now", "--", "-x", "--help", "--").operands).toEqual(["-x", "--help", "--"]);
    expect(complaint("stream", "a", "--", "b")).toMatch(/^jobsctl stream takes no "b"$/);
  });

  it("means the same whichever way its flags are written, and in whichever order with its operands", () => {
    const value = fc.string({ minLength: 1, unit: "grapheme" }).filter((text) => !text.startsWith("-"));
    const writings = (text: string): string[][] => [
      ["--env", text],
      [`--env=${text}`],
      ["-e", text],
      [`-e${text}`],
      [`-e=${text}`],
      ["-de", text],
      [`-de${text}`],
    ];
    const flag = value.chain((text) =>
      fc
        .constantFrom(...writings(text).filter(([word]) => !text.startsWith("=") || !/^-d?e=/.test(word ?? "")))
        .map((words) => ({ text, words })),
    );
    const property = fc.property(fc.array(flag), fc.array(value), (flags, words) => {
      const start = given("start", ...flags.flatMap((each) => each.words), "--", ...words);
      expect(start.list("env")).toEqual(flags.map(({ text }) => text));
      expect(start.words).toEqual(words);
    });
    fc.assert(property);
    const stops = fc.property(fc.shuffledSubarray(["a", "b", "--now", "c"], { minLength: 4 }), (words) => {
      expect(given("stop", ...words).operands).toEqual(words.filter((word) => word !== "--now"));
    });
    fc.assert(stops);
  });

  it("is understood or refused, whatever its words are", () => {
    const word = fc.oneof(
      fc.constantFrom(
        "start",
        "stop",
        "certs",
        "sign",
        "--",
        "-",
        "-d",
        "-e",
        "--env",
        "--memory",
        "--now",
        "help",
        "-h",
        "-v",
      ),
      fc.string({ maxLength: 5 }),
      fc.string({ maxLength: 3 }).map((text) => `-${text}`),
    );
    const log = vi.spyOn(console, "log").mockReturnValue(undefined);
    const property = fc.property(fc.array(word, { maxLength: 6 }), (argv) => {
      try {
        const parsed = parse(program, argv);
        if (!parsed) return;
        for (const text of [...parsed.given.operands, ...parsed.given.words]) expect(argv).toContain(text);
      } catch (error) {
        if (!(error instanceof UsageError)) throw error;
      }
    });
    fc.assert(property, { numRuns: 2000 });
    log.mockRestore();
  });

  it("may have flags in front of the command, aliases, and commands of two words", () => {
    const stop = given("--server", "h:1", "end", "x");
    expect([stop.command, stop.operands, stop.text("server")]).toEqual(["stop", ["x"], "h:1"]);
    const sign = given("certs", "sign", "a.csr", "--ca", "dir");
    expect([sign.command, sign.operands, sign.text("ca")]).toEqual(["certs sign", ["a.csr"], "dir"]);
  });

  it.each([
    ["an unknown flag, with the nearest", ["start", "--memroy", "1"], /^no flag --memroy, did you mean --memory\?/],
    [
      "an unknown flag of the job, with where it goes",
      ["start", "ls", "-la"],
      /^no flag -l; .* jobsctl start \[flags\] -- CMD ARGS/,
    ],
    [
      "a command without --",
      ["start", "ls", "x"],
      /^jobsctl start takes no "ls"; .*: jobsctl start \[flags\] -- ls x$/,
    ],
    ["an unknown command, with the nearest", ["strt"], /^no command "strt", did you mean start\?/],
    ["half an alias", ["en"], /did you mean end\?/],
    ["an unknown command of two words", ["certs", "sing"], /^no command "certs sing", did you mean certs sign\?/],
    ["no command", [], /^no command: start, stop/],
    ["no command after flags", ["--server", "h:1"], /^no command: start/],
    ["a missing operand", ["stop"], /^no <id...>; give jobsctl stop <id...>$/],
    ["an operand too many", ["stream", "a", "b"], /^jobsctl stream takes no "b"$/],
    ["a value that is missing at the end", ["start", "--memory"], /^--memory needs a value: --memory=SIZE/],
    ["a value that looks like a flag", ["start", "--memory", "-1"], /^--memory needs a value/],
    ["a value that is empty", ["stop", "--server=", "a"], /^--server needs a value/],
    ["a negation", ["start", "--no-detach"], /^no flag --no-detach/],
    ["an empty value that stands alone", ["stop", "--server", "", "a"], /^--server needs a value/],
    ["the program's version where a command is", ["start", "-v", "/tmp:/tmp", "--", "true"], /^no flag -v; /],
    ["its long form", ["stop", "a", "--version"], /^no flag --version/],
    ["an unknown letter behind a known one", ["start", "-dx"], /^no flag -x/],
    ["a letter that is a number", ["stop", "-9", "a"], /^no flag -9/],
    ["a flag that is no flag of the program's", ["--bogus"], /^no flag --bogus/],
    ["a flag of Node's", ["start", "--env-file", "f", "--", "true"], /^no flag --env-file/],
    [
      "a value for a flag that has none",
      ["start", "--detach=maybe"],
      /^--detach takes no value other than true and false/,
    ],
    ["a flag of other commands", ["certs", "sign", "x", "--server", "y"], /^no flag --server/],
  ])("is refused for %s", (_, argv, message) => {
    expect(complaint(...argv)).toMatch(message);
  });

  it.each([
    ["--help"],
    ["-h"],
    ["help"],
    ["start", "--help"],
    ["help", "certs", "sign"],
    ["help", "start", "--"],
    ["stop", "-h"],
    ["--version"],
  ])("asks for help with %s, which is on stdout", (...argv) => {
    const log = vi.spyOn(console, "log").mockReturnValue(undefined);
    expect(parse(program, argv)).toBeUndefined();
    const right = argv[0] === "--version" ? "jobsctl, 1.2.3" : expect.stringContaining("Usage");
    expect(log.mock.calls).toEqual([[right]]);
    log.mockRestore();
  });

  it("of a program without commands has flags only", () => {
    const single: Program = {
      name: "jobsd",
      version: "1",
      flags: [],
      commands: [{ name: "", about: ["Serves."], flags: [{ name: "listen", value: "A", about: "x" }], run }],
    };
    expect(parse(single, ["--listen", "h:1"])?.given.text("listen")).toBe("h:1");
    expect(() => parse(single, ["x"])).toThrow('jobsd takes no "x"');
    expect(() => parse(single, ["--lisen", "x"])).toThrow("did you mean --listen?");
  });
});
