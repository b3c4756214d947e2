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
  name: "jobs",
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
      /^no flag -l; .* jobs start \[flags\] -- CMD ARGS/,
    ],
    ["a command without --", ["start", "ls", "x"], /^jobs start takes no "ls"; .*: jobs start \[flags\] -- ls x$/],
    ["an unknown command, with the nearest", ["strt"], /^no command "strt", did you mean start\?/],
    ["half an alias", ["en"], /did you mean end\?/],
    ["an unknown command of two words", ["certs", "sing"], /^no command "certs sing", did you mean certs sign\?/],
    ["no command", [], /^no command: start, stop/],
    ["no command after flags", ["--server", "h:1"], /^no command: start/],
    ["a missing operand", ["stop"], /^no <id...>: jobs stop <id...> is right$/],
    ["an operand too many", ["stream", "a", "b"], /^jobs stream takes no "b"$/],
    ["words after -- that nobody takes", ["stop", "a", "--", "b"], /^stop takes nothing after --$/],
    ["a value that is missing at the end", ["start", "--memory"], /^--memory needs a value: --memory=SIZE/],
    ["a value that looks like a flag", ["start", "--memory", "-1"], /^--memory needs a value/],
    ["a value that is empty", ["stop", "--server=", "a"], /^--server needs a value/],
    ["the negation of a value", ["start", "--no-memory"], /^--memory needs a value/],
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
    ["stop", "-h"],
    ["--version"],
  ])("asks for help with %s, which is on stdout", (...argv) => {
    const log = vi.spyOn(console, "log").mockReturnValue(undefined);
    expect(parse(program, argv)).toBeUndefined();
    expect(log).toHaveBeenCalledOnce();
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
