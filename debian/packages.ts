import { execFileSync } from "node:child_process";
import { copyFileSync, readdirSync, readFileSync, symlinkSync, writeFileSync } from "node:fs";
import { basename, dirname, join } from "node:path";
import { gzipSync } from "node:zlib";
import { program } from "../cli/daemon/jobsd.ts";
import { jobsctl } from "../cli/jobsctl.ts";
import manifest from "../package.json" with { type: "json" };
import { flags } from "../cli/daemon/settings.ts";
import type { Architecture } from "./architecture.ts";
import { bashCompletion } from "./completion.ts";
import { configuration } from "./configuration.ts";
import { copyright } from "./copyright.ts";
import { configurationPage, jobsctlPage, jobsdPage } from "./manual.ts";

export const ROOT = dirname(import.meta.dirname);
/** Where the programs find Node and what they load: bin/jobsctl and bin/jobsd look beside themselves. */
const LIB = "usr/lib/jobs";
/** What Node is linked against, with the least version that has the symbols it uses. */
const NODE_NEEDS = "libc6 (>= 2.28), libatomic1 (>= 4.8), libgcc-s1 (>= 4.2), libstdc++6 (>= 5.2)";
/** What is built from C. */
const NATIVE = ["supervisor", "verify.node", "notify.node"];
const MAINTAINER_SCRIPTS = ["postinst", "prerm", "postrm"];

/** A Debian package. */
export interface Package {
  readonly name: string;
  readonly depends: string;
  /** The synopsis, then the lines of the long description. */
  readonly about: readonly [string, ...string[]];
  /** Paths without the leading slash, and what makes the file or link at a path. */
  readonly files: Readonly<Record<string, (path: string) => void>>;
  /** Maintainer scripts by their names: deb-postinst(5). */
  readonly scripts: Readonly<Record<string, string>>;
}

/** What the packages are made for. */
export interface Release {
  readonly version: string;
  readonly architecture: Architecture;
  readonly date: Date;
}

const copy = (from: string) => (path: string) => copyFileSync(join(ROOT, from), path);
const strip =
  ({ architecture }: Release, from: string) =>
  (path: string): void =>
    void execFileSync(architecture.strip, ["-o", path, from]);
const link = (target: string) => (path: string) => symlinkSync(target, path);
const text = (content: string) => (path: string) => writeFileSync(path, content);
const zip = (content: string) => (path: string) => writeFileSync(path, gzipSync(content, { level: 9 }));

/** Returns the packages of this checkout, as it is built. */
export function packages(release: Release): readonly Package[] {
  return [client(release), daemon(release)];
}

function client(release: Release): Package {
  return {
    name: "jobsctl",
    depends: NODE_NEEDS,
    about: [
      "client of jobsd, which runs jobs on Linux machines",
      "Starts, stops, queries and streams jobs on a worker over mutual TLS 1.3, and",
      "makes the certificates for that. It brings the Node.js along that it runs on.",
    ],
    files: {
      ...programFiles("jobsctl", "bin"),
      ...built([...bundle("jobsctl.js"), "package.json"]),
      "usr/share/jobs/jobs.protoset": copy("build/jobs.protoset"),
      [`${LIB}/bin/node`]: strip(release, release.architecture.node),
      "usr/share/man/man1/jobsctl.1.gz": zip(jobsctlPage(jobsctl, release.date)),
      "usr/share/bash-completion/completions/jobsctl": text(bashCompletion(jobsctl)),
      ...papers(release),
    },
    scripts: {},
  };
}

function daemon(release: Release): Package {
  const jobsd = program(ROOT, manifest.version);
  const ofClient = bundle("jobsctl.js");
  const units = ["jobs.slice", "jobs.service", "jobsd.service"];
  return {
    name: "jobsd",
    depends: `jobsctl (= ${release.version}), systemd (>= 247), passwd`,
    about: [
      "runs jobs on this machine for people and programs elsewhere",
      "A daemon runs each command as a job in a cgroup of its own, with limits.",
      "Jobs go on while the daemon is restarted or upgraded.",
    ],
    files: {
      ...programFiles("jobsd", "sbin"),
      ...built([...bundle("jobsd.js")].filter((name) => !ofClient.has(name))),
      ...Object.fromEntries(
        NATIVE.map((name) => [`${LIB}/build/${name}`, strip(release, join(release.architecture.native, name))]),
      ),
      ...Object.fromEntries(units.map((unit) => [`lib/systemd/system/${unit}`, copy(`debian/files/${unit}`)])),
      "usr/lib/sysusers.d/jobsd.conf": copy("debian/files/sysusers.conf"),
      "usr/lib/tmpfiles.d/jobsd.conf": copy("debian/files/tmpfiles.conf"),
      "usr/share/jobs/alerts.yaml": copy("docs/watch/alerts.yaml"),
      "usr/share/jobs/dashboard.json": copy("docs/watch/dashboard.json"),
      "etc/jobs/jobsd.toml": text(configuration(readFileSync(join(ROOT, "docs/jobsd.toml"), "utf8"))),
      "usr/share/man/man5/jobsd.toml.5.gz": zip(configurationPage(jobsd, flags, release.date)),
      "usr/share/man/man8/jobsd.8.gz": zip(jobsdPage(jobsd, release.date)),
      "usr/share/bash-completion/completions/jobsd": text(bashCompletion(jobsd)),
      "usr/share/doc/jobsd": link("jobsctl"),
    },
    scripts: Object.fromEntries(
      MAINTAINER_SCRIPTS.map((name) => [name, readFileSync(join(ROOT, `debian/scripts/jobsd.${name}`), "utf8")]),
    ),
  };
}

/** @param directory of /usr, which is on the PATH of whoever uses the program */
function programFiles(name: string, directory: "bin" | "sbin"): Package["files"] {
  return {
    [`usr/${directory}/${name}`]: link(`../lib/jobs/bin/${name}`),
    [`${LIB}/bin/${name}`]: copy(`bin/${name}`),
    [`usr/share/lintian/overrides/${name}`]: copy(`debian/files/${name}.lintian`),
  };
}

function built(names: readonly string[]): Package["files"] {
  return Object.fromEntries(names.map((name) => [`${LIB}/dist/${name}`, copy(`dist/${name}`)]));
}

/** The built files that one of them loads, at once or later. */
function bundle(name: string, seen = new Set<string>()): Set<string> {
  if (seen.has(name)) return seen;
  seen.add(name);
  const content = readFileSync(join(ROOT, "dist", name), "utf8");
  const known = new Set(readdirSync(join(ROOT, "dist")));
  for (const [, path = ""] of content.matchAll(/["'`]\.\/([\w.-]+\.js)["'`]/g))
    if (known.has(basename(path))) bundle(path, seen);
  return seen;
}

/** What Debian's policy asks for (12.5, 12.7). That of jobsd is a link to it (12.5 allows that to one that depends on it). */
function papers({ version, date }: Release): Package["files"] {
  const entry = [
    `jobs (${version}) unstable; urgency=medium`,
    "",
    "  * CHANGELOG.md of the sources tells what is new.",
    "",
    ` -- ${maintainer}  ${date.toUTCString().replace("GMT", "+0000")}`,
    "",
  ];
  return {
    "usr/share/doc/jobsctl/changelog.gz": zip(entry.join("\n")),
    "usr/share/doc/jobsctl/copyright": text(copyright(ROOT)),
  };
}

/** No address: no mail is read for this project. */
export const maintainer = "The authors of jobs <nobody@localhost.localdomain>";
