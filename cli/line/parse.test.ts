import * as fc from "fast-check";
import { describe, expect, it } from "vitest";
import {
  parseCount,
  parseCpus,
  parseDevice,
  parseDurationMs,
  parseIoMax,
  parseLimitBytes,
  parsePairs,
  parseRate,
  parseRlimit,
  parseSignal,
  parseSizeBytes,
  parseUmask,
  parseWord,
  toDuration,
  UsageError,
} from "./parse.ts";

describe("a duration", () => {
  it.each([
    ["0", 0],
    ["500ms", 500],
    ["10s", 10_000],
    ["1.5m", 90_000],
    ["2h", 7_200_000],
    ["1d", 86_400_000],
    ["1h30m", 5_400_000],
    ["0s", 0],
  ])("%s is %i ms", (text, ms) => {
    expect(parseDurationMs("--grace", text)).toBe(ms);
  });

  it.each(["", "10", "s", "-1s", "1 s", "1w", "1e3s", "10sx", "ten", "99999d"])(
    "%j is refused, naming the flag",
    (text) => {
      expect(() => parseDurationMs("--grace", text)).toThrow(UsageError);
      expect(() => parseDurationMs("--grace", text)).toThrow(/^--grace ".*" is not a duration; give 500ms, 10s/);
    },
  );

  it("loses nothing as a protobuf duration", () => {
    expect(toDuration(1500)).toEqual({ seconds: 1n, nanos: 500_000_000 });
    fc.assert(
      fc.property(fc.nat(), (ms) => {
        const { seconds, nanos } = toDuration(ms);
        return Number(seconds) * 1000 + nanos / 1e6 === ms;
      }),
    );
  });
});

describe("a size", () => {
  it.each([
    ["1048576", 1_048_576n],
    ["64k", 65_536n],
    ["256M", 268_435_456n],
    ["256MiB", 268_435_456n],
    ["256mb", 268_435_456n],
    ["1.5G", 1_610_612_736n],
    ["2t", 2_199_023_255_552n],
    ["10b", 10n],
  ])("%s is %i bytes", (text, bytes) => {
    expect(parseSizeBytes("--memory", text)).toBe(bytes);
  });

  it.each(["", "M", "-1", "1e3", "10bb", "5x", "1.M", "0x10", "99999999t"])(
    "%j is refused, naming the flag",
    (text) => {
      expect(() => parseSizeBytes("--memory", text)).toThrow(/^--memory ".*" is not a size/);
    },
  );

  it("of a limit may be -1 for none", () => {
    expect(parseLimitBytes("--memory-swap", "-1")).toBe(-1n);
    expect(parseLimitBytes("--memory-swap", "1k")).toBe(1024n);
  });
});

describe("a limit on a disk", () => {
  it.each([
    ["8:0:rbps=1M", { major: 8n, minor: 0n, rates: [["rbps", 1_048_576n]] }],
    [
      "/dev/sda:wbps=1.5k,riops=2k,wiops=max",
      {
        path: "/dev/sda",
        rates: [
          ["wbps", 1536n],
          ["riops", 2000n],
          ["wiops", 0n],
        ],
      },
    ],
    ["/dev/disk/by-path/pci-0:0:1:rbps=1", { path: "/dev/disk/by-path/pci-0:0:1", rates: [["rbps", 1n]] }],
  ])("%s is of a device by its number or its path, and rates", (text, max) => {
    expect(parseIoMax("--io-max", text)).toEqual(max);
  });

  it.each([
    ["rbps=1M", "does not name a device"],
    ["sda:rbps=1M", "does not name a device"],
    ["8:rbps=1M", "does not name a device"],
    ["/dev/sda", "does not name a device"],
    ["/dev/sda:", "is not one of rbps, wbps, riops, wiops"],
    ["/dev/sda:1M", '"1M" is not one of rbps'],
    ["/dev/sda:rbps=1M,", '"" is not one of rbps'],
    ["/dev/sda:rbps=fast", '--io-max rbps "fast" is not a size'],
    ["/dev/sda:riops=1Mi", '--io-max riops "1Mi" is not a rate'],
    ["/dev/sda:rbps=0", "would stop all of it"],
    ["/dev/sda:rbps=", '--io-max rbps "" is not a size'],
    ["/dev/sda:rbps=1=2", '"1=2" is not a size'],
  ])("%s is refused", (text, message) => {
    expect(() => parseIoMax("--io-max", text)).toThrow(UsageError);
    expect(() => parseIoMax("--io-max", text)).toThrow(message);
  });

  it("counts operations by the thousand", () => {
    expect(["7", "1k", "1.5K", "2M", "1g"].map((text) => parseRate("--io-max", text))).toEqual([
      7n,
      1000n,
      1500n,
      2_000_000n,
      1_000_000_000n,
    ]);
    for (const text of ["", "k", "-1", "1e3", "1ki", "99999999999g"])
      expect(() => parseRate("--io-max", text)).toThrow(/is not a rate/);
  });
});

