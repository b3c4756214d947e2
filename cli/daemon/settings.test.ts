import { resolve } from "node:path";
import { describe, expect, it } from "vitest";
import { parseArchive } from "./settings.ts";

/** Returns what is given of an archive by flags. */
function archive(text: string | undefined, more: { readonly region?: string; readonly endpoint?: string } = {}) {
  const { region, endpoint } = more;
  const texts = new Map([
    ["archive", text],
    ["archive-region", region],
    ["archive-endpoint", endpoint],
  ]);
  return { text: (flag: string) => texts.get(flag), nameOf: (flag: string) => `--${flag}` };
}

describe("an archive", () => {
  it.each([
    ["s3://logs", {}, { kind: "s3", bucket: "logs", prefix: "" }],
    ["s3://logs/", {}, { kind: "s3", bucket: "logs", prefix: "" }],
    [
      "s3://my.logs/a/b/",
      { region: "eu-west-1" },
      { kind: "s3", bucket: "my.logs", prefix: "a/b", region: "eu-west-1" },
    ],
    [
      "s3://logs/p",
      { endpoint: "http://127.0.0.1:9000" },
      { kind: "s3", bucket: "logs", prefix: "p", endpoint: "http://127.0.0.1:9000" },
    ],
    ["/mnt/archive", {}, { kind: "directory", path: "/mnt/archive" }],
    ["a/../b", {}, { kind: "directory", path: resolve("b") }],
    [undefined, {}, undefined],
  ])("%s with %j", (text, more, place) => {
    expect(parseArchive(archive(text, more))).toEqual(place);
  });

  it.each(["s3://", "s3://UPPER", "s3:logs", "http://logs", "s3://a b/c"])("%s is refused", (text) => {
    expect(() => parseArchive(archive(text))).toThrow(/^--archive ".*" is not an archive; give s3:\/\/BUCKET\/PREFIX/);
  });
});
