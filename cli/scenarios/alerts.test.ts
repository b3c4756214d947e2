import { execFileSync, spawnSync } from "node:child_process";
import { existsSync, mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { describe, expect, it } from "vitest";
import { unless } from "../../src/testing/root.ts";

const ROOT = fileURLToPath(new URL("../..", import.meta.url));
const WATCH = join(ROOT, "docs/watch");
const CACHE = join(ROOT, "node_modules/.cache/jobs-tests/prometheus");

/** Finds Prometheus' own tool; on Debian it is taken out of the package once, and nothing is installed. */
function findPromtool(): { readonly path: string; readonly lacking?: string } {
  const path = join(CACHE, "usr/bin/promtool");
  if (existsSync(path)) return { path };
  if (spawnSync("promtool", ["--version"]).status === 0) return { path: "promtool" };
  mkdirSync(CACHE, { recursive: true });
  const script = "apt-get download -q prometheus && dpkg -x prometheus_*.deb . && rm prometheus_*.deb";
  const { status } = spawnSync("sh", ["-c", script], { cwd: CACHE });
  return status === 0 && existsSync(path)
    ? { path }
    : { path, lacking: "it takes promtool, of Debian's package prometheus" };
}

const { path: PROMTOOL, lacking } = findPromtool();

describe("what docs/ has for Prometheus", unless(lacking), () => {
  const promtool = (...args: readonly string[]): string =>
    execFileSync(PROMTOOL, args, { cwd: WATCH, encoding: "utf8" });

  it("is a file of rules that are well-formed", () => {
    expect(promtool("check", "rules", "alerts.yaml")).toMatch(/SUCCESS: \d+ rules found/);
  });

  it("fires when it should, and is quiet otherwise, each rule of it", () => {
    expect(promtool("test", "rules", "alerts.test.yaml")).toContain("SUCCESS");
    const [rules, tests] = ["alerts.yaml", "alerts.test.yaml"].map((name) => readFileSync(join(WATCH, name), "utf8"));
    const named = [...(rules ?? "").matchAll(/- alert: (\w+)/g)].map(([, name = ""]) => name);
    expect(named.length).toBeGreaterThan(10);
    for (const name of named)
      for (const how of ["fires", "is quiet"]) expect(tests).toContain(`- name: ${name} ${how}\n`);
  });

  it("is a dashboard whose every query can be read", () => {
    const dashboard: Dashboard = JSON.parse(readFileSync(join(WATCH, "dashboard.json"), "utf8"));
    const queries = dashboard.panels.flatMap(({ targets }) => targets.map(({ expr }) => expr));
    const dir = mkdtempSync(join(tmpdir(), "jobs-dashboard-"));
    const plain = queries.map((query) => query.replaceAll("$instance", ".+").replaceAll("$__rate_interval", "1m"));
    const rules = plain.map((expr, n) => ({ record: `panel:${n}`, expr }));
    // JSON is YAML.
    writeFileSync(join(dir, "rules.yaml"), JSON.stringify({ groups: [{ name: "panels", rules }] }));
    try {
      expect(promtool("check", "rules", join(dir, "rules.yaml"))).toContain(`SUCCESS: ${queries.length} rules found`);
    } finally {
      rmSync(dir, { recursive: true });
    }
  });
});

interface Dashboard {
  readonly panels: readonly { readonly targets: readonly { readonly expr: string }[] }[];
}