describe("a device", () => {
  it.each([
    ["/dev/fuse", { path: "/dev/fuse" }],
    ["/dev/sda:r", { path: "/dev/sda", access: "r" }],
    ["/dev/disk/by-path/pci-0:0:1:rwm", { path: "/dev/disk/by-path/pci-0:0:1", access: "rwm" }],
    ["/dev/disk/by-path/pci-0:0:1", { path: "/dev/disk/by-path/pci-0:0:1" }],
    ["c:10:229:rw", { type: "c", major: 10n, minor: 229n, access: "rw" }],
    ["b:8:*", { type: "b", major: 8n }],
    ["c:*:*:m", { type: "c", access: "m" }],
  ])("%s is of a path or a number, and what may be done with it", (text, rule) => {
    expect(parseDevice("--device", text)).toEqual({ allow: true, ...rule });
  });

  it.each([
    ["", "does not name a device"],
    ["fuse", "does not name a device"],
    ["a:1:3", "does not name a device"],
    ["c:1", "does not name a device"],
    ["c:-1:3:rw", "does not name a device"],
    ["c:1:3:4:rw", "does not name a device"],
    ["/dev/fuse:", "has no access"],
    ["/dev/fuse:rx", "has no access; give some of r, w and m, as in /dev/fuse:rw"],
    ["c:1:3:", "has no access"],
  ])("%j is refused", (text, message) => {
    expect(() => parseDevice("--device", text)).toThrow(UsageError);
    expect(() => parseDevice("--device", text)).toThrow(message);
  });
});

describe("other values", () => {
  it("turn CPUs into quota and period, and refuse what the kernel would", () => {
    expect(parseCpus("--cpus", "0.5")).toEqual({ quota: 50_000n, period: 100_000n });
    expect(parseCpus("--cpus", "2")).toEqual({ quota: 200_000n, period: 100_000n });
    for (const text of ["0", "0.001", "-1", "x", "", "1e9"]) {
      expect(() => parseCpus("--cpus", text)).toThrow(/^--cpus ".*" is not a number of CPUs/);
    }
  });

  it("read signals by name and by number", () => {
    expect(["TERM", "SIGTERM", "term", "15"].map((text) => parseSignal("--signal", text))).toEqual([15, 15, 15, 15]);
    expect(parseSignal("--signal", "64")).toBe(64);
    for (const text of ["NOPE", "", "-9", "1.5"])
      expect(() => parseSignal("--signal", text)).toThrow(/is not a signal/);
  });

  it("read counts from the least on", () => {
    expect(parseCount("--pids", "-1", -1)).toBe(-1n);
    for (const text of ["-2", "1.5", "x", "", "1e3"]) expect(() => parseCount("--pids", text, -1)).toThrow(/--pids/);
  });

  it("read pairs: the last of a name, values with = in them, and names whose value is elsewhere", () => {
    const pairs = parsePairs("--env", ["A=1", "B=x=y", "A=2", "C", "D="], (name) => (name === "C" ? "3" : undefined));
    expect([...pairs]).toEqual([
      ["A", "2"],
      ["B", "x=y"],
      ["C", "3"],
      ["D", ""],
    ]);
    expect(() => parsePairs("--label", ["x"])).toThrow('--label "x" has no value; give --label NAME=VALUE');
    expect(() => parsePairs("--label", ["=x"])).toThrow('--label "=x" has no name');
  });

  it("take only the words they know", () => {
    expect(parseWord("--source", "stdout", ["stdout", "stderr"])).toBe("stdout");
    expect(() => parseWord("--source", "both", ["stdout", "stderr"])).toThrow('"both" is not one of stdout, stderr');
  });
});

describe("a limit of setrlimit", () => {
  it.each([
    ["nofile=1024:4096", { name: "nofile", soft: 1024n, hard: 4096n }],
    ["core=0", { name: "core", soft: 0n, hard: 0n }],
    ["as=1G:unlimited", { name: "as", soft: 1n << 30n }],
    ["core=unlimited", { name: "core" }],
  ])("%s", (text, limit) => {
    expect(parseRlimit("--rlimit", text)).toEqual(limit);
  });

  it.each(["nofile", "nofile=", "=1", "nofile=1:", "NOFILE=1", "nofile=lots", "nofile=-1"])("%s is refused", (text) => {
    expect(() => parseRlimit("--rlimit", text)).toThrow(/^--rlimit/);
  });
});

describe("a umask", () => {
  it.each([
    ["022", 0o22],
    ["0077", 0o77],
    ["7", 7],
  ])("%s is octal", (text, umask) => {
    expect(parseUmask("--umask", text)).toBe(umask);
  });

  it.each(["", "8", "u=rwx", "1777", "00777"])("%j is refused", (text) => {
    expect(() => parseUmask("--umask", text)).toThrow(/--umask .* is not a umask; give 022 or 077$/);
  });
});
